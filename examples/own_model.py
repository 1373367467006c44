"""A model of your own: build it from spiking layers, train it, quantise it, export it, run it bit for bit.

    python examples/own_model.py

It takes a minute, needs no network, and leaves a bundle in build/own_model. `spikingjelly_chain.py` beside this file
does the same with a model made of SpikingJelly modules.
"""

from __future__ import annotations

import argparse
import sys
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer

from converters.pipeline import export_module
from sim.run_command import main as spikebert_run
from spikebert import Encoder, Readout, SpikingAttention, SpikingLinear, quantise
from spikebert.data import TokenisedTexts, read_tsv, shuffled_batches, tokenise
from spikebert.evaluation import accuracy, predict
from spikebert.layers import Logits

RECIPES = resources.files("recipes")
REVIEWS = Path(str(RECIPES / "data" / "reviews"))  # sentences of reviews, good or bad
TOKENIZER = Path(str(RECIPES / "bundles" / "reviews" / "tokenizer"))  # word pieces of BERT
LABELS = ("negative", "positive")
N_MAX = 32  # tokens


class OwnModel(nn.Module):
    """Attention of three narrow heads, beside a path through one wide layer; the readout sees the sum of both."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.encoder = Encoder(vocabulary, features=48, n_max=N_MAX, timesteps=4)
        self.query, self.key, self.value = (SpikingLinear(48, 24) for _ in range(3))
        self.attention = SpikingAttention(heads=3, threshold=4)
        self.out = SpikingLinear(24, 48)
        self.wide, self.narrow = SpikingLinear(48, 96), SpikingLinear(96, 48)
        self.readout = Readout(48, len(LABELS))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Logits:
        x = self.encoder(input_ids, attention_mask)
        attended = self.out(self.attention(self.query(x), self.key(x), self.value(x)))
        return self.readout(x + attended + self.narrow(self.wide(x)))


def read_reviews(split: str, tokenizer) -> TokenisedTexts:
    reviews = read_tsv(REVIEWS / f"{split}.tsv")
    return tokenise(tokenizer, reviews.texts, N_MAX, reviews.labels)


def train(model: nn.Module, texts: TokenisedTexts, pad_id: int, epochs: int, learning_rate: float) -> nn.Module:
    """A plain PyTorch loop: it is the same for the float model and for its integer twin."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    model.train()
    for epoch in range(epochs):
        for indices in shuffled_batches(len(texts), 64, (0, epoch)):
            batch = texts.batch(indices, pad_id)
            loss = F.cross_entropy(model(batch["input_ids"], batch["attention_mask"]).logits, batch["labels"])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model.eval()


def say_accuracy(name: str, model: nn.Module, texts: TokenisedTexts, pad_id: int) -> None:
    print(f"{name}: {accuracy(predict(model, texts, pad_id), texts)} of the validation sentences right")


def export_and_run(model: nn.Module, out: Path, sentences: int) -> int:
    """A bundle for Lava; all test sentences on the fast engine, some on Lava's processes and beside the reference."""
    done = export_module(model, out, "lava", tokenizer=TOKENIZER, labels=LABELS, overwrite=True)
    print(f"{out}: {done.comparison.values_compared:,} values as in PyTorch, {done.comparison.mismatches} mismatches")
    some = out.parent / "some_reviews.tsv"
    lines = (REVIEWS / "test.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    some.write_text("".join(lines[: sentences + 1]), encoding="utf-8")
    for arguments in (
        ["--file", str(REVIEWS / "test.tsv")],
        ["--engine", "lava-inline", "--verify", "--file", str(some)],
    ):
        print(f"\n$ spikebert-run {out} {' '.join(arguments)}", flush=True)
        if code := spikebert_run([str(out), *arguments]):
            return code
    return 0


def arguments_of(description: str | None, name: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4, help="of training in floats")
    parser.add_argument("--sentences", type=int, default=5, help="how many run on Lava's processes")
    parser.add_argument("--out", type=Path, default=Path("build") / name, help="where the bundle goes")
    return parser.parse_args()


def main() -> int:
    arguments = arguments_of(__doc__, "own_model")
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    pad_id = tokenizer.pad_token_id
    texts, held_back = read_reviews("train", tokenizer), read_reviews("validation", tokenizer)

    model = train(OwnModel(len(tokenizer)), texts, pad_id, arguments.epochs, learning_rate=5e-3)
    say_accuracy("float model", model, held_back, pad_id)

    integer = quantise(model, weight_bits=4)
    say_accuracy("rounded to 4 bits", integer, held_back, pad_id)
    train(integer, texts, pad_id, epochs=1, learning_rate=3e-4)  # the loss is that of the integers
    say_accuracy("trained on in integers", integer, held_back, pad_id)
    return export_and_run(integer, arguments.out, arguments.sentences)


if __name__ == "__main__":
    sys.exit(main())
