"""Everything that travels to a Hub repository: configurations, models, image processors. Flat, one file per idea."""

# Registers the configurations (see `pvt_hf/registry.py`), before one of them is half imported
from transformers.models.auto import configuration_auto  # noqa: F401
