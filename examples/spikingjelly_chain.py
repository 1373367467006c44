"""A model of SpikingJelly modules, trained as one does with SpikingJelly, exported and run bit for bit.

    python examples/spikingjelly_chain.py

It takes a minute, needs no network, and leaves a bundle in build/spikingjelly_chain. What may stand in the chain, and
what the conversion costs, stands in `spikebert/spikingjelly_chain.py`.
"""

from __future__ import annotations

import sys

import torch
from own_model import LABELS, N_MAX, TOKENIZER, arguments_of, export_and_run, read_reviews, say_accuracy, train
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn
from transformers import AutoTokenizer

from spikebert import from_spikingjelly
from spikebert.layers import Logits
from spikebert.packing import Packing

TIMESTEPS = 4


def make_chain(vocabulary: int) -> nn.Sequential:
    """Sees one token at a time; what it gives is summed over timesteps and tokens."""
    return nn.Sequential(
        nn.Embedding(vocabulary, 48),
        neuron.LIFNode(tau=2.0),
        nn.Dropout(0.1),
        layer.Linear(48, 96),
        layer.BatchNorm1d(96),
        neuron.LIFNode(tau=2.0, decay_input=False),
        layer.Linear(96, 48),
        neuron.IFNode(),
        layer.Linear(48, len(LABELS)),
    )


class OverTexts(nn.Module):
    """Runs a chain on the real tokens of texts, step by step, as `functional` and single-step modules want it."""

    def __init__(self, chain: nn.Sequential) -> None:
        super().__init__()
        self.chain = chain

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Logits:
        functional.reset_net(self.chain)
        packing = Packing(attention_mask)
        ids = input_ids.flatten()[packing.index]
        outputs = torch.stack([self.chain(ids) for _ in range(TIMESTEPS)])  # [T, real tokens, classes]
        return Logits(packing.sum_per_text(outputs.mean(0)) / packing.lengths[:, None], None, outputs)


def main() -> int:
    arguments = arguments_of(__doc__, "spikingjelly_chain")
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    pad_id = tokenizer.pad_token_id
    texts, held_back = read_reviews("train", tokenizer), read_reviews("validation", tokenizer)

    chain = make_chain(len(tokenizer))
    model = train(OverTexts(chain), texts, pad_id, arguments.epochs, learning_rate=1e-2)
    say_accuracy("SpikingJelly's chain", model, held_back, pad_id)

    integer = from_spikingjelly(chain, TIMESTEPS, N_MAX)
    say_accuracy("as integers", integer, held_back, pad_id)
    return export_and_run(integer, arguments.out, arguments.sentences)


if __name__ == "__main__":
    sys.exit(main())
