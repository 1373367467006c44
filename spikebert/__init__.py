"""The spiking BERT and its training. Importing this package alone needs no torch; naming a class does."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Add": "spikebert.layers",
    "Block": "spikebert.layers",
    "Encoder": "spikebert.layers",
    "Logits": "spikebert.layers",
    "Neuron": "spikebert.layers",
    "PositionBias": "spikebert.positions",
    "Readout": "spikebert.layers",
    "Spikes": "spikebert.spikes",
    "SpikingAttention": "spikebert.layers",
    "SpikingChain": "spikebert.layers",
    "SpikingLinear": "spikebert.layers",
    "checkpointed": "spikebert.gradient_checkpointing",
    "from_spikingjelly": "spikebert.spikingjelly_chain",
    "record": "spikebert.recording",
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
