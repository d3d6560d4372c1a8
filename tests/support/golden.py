"""Weights in the official layout, and what the official code computes with them: see tests/golden/README.md."""

from pathlib import Path


GOLDEN_WEIGHTS = Path(__file__).parents[1] / "golden" / "official_layout_tiny.pth"
GOLDEN_OUTPUTS = Path(__file__).parents[1] / "golden" / "official_layout_tiny_expected.safetensors"
