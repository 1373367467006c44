"""What a finished stage tells of itself: its `stage.json`, from what it was made, and what it hands on.

A stage is made again only where something that decides its result is another: parts of the recipe, and the files that
these name, known by their sha256.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

from spikebert.commands import UserError
from spikebert.config import attention_threshold_for
from spikebert.teachers import Origin, origin_of, told_origin

EARLIER = "Teachers that it had before"  # in a model card
EARLIER_TERMS = "Recipes that it had before say of their texts and teachers"  # there too
# The parts of a recipe that decide what a stage's result is.
SECTIONS = {
    "teacher": ("seed", "precision", "data", "teacher"),
    "stage1": ("seed", "precision", "data", "teacher", "student", "stage1"),
    "stage2": ("seed", "precision", "data", "teacher", "student", "stage1", "stage2"),
    "integer": ("seed", "precision", "data", "teacher", "student", "stage1", "stage2", "quantise"),
}
# Fields that recipes of older runs did not have, with what they meant: so those runs can go on.
ADDED: dict[str, dict[str, object]] = {
    "teacher": {"weight_decay": 0.01, "patience": 0},
    "student": {
        "norm": "batch",
        "scalar_thresholds": False,
        "attention_similarity": "and",
        "attention_position": "none",
        "position_spikes": 0,
        "readout": "sum",
        "reset": "zero",
        "spike": "binary",
        "spike_cap": 1,
        "encoder_cap": 1,
        "value_cap": 1,
        "graded_gain": 1.0,
        "blocks_from_teacher": False,
    },
    "data": {"vocabulary": 0},
    "stage1": {
        "reuse_readout": False,
        "operations_per_token": 0.0,
        "operations_weight": 1.0,
        "weight_decay": 0.01,
        "held_out": 0,
        "patience": 0,
    },
    "stage2": {
        "operations_per_token": 0.0,
        "operations_weight": 1.0,
        "patience": 0,
        "parts_of_speech": "",
        "norm_texts": 0,
        "weight_decay": 0.01,
        "alteration": {"join": 0.3, "run": 0.3, "longest_run": 0, "mask": 0.1, "replace": 0.1},
    },
    "quantise": {"calibration_texts": 0, "token_bits": 8, "weight_decay": 0.0, "patience": 0},
}
NO_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP)  # of a folder, by file systems that cannot
TEACHER = "teacher.model"  # the files of a teacher that is a folder; older runs did not note them
N_MAX = "student.n_max"  # to which texts are cut, the teacher's too; older runs did not note it there
# The files that do, known by their sha256.
FILES_OF = {
    "teacher": ("data", TEACHER),
    "stage1": ("data", TEACHER, "stage1.text", "stage1.reuse"),
    "stage2": ("data", TEACHER, "stage1.text", "stage1.reuse", "stage2.extra_text"),
    "integer": ("data", TEACHER, "stage1.text", "stage1.reuse", "stage2.extra_text"),
}


def read_record(path: Path) -> dict:
    """A `stage.json`. Raises UserError where it is damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {"made_from": record["made_from"], "figures": record["figures"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged: delete the folder and the later stages to train them again") from None


def write_note(path: Path, content: dict) -> None:
    """As a file that is whole or as it was before."""
    partial = path.with_suffix(".partial")
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_through(folder: Path, below: bool = True) -> None:
    """See that the names in a folder, and with `below` all that it holds, are on the disk: else a machine that stops
    might keep the names without the content."""
    for path in [*(folder.rglob("*") if below else ()), folder]:
        place = os.open(path, os.O_RDONLY)
        try:
            os.fsync(place)
        except OSError as error:
            if not (path.is_dir() and error.errno in NO_SYNC):
                raise
        finally:
            os.close(place)


def read_note(path: Path) -> dict | None:
    """What `write_note` wrote there; None where it did not. Raises UserError where it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: delete {path.parent} to begin that stage again")
    return content


def inherited(stage: Path) -> dict:
    """Of the figures of a finished stage those that hold for whoever goes on from it: the texts that an earlier student
    learnt from, and what the card of a bundle that it was made of said of licences.

    Raises UserError where its record is damaged.
    """
    figures = read_record(stage / "stage.json")["figures"]
    return {name: figures[name] for name in ("learnt_from", "licences") if name in figures}


def handed_on(stage: Path, teacher: str | None = None, licence: str = "") -> dict:
    """Figures for whoever goes on from a finished stage 1 or 2: what the student there learnt from and from whom, and
    what its recipe says of licences, for the card of a bundle. Its teacher is left out where it is `teacher`, the one
    that it goes on with, and what is said where the recipe that it goes on with says the same, `licence`.

    Raises UserError where its record is damaged.
    """
    figures, record = inherited(stage), read_record(stage / "stage.json")
    terms = dict(figures.get("licences", {}))
    origin = _teacher_of(record)
    if origin and (teacher is None or origin.model != origin_of(teacher).model):
        earlier = [terms[EARLIER]] if EARLIER in terms else []
        terms[EARLIER] = ", ".join([*earlier, f"{origin.model} ({origin.licence})" if origin.licence else origin.model])
    said = [record["figures"].get("licence", ""), *(origin.terms if origin else ())]
    said = [words for words in dict.fromkeys(said) if words and words != licence]
    if said:
        terms[EARLIER_TERMS] = "; ".join([*([terms[EARLIER_TERMS]] if EARLIER_TERMS in terms else []), *said])
    return figures | {"learnt_from": learnt_from(stage)} | ({"licences": terms} if terms else {})


def learnt_from(stage: Path) -> list[str]:
    """The texts, as recipes name them, that the student of a finished stage 1 or 2 learnt from, those of stages that it
    went on from included, and those of its teacher. Raises UserError where its record is damaged."""
    record = read_record(stage / "stage.json")
    made_from, earlier = record["made_from"], record["figures"].get("learnt_from", [])
    data, stage1, stage2 = made_from["data"], made_from["stage1"], made_from.get("stage2")
    task = [data["folder"] or data["hub"]]
    texts = [*earlier, *([] if stage1["reuse"] else stage1["text"] or task)]
    if stage2:
        texts += [*task, *(stage2["extra_text"] if stage2["extra_lines"] else [])]
    teacher = _teacher_of(record)
    return list(dict.fromkeys([*texts, *(teacher.texts if teacher else ())]))


def _teacher_of(record: dict) -> Origin | None:
    """Where the teacher of a finished stage comes from, by what that told, or, of an earlier version, by what is there
    now. None where it had none: it is a converter's."""
    if told := told_origin(record):
        return told
    model = record["made_from"].get("teacher", {}).get("model")
    return origin_of(model) if model else None


def changes(before: dict, now: dict) -> list[str]:
    """What a stage was made from, beside what it would be made from now. Older runs did not note a teacher's files, nor
    to which length its texts were cut."""
    if N_MAX not in before:
        now = {name: value for name, value in now.items() if name != N_MAX}
    if TEACHER not in before.get("sha256", {}):
        now = now | {"sha256": {name: value for name, value in now["sha256"].items() if name != TEACHER}}
    unread: set[str] = {"stage1.text"} if now.get("stage1", {}).get("reuse") else set()
    unread |= set() if now.get("stage2", {}).get("extra_lines", 1) else {"stage2.extra_text"}
    if unread:  # older runs noted texts that were named, too
        before, now = without_hashes(before, unread), without_hashes(now, unread)
    return differences(spelled_out(before), spelled_out(now))


def without_hashes(made_from: dict, names: set[str]) -> dict:
    """What a stage is made from, without what is noted of these files."""
    hashes = made_from.get("sha256", {})
    return made_from | {"sha256": {name: value for name, value in hashes.items() if name not in names}}


def spelled_out(made_from: dict) -> dict:
    """What a stage is made from, with what older versions did not say, and with the threshold that null stands for."""
    parts = {name: part for name, part in made_from.items() if isinstance(part, dict)}
    full = made_from | {section: added | parts[section] for section, added in ADDED.items() if section in parts}
    student = full.get("student")
    if isinstance(student, dict) and student["attention_threshold"] is None:
        size = student["hidden_size"] // student["heads"]
        threshold = attention_threshold_for(
            student["attention_similarity"], size, student["attention_position"], student["n_max"]
        )
        full |= {"student": student | {"attention_threshold": threshold}}
    return full


def differences(before: dict, now: dict, path: str = "") -> list[str]:
    """`stage1.epochs 1 -> 2` for every value that differs."""
    found: list[str] = []
    for key in sorted(before.keys() | now.keys()):
        old, new, place = before.get(key), now.get(key), f"{path}{key}"
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{place}.")
        elif old != new:
            found.append(f"{place} {old} -> {new}")
    return found
