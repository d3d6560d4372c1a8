"""Pushing models to the Hugging Face Hub, and their model cards."""

from .upload import Push, push, push_folder


__all__ = ["Push", "push", "push_folder"]
