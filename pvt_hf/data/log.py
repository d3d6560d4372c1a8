"""Log lines about data."""

from __future__ import annotations

import os

from transformers.utils import logging


logger = logging.get_logger(__name__)


def warn_once(message: str) -> None:
    """Logs a warning, once per process, and of a distributed run on the first process only."""
    if int(os.environ.get("RANK") or 0) == 0:
        logger.warning_once(message)
