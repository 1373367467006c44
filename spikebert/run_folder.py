"""The folder of a run: which stages are finished, from what each was made, and how the folder of one comes about.

A stage is written under another name and renamed, so one of its own name is finished. What it needs until then
(checkpoint, tokenised text, TensorBoard's files) is in `STAGE.unfinished`, with a note of what it is made from.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from spikebert.commands import UserError
from spikebert.recipe import STAGES
from spikebert.stage_record import N_MAX, TEACHER, changes, read_note, read_record, write_note, write_through

BEGUN = "made_from.json"  # what an unfinished stage is made from
TEXTS = "texts"  # the folder of stage 1's tokenised text, until it is finished
# What decides that text: with other fields it is the same, and may have taken an hour.
TOKENS_OF = {
    *("stage1.text", "stage1.lines", "stage1.longest_words", N_MAX, TEACHER),
    *("sha256.stage1.text", f"sha256.{TEACHER}"),
}


class RunFolder:
    """`out` and the stages in it. What one is made from is all that decides its result, as `stage.json` notes it."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def of(self, stage: str) -> Path:
        """Of a stage that is finished, or will be."""
        return self.out / stage

    def unfinished(self, stage: str) -> Path:
        return self.out / f"{stage}.unfinished"

    def saving(self, stage: str) -> Path:
        """While it is written."""
        return self.out / f"{stage}.saving"

    def finished(self, stage: str) -> bool:
        return self._record_place(stage).exists()

    def record(self, stage: str) -> dict:
        """What a finished stage was made from, and its figures. Raises UserError where that is damaged."""
        return read_record(self._record_place(stage))

    def _record_place(self, stage: str) -> Path:
        return self.of(stage) / "stage.json"

    def check_free(self, teacher_folder: str) -> None:
        """Raises UserError where writing a stage would delete something that is none of ours, or the teacher."""
        for stage in STAGES:
            folder = self.of(stage)
            if folder.exists() and not self.finished(stage):
                raise UserError(f"{folder} exists and is no stage of ours (no stage.json): choose another --out")
            if Path(teacher_folder).resolve() == folder.resolve():
                raise UserError(f"teacher.model is {folder}, where this run writes: choose another --out")

    def check_recipe(self, made_from: Callable[[str], dict]) -> None:
        """Raises UserError where another recipe finished a stage, or trained a part of it; `made_from` tells of each
        what it would be made from now."""
        for stage in STAGES:
            unfinished = self.unfinished(stage)
            if self.finished(stage):
                before = self.record(stage)["made_from"]
                was = f"{self.of(stage)} was made"
                mend = "choose another --out, or delete that folder and the later stages to train them again"
            elif (unfinished / "checkpoint.pt").exists() and (begun := read_note(unfinished / BEGUN)):
                before, was = begun, f"{unfinished} was begun"
                mend = "give that one to go on, choose another --out, or delete that folder to begin the stage again"
            else:
                continue
            if changed := changes(before, made_from(stage)):
                raise UserError(f"{was} with another recipe ({'; '.join(changed)}): {mend}")

    def make(self) -> None:
        """The folder itself. Raises OSError where it cannot be made or written to."""
        self.out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=self.out).close()  # may we write there?

    def begin(self, stage: str, made_from: dict, say: Callable[[str], None]) -> None:
        """Make the folder of an unfinished stage. What another recipe left there before its first checkpoint is no
        start for this one: it is removed, and that is said. Tokenised text stays where it is the same."""
        unfinished = self.unfinished(stage)
        before = read_note(unfinished / BEGUN)
        if before is not None and (changed := changes(before, made_from)):
            say(f"{stage}: begun before with another recipe ({'; '.join(changed)}): starting again")
            other_tokens = any(field.partition(" ")[0] in TOKENS_OF for field in changed)
            for path in unfinished.iterdir():
                if path.name != TEXTS or other_tokens:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        unfinished.mkdir(parents=True, exist_ok=True)
        write_note(unfinished / BEGUN, made_from)

    def finish(
        self, stage: str, record: dict, save: Callable[[Path], None], tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """Write a stage with all that it trained (`save` into a folder), then let go what it needed until now."""
        partial = self.saving(stage)
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        try:
            partial.mkdir()
            save(partial)
            tokenizer.save_pretrained(partial)
            (partial / "stage.json").write_text(json.dumps(record, indent=1) + "\n")
            logs = self.unfinished(stage) / "tensorboard"
            if logs.exists():
                shutil.copytree(logs, partial / "tensorboard")
            write_through(partial)
            shutil.rmtree(self.of(stage), ignore_errors=True)
            os.replace(partial, self.of(stage))
            write_through(self.out, below=False)  # before the checkpoint goes
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        self.let_go(stage)

    def let_go(self, stage: str) -> None:
        """Remove what a finished stage needed until it was: of a run that was killed behind the last step, too."""
        for folder in (self.unfinished(stage), self.saving(stage)):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def errors_name_files(folder: Path) -> Iterator[None]:
    """While the run in `folder` is read and written: what the file system refuses becomes a UserError that names it."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        path = getattr(error, "filename", None) or folder
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: {reason}. Check the path, the rights and the space") from error


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """While no other training writes to `folder`. Raises UserError where one does. (Where the file system has no locks
    nobody can tell.)"""
    place = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another training writes there: wait for it, or choose another --out") from None
        except OSError:
            pass
        yield
    finally:
        os.close(place)
