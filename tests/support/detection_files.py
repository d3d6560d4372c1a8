"""Small data sets for detection, written by the tests: images of noise, with COCO annotations, and batches of them."""

import io
import json

import numpy as np
import torch
from PIL import Image

from pvt_hf.data.batches import BatchStream
from pvt_hf.tasks.detection.samples import DetectionSample, collate_detection


# As in COCO, ids have gaps and are not listed in their order.
CATEGORIES = {90: "toothbrush", 1: "person", 3: "car"}
CLASS_NAMES = ("person", "car", "toothbrush")
SIZES = {"b.png": (36, 40), "a.png": (50, 33), "sub/c.png": (32, 64), "d.png": (41, 41), "e.png": (40, 36)}


def encoded(array: np.ndarray, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format, **options)
    return buffer.getvalue()


def noise(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def random_mask(seed: int, height: int, width: int, share: float = 0.5) -> np.ndarray:
    return (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)


def random_objects(seed: int, height: int, width: int, count: int) -> list[dict]:
    """COCO annotations of `count` boxes inside the image, with polygons. The first of three or more is a crowd."""
    rng, made = np.random.default_rng(seed), []
    for index in range(count):
        x0, x1 = np.sort(rng.choice(width + 1, 2, replace=False)).tolist()
        y0, y1 = np.sort(rng.choice(height + 1, 2, replace=False)).tolist()
        crowd = int(count >= 3 and index == 0)
        if crowd:
            mask = np.zeros((height, width), dtype=np.uint8)
            mask[y0:y1, x0:x1] = 1
            segmentation = {"size": [height, width], "counts": run_lengths(mask)}
        else:
            segmentation = [[x0, y0, x1, y0, x1, y1, x0, y1]]
        made.append(
            {
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "category_id": int(rng.choice(list(CATEGORIES))),
                "area": float((x1 - x0) * (y1 - y0)),
                "iscrowd": crowd,
                "segmentation": segmentation,
            }
        )
    return made


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed counts: lengths of runs of 0 and 1 in turn, down the columns, beginning with 0."""
    flat = np.concatenate([[0], mask.flatten(order="F"), [2]])
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat[:-1])), [mask.size]])
    return np.diff(starts).tolist()


def write_coco(file, image_folder, sizes, counts=None, objects=None) -> dict:
    """
    Writes images of noise, with these sizes by name, and their annotations. Returns the content of the JSON file.

    Args:
        counts: random objects per image; by default 0, 1, 2, ...
        objects: annotations by image name, instead of random ones.
    """
    image_folder.mkdir(parents=True, exist_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index, (name, (height, width)) in enumerate(sizes.items()):
        (image_folder / name).parent.mkdir(parents=True, exist_ok=True)
        (image_folder / name).write_bytes(encoded(noise(index, height, width)))
        images.append({"id": 100 + 7 * index, "file_name": name, "height": height, "width": width})
        made = random_objects(index, height, width, counts[index] if counts else index)
        for annotation in made if objects is None else objects.get(name, []):
            annotations.append({"id": len(annotations) + 1, "image_id": images[-1]["id"], **annotation})
    categories = [{"id": id_, "name": name} for id_, name in CATEGORIES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content))
    return content


def to_pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def whole(image, boxes_xyxy, masks):
    return to_pixels(image), boxes_xyxy, masks


def batches_of(stream, batch_size=1, *, with_masks=False, class_names=None, **settings):
    sample = DetectionSample(stream, whole, class_names, with_masks)
    return BatchStream(stream, sample, batch_size, collate=collate_detection, **settings)


def read(stream, **settings) -> dict[str, tuple[torch.Tensor, dict]]:
    """Pixels and labels by name, of all usable examples, of batches of one."""
    return {
        batch["sample_ids"][0]: (batch["pixel_values"][0], batch["labels"][0])
        for batch in batches_of(stream, **settings)
        if "sample_ids" in batch
    }


def boxes_xywh(labels: dict) -> np.ndarray:
    """Back to COCO's boxes, in pixels of the image itself."""
    boxes = labels["boxes"].double().numpy()
    height, width = labels["size"].tolist()
    sides = boxes[:, 2:] * [width, height]
    return np.concatenate([boxes[:, :2] * [width, height] - sides / 2, sides], axis=1)
