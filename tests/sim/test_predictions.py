"""Predictions in a file: every row, bad ones too, in three formats, and nothing half written."""

import gc
import json
import resource
from dataclasses import replace

import pytest

from sim.predictions import Prediction, check_predictions_path, predictions_file
from spikebert.commands import UserError

GOOD = Prediction(2, "positive", 0.75, (-3, 12))
BAD = Prediction(3, error="label 'x'\tis no class")
NAMES = ("negative", "positive")


def test_tab_separated(tmp_path):
    path = tmp_path / "out.tsv"
    with predictions_file(path, NAMES) as write:
        write(GOOD)
        write(BAD)
        assert not path.exists()
    header, good, bad = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
    assert header == ["row", "prediction", "probability", "logit_negative", "logit_positive", "error"]
    assert good == ["2", "positive", "0.750000", "-3", "12", ""]
    assert bad == ["3", "", "", "", "", "label 'x' is no class"]


def test_json_lines(tmp_path):
    path = tmp_path / "out.jsonl"
    with predictions_file(path, NAMES) as write:
        write(GOOD)
        write(BAD)
    good, bad = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    assert good == {"row": 2, "prediction": "positive", "probability": 0.75, "logits": [-3, 12]}
    assert bad == {"row": 3, "error": "label 'x'\tis no class"}


@pytest.mark.parametrize("rows", [0, 1, 10_000])
def test_parquet(tmp_path, rows):
    pytest.importorskip("pyarrow")
    from pyarrow.parquet import read_table

    path = tmp_path / "out.parquet"
    with predictions_file(path, NAMES) as write:
        for _ in range(rows):
            write(GOOD)
        write(BAD)
    table = read_table(path).to_pylist()
    assert len(table) == rows + 1
    good, bad = ({**vars(each), "logits": list(each.logits)} for each in (GOOD, BAD))
    del good["timesteps"], bad["timesteps"]
    assert all(row == good for row in table[:-1])
    assert table[-1] == bad


@pytest.mark.parametrize("name", ["out.tsv", "out.jsonl", "out.parquet"])
def test_with_an_early_exit_timesteps_have_a_column(tmp_path, name):
    path = tmp_path / name
    with predictions_file(path, NAMES, timesteps=True) as write:
        write(replace(GOOD, timesteps=3))
        write(BAD)
    if name == "out.parquet":
        from pyarrow.parquet import read_table

        assert [row["timesteps"] for row in read_table(path).to_pylist()] == [3, None]
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    if name == "out.jsonl":
        assert [json.loads(line).get("timesteps") for line in lines] == [3, None]
    else:
        assert [line.split("\t")[-1] for line in lines] == ["timesteps", "3", ""]


@pytest.mark.parametrize("name", ["out.tsv", "out.jsonl", "out.parquet"])
def test_an_interrupted_run_leaves_nothing(tmp_path, capfd, name):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(KeyboardInterrupt), predictions_file(tmp_path / name, NAMES) as write:
        write(GOOD)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    del write
    gc.collect()
    assert capfd.readouterr().err == ""


def test_an_error_of_another_kind_is_not_blamed_on_the_file(tmp_path):
    with pytest.raises(OSError, match="elsewhere"), predictions_file(tmp_path / "out.tsv", NAMES):
        raise OSError("elsewhere")


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "out.tsv"
    check_predictions_path(path, overwrite=False)
    path.write_text("mine")
    with pytest.raises(UserError, match=r"exists\. Give --overwrite"):
        check_predictions_path(path, overwrite=False)
    check_predictions_path(path, overwrite=True)
    with pytest.raises(UserError, match="is a folder"):
        check_predictions_path(tmp_path, overwrite=True)
    with pytest.raises(UserError, match="there is no folder"):
        check_predictions_path(tmp_path / "none" / "out.tsv", overwrite=False)
    with (
        pytest.raises(UserError, match="No such file"),
        predictions_file(tmp_path / "none" / "out.tsv", NAMES),
    ):
        pass
    assert path.read_text() == "mine"


@pytest.mark.parametrize("rows", [1, 10_000])
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, rows):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        with (
            pytest.raises(UserError, match=r"out\.tsv: File too large"),
            predictions_file(tmp_path / "out.tsv", NAMES) as write,
        ):
            for _ in range(rows):
                write(GOOD)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
