"""
Fine-tunes a model for semantic segmentation with Transformers' Trainer on a stream of images and masks.

    python scripts/finetune_segmentation_with_trainer.py --model path/or/hub-id --dataset path/to/folder \\
        --output_dir out --max_steps 2000 --per_device_train_batch_size 8 --learning_rate 1e-4 --eval_steps 200 \\
        --save_steps 200

- --model is a segmenter, whose classifier is replaced if the classes are others, or an image classifier such as a PVT
  trained on ImageNet: its weights go into the backbone of a new Semantic FPN.
- The folder has images and masks (`images/training/a.jpg`, `annotations/training/a.png` ...), parquet files or
  webdataset tars; a Hub data set id works too, and 'digit-scenes', which is built in. --class_names tells the classes:
  'ade20k', names separated by commas, or a text file. --reduce_labels for masks whose 0 is no class (ADE20K).
- All arguments of `TrainingArguments` are there. These defaults differ from Transformers': evaluation and checkpoints
  every 100 steps; the checkpoint with the best `mean_iou` is loaded at the end; two checkpoints are kept;
  --remove_unused_columns False; evaluation image by image. Mean IoU is counted batch by batch (--batch_eval_metrics),
  so that no label map is kept.
- Training is on crops (random scale, crop, flip, photometric distortion). Evaluation is at each image's own size, with
  the figures of `evaluate_semantic_segmentation.py`. Batches of several images, or several processes, need images of
  one size: with --eval_size N images and masks are resized to N x N, and the figures are of these.
- A damaged image, a mask that does not fit or a label that is no class is skipped, named and counted; more than
  --max_bad_share of them end the run.
- Several processes: `torchrun --nproc_per_node 2 ...`, on CPUs with --use_cpu; see `finetune_with_trainer.py`. For
  large runs use `train_semantic_segmentation.py`.

Afterwards `out` has the model, its processor, `all_results.json` with the figures of every class, and
`trainer_state.json`; open it with `AutoModelForSemanticSegmentation.from_pretrained("out")` or
`pipeline("image-segmentation", "out")`, or give it to `evaluate_semantic_segmentation.py`.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from finetune_with_trainer import DEFAULTS as TRAINER_DEFAULTS
from finetune_with_trainer import Encode, StreamTrainer, train_and_evaluate, training_steps
from PIL import Image
from transformers import (
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    EvalPrediction,
    HfArgumentParser,
    PreTrainedModel,
    TrainingArguments,
)

from pvt_hf import SemanticFpnConfig, SemanticFpnForSemanticSegmentation, load_pretrained_backbone
from pvt_hf.data.batches import StreamError
from pvt_hf.engine.processes import check_world_size
from pvt_hf.metrics.mean_iou import MeanIoU
from pvt_hf.models.image_processing_semantic import PvtSemanticImageProcessor, best_classes
from pvt_hf.tasks.classification.transforms import ProcessorTransform
from pvt_hf.tasks.models import read_class_names, synchronize_batch_norm
from pvt_hf.tasks.segmentation.evaluate import class_table, format_table
from pvt_hf.tasks.segmentation.samples import SegmentationSample
from pvt_hf.tasks.segmentation.streams import open_segmentation_stream
from pvt_hf.tasks.segmentation.train import training_transform
from pvt_hf.weights.opening import check_model_path


DEFAULTS = {
    **TRAINER_DEFAULTS,
    "metric_for_best_model": "mean_iou",
    "batch_eval_metrics": True,
    "per_device_eval_batch_size": 1,
}


@dataclass
class ScriptArguments:
    model: str = field(metadata={"help": "Segmenter to fine-tune, or classifier to build one on: a folder or Hub id."})
    dataset: str = field(metadata={"help": "'digit-scenes', a folder, or a Hub data set id."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str = field(default="validation", metadata={"help": "Split to evaluate on."})
    image_column: str = field(default="", metadata={"help": "If it cannot be found by its type and name."})
    mask_column: str = field(default="", metadata={"help": "If it cannot be found by its type and name."})
    class_names: str = field(
        default="", metadata={"help": "'ade20k', names separated by commas, or a text file with a name per line."}
    )
    reduce_labels: bool = field(default=False, metadata={"help": "Label 0 of the masks is no class, 1 is the first."})
    scene_size: int = field(default=128, metadata={"help": "Side in pixels of the built-in scenes."})
    shuffle_buffer: int = field(default=1000, metadata={"help": "Undecoded images held for shuffling; 0 keeps order."})
    shortest_edge: int = field(default=512, metadata={"help": "Limit of the shorter side, in training at scale 1."})
    longest_edge: int = field(default=2048, metadata={"help": "Limit of the longer side, in training at scale 1."})
    min_scale: float = field(default=0.5, metadata={"help": "Smallest random factor on these limits."})
    max_scale: float = field(default=2.0, metadata={"help": "Largest."})
    crop_size: int = field(default=512, metadata={"help": "Side in pixels of the training crops."})
    max_class_share: float = field(default=0.75, metadata={"help": "Draw crops again with more of one class."})
    horizontal_flip: float = field(default=0.5, metadata={"help": "Probability."})
    photometric: bool = field(default=True, metadata={"help": "Distort brightness, contrast, saturation and hue."})
    eval_size: int = field(
        default=0,
        metadata={
            "help": "Evaluate on images and masks of this side, as several processes have to; 0: at their own size."
        },
    )
    max_bad_share: float = field(default=0.01, metadata={"help": "Largest share of unusable samples, of 100 or more."})


class EvaluationTransform:
    """
    An image and its (H, W) labels to `pixel_values` as the processor prepares them and labels at the image's own size,
    (H, W) int64; both of `eval_size` x `eval_size` (up to a multiple of 32) unless that is 0.
    """

    def __init__(self, processor: Any, eval_size: int):
        self.processor, self.eval_size = processor, eval_size

    def __call__(self, image: Image.Image, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.eval_size:
            return ProcessorTransform(self.processor)(image), torch.from_numpy(labels)
        size = {"height": self.eval_size, "width": self.eval_size}
        # The labels are reduced already, if they have to be.
        inputs = self.processor(image, labels, size=size, do_reduce_labels=False, return_tensors="pt")
        return inputs["pixel_values"][0], inputs["labels"][0].long()


def collate(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Samples to a batch. Raises a ValueError if they differ in size."""
    shapes = {
        name: sorted({tuple(sample[name].shape[-2:]) for sample in samples}) for name in ("labels", "pixel_values")
    }
    if any(len(found) > 1 for found in shapes.values()):
        raise ValueError(
            f"A batch has images of the sizes (height, width) {shapes['labels']}, prepared {shapes['pixel_values']}. "
            "Evaluate with --per_device_eval_batch_size 1, or on images of one size, --eval_size."
        )
    return {name: torch.stack([sample[name] for sample in samples]) for name in shapes}


def load_model(script: ScriptArguments, class_names: tuple[str, ...]) -> tuple[PreTrainedModel, Any]:
    """The model to train and its processor: those of a segmenter, or new ones on a classifier as the backbone."""
    labels = {
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: label for label, name in enumerate(class_names)},
    }
    config = AutoConfig.from_pretrained(script.model)
    processor = AutoImageProcessor.from_pretrained(script.model)
    if type(config) in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
        processor.do_reduce_labels = script.reduce_labels
        model = AutoModelForSemanticSegmentation.from_pretrained(
            script.model, num_labels=len(class_names), ignore_mismatched_sizes=True, **labels
        )
        return model, processor
    config.out_features = config.stage_names[-4:]
    model = SemanticFpnForSemanticSegmentation(SemanticFpnConfig(backbone_config=config, **labels))
    print(f"New Semantic FPN on {script.model}: {load_pretrained_backbone(model, script.model)}")
    processor = PvtSemanticImageProcessor(
        size={"shortest_edge": script.shortest_edge, "longest_edge": script.longest_edge},
        image_mean=processor.image_mean,
        image_std=processor.image_std,
        do_reduce_labels=script.reduce_labels,
    )
    return model, processor


def main(script: ScriptArguments, training: TrainingArguments) -> dict[str, Any]:
    """Trains, evaluates the best checkpoint, saves it; returns the metrics of that evaluation."""
    check_world_size(training.distributed_state)
    check_model_path(script.model)
    if training.world_size > 1 and not script.eval_size:
        raise ValueError("Several processes evaluate on images of one size: give --eval_size.")
    columns = {
        "image_column": script.image_column or None,
        "mask_column": script.mask_column or None,
        "image_size": script.scene_size,
    }
    train_stream = open_segmentation_stream(script.dataset, script.train_split, **columns)
    eval_stream = open_segmentation_stream(script.dataset, script.eval_split, **columns)
    class_names = read_class_names(script.class_names)
    # The sample knows the classes, and the model's processor the colours' mean: the transform follows.
    train_sample = SegmentationSample(train_stream, None, class_names, script.reduce_labels)
    class_names = train_sample.class_names
    model, processor = load_model(script, class_names)
    train_sample.transform = training_transform(script, processor)
    eval_sample = SegmentationSample(
        eval_stream, EvaluationTransform(processor, script.eval_size), class_names, script.reduce_labels
    )
    is_main = training.process_index == 0
    train_set, eval_set = (
        Encode(sample.stream, sample, script.max_bad_share, is_main) for sample in (train_sample, eval_sample)
    )

    metric, by_class = MeanIoU(num_labels=len(class_names)), {}

    def label_maps(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.stack([best_classes(scores, *labels.shape[1:]) for scores in logits])  # (batch, height, width)

    def compute_metrics(prediction: EvalPrediction, compute_result: bool) -> dict[str, float]:
        metric.add_batch(predictions=prediction.predictions, references=prediction.label_ids)
        if not compute_result:
            return {}
        samples = len(metric)
        by_class.update(metric.compute())
        means = {name: by_class[name] for name in ("mean_iou", "mean_accuracy", "overall_accuracy")}
        return {**means, "samples": samples}

    training.max_steps = training_steps(training, train_stream)
    training.batch_eval_metrics = True  # what `compute_metrics` is made for
    training.label_names = ["labels"]
    trainer = StreamTrainer(
        synchronize_batch_norm(training.distributed_state, model),
        training,
        data_collator=collate,
        train_dataset=train_set.apply(training.seed, script.shuffle_buffer),
        eval_dataset=eval_set.apply(),
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=label_maps,
        processing_class=processor,
    )
    metrics = train_and_evaluate(trainer, train_set, eval_set)
    metrics["eval_classes"] = class_table(by_class, class_names)
    trainer.save_metrics("eval", metrics)
    if is_main:
        print(
            f"{format_table(metrics['eval_classes'])}\nBest checkpoint: {trainer.state.best_model_checkpoint}. "
            f"mean_iou {metrics['eval_mean_iou']:.4f} on {metrics['eval_samples']} samples. Skipped: "
            f"{int(train_set.bad.sum())} in training, {metrics['eval_skipped']} in evaluation. Saved in "
            f"{training.output_dir}."
        )
    trainer.accelerator.end_training()
    return metrics


def parse_arguments(arguments: list[str] | None = None) -> tuple[ScriptArguments, TrainingArguments]:
    parser = HfArgumentParser((ScriptArguments, TrainingArguments))
    parser.set_defaults(**DEFAULTS)
    return parser.parse_args_into_dataclasses(arguments)


if __name__ == "__main__":
    try:
        main(*parse_arguments())
    except (OSError, ValueError, StreamError) as error:
        raise SystemExit(f"error: {error}") from None
