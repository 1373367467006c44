"""Who may import whom: read from the source, and tried with the heavy libraries away."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from small_bundles import small_bundle

ROOT = Path(__file__).parents[1]
OURS = ("spikebert", "converters", "targets", "sim", "recipes")
HEAVY = ("torch", "transformers", "spikingjelly", "lava", "accelerate", "datasets", "triton")
CONTRACT = {  # what every engine needs
    "converters.graph", "converters.execution", "converters.encoder", "converters.early_exit", "converters.readout",
}  # fmt: skip
SHARED = {"spikebert.commands", "spikebert.compiled", "spikebert.tokenizer_rows"}  # of spikebert, for everyone

# which of ours, and which heavy libraries, a module may import; of several rules the one with the longest name counts
RULES: dict[str, set[str]] = {
    "spikebert": {"spikebert", "recipes", "torch", "transformers", "spikingjelly", "accelerate", "datasets"},
    "spikebert.triton_lif": {"spikebert", "torch", "triton"},  # Triton is not everywhere where torch is
    "spikebert.triton_lif_kernels": {"triton"},
    "spikebert.tokenizer_rows": {"spikebert.commands"},
    "spikebert.demo": {*OURS, "torch", "transformers"},  # it runs the commands one after another
    "converters": {"converters"},
    "converters.graph": set(),
    "converters.early_exit": {"converters.graph", "converters.execution", "converters.readout"},
    "converters.execution": {"converters.graph", "converters.early_exit"},
    "converters.readout": {"converters.graph", "converters.encoder"},
    "converters.encoder": {"converters.graph", "converters.execution"},
    "converters.ranges": {"converters.graph", "converters.encoder", "converters.readout"},
    "converters.graph_text": {"converters.graph"},
    "converters.in_words": {"converters.graph"},
    "converters.passes": {
        *("converters.passes", "converters.ranges", "converters.graph_text", "converters.schedule"),
        *("converters.graph", "converters.execution", "sim.verify"),
    },
    "converters.report": {
        *("converters.report", "converters.ranges", "converters.model_card", "converters.serialise"),
        *("converters.graph", "converters.execution", "converters.in_words"),
    },
    "converters.passes.catalogue": {"converters.passes", "converters.schedule"},
    "converters.schedule": {"converters.graph"},
    "converters.pipeline": {
        *("converters", "sim.reference", "sim.clocked", "sim.verify", "targets.legality", "spikebert.data"),
    },
    "converters.figures": {"converters.bundle", "converters.report"},
    "converters.from_bundle": {"converters", "sim.check", "sim.find_bundle", "spikebert.data", "spikebert.vocabulary"},
    "converters.from_torch": {"converters", "spikebert", "torch", "transformers"},
    "converters.fewer_tokens": {"converters.from_torch", "converters.graph", "spikebert", "transformers"},
    "converters.on_texts": {
        *("converters.graph", "converters.execution", "converters.report.accuracy"),
        *("sim.energy", "sim.engines", "spikebert", "transformers"),
    },
    "converters.change_teacher": {"converters.float_student", "spikebert", "torch", "transformers"},
    "converters.float_student": {"converters.bundle", "converters.graph", "spikebert", "torch", "transformers"},
    "converters.torch_engine": {"converters", "spikebert", "torch"},
    "converters.export_command": {"converters", "spikebert", "targets.legality"},
    "targets": {"targets", *CONTRACT, "converters.passes", "converters.schedule", "lava"},
    "targets.nir": {"targets.nir", "targets.legality", "converters.graph", "converters.ranges"},
    "targets.loihi2.mapping.command": {
        "targets.loihi2.mapping",
        "converters.bundle",
        "sim.find_bundle",
        "sim.whole_file",
    },
    "targets.sanafe.command": {
        *("targets.sanafe", "converters.bundle", "converters.execution", "converters.graph"),
        *("sim.activity", "sim.energy", "sim.find_bundle", "sim.reference", "sim.rows", "sim.whole_file"),
    },
    "targets.sanafe.report": {
        *("targets.sanafe", "targets.loihi2.mapping", "converters.execution", "converters.graph"),
        *("sim.energy", "sim.report"),
    },
    "targets.legality": {"converters.graph"},  # the words in which any target refuses a graph
    "sim": {"sim", *CONTRACT, "converters.bundle", "converters.ranges", "converters.schedule", "recipes"},
    "sim.page": {"sim", *CONTRACT, "converters.bundle", "converters.report"},
}


def modules() -> dict[str, Path]:
    """Name -> file of every module of ours."""
    found = {}
    for package in OURS[:4]:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path) -> set[str]:
    """Full names of what a file imports, anywhere in it, `a.b` for `from a import b` too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def is_within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def rule_of(module: str) -> set[str]:
    return RULES[max((name for name in RULES if is_within(module, {name})), key=len)]


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_what_it_may(module):
    allowed = rule_of(module)
    for name in imported(modules()[module]):
        governed = is_within(name, {*OURS, *HEAVY})
        assert not governed or is_within(name, allowed | SHARED), f"{module} may not import {name}"


def run_blocked(blocked: tuple[str, ...], program: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run a program in a process in which the modules `blocked` cannot be imported."""
    setup = f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
    command = [sys.executable, "-c", setup + program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


RUN = "import sim.run_command as command\nsys.exit(command.main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, compiled):
    return small_bundle(tmp_path_factory.mktemp("bundles") / "bundle")


def test_a_bundle_runs_without_torch_transformers_and_lava(bundle):
    done = run_blocked((*HEAVY, "scipy"), RUN, bundle.folder, "--text", "a good film", "--json")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_bundle_is_exported_again_without_torch_transformers_and_lava(bundle, tmp_path):
    again = "import converters.export_command as command\nsys.exit(command.main(sys.argv[1:]))"
    flags = ["--target", "lava", "--timesteps", "2", "--attention", "stock", "--json"]
    done = run_blocked((*HEAVY, "scipy"), again, "--model", bundle.folder, "--out", tmp_path / "again", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    measured = small_bundle(tmp_path / "measured", config={"counts": {"validation, integer student": [1, 2]}})
    done = run_blocked(HEAVY, again, "--model", measured.folder, "--out", tmp_path / "less", *flags)
    said = "not run on its texts, so the card tells less: that needs torch and transformers\n"
    assert (done.returncode, done.stderr) == (0, said)


@pytest.mark.parametrize(
    ("engine", "blocked", "extra"),
    [("lava", "lava", "lava"), ("lava-inline", "lava", "lava"), ("torch", "torch", "train")],
)
def test_an_engine_without_its_library_names_the_extra(bundle, engine, blocked, extra):
    model = ("--model", bundle.folder) if engine == "torch" else ()
    done = run_blocked((blocked,), RUN, bundle.folder, "--text", "a", "--engine", engine, *model)
    assert done.returncode == 2
    assert f"pip install 'spikebert[{extra}]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_training_needs_no_lava():
    pytest.importorskip("torch")
    done = run_blocked(("lava",), "from spikebert import SpikeBertConfig, SpikeBertForSequenceClassification")
    assert done.returncode == 0, done.stderr


def test_the_package_itself_needs_no_torch():
    done = run_blocked(HEAVY, "import spikebert, spikebert.commands, converters.bundle, sim.run_command")
    assert (done.returncode, done.stderr) == (0, "")
