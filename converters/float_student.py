"""From an integer bundle back to a float student that training can go on from.

    python -m converters.float_student sst2.zip --teacher TEACHER --texts SST2/train.tsv --out runs/start
    spikebert-train --recipe sst2 --data.folder SST2 --teacher.model TEACHER --stage1.reuse runs/start

A bundle holds no floats and no BatchNorm, but what it computes can be written with both. Integers `W x + b` with
threshold `k` fire when the floats `W / k x + b / k` with threshold 1 do; and BatchNorm that expects mean `m` and
variance `v` of `W / k x` gives this in evaluation with a gain of `sqrt(v)` and an offset of `m + b / k`. Mean and
variance are measured with some texts, so a batch in training, which is normalised by its own, comes out much alike. The
student begins as good as the bundle: what differs is the decay of membranes, which integers truncate.

Tokens of the teacher that the bundle lacks are given rows by the linear map from the teacher's embedding that fits
those of the bundle best. The maps that align hidden states with the teacher's are fitted to the same texts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_model
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from converters.bundle import Bundle, read_bundle
from converters.graph import LIF, Graph, Readout, Synapses
from spikebert.commands import UserError, note, run_command
from spikebert.config import SpikeBertConfig
from spikebert.data import TokenisedTexts, read_tsv, sorted_batches, tokenise
from spikebert.distillation import Alignment
from spikebert.layers import SpikingLinear
from spikebert.model import SpikeBertForSequenceClassification
from spikebert.recording import record
from spikebert.teacher_outputs import ask_teacher
from spikebert.teachers import resolve
from spikebert.vocabulary import ids_of

BATCH = 64
RIDGE = 1e-4  # of the mean square of what is fitted from


def config_of(bundle: Bundle, vocabulary: int) -> SpikeBertConfig:
    """Of the float student. Raises UserError for a bundle of another model, or one that has no float twin here."""
    kept = bundle.config.get("model")
    if not isinstance(kept, dict) or "SpikeBertForSequenceClassification" not in kept.get("architectures", ()):
        raise UserError(f"{bundle.place}: it was not made of a SpikeBERT: only such have a float student")
    config = SpikeBertConfig(**(kept | {"mode": "float", "weight_bits": 8, "vocab_size": vocabulary}))
    if config.norm != "batch" or config.attention_position == "learned":
        raise UserError(
            f"{bundle.place}: norm '{config.norm}', attention_position '{config.attention_position}': only students "
            "with norm 'batch' and without learned positions in attention can be made again"
        )
    return config


def extended_table(rows: Tensor, ids: np.ndarray, teacher: Tensor) -> tuple[Tensor, float]:
    """A student's token table for all tokens of its teacher, and how much of its own rows' variance the map explains.

    rows     [v, D], those that it has
    ids      int64 [v], which tokens of the teacher they are
    teacher  [V, D_teacher], its token table
    """
    known = torch.from_numpy(ids)
    weights = fit_linear(teacher[known].double(), rows.double())
    guessed = with_ones(teacher.double()) @ weights
    missed = (guessed[known] - rows).square().sum() / (rows - rows.mean(0)).square().sum()
    table = guessed.to(rows.dtype)
    table[known] = rows
    return table, 1 - float(missed)


def with_ones(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(len(x), 1)], 1)


def fit_linear(x: Tensor, y: Tensor) -> Tensor:
    """[in + 1, out], the last row a bias: least squares of y [n, out] from x [n, in], a little damped."""
    x = with_ones(x)
    moments = x.T @ x
    return torch.linalg.solve(moments + RIDGE * moments.diagonal().mean() * torch.eye(len(moments)).to(x), x.T @ y)


@torch.no_grad()
def fill(model: SpikeBertForSequenceClassification, graph: Graph, table: Tensor) -> None:
    """Give the float model what the graph computes with; every BatchNorm is the identity and an offset.

    Raises UserError where a pass has taken a layer of the model apart.
    """
    source = graph.source
    model.encoder.token.weight.copy_(table)
    if model.encoder.position is not None:
        model.encoder.position.weight.copy_(torch.tensor(source.position) / source_units(graph))
    nodes = {node.name: node for node in graph}
    for name, layer in model.named_modules():
        if isinstance(layer, SpikingLinear):
            synapses, lif = nodes.get(name), nodes.get(f"{name}.lif")
            if not (isinstance(synapses, Synapses) and isinstance(lif, LIF)):
                raise UserError(
                    f"the graph has no layer '{name}': a pass has taken it apart. Export it without that pass"
                )
            assert isinstance(layer.norm, nn.BatchNorm1d)
            layer.linear.weight.copy_(torch.tensor(synapses.weight) / lif.threshold)
            layer.linear.bias.zero_()
            set_norm(layer.norm, torch.tensor(synapses.bias) / lif.threshold, torch.tensor(0.0), torch.tensor(1.0))
    readout = nodes[graph.output]
    assert isinstance(readout, Readout)
    model.readout.linear.weight.copy_(torch.tensor(readout.weight) * readout.scale)
    model.readout.linear.bias.copy_(torch.tensor(readout.bias) * readout.scale)


def source_units(graph: Graph) -> int:
    """Table units per float unit. An encoder of signs compares with 0, whatever the unit: its tokens get a deviation of
    0.5, as those of a new student have it (`distillation.embeddings_from_teacher`)."""
    source = graph.source
    return source.threshold if source.kind == "lif" else max(1, round(2 * float(source.table.std())))


@torch.no_grad()
def set_norm(norm: nn.BatchNorm1d, offset: Tensor, mean: Tensor, variance: Tensor) -> None:
    """Let `norm(x)` in evaluation be `x + offset`, with a mean and a variance [D] of x that it is to expect."""
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_((variance + norm.eps).sqrt())
    norm.bias.copy_(offset + mean)


@torch.no_grad()
def expect_currents(model: SpikeBertForSequenceClassification, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Tell every BatchNorm of a model that was just filled mean and variance of its currents over these batches."""
    sums: dict[str, tuple[Tensor, Tensor, int]] = {}
    for ids, mask in batches:
        for step in record(model, ids, mask).steps:
            if isinstance(step.layer, SpikingLinear):
                assert step.spikes.current is not None
                x = step.spikes.current.flatten(0, 1).double()
                total, squares, count = sums.get(step.name, (0.0, 0.0, 0))
                sums[step.name] = total + x.sum(0), squares + x.square().sum(0), count + len(x)
    for name, (total, squares, count) in sums.items():
        norm = model.get_submodule(name).norm
        mean = total / count
        offset = norm.bias.double()
        set_norm(norm, offset, mean - offset, (squares / count - mean.square()).clamp(min=0))


@torch.no_grad()
def fit_alignment(
    alignment: Alignment, model: SpikeBertForSequenceClassification, teacher: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
) -> None:  # fmt: skip
    """Least squares of the teacher's hidden states from the student's, over the tokens of these batches."""
    own: list[list[Tensor]] = [[] for _ in alignment.maps]
    theirs: list[Tensor] = []
    for ids, mask in batches:
        real = mask.flatten().bool()
        for states, state in zip(own, model(ids, mask, output_hidden_states=True).hidden_states, strict=True):
            states.append(state.flatten(0, 1)[real])
        theirs.append(ask_teacher(teacher, ids, mask, alignment.wanted).states)
    targets = torch.cat(theirs, 1).double()
    for states, wanted, linear in zip(own, alignment.teacher_state, alignment.maps, strict=True):
        weights = fit_linear(torch.cat(states).double(), targets[alignment.wanted.index(wanted)])
        linear.weight.copy_(weights[:-1].T)
        linear.bias.copy_(weights[-1])


def batches_of(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, n_max: int, count: int, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """ids and mask [B, N] of `count` of the texts, drawn by `seed`."""
    chosen = np.random.default_rng(seed).permutation(len(texts))[:count]
    tokenised: TokenisedTexts = tokenise(tokenizer, [texts[i] for i in chosen], n_max)
    pad_id = tokenizer.pad_token_id or 0
    found = (tokenised.batch(some, pad_id) for some in sorted_batches(tokenised.lengths, BATCH))
    return [(batch["input_ids"], batch["attention_mask"]) for batch in found]


def make(bundle: Bundle, teacher: str, texts: Sequence[str], count: int, seed: int, out: Path) -> None:
    """Write the student, its alignment and its tokenizer, as a finished stage that `stage1.reuse` takes."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    alone = AutoModel.from_pretrained(teacher).eval()
    torch.manual_seed(seed)
    config = config_of(bundle, len(tokenizer))
    model = SpikeBertForSequenceClassification(config).eval()
    rows = torch.tensor(bundle.graph.source.table) / source_units(bundle.graph)
    ids = ids_of(bundle.tokenizer, tokenizer)
    table, explained = extended_table(rows, ids, alone.get_input_embeddings().weight.detach()[: len(tokenizer)])
    note(
        f"tokens: {len(ids):,} of the bundle, {len(tokenizer) - len(ids):,} by the teacher's embedding, which explains "
        f"{explained:.0%} of the variance of those"
    )
    fill(model, bundle.graph, table)
    batches = batches_of(texts, tokenizer, config.max_position_embeddings, count, seed)
    expect_currents(model, batches)
    alignment = Alignment(
        config.hidden_size, config.num_hidden_layers, alone.config.hidden_size, alone.config.num_hidden_layers
    )
    fit_alignment(alignment, model, alone, batches)
    out.mkdir(parents=True)
    model.save_pretrained(out)
    save_model(alignment, str(out / "alignment.safetensors"))
    tokenizer.save_pretrained(out)
    (out / "stage.json").write_text(json.dumps(record_of(bundle), indent=1) + "\n")  # last: with it the stage is whole


def record_of(bundle: Bundle) -> dict:
    """A `stage.json`: what this was made from, and which texts that had learnt from."""
    texts = bundle.config.get("licences", {}).get("Learnt from the texts", "")
    made_from = {
        "bundle": {"name": bundle.config.get("name"), "digest": bundle.manifest["digest"]},
        "data": {"folder": "", "hub": ""},
        "stage1": {"text": [], "reuse": str(bundle.place)},
    }
    return {"made_from": made_from, "figures": {"learnt_from": texts.split(", ") if texts else []}}


def run(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="a bundle, its folder or a zip of it")
    parser.add_argument("--teacher", required=True, help="who is to teach it, as teacher.model of a recipe")
    parser.add_argument(
        "--texts", type=Path, required=True, help="a .tsv with a column text: what it will be trained on"
    )
    parser.add_argument("--count", type=int, default=512, help="so many of them are asked about (512)")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--out", type=Path, required=True, help="a new folder, for --stage1.reuse")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    options = parser.parse_args(argv)
    if options.out.exists():
        raise UserError(f"--out {options.out} exists: choose another place")
    if options.count < 1:
        raise UserError(f"--count is {options.count}: give 1 or more")
    bundle = read_bundle(options.bundle)
    make(bundle, resolve(options.teacher), read_tsv(options.texts).texts, options.count, options.seed, options.out)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see `spikebert.commands` for the exit codes."""
    return run_command(run, argv)


if __name__ == "__main__":
    sys.exit(main())
