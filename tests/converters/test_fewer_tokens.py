"""`spikebert-export --vocabulary`: a bundle of fewer tokens computes the same of texts that hold no others."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_output import one_error
from small_teachers import FILLER

from converters.bundle import Bundle, read_bundle
from converters.export_command import main
from sim.reference import ReferenceEngine
from sim.run_command import main as run_main

KEPT = ["good", "bad", "the", "film", "a"]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """That hold four words more often than others. Special tokens are four more, and "a", a character, stays too."""
    path = tmp_path / "texts.txt.gz"
    with gzip.open(path, "wt") as file:
        file.write("the film good bad\nthe film good bad\nthe soup was sad\n")
    return path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


def exported(run: Path, out: Path, *flags: str) -> Bundle:
    assert main(["--model", str(run), "--out", str(out), "--target", "lava", *flags]) == 0
    return read_bundle(out)


def values_of(bundle: Bundle, text: str) -> dict[str, np.ndarray]:
    batch = bundle.batch([bundle.tokenise(text)])
    return ReferenceEngine(bundle.graph).run(batch, tuple(bundle.graph.features)).values


def test_texts_without_other_tokens_give_the_same_values(run: Path, texts: Path, tmp_path: Path, capfd) -> None:
    whole = exported(run, tmp_path / "whole")
    fewer = exported(run, tmp_path / "fewer", "--vocabulary", "9", "--vocabulary-text", str(texts))
    assert "vocabulary: 9 of 20 tokens; with them the texts given have 1.000 times as many" in capfd.readouterr().err
    assert len(whole.graph.source.table) == 20 and len(fewer.graph.source.table) == 9
    for text in ("", "good", "the film bad the film", "bad good bad"):
        before, now = values_of(whole, text), values_of(fewer, text)
        assert before.keys() == now.keys()
        for name, value in before.items():
            assert np.array_equal(now[name], value), (text, name)
    gone = [word for word in FILLER if word not in KEPT]  # a control: what has gone is another word now
    assert any(
        not np.array_equal(value, values_of(fewer, " ".join(gone))[name])
        for name, value in values_of(whole, " ".join(gone)).items()
    )


@pytest.mark.parametrize("engine", ["fast", "reference", "torch", "lava-inline"])
@pytest.mark.parametrize("more", [[], ["--timesteps", "2"]])
def test_it_runs_and_is_proven_as_any_other(run: Path, texts: Path, tmp_path: Path, capfd, engine, more) -> None:
    exported(run, tmp_path / "fewer", "--vocabulary", "9", "--vocabulary-text", str(texts), *more)
    capfd.readouterr()
    model = ["--model", str(run)] if engine == "torch" else []
    flags = ["--text", "the good soup", "--engine", engine, *model, "--verify", "--json"]
    assert run_main([str(tmp_path / "fewer"), *flags]) == 0
    assert json.loads(capfd.readouterr().out)["verify"]["mismatches"] == 0


def test_the_card_tells_the_accuracy_of_what_is_in_the_bundle(run: Path, texts: Path, tmp_path: Path, capfd) -> None:
    before = exported(run, tmp_path / "whole").config["accuracies"]
    now = exported(run, tmp_path / "fewer", "--vocabulary", "9", "--vocabulary-text", str(texts)).config["accuracies"]
    assert now["validation, teacher, with 20 tokens"] == before["validation, teacher"]
    for split in ("validation", "test"):
        capfd.readouterr()
        file = run.parent / f"{split}.tsv"
        folder = json.loads((run / "results.json").read_text())["recipe"]["data"]["folder"]
        shutil.copy(Path(folder) / file.name, file)
        assert run_main([str(tmp_path / "fewer"), "--file", str(file), "--json"]) == 0
        assert now[f"{split}, integer student"] == json.loads(capfd.readouterr().out)["accuracy"]
    changed = {split: now[f"{split}, integer student"] for split in ("validation", "test")}
    assert changed != {split: before[f"{split}, integer student"] for split in changed}, "a control: words have gone"
    report = json.loads((tmp_path / "fewer" / "report.json").read_text())
    meanings = {stage["stage"]: stage["meaning"] for stage in report["accuracy"]}
    assert meanings["float"].endswith(", with 20 tokens") and meanings["integer"].endswith("what this bundle computes")


@pytest.mark.parametrize("spoilt", ["validation.tsv is away", "test.tsv is away", "test.tsv is another"])
def test_of_a_split_that_cannot_be_measured_the_card_tells_none(
    run: Path, trained: Path, texts: Path, tmp_path: Path, capfd, spoilt: str
) -> None:
    data = Path(shutil.copytree(trained / "data", tmp_path / "data"))
    record = json.loads((run / "results.json").read_text())
    record["recipe"]["data"]["folder"] = str(data)
    (run / "results.json").write_text(json.dumps(record))
    name, _, how = spoilt.split()
    (data / name).unlink()
    if how == "another":
        (data / name).write_text("text\tlabel\ngood\t1\n")
    bundle = exported(run, tmp_path / "fewer", "--vocabulary", "9", "--vocabulary-text", str(texts))
    split = name.removesuffix(".tsv")
    assert f"{split}: not run on its texts, so the card tells less" in capfd.readouterr().err
    told = {name for name in bundle.config["accuracies"] if name.endswith("integer student")}
    assert told == {f"{other}, integer student" for other in ("validation", "test") if other != split}
    assert f"{split}, teacher, with 20 tokens" in bundle.config["accuracies"]


def test_a_model_of_other_words_is_refused(run: Path, trained: Path, texts: Path, tmp_path: Path, capfd) -> None:
    exported(run, tmp_path / "fewer", "--vocabulary", "9", "--vocabulary-text", str(texts))
    tokenizer = run / "integer" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"film"', '"movie"'))
    capfd.readouterr()
    assert run_main([str(tmp_path / "fewer"), "--text", "good", "--engine", "torch", "--model", str(run)]) == 2
    assert "knows 1 tokens that the model's does not, first 'film'" in one_error(capfd)


def test_a_model_without_a_record_has_fewer_tokens_too(run: Path, texts: Path, tmp_path: Path) -> None:
    (run / "results.json").unlink()
    bundle = exported(run, tmp_path / "fewer", "--vocabulary", "9", "--vocabulary-text", str(texts))
    assert bundle.config["accuracies"] == {} and len(bundle.graph.source.table) == 9


def test_the_texts_of_a_table_are_those_of_its_column(run: Path, tmp_path: Path) -> None:
    table = tmp_path / "train.tsv"
    table.write_text("label\ttext\n1\tthe film good bad\n")
    bundle = exported(run, tmp_path / "fewer", "--vocabulary", "20", "--vocabulary-text", str(table))
    assert bundle.tokenise("the film good bad").ids.count(1) == 0, "none of the four is unknown"
    assert len(bundle.graph.source.table) == 9, "fewer than asked for: the texts use no more"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--vocabulary", "9"], "--vocabulary and --vocabulary-text: give both"),
        (["--vocabulary-text", "FILE"], "--vocabulary and --vocabulary-text: give both"),
        (["--vocabulary", "3", "--vocabulary-text", "FILE"], "a vocabulary of 3 tokens: special ones"),
        (["--vocabulary", "9", "--vocabulary-text", "gone.txt"], "gone.txt: no such file"),
        (["--vocabulary", "9", "--vocabulary-text", "gone.tsv"], "gone.tsv: no such file"),
        (["--vocabulary", "9", "--vocabulary-text", "train.tsv.gz"], "unpack a compressed table first"),
        (["--vocabulary", "9", "--vocabulary-text", "EMPTY"], "holds no text"),
    ],
)
def test_what_cannot_be_done_is_told(run: Path, texts: Path, tmp_path: Path, capfd, flags, message: str) -> None:
    (tmp_path / "empty.txt").touch()
    names = {"FILE": str(texts), "EMPTY": str(tmp_path / "empty.txt")}
    out = tmp_path / "place" / "bundle"
    assert main(["--model", str(run), "--out", str(out), *(names.get(flag, flag) for flag in flags)]) == 2
    assert message in one_error(capfd)
    assert not out.exists()
