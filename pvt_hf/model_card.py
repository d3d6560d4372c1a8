"""Model cards."""

from __future__ import annotations

from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_utils import PreTrainedModel


def build_card(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    *,
    repo_id: str,
    run: dict[str, Any] | None = None,
    evaluation: dict[str, Any] | None = None,
) -> ModelCard:
    """The card of a model's repository."""
    metadata = ModelCardData(license="apache-2.0", library_name="transformers")
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n# {repo_id}\n")
