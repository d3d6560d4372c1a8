"""
Post-processing of the detectors' image processors: suppression and pasting of masks against loops over boxes and
pixels, DETR's choice against Transformers' own processor, and the pipelines.

    pytest tests/models/test_detection_post_processing.py
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig, pipeline
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
from transformers.pipelines.image_segmentation import ImageSegmentationPipeline
from transformers.pipelines.object_detection import ObjectDetectionPipeline

from pvt_hf import PvtDetectionImageProcessorPil, PvtInstanceImageProcessor, PvtInstanceImageProcessorPil
from pvt_hf.models import image_processing_detection

from ..support.image_processing_cases import CLASSES, noise


pytest_plugins = ["tests.support.image_processing_cases"]

DETECTORS = {contract: CLASSES[contract] for contract in ("detection", "detr", "instance")}


# --- Boxes ----------------------------------------------------------------------------------------------------------


def iou(one: list[float], other: list[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return both / (sum(areas) - both)


def suppressed(logits, boxes_cxcywh, threshold: float, size: tuple[int, int], nms: float, most: int) -> list[tuple]:
    """(score, label, box) of one image by loops over Python numbers."""
    pairs = []
    for row, (cx, cy, width, height) in zip(logits.double().sigmoid().tolist(), boxes_cxcywh.double().tolist()):
        edges = [cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2]
        box = [min(max(edge, 0), 1) * size[1 - i % 2] for i, edge in enumerate(edges)]
        pairs += [(score, label, box) for label, score in enumerate(row) if score > threshold]
    kept = []
    for score, label, box in sorted(pairs, key=lambda pair: -pair[0]):
        if all(label != other or iou(box, its) <= nms for _, other, its in kept):
            kept.append((score, label, box))
    return kept[:most]


@pytest.mark.parametrize("threshold, nms, most", [(0.5, 0.5, 100), (0.05, 0.5, 100), (0.3, 0.2, 20), (0.99999, 0.5, 9)])
def test_suppression_by_class(backend, threshold, nms, most):
    torch.manual_seed(0)
    logits = torch.randn(2, 150, 4) - 1
    boxes = torch.cat([torch.rand(2, 150, 2), torch.rand(2, 150, 2) * 0.4 + 0.05], dim=-1)
    sizes = [(300, 500), (90, 41)]
    processor = CLASSES["detection"][backend](nms_threshold=nms, max_detections=most)
    outputs = SimpleNamespace(logits=logits, pred_boxes=boxes)
    relative = processor.post_process_object_detection(outputs, threshold)
    for target_sizes in (sizes, torch.tensor(sizes), torch.tensor(sizes).unbind()):
        found = processor.post_process_object_detection(outputs, threshold, target_sizes)
        assert len(found) == 2
        for image, size in enumerate(sizes):
            expected = suppressed(logits[image], boxes[image], threshold, size, nms, most)
            assert len(expected) == {0.05: 100, 0.3: 20, 0.99999: 0}.get(threshold, len(expected))
            assert [label for _, label, _ in expected] == found[image]["labels"].tolist()
            np.testing.assert_allclose(found[image]["scores"], [score for score, _, _ in expected], rtol=1e-6)
            wanted = np.array([box for _, _, box in expected]).reshape(-1, 4)
            np.testing.assert_allclose(found[image]["boxes"], wanted, atol=1e-4)  # float32 pixels up to 500
            assert torch.equal(relative[image]["labels"], found[image]["labels"])
            scale = torch.tensor([size[1], size[0]] * 2)
            torch.testing.assert_close(relative[image]["boxes"] * scale, found[image]["boxes"])
            shapes = [tuple(found[image][name].shape) for name in ("scores", "labels", "boxes")]
            assert shapes == [(len(expected),), (len(expected),), (len(expected), 4)]
            assert found[image]["boxes"].dtype == torch.float32 and found[image]["labels"].dtype == torch.int64


def test_detr_is_that_of_transformers():
    torch.manual_seed(0)
    logits = torch.randn(3, 40, 6) * 2
    boxes = torch.rand(3, 40, 4) * 0.5 + 0.25  # 0.25 ± 0.375 reaches beyond the image
    boxes[:2, :, :2] = 0.5  # within it, where Transformers need not clip
    outputs = SimpleNamespace(logits=logits, pred_boxes=boxes)
    sizes = [(300, 500), (90, 41), (64, 64)]
    for processor in (built() for built in CLASSES["detr"].values()):
        for target_sizes, limits in ((sizes, sizes), (torch.tensor(sizes), sizes), (None, [(1, 1)] * 3)):
            for threshold in (0.0, 0.5, 1.0):
                arguments = (outputs, threshold, target_sizes)
                found = processor.post_process_object_detection(*arguments)
                native = DetrImageProcessorPil().post_process_object_detection(*arguments)
                for ours, theirs, (height, width) in zip(found, native, limits, strict=True):
                    order = theirs["scores"].argsort(descending=True)
                    assert len(order) == 40 if threshold == 0 else len(order) < 40
                    assert torch.equal(ours["labels"], theirs["labels"][order])
                    torch.testing.assert_close(ours["scores"], theirs["scores"][order])
                    clipped = theirs["boxes"].clamp(min=0).minimum(torch.tensor([width, height] * 2).float())
                    torch.testing.assert_close(ours["boxes"], clipped[order])
        assert not torch.equal(clipped, theirs["boxes"]) or threshold == 1.0


@pytest.mark.parametrize("sizes", [[], [(4, 4)], [(4, 4)] * 3, [(4, 4), (4, 0)], [(4, 4), (3, 4, 4)]])
@pytest.mark.parametrize("task", DETECTORS)
def test_bad_target_sizes(task, sizes):
    with pytest.raises(ValueError, match="expected (one|a positive) .*per image"):
        DETECTORS[task]["pil"]().post_process_object_detection(detections(2, 5), target_sizes=sizes)


def test_only_the_methods_of_the_task(backend):
    boxes = "post_process_object_detection"
    methods = {"detection": [boxes], "detr": [boxes], "instance": ["post_process_instance_segmentation", boxes]}
    for task, names in methods.items():
        assert [name for name in dir(DETECTORS[task][backend]()) if name.startswith("post_process")] == names


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(image_processing_detection, "batched_nms", None)
    with pytest.raises(ImportError, match=r"needs torchvision: .pip install torchvision"):
        PvtDetectionImageProcessorPil().post_process_object_detection(detections(1, 5))


# --- Masks ----------------------------------------------------------------------------------------------------------


def detections(batch: int, count: int, grid: int = 28, seed: int = 0) -> SimpleNamespace:
    """What a Mask R-CNN gives, and `logits` for the other contracts; the last two rows of each image are padding."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(batch, count, generator=generator) * 0.9 + 0.1
    centres, sides = torch.rand(2, batch, count, 2, generator=generator)
    masks = torch.nn.functional.interpolate(torch.randn(batch, count, 4, 4, generator=generator), grid, mode="bicubic")
    return SimpleNamespace(
        logits=torch.randn(batch, count, 3, generator=generator),
        pred_scores=scores,
        pred_labels=torch.randint(0, 7, (batch, count), generator=generator),
        pred_boxes=torch.cat([centres, sides * 0.5 + 0.1], dim=-1),
        num_detections=torch.full((batch,), count - 2),
        pred_masks=masks * 3,
    )


def pasted(mask_logits: torch.Tensor, box: list[float], height: int, width: int) -> np.ndarray:
    """(height, width) probabilities by a loop over pixels: bilinear among the cell centres, zero outside of them."""
    probabilities = 1 / (1 + np.exp(-mask_logits.double().numpy()))
    rows, columns = probabilities.shape
    x0, y0, x1, y1 = box
    image = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            if not (x0 <= x + 0.5 <= x1 and y0 <= y + 0.5 <= y1 and x1 > x0 and y1 > y0):
                continue
            v = (y + 0.5 - y0) / (y1 - y0) * rows - 0.5
            u = (x + 0.5 - x0) / (x1 - x0) * columns - 0.5
            for row in (int(np.floor(v)), int(np.floor(v)) + 1):
                for column in (int(np.floor(u)), int(np.floor(u)) + 1):
                    if 0 <= row < rows and 0 <= column < columns:
                        image[y, x] += (1 - abs(v - row)) * (1 - abs(u - column)) * probabilities[row, column]
    return image


@pytest.mark.parametrize("mask_threshold", [0.5, 0.3])
@pytest.mark.parametrize("size", [(50, 70), (41, 9)])
def test_masks_are_pasted_at_pixel_centres(size, mask_threshold):
    outputs = detections(1, 12)
    outputs.pred_boxes[0, 0] = torch.tensor([0.5, 0.5, 1, 1])
    outputs.pred_boxes[0, 1] = torch.tensor([0.31, 0.5, 0.0001, 0.5])  # between two pixel centres
    outputs.pred_boxes[0, 2] = torch.tensor([0.31, 0.5, 0, 0])
    for processor in (PvtInstanceImageProcessorPil(), PvtInstanceImageProcessor()):
        found = processor.post_process_instance_segmentation(
            outputs, 0.2, mask_threshold, target_sizes=[size], return_binary_maps=True
        )[0]
        boxes = processor.post_process_object_detection(outputs, 0.2, [size])[0]
        segments = found["segments_info"]
        order = outputs.pred_scores[0, :10].argsort(descending=True)
        order = order[outputs.pred_scores[0][order] > 0.2]
        assert found["segmentation"].dtype == torch.bool and found["segmentation"].shape == (len(order), *size)
        assert [segment["id"] for segment in segments] == list(range(len(order))) and len(order) >= 8
        assert [segment["label_id"] for segment in segments] == outputs.pred_labels[0][order].tolist()
        assert [segment["score"] for segment in segments] == outputs.pred_scores[0][order].tolist()
        assert torch.equal(boxes["scores"], outputs.pred_scores[0][order])
        assert torch.equal(boxes["labels"], outputs.pred_labels[0][order])
        for mask, row, box in zip(found["segmentation"], order.tolist(), boxes["boxes"].tolist()):
            cx, cy, width, height = outputs.pred_boxes[0, row].tolist()
            edges = [cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2]
            expected = [min(max(edge, 0), 1) * size[1 - i % 2] for i, edge in enumerate(edges)]
            np.testing.assert_allclose(box, expected, atol=1e-5)  # float32 pixels up to 70
            probabilities = pasted(outputs.pred_masks[0, row], box, *size)
            clear = abs(probabilities - mask_threshold) > 1e-4  # rounding may decide the others
            np.testing.assert_array_equal(mask.numpy()[clear], (probabilities >= mask_threshold)[clear])
            assert clear.mean() > 0.99


def greedy(masks: np.ndarray, overlap: float) -> tuple[np.ndarray, list[int]]:
    """The map of masks in order of score, and the indices of those in it, by sets of pixels."""
    taken, kept, segmentation = set(), [], np.zeros(masks.shape[1:], int)
    for index, mask in enumerate(masks):
        pixels = set(zip(*map(tuple, np.nonzero(mask))))
        free = pixels - taken
        if free and len(free) / len(pixels) > overlap:
            kept.append(index)
            taken |= free
            for row, column in free:
                segmentation[row, column] = len(kept)
    return segmentation, kept


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.8])
def test_overlapping_masks_go_to_the_best(overlap):
    outputs, sizes = detections(2, 17), [(40, 60), (33, 21)]
    processor = PvtInstanceImageProcessorPil()
    maps = processor.post_process_instance_segmentation(outputs, 0.15, 0.5, overlap, target_sizes=sizes)
    binary = processor.post_process_instance_segmentation(
        outputs, 0.15, 0.5, overlap, target_sizes=torch.tensor(sizes), return_binary_maps=True
    )
    for found, each, size in zip(maps, binary, sizes, strict=True):
        expected, kept = greedy(each["segmentation"].numpy(), overlap)
        assert found["segmentation"].dtype == torch.int32 and found["segmentation"].shape == size
        np.testing.assert_array_equal(found["segmentation"], expected)
        assert 1 < len(kept) and (overlap == 0 or len(kept) < len(each["segments_info"]))
        for number, (segment, index) in enumerate(zip(found["segments_info"], kept, strict=True), start=1):
            assert segment == {**each["segments_info"][index], "id": number}


def test_no_instance():
    outputs = detections(2, 5)
    outputs.num_detections[0] = 0
    processor = PvtInstanceImageProcessorPil()
    for threshold in (0.0, 1.0):
        found = processor.post_process_instance_segmentation(outputs, threshold, target_sizes=[(9, 8)] * 2)
        assert found[0]["segments_info"] == [] and found[0]["segmentation"].eq(0).all()
        assert bool(found[1]["segments_info"]) == (threshold == 0)
        binary = processor.post_process_instance_segmentation(
            outputs, threshold, target_sizes=[(9, 8)] * 2, return_binary_maps=True
        )
        assert binary[0]["segmentation"].shape == (0, 9, 8)
        boxes = processor.post_process_object_detection(outputs, threshold)[0]
        assert [tuple(boxes[name].shape) for name in ("scores", "labels", "boxes")] == [(0,), (0,), (0, 4)]
    with pytest.raises(ValueError, match="target_sizes is None; expected the .height, width. of each image"):
        processor.post_process_instance_segmentation(outputs)


def test_memory_does_not_grow_with_the_masks(monkeypatch):
    """Of 100 masks of a third of a large image, one is held at a time."""
    outputs = detections(1, 102)
    outputs.pred_boxes[..., 2:] = 0.6
    outputs.pred_scores[:] = 0.9
    height, width = 600, 400
    largest = []
    grid_sample = torch.nn.functional.grid_sample

    def counting(image, grid, **options):
        sampled = grid_sample(image, grid, **options)
        largest.append(sampled.numel())
        return sampled

    monkeypatch.setattr(torch.nn.functional, "grid_sample", counting)
    PvtInstanceImageProcessorPil().post_process_instance_segmentation(outputs, target_sizes=[(height, width)])
    assert len(largest) == 100 and max(largest) <= 0.61**2 * height * width


def test_pipelines_read_our_results():
    """The post-processing of the real pipelines, on outputs as a model would give them."""
    outputs, size = detections(1, 12), (40, 60)
    processor = PvtInstanceImageProcessorPil()
    model = SimpleNamespace(config=SimpleNamespace(id2label={label: f"class {label}" for label in range(7)}))
    expected = processor.post_process_instance_segmentation(outputs, 0.3, 0.4, 0.2, target_sizes=[size])[0]

    class Outputs(dict):
        __getattr__ = dict.__getitem__

    def built(kind):
        pipe = object.__new__(kind)
        pipe.model, pipe.image_processor, pipe.tokenizer = model, processor, None
        return pipe

    model_outputs = Outputs(vars(outputs), target_size=[size])
    for subtask in (None, "instance"):
        answer = built(ImageSegmentationPipeline).postprocess(model_outputs, subtask, 0.3, 0.4, 0.2)
        assert len(answer) == len(expected["segments_info"]) > 2
        for entry, segment in zip(answer, expected["segments_info"]):
            assert entry["label"] == f"class {segment['label_id']}" and entry["score"] == segment["score"]
            mask = (expected["segmentation"] == segment["id"]).numpy()
            np.testing.assert_array_equal(np.array(entry["mask"]) == 255, mask)
    with pytest.raises(ValueError, match="Subtask semantic is not supported"):
        built(ImageSegmentationPipeline).postprocess(model_outputs, "semantic")

    model_outputs = Outputs(vars(outputs), target_size=torch.IntTensor([size]))
    boxes = processor.post_process_object_detection(outputs, 0.5, [size])[0]
    answer = built(ObjectDetectionPipeline).postprocess(model_outputs, 0.5)
    assert [entry["score"] for entry in answer] == boxes["scores"].tolist() and len(answer) > 2
    assert [list(entry["box"].values()) for entry in answer] == boxes["boxes"].int().tolist()


@pytest.mark.parametrize("size", [(40, 70), (90, 31)])
def test_object_detection_pipeline(backend, size):
    """With Transformers' own DETR, which takes `pixel_mask` and returns what our processor for DETR expects."""
    torch.manual_seed(0)
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, out_features=["stage4"])
    small = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 9, "num_labels": 5}
    heads = {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("attention_heads", "ffn_dim")}
    model = DetrForObjectDetection(DetrConfig(backbone_config=backbone, **small, **heads)).eval()
    processor = DETECTORS["detr"][backend](size=64)
    image = Image.fromarray(noise(*size))
    inputs = processor(image, return_tensors="pt")
    assert inputs["pixel_mask"].eq(0).any()
    with torch.no_grad():
        outputs = model(**inputs)
    expected = processor.post_process_object_detection(outputs, 0.01, [size])[0]
    answer = pipeline("object-detection", model=model, image_processor=processor)(image, threshold=0.01)
    assert [entry["score"] for entry in answer] == pytest.approx(expected["scores"].tolist()) and len(answer) == 9
    for entry, label, box in zip(answer, expected["labels"].tolist(), expected["boxes"].int().tolist()):
        assert entry["label"] == f"LABEL_{label}"
        assert np.abs(np.subtract(list(entry["box"].values()), box)).max() <= 1  # rounded down, at an edge


@pytest.mark.gpu
def test_device():
    outputs = detections(2, 30)
    on_gpu = SimpleNamespace(**{name: value.cuda() for name, value in vars(outputs).items()})
    sizes = [(40, 60), (33, 21)]
    for classes in DETECTORS.values():
        results = [classes["pil"]().post_process_object_detection(where, 0.3, sizes) for where in (outputs, on_gpu)]
        for on_cpu, other in zip(*results):
            assert other["boxes"].device.type == "cuda"
            assert torch.equal(on_cpu["labels"], other["labels"].cpu())
            torch.testing.assert_close(on_cpu["boxes"], other["boxes"].cpu())
    masks = [
        PvtInstanceImageProcessor().post_process_instance_segmentation(
            where, 0.3, target_sizes=sizes, return_binary_maps=True
        )
        for where in (outputs, on_gpu)
    ]
    for on_cpu, other in zip(*masks):
        assert other["segmentation"].device.type == "cuda"
        # interpolation in another order may turn a pixel at the threshold
        assert (on_cpu["segmentation"] != other["segmentation"].cpu()).float().mean() < 1e-3
