"""Small spiking BERTs for tests: random weights, made so that a fair share of the neurons fires."""

from __future__ import annotations

import torch
from torch import nn

from spikebert.config import SpikeBertConfig
from spikebert.model import SpikeBertForSequenceClassification


def small_config(**changes) -> SpikeBertConfig:
    sizes = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 9,
        "num_labels": 3,
        "attention_threshold": 0,
    }
    return SpikeBertConfig(**(sizes | changes))


# graded spikes everywhere but in query and key, with caps that can be told apart
GRADED = {"spike": "graded", "spike_cap": 15, "encoder_cap": 7, "value_cap": 3, "graded_gain": 2.0}


def small_model(seed: int = 0, **changes) -> SpikeBertForSequenceClassification:
    """A float model whose BatchNorm has statistics and gains of its own, as after training."""
    torch.manual_seed(seed)
    model = SpikeBertForSequenceClassification(small_config(**changes))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.05, 0.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.2, 0.3)
    return model.eval()


def small_batch(seed: int = 0, texts: int = 5, tokens: int = 9, vocabulary: int = 50) -> dict[str, torch.Tensor]:
    """Random ids with lengths from 2 to `tokens`."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocabulary, (texts, tokens), generator=generator)
    lengths = torch.randint(2, tokens + 1, (texts, 1), generator=generator)
    return {"input_ids": ids, "attention_mask": (torch.arange(tokens) < lengths).long()}
