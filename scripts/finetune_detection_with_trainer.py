"""
Fine-tunes a detector with Transformers' Trainer on a stream of images with objects.

    python scripts/finetune_detection_with_trainer.py --model path/or/hub-id --dataset path/to/coco --output_dir out \\
        --max_steps 2000 --per_device_train_batch_size 4 --learning_rate 1e-4 --eval_steps 200 --save_steps 200

- --model is a detector (RetinaNet, DETR ...), whose classifier is replaced if the classes are others, or an image
  classifier such as a PVT trained on ImageNet: its weights go into the backbone of a new --architecture.
- The data are COCO's folders, parquet files or webdataset tars with a column of objects, a Hub data set id, or
  'digit-scenes', which is built in. --class_names tells the classes where the data do not.
- All arguments of `TrainingArguments` are there. These defaults differ from Transformers': evaluation and checkpoints
  every 100 steps; the checkpoint with the best `ap` is loaded at the end; two checkpoints are kept;
  --remove_unused_columns False. AP is collected batch by batch (--batch_eval_metrics).
- The AP is COCO's, of boxes at each image's own size. Crowds and boxes without area are left out of it; the figures for
  papers are those of `evaluate_object_detection.py`, which has masks, too.
- A damaged image or impossible annotation is skipped, named and counted; more than --max_bad_share end the run.
- One process: for several, and for large runs, use `train_object_detection.py`.

Afterwards `out` has the model, its processor, `all_results.json` and `trainer_state.json`; open it with
`AutoModelForObjectDetection.from_pretrained("out")` or `pipeline("object-detection", "out")`.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from finetune_with_trainer import DEFAULTS as TRAINER_DEFAULTS
from finetune_with_trainer import Encode, StreamTrainer, train_and_evaluate, training_steps
from transformers import (
    MODEL_FOR_OBJECT_DETECTION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForObjectDetection,
    EvalPrediction,
    HfArgumentParser,
    PreTrainedModel,
    TrainingArguments,
)

from pvt_hf import load_pretrained_backbone
from pvt_hf.data.batches import StreamError
from pvt_hf.engine.processes import check_world_size
from pvt_hf.metrics.coco_ap import FIGURES, CocoAP
from pvt_hf.tasks.detection.evaluate_stream import MODELS_WITH_MASKS, SCORE_THRESHOLDS
from pvt_hf.tasks.detection.samples import DetectionSample, collate_detection
from pvt_hf.tasks.detection.streams import open_detection_stream
from pvt_hf.tasks.detection.train import ARCHITECTURES
from pvt_hf.tasks.detection.transforms import DetectionTransform
from pvt_hf.tasks.models import read_class_names
from pvt_hf.weights.opening import check_model_path


DEFAULTS = {**TRAINER_DEFAULTS, "metric_for_best_model": "ap", "batch_eval_metrics": True}


@dataclass
class ScriptArguments:
    model: str = field(metadata={"help": "Detector to fine-tune, or classifier to build one on: a folder or Hub id."})
    dataset: str = field(metadata={"help": "'digit-scenes', a folder, or a Hub data set id."})
    architecture: str = field(
        default="retinanet", metadata={"help": "To build on a classifier.", "choices": ["retinanet", "detr"]}
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str = field(default="validation", metadata={"help": "Split to evaluate on."})
    image_column: str = field(default="", metadata={"help": "If it cannot be found by its type."})
    objects_column: str = field(default="", metadata={"help": "If it cannot be found by its type."})
    class_names: str = field(
        default="", metadata={"help": "Names separated by commas, or a text file with a name per line."}
    )
    scene_size: int = field(default=128, metadata={"help": "Side in pixels of the built-in scenes."})
    shuffle_buffer: int = field(default=1000, metadata={"help": "Undecoded images held for shuffling; 0 keeps order."})
    shortest_edges: list[int] = field(
        default_factory=lambda: [800], metadata={"help": "Lengths of the shorter side in training, one per image."}
    )
    eval_shortest_edge: int = field(default=800, metadata={"help": "Length of the shorter side in evaluation."})
    longest_edge: int = field(default=1333, metadata={"help": "Limit of the longer side."})
    horizontal_flip: float = field(default=0.5, metadata={"help": "Probability."})
    max_bad_share: float = field(default=0.01, metadata={"help": "Largest share of unusable samples, of 100 or more."})


def load_model(script: ScriptArguments, class_names: tuple[str, ...]) -> tuple[PreTrainedModel, Any]:
    """The model to train and its processor: those of a detector, or new ones on a classifier as the backbone."""
    labels = {
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: label for label, name in enumerate(class_names)},
    }
    config = AutoConfig.from_pretrained(script.model)
    processor = AutoImageProcessor.from_pretrained(script.model)
    size = {"shortest_edge": script.eval_shortest_edge, "longest_edge": script.longest_edge}
    if type(config) in MODEL_FOR_OBJECT_DETECTION_MAPPING:
        model = AutoModelForObjectDetection.from_pretrained(
            script.model, num_labels=len(class_names), ignore_mismatched_sizes=True, **labels
        )
        processor.size = size
        return model, processor
    architecture = ARCHITECTURES[script.architecture]
    config.out_features = architecture.out_features
    model = AutoModelForObjectDetection.from_config(architecture.config_class(backbone_config=config, **labels))
    print(f"New {type(model).__name__} on {script.model}: {load_pretrained_backbone(model, script.model)}")
    processor = architecture.processor_class(size=size, image_mean=processor.image_mean, image_std=processor.image_std)
    return model, processor


def main(script: ScriptArguments, training: TrainingArguments) -> dict[str, Any]:
    """Trains, evaluates the best checkpoint, saves it; returns the metrics of that evaluation."""
    check_world_size(training.distributed_state)
    check_model_path(script.model)
    if training.world_size > 1:
        raise ValueError(
            f"{training.world_size} processes, but objects of different numbers per image are gathered from one alone: "
            "start one process, or use train_object_detection.py."
        )
    columns = {
        "image_column": script.image_column or None,
        "objects_column": script.objects_column or None,
        "image_size": script.scene_size,
    }
    streams = [
        open_detection_stream(script.dataset, split, **columns) for split in (script.train_split, script.eval_split)
    ]
    class_names = read_class_names(script.class_names)
    # The sample knows the classes, and the model's processor the colours' mean: the transform follows.
    train_sample, eval_sample = (DetectionSample(stream, None, class_names) for stream in streams)
    class_names = train_sample.class_names
    model, processor = load_model(script, class_names)
    if model.config.model_type in MODELS_WITH_MASKS:
        raise ValueError(f"{script.model} finds masks: train it with train_object_detection.py.")
    for sample, edges, flip in (
        (train_sample, script.shortest_edges, script.horizontal_flip),
        (eval_sample, [script.eval_shortest_edge], 0.0),
    ):
        sample.transform = DetectionTransform(
            tuple(processor.image_mean),
            tuple(processor.image_std),
            shortest_edges=edges,
            longest_edge=script.longest_edge,
            horizontal_flip=flip,
        )
    train_set, eval_set = (
        Encode(sample.stream, sample, script.max_bad_share, is_main=True) for sample in (train_sample, eval_sample)
    )
    metric = CocoAP(num_labels=len(class_names))
    threshold = SCORE_THRESHOLDS.get(model.config.model_type, 0.0)

    def detections(outputs: tuple[Any, ...], labels: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        _, logits, pred_boxes = outputs[:3]  # behind the dict of losses, in RetinaNet's outputs as in DETR's
        sizes = [label["orig_size"].tolist() for label in labels]
        outputs = SimpleNamespace(logits=logits, pred_boxes=pred_boxes)
        return processor.post_process_object_detection(outputs, threshold=threshold, target_sizes=sizes)

    def compute_metrics(prediction: EvalPrediction, compute_result: bool) -> dict[str, float]:
        for found, label in zip(prediction.predictions, prediction.label_ids):
            height, width = label["orig_size"].tolist()
            boxes = label["boxes"].double() * torch.tensor([width, height, width, height])
            boxes[:, :2] -= boxes[:, 2:] / 2
            metric.add(
                prediction={"scores": found["scores"], "labels": found["labels"], "boxes_xyxy": found["boxes"]},
                reference={"image_id": len(metric), "labels": label["class_labels"], "boxes_xywh": boxes},
            )
        if not compute_result:
            return {}
        samples, figures = len(metric), metric.compute()
        return {**{name: figures[name] for name in FIGURES}, "samples": samples}

    training.max_steps = training_steps(training, streams[0])
    training.batch_eval_metrics = True  # what `compute_metrics` is made for
    training.label_names = ["labels"]
    # Accelerate's default for streams cuts every tensor to the number of images, the objects of each label, too.
    training.accelerator_config.dispatch_batches = False
    trainer = StreamTrainer(
        model,
        training,
        data_collator=collate_detection,
        train_dataset=train_set.apply(training.seed, script.shuffle_buffer),
        eval_dataset=eval_set.apply(),
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=detections,
        processing_class=processor,
    )
    metrics = train_and_evaluate(trainer, train_set, eval_set)
    trainer.save_metrics("eval", metrics)
    print(
        f"Best checkpoint: {trainer.state.best_model_checkpoint}. AP {metrics['eval_ap']:.4f}, AP50 "
        f"{metrics['eval_ap50']:.4f} on {metrics['eval_samples']} images. Skipped: {int(train_set.bad.sum())} in "
        f"training, {metrics['eval_skipped']} in evaluation. Saved in {training.output_dir}."
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
    except (ImportError, OSError, ValueError, StreamError) as error:
        raise SystemExit(f"error: {error}") from None
