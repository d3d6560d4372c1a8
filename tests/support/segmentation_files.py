"""Small data sets for segmentation, written by the tests: images whose grey values tell their labels, and PNG masks."""

import io

import datasets
import numpy as np
import torch
from PIL import Image

from pvt_hf.data.batches import BatchStream
from pvt_hf.tasks.segmentation.samples import SegmentationSample, collate_lists


CLASSES = ("sky", "tree", "road")


def encoded(array: np.ndarray, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format)
    return buffer.getvalue()


def mask(seed: int, height: int = 36, width: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, len(CLASSES), (height, width), dtype=np.uint8)


def picture_of(labels: np.ndarray) -> np.ndarray:
    """A grey image whose values tell the labels."""
    return np.repeat(labels[..., None] * 10, 3, axis=2).astype(np.uint8)


def write_pair(images, masks, name: str, seed: int) -> None:
    (images / name).parent.mkdir(parents=True, exist_ok=True)
    (masks / name).parent.mkdir(parents=True, exist_ok=True)
    (images / f"{name}.jpg").write_bytes(encoded(picture_of(mask(seed)), "JPEG"))
    (masks / f"{name}.png").write_bytes(encoded(mask(seed)))


def write_parquet(root):
    """As ADE20K lies on the Hub: two image columns, and one that is not needed."""
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "annotation": datasets.Image(),
            "scene_category": datasets.ClassLabel(names=["abbey"]),
        }
    )
    for split, size in (("train", 6), ("validation", 2)):
        rows = {
            "image": [{"bytes": encoded(picture_of(mask(i))), "path": f"{split}_{i}.jpg"} for i in range(size)],
            "annotation": [{"bytes": encoded(mask(i)), "path": f"{split}_{i}.png"} for i in range(size)],
            "scene_category": [0] * size,
        }
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(root / f"{split}-00000-of-00001.parquet", batch_size=2)
    return root


def whole(image: Image.Image, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float(), torch.from_numpy(labels)


def read(stream, **settings) -> dict[str, np.ndarray]:
    """Labels by name, of all usable examples."""
    sample = SegmentationSample(stream, whole, CLASSES, **settings)
    batches = BatchStream(stream, sample, 1, collate=collate_lists)
    return {batch["sample_ids"][0]: batch["labels"][0].numpy() for batch in batches if "sample_ids" in batch}
