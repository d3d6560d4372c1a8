"""Reloads saved image processors in a clean process, and compares what they prepare there and here."""

import inspect
import json
from pathlib import Path

import numpy as np
from PIL import Image

from .clean_process import run_python


def prepare(processor, image: Image.Image, contract: str) -> dict:
    """What a processor makes of an image with its map or annotation, as a flat dict of arrays."""
    objects = [{"bbox": [10, 20, 30, 15], "category_id": 3, "segmentation": [[12, 21, 38, 22, 20, 34]]}]
    annotation = {"image_id": 17, "annotations": objects}
    seconds = {"pvt": [], "semantic": [image.convert("L")]}.get(contract, [annotation])
    found = dict(processor(image, *seconds, return_tensors="np"))
    labels = found.pop("labels", [{}])
    return {**found, **(labels[0] if isinstance(labels, list) else {"labels": labels})}


# The same for code that runs in another process
PREPARE = f"import json, sys\nimport numpy\nfrom PIL import Image\n{inspect.getsource(prepare)}"

RELOAD = (
    PREPARE
    + """
how, folder, file, jobs = sys.argv[1:]
if how == "package":
    import pvt_hf
from transformers import AutoImageProcessor
image = Image.open(file)
for name, contract, backend in json.loads(jobs):
    processor = AutoImageProcessor.from_pretrained(f"{folder}/{name}", backend=backend, trust_remote_code=how == "code")
    numpy.savez(f"{folder}/{name}-{backend}.npz", **prepare(processor, image, contract))
    processor.save_pretrained(f"{folder}/{name}/again-{backend}")
    print(type(processor).__module__, type(processor).__name__)
assert ("pvt_hf" in sys.modules) == (how == "package")
"""
)


def reload(how: str, folder: Path, file: Path, names: dict[str, str]) -> dict[tuple[str, str], tuple[dict, str]]:
    """
    Opens the folders `folder/name` by both backends in a clean process and prepares the image in `file`.

    Args:
        how: "package" imports pvt_hf, "code" trusts the folders' own code, "plain" does neither.
        names: contract of each folder.

    Returns:
        By name and backend: the arrays, and "module class" of the processor.
    """
    jobs = [(name, contract, backend) for name, contract in names.items() for backend in ("pil", "torchvision")]
    printed = run_python(RELOAD, how, folder, file, json.dumps(jobs), warm=True).stdout.splitlines()
    assert len(printed) == len(jobs)
    return {
        (name, backend): (dict(np.load(folder / f"{name}-{backend}.npz")), line)
        for (name, _, backend), line in zip(jobs, printed)
    }


def assert_prepares_the_same(found: dict, processor, file: Path, contract: str) -> None:
    expected = prepare(processor, Image.open(file), contract)
    assert found.keys() == expected.keys() and (len(expected) > 1 or contract == "pvt")
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
