"""Model cards of the paper's checkpoints, from `published.py`, `variants.py`, the recipes, and evaluations of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..engine.recipes import read_recipe
from ..models.image_processing_detection import PvtDetectionImageProcessorPil
from ..models.image_processing_detr import PvtDetrImageProcessorPil
from ..models.image_processing_instance import PvtInstanceImageProcessorPil
from ..models.image_processing_pvt import PvtImageProcessorPil
from ..models.image_processing_semantic import PvtSemanticImageProcessorPil
from ..weights.variants import get_config, get_variant
from .card import evaluation_figures, make_card
from .card_sections import (
    CITATION,
    METRICS,
    Figure,
    eval_results,
    limits_section,
    metric_types,
    preprocessing_section,
    relation_section,
    table,
)
from .card_usage import KINDS, usage_section
from .published import ADE20K, IMAGENET, OFFICIAL_URL, PAPER_URL, PublishedModel, Results


ORGANISATION = "org"  # in place of the one that a checkpoint is pushed to
RECIPES = "scripts/recipes"
_BOX_PROCESSORS = {
    "RetinaNetForObjectDetection": PvtDetectionImageProcessorPil,
    "MaskRcnnForInstanceSegmentation": PvtInstanceImageProcessorPil,
    "PvtDetrForObjectDetection": PvtDetrImageProcessorPil,
}
_INTENDED = {
    "image-classification": "Naming the main object of a photograph by one of ImageNet-1K's 1000 classes; a start for "
    "fine-tuning on other classes; a backbone for dense prediction.",
    "image-segmentation": "Labelling every pixel of a photograph of a scene by one of ADE20K's 150 classes; a start "
    "for fine-tuning on other classes.",
    "object-detection": "Finding objects of COCO's 80 classes in photographs; a start for fine-tuning on others.",
}
_MASKS = "Finding objects of COCO's 80 classes in photographs, with masks; a start for fine-tuning on others."


def build_published_card(
    published: PublishedModel, repository: Path, evaluation: Mapping[str, Any] | None = None
) -> ModelCard:
    """
    The card of a checkpoint of the paper.

    The metadata's figures are the paper's, of the training that the recipe is of; with an `evaluation` they are its,
    and the text has both.

    Args:
        repository: folder of this repository, where the recipes are.
        evaluation: content of an evaluation script's `--output`, of the published weights or of the recipe's.

    Raises:
        FileNotFoundError: the recipe is not there.
        ValueError: the evaluation is of another model.
    """
    kind = KINDS[published.model_class]
    recipe = repository / RECIPES / published.recipe
    processor = _processor(published, read_recipe(recipe))
    data, repo_id = published.data, f"{ORGANISATION}/{published.name}"
    first = published.results[0]
    ours = evaluation_figures(evaluation, published.model_class) if evaluation is not None else []
    figures = ours or [Figure(*entry) for entry in first.figures.items()]
    source = ("evaluation with pvt_hf", f"https://huggingface.co/{repo_id}#evaluation")
    if not ours:
        source = (f"PVT paper, Table {first.table}", PAPER_URL)
    card_data = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag=kind.task,
        tags=["vision", "pvt", kind.task],
        datasets=list(dict.fromkeys([data.hub_id, IMAGENET.hub_id])),
        metrics=metric_types(figures),
        model_name=published.name,
        eval_results=eval_results(figures, data.hub_id, data.name, data.split, *source),
    )
    intended = _MASKS if published.model_class.startswith("MaskRcnn") else _INTENDED[kind.task]
    parts = [
        f"# {published.title}",
        _description(published),
        _facts(published),
        usage_section(kind, repo_id, get_config(published.variant), processor),
        f"## Intended use\n\n{intended}",
        limits_section(get_config(published.variant)),
        _training_data(published),
        preprocessing_section(kind, processor),
        _training(published, recipe.read_text(encoding="utf-8")),
        _evaluation(published, ours, evaluation),
        _environment(published),
        relation_section(kind),
        _licence(published),
        CITATION,
    ]
    return make_card(card_data, parts)


def _description(published: PublishedModel) -> str:
    kind, variant = KINDS[published.model_class], get_variant(published.variant)
    if not kind.paper:
        file = str(variant.checkpoint_url).rsplit("/", 1)[-1]
        return (
            f"The {kind.what} of the [Pyramid Vision Transformer paper]({PAPER_URL}), trained on {published.data.name}."
            f" The weights are those of the [official release]({variant.checkpoint_url}) (`{file}`), converted by "
            f"`python scripts/convert_checkpoint.py --variant {variant.name} --output DIR`, which compares the result "
            "with a separate implementation of the official forward pass. Not trained by us."
        )
    text = (
        f"{kind.paper} on the backbone of the [Pyramid Vision Transformer paper]({PAPER_URL}), trained on "
        f"{published.data.name}. This card is for the weights that the recipe below gives. No such training has been "
        "run by us, and no weights are published here: figures are the paper's, of its own weights."
    )
    if published.model_class.startswith("Trans2Seg"):
        text += (
            " The head is built as Trans2Seg's paper describes it, which its released code is not in places "
            "(`modeling_trans2seg.py` lists them). Which size of it the PVT paper used is not published."
        )
    return text


def _facts(published: PublishedModel) -> str:
    config = get_config(published.variant)
    blocks = str(list(config.depths))
    if published.variant in ("pvt-small", "pvt-medium"):
        blocks += " (Table 1 of the paper prints 3 in stage 2; its own counts and the official code have 4)"
    return table(
        ("", ""),
        [
            ("class", f"`{published.model_class}`"),
            ("backbone", f"{published.variant}: channels {list(config.hidden_sizes)}, blocks {blocks}"),
            ("classes", f"{len(_class_range(published))}, of {published.data.name} (`id2label` in `config.json`)"),
            ("parameters", f"{published.params_m} M (the paper's)" if published.params_m else "not in the paper"),
            ("GFLOPs (multiply-adds)", f"{published.gflops}, the paper's" if published.gflops else "not in the paper"),
        ],
    )


def _class_range(published: PublishedModel) -> range:
    return range({IMAGENET: 1000, ADE20K: 150}.get(published.data, 80))


def _training_data(published: PublishedModel) -> str:
    data = published.data
    parts = [f"## Training data\n\n{data.name}: {data.content}. {data.terms}"]
    if data is not IMAGENET:
        parts.append(f"The backbone starts from a classifier of {IMAGENET.name}. {IMAGENET.terms}")
    return "\n\n".join(parts)


def _processor(published: PublishedModel, recipe: Mapping[str, Any]) -> Any:
    """The image processor of the recipe's evaluation."""
    if published.data is IMAGENET:
        side = recipe["image_size"]
        return PvtImageProcessorPil(
            size={"shortest_edge": int(side / recipe["crop_ratio"])}, crop_size={"height": side, "width": side}
        )
    if published.data is ADE20K:
        size = {name: recipe[name] for name in ("shortest_edge", "longest_edge")}
        return PvtSemanticImageProcessorPil(size=size, do_reduce_labels=recipe["reduce_labels"])
    size = {"shortest_edge": recipe["eval_shortest_edge"], "longest_edge": recipe["longest_edge"]}
    return _BOX_PROCESSORS[published.model_class](size=size)


def _training(published: PublishedModel, recipe: str) -> str:
    return (
        "## Training\n\n"
        f"The recipe, `{RECIPES}/{published.recipe}`, with what is the paper's, what is the official configurations', "
        "and where they differ:\n\n"
        f"```yaml\n{recipe.strip()}\n```"
    )


def _source(results: Results) -> str:
    if results.table is None:
        return f"[official repository]({OFFICIAL_URL})"
    return f"[paper]({PAPER_URL}), Table {results.table}"


def _evaluation(published: PublishedModel, ours: list[Figure], evaluation: Mapping[str, Any] | None) -> str:
    rows = [
        (METRICS[key].name, value, results.setting, _source(results))
        for results in published.results
        for key, value in results.figures.items()
    ]
    if evaluation is not None:
        device = evaluation["device"]
        rows += [
            (METRICS[figure.key].name, figure.percent, figure.setting or "as above", f"pvt_hf, on {device}")
            for figure in ours
        ]
    text = f"On {published.data.name}, {published.data.split}. "
    if len(published.results) > 1 and KINDS[published.model_class].paper:
        text += f'This card is for the training "{published.results[0].setting}"; the others are for comparison. '
    text += "Measured by us: the last rows." if ours else "None of these figures was measured by us."
    return "\n\n".join(["## Evaluation", text, table(("metric", "value", "training and test", "source"), rows)])


def _environment(published: PublishedModel) -> str:
    runs = "Running it does" if KINDS[published.model_class].paper else "Converting and running it do"
    return (
        "## Environmental note\n\n"
        f"Hardware of the paper's training: {published.hardware}. Its duration, energy and place are not published, so "
        f"that no emissions can be given. {runs} not need a GPU."
    )


def _licence(published: PublishedModel) -> str:
    if published.data is IMAGENET:
        return (
            f"## Licence\n\nApache-2.0: the [official code and weights]({OFFICIAL_URL}), and this package. The terms "
            "of the training data are above."
        )
    return (
        "## Licence\n\nApache-2.0: this package, and the official weights that the backbone starts from. The terms of "
        "the training data are above."
    )
