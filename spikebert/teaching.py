"""How a stage comes by its teacher's outputs: from disk where texts come again and there is room, else by asking."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from spikebert.data import TokenisedTexts
from spikebert.kept_outputs import GB, Ask, KeptOutputs, drop_kept, fingerprint
from spikebert.progress import parts_done, say
from spikebert.stage_record import read_note, write_note
from spikebert.teacher_outputs import TeacherOutputs, ask_teacher

Teaching = Callable[[dict[str, Tensor]], TeacherOutputs]  # of a batch


@dataclass(frozen=True)
class Lesson:
    """A teacher, and texts that it is asked about again and again.

    wanted   which of its hidden states
    classes  of its logits; 0 where they are not wanted
    texts    the first ones of every epoch
    times    how often they come
    place    the folder below which its outputs of them may be kept
    limit    how many bytes they may take; 0 for none
    at_least so many of the texts, the first ones, are kept where all have no room; None: all or none
    """

    teacher: nn.Module
    wanted: Sequence[int]
    classes: int
    texts: TokenisedTexts
    times: int
    place: Path
    limit: int
    at_least: int | None = None


@contextmanager
def teaching(lesson: Lesson, work: Path, title: str, pad_id: int, accelerator: Accelerator) -> Iterator[Teaching]:
    """A function that gives the teacher's outputs of a batch, for the stage `title` whose unfinished folder is `work`.

    Where the teacher is `held_in_bf16`, it is so from now on. All processes call this. Raises OSError where outputs
    cannot be written or read. Where nothing is wanted of the teacher it is never asked.
    """
    if not (lesson.wanted or lesson.classes):  # labels alone
        yield lambda batch: TeacherOutputs(None, None)
        return
    in_bf16 = held_in_bf16(accelerator.device, accelerator.mixed_precision)
    if in_bf16:
        lesson.teacher.to(torch.bfloat16)

    def ask(ids: Tensor, mask: Tensor) -> TeacherOutputs:
        ids, mask = ids.to(accelerator.device), mask.to(accelerator.device)
        with nullcontext() if in_bf16 else accelerator.autocast():
            return ask_teacher(lesson.teacher, ids, mask, lesson.wanted)

    kept = _may_be_kept(lesson, work, title, accelerator)
    if kept is None:
        yield lambda batch: ask(batch["input_ids"], batch["attention_mask"])
        return
    _fill(kept, ask, title, pad_id, accelerator)
    with kept:
        yield lambda batch: kept.of_batch(batch, ask)


def held_in_bf16(device: torch.device, precision: str) -> bool:
    """Whether all of a teacher that is asked, and not trained, is in bf16, norms and residuals too.

    Mixed precision has bf16 in matrix products alone, and a GPU waits for memory between them.
    """
    return device.type == "cuda" and precision == "bf16"


def _may_be_kept(lesson: Lesson, work: Path, title: str, accelerator: Accelerator) -> KeptOutputs | None:
    """Outputs on disk, written or not: if the texts come twice or more, and there is room.

    A stage decides it once, and notes it in `work`: when a stopped one goes on the disk may be fuller or emptier, and
    outputs that are read differ by rounding from those asked for.
    """
    if lesson.times < 2 or not lesson.limit:
        return None
    fewest = len(lesson.texts) if lesson.at_least is None else lesson.at_least
    note = work / "teacher_outputs.json"
    if accelerator.is_main_process and (read_note(note) or {}).get("limit") != lesson.limit:
        chosen, obstacle = 0, None
        for texts in sorted({len(lesson.texts), fewest}, reverse=True):
            obstacle = _kept(lesson, texts, accelerator).obstacle(lesson.limit)
            if obstacle is None:
                chosen = texts
                break
            others = f" about all but {fewest:,} texts" if texts > fewest else ""
            say(f"{title}: the teacher is asked in each step{others}: its outputs would take {obstacle}")
        write_note(note, {"limit": lesson.limit, "kept": obstacle is None, "texts": chosen})
    accelerator.wait_for_everyone()
    decided = read_note(note) or {}
    return _kept(lesson, decided.get("texts", fewest), accelerator) if decided.get("kept") else None


def _kept(lesson: Lesson, texts: int, accelerator: Accelerator) -> KeptOutputs:
    """Of the first so many texts."""
    own, width = lesson.texts.first(texts), lesson.teacher.config.hidden_size
    name = fingerprint(lesson.teacher, own, lesson.wanted, accelerator.mixed_precision)
    return KeptOutputs(lesson.place / name, own, lesson.classes, len(lesson.wanted), width)


def _fill(kept: KeptOutputs, ask: Ask, title: str, pad_id: int, accelerator: Accelerator) -> None:
    """Write what is missing of `kept`, each process its share."""
    missing = kept.missing(accelerator.process_index, accelerator.num_processes)
    asked: Iterable[int] = missing
    if accelerator.is_main_process:
        drop_kept(kept.folder.parent, but=kept.folder.name)  # of another teacher or of other texts
        if missing:
            say(f"{title}: asking the teacher once for all epochs, {kept.bytes / GB:.2f} GB go to {kept.folder.parent}")
            asked = parts_done(missing, f"{title}: asking the teacher")
    for part in asked:
        kept.write(part, ask, pad_id)
    accelerator.wait_for_everyone()
