"""Model cards of the paper's checkpoints, from `published.py` and evaluations of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..families import MODELS, load
from ..weights.variants import get_config, get_variant
from .card import card_metadata, describe, render_card
from .card_figures import Source, eval_results, evaluation_results, results_table
from .published import ADE20K, IMAGENET, OFFICIAL_URL, PublishedModel
from .published_costs import count_pvt


ORGANISATION = "org"  # placeholder for the one that a checkpoint is pushed to


def build_published_card(published: PublishedModel, evaluation: Mapping[str, Any] | None = None) -> ModelCard:
    """
    The card of a checkpoint of the paper.

    The figures in its metadata are the paper's, of the training that the recipe repeats. With an `evaluation` they are
    those of the evaluation, and the table has both.

    Args:
        evaluation: content of an evaluation command's `--output`, for the published weights or those of the recipe.

    Raises:
        ValueError: the evaluation is of another model.
    """
    family, model = MODELS[published.model_class]
    config = get_config(published.variant)
    data, repo_id = published.data, f"{ORGANISATION}/{published.name}"
    results, main_results = published.results, [replace(published.results[0], setting="")]
    measured = "None of these figures was measured by us."
    if evaluation is not None:
        url = f"https://huggingface.co/{repo_id}#evaluation"
        main_results = evaluation_results(evaluation, Source("evaluation with pvt_hf", url), published.model_class)
        on_device = [
            replace(one, setting=", ".join(filter(None, [one.setting, f"on {evaluation['device']}"])))
            for one in main_results
        ]
        results = (*results, *on_device)
        measured = "Those with the source pvt_hf were measured by us."
    entries, metrics = eval_results(main_results, data.hub_id, data.name, data.split)
    card_data = ModelCardData(
        license="apache-2.0",
        datasets=list(dict.fromkeys([data.hub_id, IMAGENET.hub_id])),
        metrics=metrics,
        model_name=published.name,
        eval_results=entries,
        **card_metadata(model, config),
    )
    options = {"do_reduce_labels": True} if data is ADE20K else {}
    processor = load(family.processors["pil"])(**options)  # its defaults are the paper's evaluation
    main_setting = ""
    if family.paper_url and len(published.results) > 1:
        main_setting = f'This card is for "{published.results[0].setting}". '
    return render_card(
        card_data, family, model, config, processor, repo_id, None,
        title=published.title,
        summary=_summary(published),
        evaluated_on=f"On {data.name}, {data.split}. {main_setting}{measured}",
        results_table=results_table(results),
        training=_training(published),
        data=_data(published),
        licence=f"Apache-2.0: this package, and the [official code and weights]({OFFICIAL_URL}).",
    )  # fmt: skip


def _summary(published: PublishedModel) -> str:
    variant = get_variant(published.variant)
    counts = []
    if published.params_m:
        counts.append(f"{published.params_m} M parameters")
    if published.gflops:
        number, _, where = published.gflops.partition(" ")
        counts.append(f"{number} GFLOPs of multiply-adds {where}")
    text = describe(*MODELS[published.model_class], get_config(published.variant))
    text += f" Trained on {published.data.name}."
    text += f" The paper counts {' and '.join(counts)}." if counts else " The paper gives no parameters or GFLOPs."
    costs = count_pvt(MODELS[published.model_class][0].name, published.variant)
    text += (
        f" Counted here, for an image of {costs.height}x{costs.width} pixels: {costs.parameters:,} parameters, "
        f"{costs.multiply_adds / 1e9:.1f} G multiply-adds."
    )
    if published.variant in ("pvt-small", "pvt-medium"):
        text += " (Its Table 1 has 3 blocks in stage 2; its counts and the official code have 4.)"
    if published.data is IMAGENET:
        return (
            f"{text}\n\nThe weights are the [official ones]({variant.checkpoint_url}), converted by `python "
            f"scripts/convert_checkpoint.py --variant {variant.name} --output DIR`. We did not train them."
        )
    return (
        f"{text}\n\nThis card is for weights that the recipe below gives. We have not run it, and publish no weights: "
        "the figures are the paper's, for its own weights."
    )


def _training(published: PublishedModel) -> str:
    text = (
        f"The recipe is `scripts/recipes/{published.recipe}`. Its comments say what comes from the paper, what from "
        f"the official configuration, and where they differ. The paper's hardware: {published.hardware}."
    )
    if published.model_class.startswith("Trans2Seg"):
        text += (
            " The head follows Trans2Seg's paper, from which its released code differs (`modeling_trans2seg.py` lists "
            "where). The PVT paper does not say which size of it was used."
        )
    return text


def _data(published: PublishedModel) -> str:
    data = published.data
    text = f"{data.name}: {data.content}. {data.terms}"
    return (
        text if data is IMAGENET else f"{text}\n\nThe backbone was first trained on {IMAGENET.name}. {IMAGENET.terms}"
    )
