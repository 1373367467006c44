"""The spiking BERT and its training. Importing this package alone needs no torch; naming a class does."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "SpikeBertConfig": "spikebert.config",
    "SpikeBertForSequenceClassification": "spikebert.model",
    "SpikeBertOutput": "spikebert.model",
    "quantise": "spikebert.quantisation",
}
__all__ = list(_HOMES)  # found when asked for


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'spikebert' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
