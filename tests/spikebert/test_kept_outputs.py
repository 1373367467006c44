"""Teacher outputs on disk: what is read is what was asked for, to half precision; what is half written is not read."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from small_teachers import make_teacher
from transformers import AutoModelForSequenceClassification

from spikebert import kept_outputs
from spikebert.config import SpikeBertConfig
from spikebert.data import TokenisedTexts, sorted_batches
from spikebert.distillation import Alignment, LossWeights
from spikebert.kept_outputs import KeptOutputs, drop_kept, fingerprint
from spikebert.model import SpikeBertForSequenceClassification
from spikebert.pupil import Pupil
from spikebert.teacher_outputs import TeacherOutputs, ask_teacher

CPU = torch.device("cpu")
WANTED = [0, 2]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> torch.nn.Module:
    folder = make_teacher(tmp_path_factory.mktemp("teacher"))
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()


@pytest.fixture(autouse=True)
def small_parts(monkeypatch) -> None:
    """So that few texts are many parts."""
    monkeypatch.setattr(kept_outputs, "PART_TEXTS", 7)
    monkeypatch.setattr(kept_outputs, "ASKED_TEXTS", 3)


def make_texts(count: int = 30) -> TokenisedTexts:
    rng = np.random.default_rng(0)
    ids = [rng.integers(4, 16, size=rng.integers(2, 10)).tolist() for _ in range(count)]
    return TokenisedTexts(ids, (np.arange(count) % 3).tolist())


def make_kept(folder: Path, texts: TokenisedTexts, classes: int = 3, states: int = len(WANTED)) -> KeptOutputs:
    return KeptOutputs(folder / ("0" * 64), texts, classes, states, width=24)


def asks(teacher: torch.nn.Module, wanted: list[int] = WANTED):
    return lambda ids, mask: ask_teacher(teacher, ids, mask, wanted)


def fill(kept: KeptOutputs, teacher: torch.nn.Module, process: int = 0, processes: int = 1) -> None:
    for part in kept.missing(process, processes):
        kept.write(part, asks(teacher), pad_id=0)


def asked_alike(kept: KeptOutputs, teacher: torch.nn.Module, first: int, last: int) -> list[tuple]:
    """The batches in which `write` asks about texts first .. last - 1, and what the teacher says."""
    batches = [first + rows for rows in sorted_batches(kept.texts.lengths[first:last], kept_outputs.ASKED_TEXTS)]
    given = [kept.texts.batch(rows, pad_id=0) for rows in batches]
    return [(rows, asks(teacher)(x["input_ids"], x["attention_mask"])) for rows, x in zip(batches, given)]


def test_logits_are_exact_and_states_rounded_to_half(teacher: torch.nn.Module, tmp_path: Path) -> None:
    kept = make_kept(tmp_path, make_texts())
    fill(kept, teacher)
    assert kept.parts == 5 and kept.part_texts == 6
    with kept:
        for rows, asked in (pair for part in range(5) for pair in asked_alike(kept, teacher, part * 6, part * 6 + 6)):
            read = kept.read(rows, CPU)
            assert torch.equal(read.logits, asked.logits)
            assert torch.equal(read.states, asked.states.half().float())
            assert not torch.equal(read.states, asked.states), "else nothing was rounded"


def test_any_texts_are_read_in_any_order(teacher: torch.nn.Module, tmp_path: Path) -> None:
    texts = make_texts()
    kept = make_kept(tmp_path, texts)
    fill(kept, teacher)
    with kept:
        rows = np.array([29, 0, 13, 6, 5, 13])
        read = kept.read(rows, CPU)
        alone = [kept.read(rows[i : i + 1], CPU) for i in range(len(rows))]
        assert torch.equal(read.logits, torch.cat([one.logits for one in alone]))
        assert torch.equal(read.states, torch.cat([one.states for one in alone], 1))
        batch = texts.batch(rows, 0)
        asked = asks(teacher)(batch["input_ids"], batch["attention_mask"])
        torch.testing.assert_close(read.logits, asked.logits, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(read.states, asked.states, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(read.states.roll(1, 1), asked.states, rtol=1e-1, atol=1e-1)


def test_the_loss_differs_by_rounding_only(teacher: torch.nn.Module, tmp_path: Path) -> None:
    texts = make_texts()
    kept = make_kept(tmp_path, texts)
    fill(kept, teacher)
    torch.manual_seed(0)
    config = SpikeBertConfig(
        vocab_size=16, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=10, num_labels=3,
    )  # fmt: skip
    alignment = Alignment(32, 1, 24, 2)
    assert alignment.wanted == WANTED
    pupil = Pupil(SpikeBertForSequenceClassification(config), alignment).eval()
    weights = LossWeights(label=1.0, logits=1.0, hidden=1.0, embedding=1.0, temperature=2.0)
    batch = texts.batch(np.arange(16), pad_id=0)
    asked = asks(teacher)(batch["input_ids"], batch["attention_mask"])
    with kept:
        read = kept.read(np.arange(16), CPU)
    expected, got = (pupil(batch, *outputs, weights)["loss"].item() for outputs in (asked, read))
    assert 0 < abs(got - expected) < 1e-3 * expected
    wrong = pupil(batch, read.logits, read.states.roll(1, 1), weights)["loss"].item()
    assert abs(wrong - expected) > 1e-3 * expected, "another token's states are told apart"


@pytest.mark.parametrize(("classes", "states"), [(3, 0), (0, 2)])
def test_what_is_not_wanted_is_not_kept(teacher: torch.nn.Module, tmp_path: Path, classes: int, states: int) -> None:
    kept = make_kept(tmp_path, make_texts(), classes, states)
    fill(kept, teacher)
    names = {path.name for path in tmp_path.rglob("*.npy")}
    assert names == ({"states.npy"} if states else {"logits.npy"})
    with kept:
        read = kept.read(np.arange(4), CPU)
    assert (read.logits is None, read.states is None) == (not classes, not states)


# Texts that are not kept


def test_about_other_texts_the_teacher_is_asked(teacher: torch.nn.Module, tmp_path: Path) -> None:
    texts, others = make_texts(), make_texts(40)
    kept = make_kept(tmp_path, texts)
    fill(kept, teacher)
    asked: list[int] = []

    def ask(ids: torch.Tensor, mask: torch.Tensor) -> TeacherOutputs:
        asked.append(len(ids))
        return asks(teacher)(ids, mask)

    both = texts + others.select(np.arange(30, 40))
    with kept:
        for rows, unknown in (([3, 35, 29, 30], 2), ([1, 2], 0), ([31, 39], 2)):
            batch = both.batch(np.array(rows), pad_id=0)
            got = kept.of_batch(batch, ask)
            expected = asks(teacher)(batch["input_ids"], batch["attention_mask"])
            torch.testing.assert_close(got.logits, expected.logits, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(got.states, expected.states, rtol=1e-3, atol=1e-3)
            assert sum(asked) == unknown
            asked.clear()


# Half written, damaged, of another teacher


def test_a_killed_run_writes_what_is_missing(teacher: torch.nn.Module, tmp_path: Path) -> None:
    whole, killed = make_kept(tmp_path / "whole", make_texts()), make_kept(tmp_path / "killed", make_texts())
    fill(whole, teacher)
    for part in (0, 2):
        killed.write(part, asks(teacher), pad_id=0)
    half = killed.folder / "001.partial"  # as a kill leaves it
    half.mkdir()
    (half / "states.npy").write_bytes((whole.folder / "001" / "states.npy").read_bytes()[:100])
    assert killed.missing() == [1, 3, 4]
    fill(killed, teacher)
    assert killed.missing() == []
    files = sorted(path.relative_to(whole.folder) for path in whole.folder.rglob("*.npy"))
    assert sorted(path.relative_to(killed.folder) for path in killed.folder.rglob("*")) == sorted(
        path.relative_to(whole.folder) for path in whole.folder.rglob("*")
    )
    assert all((whole.folder / name).read_bytes() == (killed.folder / name).read_bytes() for name in files)


def test_processes_write_together_what_one_writes(teacher: torch.nn.Module, tmp_path: Path) -> None:
    one, two = make_kept(tmp_path / "one", make_texts()), make_kept(tmp_path / "two", make_texts())
    fill(one, teacher)
    assert two.missing(0, 2) == [0, 2, 4] and two.missing(1, 2) == [1, 3]
    for process in (1, 0):
        fill(two, teacher, process, 2)
    for path in one.folder.rglob("*.npy"):
        assert path.read_bytes() == (two.folder / path.relative_to(one.folder)).read_bytes()


@pytest.mark.parametrize("name", ["states.npy", "logits.npy"])
def test_a_short_or_a_missing_file_is_noticed(teacher: torch.nn.Module, tmp_path: Path, name: str) -> None:
    kept = make_kept(tmp_path, make_texts())
    fill(kept, teacher)
    short, gone, other = (kept.folder / part / name for part in ("001", "003", "004"))
    short.write_bytes(short.read_bytes()[:-1])
    gone.unlink()
    np.save(other, np.zeros(3, dtype=np.float32))
    assert kept.missing() == [1, 3, 4]
    with pytest.raises(ValueError), kept:
        pass
    fill(kept, teacher)
    with kept:
        kept.read(np.arange(30), CPU)
        states = kept.folder / "002" / "states.npy"
        with open(states, "r+b") as file:
            file.truncate(200)
        with pytest.raises(OSError, match="became shorter"):
            kept.read(np.arange(30), CPU)


def test_a_failed_write_leaves_nothing(teacher: torch.nn.Module, tmp_path: Path, monkeypatch) -> None:
    kept = make_kept(tmp_path, make_texts())

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        kept.write(0, asks(teacher), pad_id=0)
    assert list(kept.folder.iterdir()) == []


def test_the_name_tells_teacher_texts_states_and_precision(teacher: torch.nn.Module, tmp_path: Path) -> None:
    texts = make_texts()
    name = fingerprint(teacher, texts, WANTED, "no")
    assert name == fingerprint(teacher, make_texts(), WANTED, "no")
    retrained = AutoModelForSequenceClassification.from_pretrained(make_teacher(tmp_path), num_labels=3).eval()
    retrained.load_state_dict(teacher.state_dict())
    assert fingerprint(retrained, texts, WANTED, "no") == name, "wherever its folder is"
    with torch.no_grad():
        retrained.classifier.bias[0] += 1e-6
    split = TokenisedTexts([texts.ids[:1].tolist(), texts.ids[1:].tolist()])  # the same ids as other texts
    twin = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3, layer_norm_eps=1e-6).eval()
    twin.load_state_dict(teacher.state_dict())
    others = [
        fingerprint(twin, texts, WANTED, "no"),
        fingerprint(retrained, texts, WANTED, "no"),
        fingerprint(teacher, texts.select(np.arange(29)), WANTED, "no"),
        fingerprint(teacher, split, WANTED, "no"),
        fingerprint(teacher, texts, [0, 1], "no"),
        fingerprint(teacher, texts, WANTED, "bf16"),
    ]
    assert len({name, *others}) == 7


def test_only_what_is_kept_is_dropped(tmp_path: Path) -> None:
    ours, newer, another = tmp_path / ("a" * 64), tmp_path / ("b" * 64), tmp_path / "notes"
    for folder in (ours, newer, another):
        folder.mkdir()
    drop_kept(tmp_path, but=newer.name)
    assert sorted(tmp_path.iterdir()) == [newer, another]
    drop_kept(tmp_path)
    assert list(tmp_path.iterdir()) == [another]
    another.rmdir()
    drop_kept(tmp_path)
    assert not tmp_path.exists()
    drop_kept(tmp_path)


# Room


def test_the_size_is_known_before(teacher: torch.nn.Module, tmp_path: Path) -> None:
    kept = make_kept(tmp_path, make_texts())
    predicted = kept.bytes
    fill(kept, teacher)
    written = sum(path.stat().st_size for path in kept.folder.rglob("*.npy"))
    assert 0 <= written - predicted <= kept.parts * 2 * 128, "headers alone"


def test_too_little_room_is_said(teacher: torch.nn.Module, tmp_path: Path, monkeypatch) -> None:
    kept = make_kept(tmp_path, make_texts())
    assert kept.obstacle(kept.bytes) is None
    assert "the limit is" in str(kept.obstacle(kept.bytes - 1))
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, kept_outputs.ROOM + kept.bytes - 1))
    assert f"{tmp_path} has 1.00 GB free" in str(kept.obstacle(kept.bytes))
    kept.write(0, asks(teacher), pad_id=0)
    assert kept.obstacle(kept.bytes) is None, "what is written takes no more room"
