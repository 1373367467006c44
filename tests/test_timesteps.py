"""The whole path for 1, 2, 4 and 8 timesteps: trained for one number, run for each of them, on every engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_teachers import recipe_arguments

from converters.bundle import read_bundle
from converters.export_command import main as export_main
from sim.reference import ReferenceEngine
from sim.run_command import main as run_main
from spikebert.train_command import main as train_main

TIMESTEPS = (1, 2, 4, 8)
TEXTS = ["--text", "good", "--text", "a bad , sad film", "--text", "the soup was cold and very dull"]


@pytest.fixture(scope="module")
def shared(trained: Path, tmp_path_factory) -> Path:
    """A folder with the teacher, pretrained and fine-tuned, and the data, but no student."""
    folder = tmp_path_factory.mktemp("timesteps")
    for name in ("teacher", "data"):
        shutil.copytree(trained / name, folder / name)
    return folder


def told(capfd, *arguments: str) -> dict:
    capfd.readouterr()
    assert run_main([*arguments, *TEXTS, "--json"]) == 0
    return json.loads(capfd.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize(("trained_for", "readout"), [(1, "membrane"), (2, "spikes"), (4, "sum"), (8, "membrane")])
def test_trained_for_one_number_and_run_for_all(shared: Path, tmp_path: Path, capfd, trained_for, readout) -> None:
    run = tmp_path / "run"
    arguments = [argument for argument in recipe_arguments(shared) if not argument.startswith(("--out", "--teacher.e"))]
    arguments += [f"--out={run}", f"--student.timesteps={trained_for}", f"--student.readout={readout}"]
    assert train_main([*arguments, "--teacher.epochs=1", "--stage2.epochs=1"]) == 0
    values = {}
    for timesteps in TIMESTEPS:
        out = tmp_path / f"bundle{timesteps}"
        exporting = ["--model", str(run), "--out", str(out), "--target", "lava"]
        other = [] if timesteps == trained_for else ["--timesteps", str(timesteps)]
        assert export_main([*exporting, *other]) == 0
        bundle = read_bundle(out)
        assert bundle.graph.timesteps == timesteps
        assert bundle.graph.readout.kind == ("membrane" if readout == "membrane" else "sum")
        batch = bundle.batch([bundle.tokenise(text) for text in TEXTS[1::2]])
        values[timesteps] = ReferenceEngine(bundle.graph).run(batch, tuple(bundle.graph.features)).values
        for engine in ("fast", "reference", "lava-inline", "torch"):
            model = ["--model", str(run)] if engine == "torch" else []
            report = told(capfd, str(out), "--engine", engine, *model, "--verify")
            assert report["verify"]["mismatches"] == 0 and report["activity"]["timesteps"] == timesteps
            if engine != "lava-inline":
                stopped = told(capfd, str(out), "--engine", engine, *model, "--verify", "--exit-margin", "0.05")
                assert stopped["verify"]["mismatches"] == 0
                assert all(1 <= each <= timesteps for each in stopped["timesteps"])
    for timesteps in TIMESTEPS[:-1]:  # what happens at a timestep does not depend on how many follow
        for name, value in values[8].items():
            assert np.array_equal(values[timesteps][name], value[:timesteps]), name
