"""Teacher and student side by side: what distillation trains, and how a pupil is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from spikebert.commands import UserError
from spikebert.config import SpikeBertConfig
from spikebert.distillation import (
    Alignment,
    LossWeights,
    distillation_loss,
    layer_map,
    loss_parts,
    operations_loss,
    states_kept,
)
from spikebert.model import SpikeBertForSequenceClassification
from spikebert.positions import LEARNED
from spikebert.processes import mean_over_processes
from spikebert.teacher_outputs import short_to_long

# What may differ between two students whose weights have the same shapes, besides timesteps.
NEURONS = (
    "num_attention_heads",
    "encoder",
    "decay",
    "reset",
    "spike",
    "spike_cap",
    "encoder_cap",
    "value_cap",
    "attention_similarity",
    "attention_threshold",
    "attention_position",
)
CHANGE = "`python -m converters.change_teacher` fits it to this teacher"


class Classifier(nn.Module):
    """The teacher inside a wrapper: mixed precision is switched on for training only, not for evaluation.

    chunk  texts of a batch that it is trained with at a time, from short to long: less padding. None: the whole batch
    """

    def __init__(self, teacher: nn.Module, chunk: int | None = None) -> None:
        super().__init__()
        self.teacher = teacher
        self.chunk = chunk

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """The label loss, this process's part of it (`mean_over_processes`)."""
        ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
        if self.chunk is None or self.chunk >= len(mask):
            loss = F.cross_entropy(self.teacher(input_ids=ids, attention_mask=mask).logits.float(), labels)
            return mean_over_processes(loss, len(labels))
        order, parts = short_to_long(mask, self.chunk)
        logits = [
            self.teacher(input_ids=ids[rows, :width], attention_mask=mask[rows, :width]).logits for rows, width in parts
        ]
        loss = F.cross_entropy(torch.cat(logits).float(), labels[order])
        return mean_over_processes(loss, len(labels))


class Pupil(nn.Module):
    """The student with its alignment maps: everything that distillation trains."""

    def __init__(self, student: SpikeBertForSequenceClassification, alignment: Alignment) -> None:
        super().__init__()
        self.student = student
        self.alignment = alignment

    def forward(
        self,
        batch: dict[str, Tensor],
        teacher_logits: Tensor | None,
        teacher_states: Tensor | None,
        weights: LossWeights,
    ) -> dict[str, Tensor]:
        """The distillation loss as `loop.Losses`, this process's part of it (`mean_over_processes`); the teacher's part
        of it is as `TeacherOutputs` has it.

        It is computed in here because `DistributedDataParallel` has to see which parameters it depends on. Without
        teacher states there is no alignment loss.
        """
        ids, mask = batch["input_ids"], batch["attention_mask"]
        counts = weights.limits_operations
        output = self.student(ids, mask, output_hidden_states=teacher_states is not None, output_operations=counts)
        embedding, hidden = None, None
        if teacher_states is not None:
            embedding, hidden = self.alignment(output.hidden_states, teacher_states, mask)
        with torch.autocast(ids.device.type, enabled=False):
            parts = loss_parts(weights, output.logits, teacher_logits, batch["labels"], embedding, hidden)
            if counts:
                parts["operations"] = operations_loss(output.operations, int(mask.sum()), weights.operations_per_token)
            loss = distillation_loss(weights, parts, output.logits.device)
            return {"loss": loss} | {name: part.detach() for name, part in parts.items()}


def pupil_files(folder: str) -> list[str]:
    """The files that hold the weights of the pupil kept in `folder`."""
    return [str(Path(folder) / name) for name in ("model.safetensors", "alignment.safetensors")]


def aligned_states(folder: str, student_layers: int, teacher_layers: int) -> list[int]:
    """Of the student's states 0 (embedding) .. L, the teacher's state that each was aligned with, by the alignment kept
    in `folder`; where there is none, what it would be."""
    path = Path(folder) / "alignment.safetensors"
    if not path.exists():
        return layer_map(student_layers, teacher_layers)
    with safe_open(path, "pt") as alignment:
        told = "aligned_with" in alignment.keys()  # noqa: SIM118  # it is no dictionary
        kept = alignment.get_tensor("aligned_with").tolist() if told else None
    return states_kept(kept, student_layers, teacher_layers)


def check_reuse(
    student: SpikeBertConfig, teacher: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, folder: Path,
    readout: bool = False,
) -> None:  # fmt: skip
    """Raises UserError where `folder` is no finished stage 1 or 2 of such a student and such a teacher, whose
    `tokenizer` this is; with `readout`, where its readout is of another kind or other classes."""
    for name in ("stage.json", "model.safetensors"):
        if not (folder / name).exists():
            raise UserError(f"stage1.reuse: {folder} is no finished stage (no {name})")
    try:
        earlier, own = SpikeBertConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        with safe_open(folder / "alignment.safetensors", "pt") as alignment:
            maps = [alignment.get_slice(f"maps.{i}.weight").get_shape() for i in range(earlier.num_hidden_layers + 1)]
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"stage1.reuse: {folder} cannot be read: {str(error).splitlines()[0]}") from None
    if earlier.mode != "float":
        raise UserError(f"stage1.reuse: {folder} holds an integer model: give the stage1 or stage2 folder beside it")
    shape = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "intermediate_size",
        "max_position_embeddings",
        "positions",
        "position_spikes",
        "norm",
    )
    different = [
        f"{name} {getattr(earlier, name)}" for name in shape if getattr(earlier, name) != getattr(student, name)
    ]
    if different:
        hint = (
            ": it has a smaller data.vocabulary, or its teacher had" if earlier.vocab_size < student.vocab_size else ""
        )
        mend = f". {CHANGE}" if different == [f"vocab_size {earlier.vocab_size}"] else ""
        raise UserError(f"stage1.reuse: the student in {folder} has another shape ({', '.join(different)}){hint}{mend}")
    if earlier.attention_position in LEARNED:
        if student.attention_position not in LEARNED:
            raise UserError(
                f"stage1.reuse: {folder} has learned positions in its attention: this student has no place for them"
            )
        if earlier.num_attention_heads != student.num_attention_heads:
            raise UserError(
                f"stage1.reuse: {folder} has learned positions of {earlier.num_attention_heads} heads in its "
                f"attention, this student has {student.num_attention_heads}"
            )
    if readout and (earlier.readout, earlier.id2label) != (student.readout, student.id2label):
        raise UserError(
            f"stage1.reuse_readout: the student in {folder} has readout '{earlier.readout}' and classes "
            f"{list(earlier.id2label.values())}, this one '{student.readout}' and {list(student.id2label.values())}"
        )
    if own.get_vocab() != tokenizer.get_vocab():
        raise UserError(f"stage1.reuse: {folder} has tokens of other meanings than the teacher's. {CHANGE}")
    if any(widths != [teacher.hidden_size, student.hidden_size] for widths in maps):
        width = teacher.hidden_size
        raise UserError(f"stage1.reuse: {folder} is aligned with a teacher of another width than {width}. {CHANGE}")


def other_neurons(student: SpikeBertConfig, folder: Path) -> str:
    """What a student that `check_reuse` lets pass has otherwise than this one, though its weights have the same shapes;
    empty where nothing. (Another number of timesteps is common, and goes well.)"""
    earlier = SpikeBertConfig.from_pretrained(folder)
    return ", ".join(
        f"{name} {getattr(earlier, name)} (this one {getattr(student, name)})"
        for name in NEURONS
        if getattr(earlier, name) != getattr(student, name)
    )


def reuse(pupil: Pupil, folder: Path, readout: bool = False) -> None:
    """Take student body and alignment from a finished stage 1 or 2 (see `check_reuse`). Without `readout` that stays
    new: stage 1 never trained it, and stage 2 may have trained it on another task."""
    with weights_of(folder, "copy it again, or give another stage1.reuse"):
        weights = SpikeBertForSequenceClassification.from_pretrained(folder).state_dict()
        alignment = load_file(folder / "alignment.safetensors")
    body = {name: value for name, value in weights.items() if not name.startswith(("head.", "readout."))}
    pupil.student.load_state_dict(weights if readout else body, strict=False)  # a bias of attention may be new
    pupil.alignment.load_state_dict(alignment)


@contextmanager
def weights_of(folder: Path, mend: str) -> Iterator[None]:
    """While the weights of a finished stage are read: damaged ones become a UserError that names it, and what to do."""
    try:
        yield
    except SafetensorError as error:
        raise UserError(f"{folder}: its weights are damaged ({error}): {mend}") from error


def pupil_saver(pupil: Pupil) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        pupil.student.save_pretrained(folder)
        save_model(pupil.alignment, str(folder / "alignment.safetensors"))

    return save
