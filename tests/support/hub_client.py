"""
Opens repositories with Auto classes and pipelines, as users do. Runs in a process of its own, where pvt_hf is imported
("package"), is not installed ("stranger"), or is not installed and there is no network ("offline").

    python -c "$(cat hub_client.py)" MODE FOLDER

FOLDER/jobs.json lists what to open. Results are written to FOLDER/MODE.safetensors and FOLDER/MODE.json.
"""

import importlib.util
import json
import re
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file


@torch.no_grad()
def compute(model, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    """All tensors of a model's output, by name."""
    found, outputs = {}, model.eval()(pixel_values)
    for name, value in outputs.items():
        values = {name: value} if torch.is_tensor(value) else {f"{name}.{i}": one for i, one in enumerate(value)}
        found.update((key, one.contiguous()) for key, one in values.items() if torch.is_tensor(one))
    return found


def answer_of(pipe, image: Image.Image) -> list:
    """A pipeline's answer as plain lists."""
    finds_objects = pipe.task == "object-detection" or "Instance" in type(pipe.model).__name__
    answer = pipe(image, **({"threshold": 0.1} if finds_objects else {}))
    if pipe.task == "image-feature-extraction":
        return answer
    rows = []
    for one in answer:
        row = [one["label"], one["score"]]
        if "mask" in one:
            row.append(int((np.asarray(one["mask"]) > 0).sum()))
        rows.append(row + list(one.get("box", {}).values()))
    return rows


def open_all(mode: str, job: dict, source: str, where: str, pixel_values, image: Image.Image, remote: dict) -> tuple:
    """Every Auto class, both backends of the processor, and every pipeline, on a Hub id or a folder."""
    tensors, facts = {}, {}
    for auto_class, name in job["auto_classes"].items():
        if auto_class == "AutoBackbone" and (mode == "offline" or where == "folder"):
            continue  # asks the Hub whether there is such a repository, whatever it is given
        options = {"out_features": ["stage2", "stage4"]} if auto_class == "AutoBackbone" else {}
        model = getattr(transformers, auto_class).from_pretrained(source, **options, **remote)
        facts[auto_class] = [type(model).__name__, type(model).__module__]
        assert type(model).__name__ == name
        tensors.update({f"{auto_class}/{key}": value for key, value in compute(model, pixel_values).items()})
    for backend in ("pil", "torchvision"):
        processor = transformers.AutoImageProcessor.from_pretrained(source, backend=backend, **remote)
        facts[backend] = [type(processor).__name__, type(processor).__module__]
        tensors[f"{backend}/pixel_values"] = processor(image, return_tensors="pt")["pixel_values"].contiguous()
    for task in job["tasks"]:
        facts[task] = answer_of(transformers.pipeline(task, model=source, **remote), image)
    return tensors, facts


def main(mode: str, root: Path) -> None:
    if mode == "package":
        import pvt_hf  # noqa: F401

        remote = {}
    else:
        assert importlib.util.find_spec("pvt_hf") is None
        remote = {"trust_remote_code": True}
    work = json.loads((root / "jobs.json").read_text())
    torch.set_num_threads(work["threads"])
    image, inputs = Image.open(root / "image.png"), load_file(root / "inputs.safetensors")
    tensors, facts = {}, {}

    def record(name: str, result: tuple) -> None:
        tensors.update({f"{name}/{key}": value for key, value in result[0].items()})
        facts[name] = result[1]

    native, pixel_values = work["jobs"]["classifier"], inputs["classifier"]
    if mode == "stranger":  # plain Transformers: nobody is asked about code, and the native class opens it
        for where in ("repo", "folder"):
            auto_classes = {key: value for key, value in native["auto_classes"].items() if key != "AutoBackbone"}
            job = {"auto_classes": auto_classes, "tasks": ["image-classification"]}
            record(f"native/{where}", open_all("stranger", job, native[where], where, pixel_values, image, {}))
        try:
            transformers.AutoModelForSemanticSegmentation.from_pretrained(work["jobs"]["semantic_fpn"]["repo"])
        except ValueError as error:
            facts["refused"] = str(error)
    for kind, job in work["jobs"].items():
        pixel_values = inputs[kind]
        for where in ("repo", "folder"):
            record(f"{kind}/{where}", open_all(mode, job, job[where], where, pixel_values, image, remote))
    pixel_values = inputs["classifier"]
    for name, options in work["pinned"].items():
        if mode != "offline" or name == "tag":
            model = transformers.AutoModelForImageClassification.from_pretrained(native["repo"], **options, **remote)
            facts[f"pinned/{name}"] = [type(model).__module__, type(model.config).__module__]
            tensors[f"pinned/{name}/logits"] = compute(model, pixel_values)["logits"]
    if mode == "stranger":
        for kind, job in work["jobs"].items():  # from a folder AutoBackbone builds by configuration
            if "AutoBackbone" in job["auto_classes"]:
                config = transformers.AutoConfig.from_pretrained(job["folder"], out_features=["stage1"], **remote)
                backbone = transformers.AutoBackbone.from_config(config, **remote)
                maps = backbone(torch.zeros(1, 3, 64, 64)).feature_maps
                facts[f"{kind}/from_config"] = [type(backbone).__name__, [list(one.shape) for one in maps]]
        card = huggingface_hub.hf_hub_download(work["jobs"]["backbone"]["repo"], "README.md")
        blocks = re.findall(r"^```python\n(.*?)^```$", Path(card).read_text(), re.MULTILINE | re.DOTALL)
        (code,) = [block for block in blocks if "AutoBackbone" in block]
        exec(code, names := {})  # what does not need the Hub runs in tests/hub/test_card_usage.py
        maps = names["backbone"](torch.zeros(1, 3, 320, 480)).feature_maps
        facts["card"] = [list(one.shape) for one in maps]
        facts["imported"] = sorted(name for name in sys.modules if name.startswith("transformers_modules."))
    save_file(tensors, root / f"{mode}.safetensors")
    (root / f"{mode}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
