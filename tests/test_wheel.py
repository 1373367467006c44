"""The wheel, installed by itself, runs a bundle outside the checkout."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from small_bundles import small_bundle

from sim.find_bundle import known_bundles

ROOT = Path(__file__).parents[1]
IGNORED = shutil.ignore_patterns(".*", "build", "dist", "runs", "teachers", "*.egg-info", "__pycache__")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built without a network, from a copy of the checkout, so that no build folder is left in it."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=IGNORED)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, folder / "source"]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """A Python with nothing but the wheel; libraries come from this environment, our own source does not."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    command = [python, "-m", "pip", "install", "--no-deps", "--no-index", wheel]
    subprocess.run(command, check=True, capture_output=True)
    return python


def run_elsewhere(python: Path, tmp_path: Path, *arguments: object) -> subprocess.CompletedProcess:
    """Run a console script of the wheel in an empty folder."""
    libraries = tmp_path / "libraries"
    libraries.mkdir(exist_ok=True)
    for site in (Path(path) for path in sys.path if path.endswith("site-packages")):
        for entry in site.iterdir():
            if not entry.name.startswith(("spikebert", "__editable__")) and not (libraries / entry.name).exists():
                (libraries / entry.name).symlink_to(entry)
    environment = {**os.environ, "PYTHONPATH": str(libraries)}
    command = [python, python.parent / "spikebert-run", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)


def test_the_wheel_holds_the_package_data(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "converters/graph.schema.json" in names
    assert not [name for name in names if name.startswith("tests/")]
    shipped = (ROOT / "recipes").rglob("*")
    ours = {path.relative_to(ROOT).as_posix() for path in shipped if path.is_file() and "__pycache__" not in path.parts}
    research = {name for name in ours if name.startswith("recipes/research/")}
    assert ours - research <= set(names)
    assert research and not research & set(names), "their licences are not ours"


def test_the_wheel_runs_a_bundle_outside_the_checkout(python, tmp_path):
    bundle = small_bundle(tmp_path / "bundle")
    done = run_elsewhere(python, tmp_path, bundle.folder, "--text", "a good film", "--verify", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verify"]["mismatches"] == 0


@pytest.mark.parametrize("name", [name for name, path in known_bundles().items() if path.parent.name == "bundles"])
def test_the_wheel_runs_what_it_ships(python, tmp_path, name):
    done = run_elsewhere(python, tmp_path, name, "--verify")
    assert done.returncode == 0, done.stderr
