"""The installed recipes: all can be read, and the paper's own setting goes all the way with a tiny teacher."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from small_teachers import make_data, make_teacher

from converters.bundle import read_bundle
from converters.export_command import main as export_main
from converters.graph import Norm, Source
from sim.run_command import main as run_main
from spikebert.recipe import Stage2
from spikebert.stage_record import differences, spelled_out
from spikebert.train_command import main as train_main
from spikebert.train_command import make_parser, parse

RECIPES = Path(__file__).parents[1] / "recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
SMALL = [  # what a recipe of 12 x 768 is made small by; nothing else is changed
    "--student.hidden_size=16", "--student.layers=2", "--student.heads=2", "--student.intermediate_size=16",
    "--student.n_max=10", "--teacher.epochs=2", "--stage2.epochs=2", "--precision=float32",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_can_be_read(name: str) -> None:
    given = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    read = parse(make_parser(), ["--recipe", name])
    for section, values in given.items():
        found = read[section]
        for field, value in values.items() if isinstance(values, dict) else ():
            assert found[field] == value, f"{section}.{field}"


LAST_RECIPE = {"sst2": "sst2_t2"}  # of a release model; where none is named, that of its own name
GIVEN = (
    "out",
    "data.folder",
    "stage1.text",
    "stage1.reuse",
    "stage2.extra_text",
    "teacher_cache_gb",
)  # as on a machine


@pytest.mark.parametrize("name", ["chnsenti", "mr", "sst2", "sst5", "subj", "waimai"])
def test_a_release_model_was_made_by_a_recipe_of_ours(name: str) -> None:
    """But for places of texts and students, and where its teacher was fine-tuned."""
    made_by = read_bundle(RECIPES / "research" / f"{name}.zip").manifest["provenance"]["recipe"]
    recipe = LAST_RECIPE.get(name, name)
    given = parse(make_parser(), ["--recipe", recipe]).as_dict()
    differing = differences(spelled_out(made_by), spelled_out({part: given[part] for part in made_by}))
    places = (*GIVEN, "teacher.model") if recipe != name else GIVEN
    assert [line for line in differing if line.split(" ")[0] not in places] == []


def test_the_papers_recipes_differ_in_language_alone() -> None:
    english, chinese = (yaml.safe_load((RECIPES / f"paper-{name}.yaml").read_text()) for name in ("en", "zh"))
    for recipe in (english, chinese):
        for section, field in (("teacher", "model"), ("stage1", "text")):
            assert recipe[section].pop(field)
        recipe.pop("out")
    assert english == chinese


@pytest.mark.parametrize("name", ["paper-en", "paper-zh"])
def test_every_value_of_the_papers_recipes_says_where_it_is_from(name: str) -> None:
    """And every one that decides the result is there: learning rates, batches, weights of losses, bits."""
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    values = [line for line in text.splitlines() if re.match("  [a-z]", line)]
    unsaid = [line for line in values if not re.search(r"# \[(paper|predistill|distill|fine-tune|model|ours)\]", line)]
    assert len(values) > 40 and unsaid == []
    given = yaml.safe_load(text)
    for stage in ("teacher", "stage1", "stage2"):
        assert {"epochs", "batch_size", "learning_rate", "weight_decay"} <= given[stage].keys(), stage
    assert {name for name in asdict(Stage2()) if name.endswith("_weight")} - given["stage2"].keys() == {
        "operations_weight"
    }
    assert {"weight_bits", "token_bits", "epochs", "batch_size", "learning_rate"} <= given["quantise"].keys()


@pytest.mark.parametrize("name", ["paper-en", pytest.param("paper-zh", marks=pytest.mark.slow)])
def test_the_papers_setting_goes_all_the_way(name: str, tmp_path: Path, capfd) -> None:
    """Both stages, then the export, and every value of the bundle."""
    teacher, task, run = make_teacher(tmp_path / "teacher"), make_data(tmp_path / "data"), tmp_path / "run"
    text = tmp_path / "wikipedia.txt"
    text.write_text("the film was very good\nthe soup was cold\n" * 20, encoding="utf-8")
    flags = [f"--out={run}", f"--data.folder={task}", f"--teacher.model={teacher}", f"--stage1.text=[{text}]", *SMALL]
    assert train_main(["--recipe", name, *flags]) == 0
    record = json.loads((run / "stage1" / "stage.json").read_text())
    assert record["figures"]["texts"] == 40
    bundle = tmp_path / "bundle"
    assert export_main(["--model", str(run), "--out", str(bundle)]) == 0
    graph = read_bundle(bundle).graph
    [source] = [node for node in graph if isinstance(node, Source)]
    assert source.kind == "sign" and source.position is None
    assert [node.kind for node in graph if isinstance(node, Norm)] == ["layer"] * 12, "six of each block"
    validation = str(task / "validation.tsv")
    assert run_main([str(bundle), "--file", validation, "--engine", "lava-inline", "--verify"]) == 0
