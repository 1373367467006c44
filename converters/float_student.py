"""From an integer bundle back to a float student that training can go on from.

    python -m converters.float_student sst2.zip --teacher TEACHER --texts SST2/train.tsv --out runs/start
    spikebert-train --recipe sst2 --data.folder SST2 --teacher.model TEACHER --stage1.reuse runs/start \\
        --stage1.reuse_readout true

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import save_model
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from converters.bundle import Bundle, read_bundle
from converters.graph import LIF, Graph, Readout, Synapses
from spikebert.commands import UserError, note, run_command
from spikebert.config import SpikeBertConfig
from spikebert.data import TokenisedTexts, read_texts, sorted_batches, tokenise
from spikebert.distillation import Alignment
from spikebert.layers import SpikingLinear
from spikebert.least_squares import fit_alignment, fit_linear, set_norm, with_ones
from spikebert.model import SpikeBertForSequenceClassification
from spikebert.positions import LEARNED
from spikebert.recording import record
from spikebert.run_folder import errors_name_files
from spikebert.teachers import load_teacher, longest_text, resolve
from spikebert.vocabulary import ids_of

BATCH = 64
COMPARED = 200  # texts whose tokens are looked at
CHANGED = "the bundle has no {}: a pass has changed it. Export the model without that pass"


def config_of(bundle: Bundle, vocabulary: int) -> SpikeBertConfig:
    """Of the float student. Raises UserError for a bundle of another model, or one that has no float twin here."""
    kept = bundle.config.get("model")
    if not isinstance(kept, dict) or "SpikeBertForSequenceClassification" not in kept.get("architectures", ()):
        raise UserError(f"{bundle.place}: it was not made of a SpikeBERT: only such have a float student")
    config = SpikeBertConfig(**(kept | {"mode": "float", "weight_bits": 8, "token_bits": 8, "vocab_size": vocabulary}))
    if config.norm != "batch" or config.attention_position in LEARNED:
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


def token_table(teacher: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: str) -> Tensor:
    """Of the teacher in `folder`: float [V, D_teacher], a row for each token of its tokenizer.

    Raises UserError where it has fewer.
    """
    table = teacher.get_input_embeddings().weight.detach()
    if len(table) < len(tokenizer):
        raise UserError(f"--teacher: {folder} has {len(table)} tokens, its tokenizer {len(tokenizer)}")
    return table[: len(tokenizer)]


@torch.no_grad()
def fill(model: SpikeBertForSequenceClassification, graph: Graph, table: Tensor) -> None:
    """Give the float model what the graph computes with; every BatchNorm is the identity and an offset.

    Raises UserError where a pass has changed a layer of the model.
    """
    source, nodes = graph.source, {node.name: node for node in graph}
    model.encoder.token.weight.copy_(table)
    if model.encoder.position is not None:
        put(model.encoder.position.weight, source.position, "encoder.position", 1 / source_units(graph))
    if model.encoder.code is not None:
        put(model.encoder.code, source.code, "encoder.code")
    for name, layer in model.named_modules():
        if isinstance(layer, SpikingLinear):
            synapses, lif = nodes.get(name), nodes.get(f"{name}.lif")
            if not (isinstance(synapses, Synapses) and isinstance(lif, LIF)):
                raise UserError(CHANGED.format(f"layer '{name}'"))
            assert isinstance(layer.norm, nn.BatchNorm1d)
            put(layer.linear.weight, synapses.weight, name, 1 / lif.threshold)
            put(layer.linear.bias, synapses.bias, name, 1 / lif.threshold)
            set_norm(layer.norm, layer.linear.bias, torch.tensor(0.0), torch.tensor(1.0))
            layer.linear.bias.zero_()
    readout = nodes[graph.output]
    assert isinstance(readout, Readout)
    put(model.readout.linear.weight, readout.weight, readout.name, readout.scale)
    put(model.readout.linear.bias, readout.bias, readout.name, readout.scale)


def put(parameter: Tensor, values: np.ndarray | None, name: str, scale: float = 1.0) -> None:
    """`values * scale` into a parameter of that shape; UserError where it has another."""
    if values is None or values.shape != parameter.shape:
        raise UserError(CHANGED.format(f"'{name}' of {tuple(parameter.shape)} values"))
    parameter.copy_(torch.tensor(values, dtype=torch.float64) * scale)


def source_units(graph: Graph) -> int:
    """Table units per float unit. An encoder of signs compares with 0, whatever the unit: its tokens get a deviation of
    0.5, as those of a new student have it (`distillation.embeddings_from_teacher`)."""
    source = graph.source
    return source.threshold if source.kind == "lif" else max(1, round(2 * float(source.table.std())))


@torch.no_grad()
def expect_currents(model: SpikeBertForSequenceClassification, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Tell every BatchNorm of a filled model mean and variance of its currents over these batches."""
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
        offset = norm.bias.double() - norm.running_mean
        set_norm(norm, offset, mean - offset, (squares / count - mean.square()).clamp(min=0))


def batches_of(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, n_max: int, count: int, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """ids and mask [B, N] of `count` of the texts, drawn by `seed`."""
    chosen = np.random.default_rng(seed).permutation(len(texts))[:count]
    tokenised: TokenisedTexts = tokenise(tokenizer, [texts[i] for i in chosen], n_max)
    pad_id = tokenizer.pad_token_id or 0
    found = (tokenised.batch(some, pad_id) for some in sorted_batches(tokenised.lengths, BATCH))
    return [(batch["input_ids"], batch["attention_mask"]) for batch in found]


def check_tokenizers(bundle: Bundle, tokenizer: PreTrainedTokenizerBase, ids: np.ndarray, texts: Sequence[str]) -> None:
    """Raises UserError where the two take a text apart otherwise, though the bundle knows all of its tokens."""
    for text in texts[:COMPARED]:
        wanted = tokenizer(text, truncation=True, max_length=bundle.graph.n_max)["input_ids"]
        if np.isin(wanted, ids).all() and not np.array_equal(ids[list(bundle.tokenise(text).ids)], wanted):
            raise UserError(f"--teacher: its tokenizer takes '{text}' apart otherwise than that of {bundle.place}")


def make(bundle: Bundle, teacher: str, texts: Sequence[str], count: int, seed: int, out: Path) -> None:
    """Write the student, its alignment and its tokenizer into the new folder `out`, as a finished stage that
    `stage1.reuse` takes.

    Raises UserError for a bundle or a teacher that will not do.
    """
    tokenizer, alone = load_teacher(AutoTokenizer, teacher), load_teacher(AutoModel, teacher).eval()
    config = config_of(bundle, len(tokenizer))
    config.pad_token_id = tokenizer.pad_token_id
    if (room := longest_text(alone.config)) < bundle.graph.n_max:
        raise UserError(f"--teacher: it takes {room} tokens at most, {bundle.place} takes {bundle.graph.n_max}")
    torch.manual_seed(seed)
    model = SpikeBertForSequenceClassification(config).eval()
    ids = ids_of(bundle.tokenizer, tokenizer)
    check_tokenizers(bundle, tokenizer, ids, texts)
    rows = torch.tensor(bundle.graph.source.table[: len(ids)]) / source_units(bundle.graph)
    table, explained = extended_table(rows, ids, token_table(alone, tokenizer, teacher))
    note(
        f"tokens: {len(ids):,} of the bundle, {len(tokenizer) - len(ids):,} by the teacher's embedding, which explains "
        f"{explained:.0%} of the variance of those"
    )
    fill(model, bundle.graph, table)
    batches = batches_of(texts, tokenizer, bundle.graph.n_max, count, seed)
    expect_currents(model, batches)
    write_stage(model, alone, tokenizer, batches, record_of(bundle), out)


def write_stage(
    model: SpikeBertForSequenceClassification, teacher: nn.Module, tokenizer: PreTrainedTokenizerBase,
    batches: Sequence[tuple[Tensor, Tensor]], record: dict, out: Path,
) -> None:  # fmt: skip
    """Fill the folder `out` as one that `stage1.reuse` takes: the float student, maps to the teacher's hidden states
    that are fitted to `batches`, ids and masks int64 [B, N], the teacher's tokenizer and the `record`, a stage.json."""
    student, config = model.config, teacher.config
    alignment = Alignment(
        student.hidden_size, student.num_hidden_layers, config.hidden_size, config.num_hidden_layers,
        student.residual_cap,
    )  # fmt: skip
    fit_alignment(alignment, model, teacher, batches)
    model.save_pretrained(out)
    save_model(alignment, str(out / "alignment.safetensors"))
    tokenizer.save_pretrained(out)
    (out / "stage.json").write_text(json.dumps(record, indent=1) + "\n")


def record_of(bundle: Bundle) -> dict:
    """A `stage.json`: what this was made from, which texts that had learnt from, and what else its card said of
    licences."""
    terms = dict(bundle.config.get("licences", {}))
    texts = terms.pop("Learnt from the texts", "")
    name = str(bundle.config.get("name") or bundle.place.name)
    made_from = {
        "bundle": {"name": name, "digest": bundle.manifest["digest"]},
        "data": {"folder": "", "hub": ""},
        "stage1": {"text": [], "reuse": str(bundle.place)},
    }
    went_on = {"It went on from the bundle": name} | {f"of {name}: {what}": said for what, said in terms.items()}
    return {"made_from": made_from, "figures": {"learnt_from": texts.split(", ") if texts else [], "licences": went_on}}


def arguments(description: str | None, kind: str) -> argparse.ArgumentParser:
    """The command line of a converter that makes a stage of `source`, which is a `kind`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help=kind)
    parser.add_argument("--teacher", required=True, help="who is to teach it, as teacher.model of a recipe")
    parser.add_argument(
        "--texts", type=Path, required=True, help="a .tsv with columns text and label: what it will be trained on"
    )
    parser.add_argument("--count", type=int, default=512, help="so many of them are asked about (512)")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--out", type=Path, required=True, help="a new folder, for --stage1.reuse")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    return parser


@contextmanager
def new_folder(options: argparse.Namespace) -> Iterator[Path]:
    """To be filled; it becomes `--out` when that is done, and nothing is left where it fails.

    Raises UserError where `--out` is there already, and for a `--count` of none.
    """
    if options.out.exists():
        raise UserError(f"--out {options.out} exists: choose another place")
    if options.count < 1:
        raise UserError(f"--count is {options.count}: give 1 or more")
    with errors_name_files(options.out):
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=options.out.parent, prefix=f".{options.out.name}.") as partial:
            whole = Path(partial) / options.out.name
            whole.mkdir()
            yield whole
            whole.rename(options.out)


def run(argv: Sequence[str] | None) -> int:
    options = arguments(__doc__, "a bundle, its folder or a zip of it").parse_args(argv)
    bundle, texts, teacher = read_bundle(options.source), read_texts(options.texts), resolve(options.teacher)
    with new_folder(options) as out:
        make(bundle, teacher, texts, options.count, options.seed, out)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see `spikebert.commands` for the exit codes."""
    return run_command(run, argv)


if __name__ == "__main__":
    sys.exit(main())
