"""Small data sets for classification, written by the tests: noise in folders and parquet files, and batches of them."""

import io

import datasets
import numpy as np
import torch
from PIL import Image

from pvt_hf.data.batches import BatchStream
from pvt_hf.tasks.classification.samples import ClassificationSample


def picture(seed: int, mode: str = "RGB", size=(40, 36)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    return Image.fromarray(pixels).convert(mode)


def png(seed: int, mode: str = "RGB", format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture(seed, mode).save(buffer, format)
    return buffer.getvalue()


def make_folder(root, counts, start=0):
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            (root / name / f"{start + index:03d}.png").write_bytes(png(start + index))
    return root


def write_parquet(root):
    """21 images in three files for training, 5 for validation."""
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    for split, sizes in (("train", (7, 3, 11)), ("validation", (5,))):
        for number, size in enumerate(sizes):
            rows = {
                "img": [{"bytes": png(i), "path": f"{split}-{number}-{i}.png"} for i in range(size)],
                "label": [i % 3 for i in range(size)],
            }
            table = datasets.Dataset.from_dict(rows, features=features)
            table.to_parquet(root / f"{split}-{number:05d}-of-{len(sizes):05d}.parquet", batch_size=4)
    return root


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.resize((8, 8)), dtype=np.float32)).permute(2, 0, 1)


def random_shift(image: Image.Image) -> torch.Tensor:
    """A transform that draws from torch and NumPy, as augmentations do."""
    return to_tensor(image) + torch.rand(1) + float(np.random.rand())


def batches_of(stream, transform=to_tensor, batch_size=4, **kwargs):
    return BatchStream(stream, ClassificationSample(stream, transform), batch_size, **kwargs)


def ids_of(loaders) -> list[str]:
    return [name for loader in loaders for batch in loader for name in batch.get("sample_ids", [])]
