"""A teacher's outputs of texts that come again in every epoch, kept on disk: reading them is faster than asking again.

    FOLDER/<sha256>/000/logits.npy   float32 [texts, classes]; absent where not wanted
                        states.npy   float16 [tokens, S, D], see `TeacherOutputs.states`; absent where not wanted
                    001/...

The sha256 is of all that decides them (`fingerprint`). Each numbered part holds the outputs of some texts. It is
written under another name and renamed, so one that is there is whole, and a run that was killed writes what is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from io import FileIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from spikebert.data import TokenisedTexts, sorted_batches
from spikebert.teacher_outputs import TeacherOutputs, merged

LAYOUT = 1  # of the files; another number, other files
GB = 10**9
ROOM = GB  # of the disk is left for checkpoints and models
PART_BYTES, PART_TEXTS, MOST_PARTS = 16_000_000, 2048, 256  # all files of states are open at once
ASKED_TEXTS = 64  # at a time, of like length

Ask = Callable[[Tensor, Tensor], TeacherOutputs]  # of ids and mask, [B, N] each


def fingerprint(teacher: nn.Module, texts: TokenisedTexts, wanted: Sequence[int], precision: str) -> str:
    """sha256 of all that decides what is kept: the teacher's configuration and weights, the texts' token ids, which
    hidden states are wanted, and the precision in which the teacher is run."""
    digest = hashlib.sha256()
    digest.update(json.dumps([LAYOUT, teacher.config.to_json_string(), list(wanted), precision]).encode())
    for name, value in teacher.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    for array in (texts.offsets, texts.ids):
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)  # no copy: ids may be a large file
    return digest.hexdigest()


def drop_kept(folder: Path, but: str = "") -> None:
    """Delete what is kept below `folder`, except what bears the name `but`. Nothing else there is touched."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if re.fullmatch("[0-9a-f]{64}", path.name) and path.name != but:
            shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):  # something of another is in it, or it is not there
        folder.rmdir()


class KeptOutputs:
    """A teacher's outputs of `texts`, on disk.

    folder   named by `fingerprint`
    classes  of its logits; 0 where they are not wanted
    states   S, how many hidden states are wanted; 0 or more
    width    D

    `write` what is `missing`, then `with` this open `read`.
    """

    def __init__(self, folder: Path, texts: TokenisedTexts, classes: int, states: int, width: int) -> None:
        self.folder, self.texts, self.classes, self.states, self.width = folder, texts, classes, states, width
        parts = max(-(-self.bytes // PART_BYTES), -(-len(texts) // PART_TEXTS), 1)
        self.part_texts = -(-len(texts) // min(parts, MOST_PARTS))
        self.parts = -(-len(texts) // self.part_texts)
        self._closing = ExitStack()
        self._files: list[tuple[FileIO, int]] = []  # of each part its states, and where they begin in the file
        self._logits = np.zeros((0, classes), dtype=np.float32)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def token_bytes(self) -> int:
        return 2 * self.states * self.width

    @property
    def bytes(self) -> int:
        """What all of it takes on disk, headers apart."""
        return int(self.texts.offsets[-1]) * self.token_bytes + len(self) * 4 * self.classes

    def obstacle(self, limit: int) -> str | None:
        """Why it cannot be kept in `limit` bytes and in what the disk has free; None where it can."""
        if self.bytes > limit:
            return f"{self.bytes / GB:.2f} GB, the limit is {limit / GB:g} GB (teacher_cache_gb)"
        place = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(place).free
        share = len(self.missing()) / self.parts
        if self.bytes * share + ROOM > free:
            return f"{self.bytes / GB:.2f} GB, {place} has {free / GB:.2f} GB free and {ROOM / GB:g} GB must remain"
        return None

    # Writing

    def missing(self, process: int = 0, processes: int = 1) -> list[int]:
        """The parts not there yet that are one process's to write."""
        return [part for part in range(process, self.parts, processes) if not self._is_whole(part)]

    def write(self, part: int, ask: Ask, pad_id: int) -> None:
        """Ask the teacher about the texts of a part and keep what it says. Raises OSError where it cannot be written.

        The batches depend on the texts alone, so whoever writes a part writes the same.
        """
        first, last = self._bounds(part)
        begin = self.texts.offsets[first]
        arrays: dict[str, np.ndarray] = {name: np.empty(*kind) for name, kind in self._arrays(part).items()}
        for rows in sorted_batches(self.texts.lengths[first:last], ASKED_TEXTS):
            batch = self.texts.batch(first + rows, pad_id)
            logits, states = ask(batch["input_ids"], batch["attention_mask"])
            if self.classes:
                assert logits is not None, "a teacher without a head has 0 classes"
                arrays["logits"][rows] = logits.cpu().numpy()
            if self.states:
                assert states is not None, "as many as were wanted"
                spans = [np.arange(self.texts.offsets[i], self.texts.offsets[i + 1]) for i in first + rows]
                arrays["states"][np.concatenate(spans) - begin] = states.transpose(0, 1).half().cpu().numpy()
        partial = self._path(part).with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        try:
            partial.mkdir(parents=True)
            for name, array in arrays.items():
                with open(partial / f"{name}.npy", "wb") as file:
                    np.save(file, array, allow_pickle=False)
                    file.flush()
                    os.fsync(file.fileno())  # else a machine that stops might leave the name without the content
            shutil.rmtree(self._path(part), ignore_errors=True)
            os.replace(partial, self._path(part))
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    # Reading

    def __enter__(self) -> KeptOutputs:
        """Open all parts. Raises ValueError, OSError where one is not whole."""
        with ExitStack() as opened:
            logits, files = [], []
            for part in range(self.parts):
                arrays = self._headers(part)
                if "logits" in arrays:
                    logits.append(np.array(arrays["logits"]))
                if "states" in arrays:
                    # Read, not mapped: mapped pages would count as memory that the process holds.
                    file = opened.enter_context(open(self._path(part) / "states.npy", "rb", buffering=0))
                    files.append((file, arrays["states"].offset))
            if logits:
                self._logits = np.concatenate(logits)
            self._files = files
            self._closing = opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.close()

    def read(self, index: np.ndarray, device: torch.device) -> TeacherOutputs:
        """The outputs of some texts, in the order of `index`. Raises OSError where a file has become shorter."""
        logits = torch.from_numpy(self._logits[index]).to(device) if self.classes else None
        if not self.states:
            return TeacherOutputs(logits, None)
        lengths = self.texts.offsets[index + 1] - self.texts.offsets[index]
        packed = np.empty((int(lengths.sum()), self.states, self.width), dtype=np.float16)
        row = 0
        for text, length in zip(index.tolist(), lengths.tolist()):
            part = text // self.part_texts
            file, start = self._files[part]
            before = int(self.texts.offsets[text] - self.texts.offsets[part * self.part_texts])  # tokens
            file.seek(start + before * self.token_bytes)
            if file.readinto(packed[row : row + length]) != length * self.token_bytes:
                raise OSError(None, "became shorter while it was read", str(self._path(part) / "states.npy"))
            row += length
        states = torch.from_numpy(packed).to(device).transpose(0, 1)
        return TeacherOutputs(logits, states.to(torch.float32, memory_format=torch.contiguous_format))

    def of_batch(self, batch: dict[str, Tensor], ask: Ask) -> TeacherOutputs:
        """Of the texts of a batch: what is kept is read, about the others the teacher is asked.

        The kept texts are the first of their epoch: batch["index"] is below their number.
        """
        ids, mask, known = batch["input_ids"], batch["attention_mask"], batch["index"] < len(self)
        if not known.any():
            return ask(ids, mask)
        read = self.read(batch["index"][known].cpu().numpy(), ids.device)
        if known.all():
            return read
        return merged(read, ask(ids[~known], mask[~known]), known, mask.sum(1))

    # Pieces

    def _path(self, part: int) -> Path:
        return self.folder / f"{part:03}"

    def _bounds(self, part: int) -> tuple[int, int]:
        """The first text of a part, and the first of the next."""
        return part * self.part_texts, min((part + 1) * self.part_texts, len(self))

    def _arrays(self, part: int) -> dict[str, tuple[tuple[int, ...], type]]:
        """Shape and type of each array of a part."""
        first, last = self._bounds(part)
        tokens = int(self.texts.offsets[last] - self.texts.offsets[first])
        arrays: dict[str, tuple[tuple[int, ...], type]] = {}
        if self.classes:
            arrays["logits"] = ((last - first, self.classes), np.float32)
        if self.states:
            arrays["states"] = ((tokens, self.states, self.width), np.float16)
        return arrays

    def _headers(self, part: int) -> dict[str, np.memmap]:
        """The arrays of a part, mapped but not read. Raises ValueError, OSError where one is missing or too short."""
        arrays = {}
        for name, (shape, dtype) in self._arrays(part).items():
            path = self._path(part) / f"{name}.npy"
            arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
            if arrays[name].shape != shape or arrays[name].dtype != dtype:
                raise ValueError(f"{path} holds {arrays[name].dtype} {arrays[name].shape}, not {shape}")
        return arrays

    def _is_whole(self, part: int) -> bool:
        try:
            self._headers(part)
        except (OSError, ValueError):
            return False
        return True
