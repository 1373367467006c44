"""How much memory does a training step take, with gradient checkpointing and without, and how long?

    .venv/bin/python -m benchmarks.activation_memory --texts 8 16 --predict 64 512

A student and a teacher of the size of BERT-base, random weights, do steps of stage 2: the teacher is asked; logits,
hidden states, embeddings and labels are distilled; AdamW moves the weights. All tokens are real. Each figure is of a
process of its own. What a text more takes follows from the two largest batches. Memory does not depend on the weights.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from transformers import BertConfig, BertForSequenceClassification

from benchmarks.export import Size, in_a_process
from benchmarks.timing import Usage, machine, table
from spikebert import SpikeBertConfig, SpikeBertForSequenceClassification
from spikebert.commands import note
from spikebert.distillation import Alignment, LossWeights
from spikebert.loop import GRADIENT_NORM, Schedule, parameter_groups
from spikebert.machine_use import MachineUse
from spikebert.pupil import Pupil
from spikebert.quantisation import quantise
from spikebert.teacher_outputs import ask_teacher

WORDS, CLASSES = 30522, 2
MODES = ("float", "integer")


@dataclass(frozen=True)
class Case:
    """mode: "float" or "integer". precision: as a recipe has it. checkpointing: of gradients. texts: of a batch."""

    mode: str
    precision: str
    checkpointing: bool
    texts: int


@dataclass(frozen=True)
class Measured:
    """Seconds of a step; the most main memory the process ever held; the most it held of a GPU, None without one."""

    seconds: float
    peak_bytes: int
    gpu_peak_bytes: int | None

    @property
    def bytes(self) -> int:
        """Where the step was done."""
        return self.peak_bytes if self.gpu_peak_bytes is None else self.gpu_peak_bytes


def measure_step(case: Case, size: Size) -> Measured:
    """Does a step, after one of a single text: from then on the optimiser has its memory, and kernels are compiled.

    The process must have done none before.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    pupil, teacher = make_pupil(size, case.mode).to(device), make_teacher(size).to(device)
    if case.checkpointing:
        pupil.student.gradient_checkpointing_enable()
    rates = pupil.student.learning_rates(1.0)
    optimiser = torch.optim.AdamW(parameter_groups(pupil, rates, Schedule(1, case.texts, 1e-4)), lr=1e-4, fused=True)
    mixed = torch.autocast(device.type, torch.bfloat16, enabled=case.precision == "bf16")
    weights = LossWeights(label=1.0, logits=1.0, hidden=0.1, embedding=0.1, temperature=2.0)
    batch = {
        "input_ids": torch.randint(WORDS, (case.texts, size.n_max), device=device),
        "attention_mask": torch.ones(case.texts, size.n_max, dtype=torch.long, device=device),
        "labels": torch.randint(CLASSES, (case.texts,), device=device),
    }

    def step(texts: int) -> float:
        part = {name: value[:texts] for name, value in batch.items()}
        with mixed:
            taught = ask_teacher(teacher, part["input_ids"], part["attention_mask"], pupil.alignment.wanted)
            loss = pupil(part, *taught, weights)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(pupil.parameters(), GRADIENT_NORM)
        optimiser.step()
        optimiser.zero_grad()
        return float(loss.detach())  # waits for a GPU

    use = MachineUse(device)
    step(1)
    start = time.perf_counter()
    step(case.texts)
    return Measured(time.perf_counter() - start, use.peak_memory_bytes(), use.gpu_peak_bytes())


def make_pupil(size: Size, mode: str) -> Pupil:
    """Student and alignment in training, as stage 2 ("float") and the integer stage have them."""
    config = SpikeBertConfig(
        vocab_size=WORDS,
        num_labels=CLASSES,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=size.intermediate,
        max_position_embeddings=size.n_max,
        timesteps=size.timesteps,
    )
    student = SpikeBertForSequenceClassification(config)
    student = quantise(student) if mode == "integer" else student
    return Pupil(student, Alignment(size.hidden, size.layers, size.hidden, size.layers)).train()


def make_teacher(size: Size) -> BertForSequenceClassification:
    """A BERT as large as the student."""
    config = BertConfig(
        vocab_size=WORDS,
        num_labels=CLASSES,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=size.intermediate,
        max_position_embeddings=size.n_max,
    )
    return BertForSequenceClassification(config).eval()


def of_a_text(measured: dict[int, Measured]) -> tuple[float, float]:
    """Bytes that each text takes and bytes that a step of none would, from the two largest batches."""
    *_, less, more = sorted(measured)
    slope = (measured[more].bytes - measured[less].bytes) / (more - less)
    return slope, measured[more].bytes - slope * more


def report(measured: dict[Case, Measured], predict: Sequence[int]) -> str:
    """A line for each kind of step. measured: in the order in which they are to stand."""
    kinds: dict[tuple, dict[int, Measured]] = {}
    for case, one in measured.items():
        kinds.setdefault((case.mode, case.precision, case.checkpointing), {})[case.texts] = one
    sizes = sorted({case.texts for case in measured})
    rows = []
    for (mode, precision, checkpointing), of_sizes in kinds.items():
        row = [f"{mode}, {precision}, {'checkpointed' if checkpointing else 'all kept'}"]
        row += [f"{of_sizes[texts].bytes / 1e9:.2f} ({of_sizes[texts].seconds:.1f} s)" for texts in sizes]
        if len(of_sizes) > 1:
            slope, rest = of_a_text(of_sizes)
            row += [f"{slope / 1e6:,.0f} MB", *(f"{(rest + slope * texts) / 1e9:.1f}" for texts in predict)]
        rows.append(row)
    header = ["peak in GB (a step)", *(f"{texts} texts" for texts in sizes)]
    if len(sizes) > 1:
        header += ["a text more", *(f"{texts} texts, predicted" for texts in predict)]
    return table(header, rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, nargs="+", default=[8, 16], help="in a batch; default: 8 16")
    parser.add_argument("--predict", type=int, nargs="*", default=[64, 512], help="batches; default: 64 512")
    parser.add_argument("--modes", choices=MODES, nargs="+", default=MODES)
    parser.add_argument("--precisions", choices=["bf16", "float32"], nargs="+", default=["bf16", "float32"])
    parser.add_argument("--checkpointing", choices=["on", "off"], nargs="+", default=["off", "on"])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--intermediate", type=int, default=3072)
    parser.add_argument("--n-max", type=int, default=128, help="tokens of every text")
    parser.add_argument("--timesteps", type=int, default=4)
    options = parser.parse_args(argv)
    size = Size(**{name: getattr(options, name) for name in Size.__dataclass_fields__})
    kinds = product(options.modes, options.precisions, options.checkpointing, sorted(set(options.texts)))
    cases = [Case(mode, precision, switch == "on", texts) for mode, precision, switch, texts in kinds]
    start = Usage.now()
    measured = {}
    for case in cases:
        measured[case] = one = in_a_process(measure_step, case, size)
        note(f"{case}: {one.bytes / 1e9:.2f} GB, {one.seconds:.1f} s")
    print(f"{report(measured, options.predict)}\n\n{machine(start)}")


if __name__ == "__main__":
    main()
