"""Train, export and run, as a user does, on a teacher and texts made here."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from random_graphs import random_graph
from small_teachers import recipe_arguments

from converters.bundle import BundleError, read_bundle
from converters.export_command import main as export_main
from converters.figures import figures_of_training
from converters.graph import Attention
from converters.model_card import model_card
from converters.pipeline import licences, training_results
from sim.reference import ReferenceEngine
from sim.run_command import main as run_main
from spikebert.commands import UserError
from spikebert.recipe import Recipe
from spikebert.stage_record import ADDED
from spikebert.train_command import main as train_main


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory) -> Path:
    bundle = tmp_path_factory.mktemp("exported") / "bundle"
    assert export_main(["--model", str(trained / "run"), "--out", str(bundle), "--target", "lava"]) == 0
    return bundle


def test_training_leaves_every_stage_and_its_figures(trained: Path) -> None:
    results = json.loads((trained / "run" / "results.json").read_text())
    assert set(results["accuracy"]) == {
        "teacher", "float student", "folded student", "quantised student", "integer student"
    }  # fmt: skip
    folded, as_float = results["accuracy"]["folded student"], results["accuracy"]["float student"]
    assert abs(folded["test"]["correct"] - as_float["test"]["correct"]) <= 1, "folding is exact but for float rounding"
    before = results["stages"]["integer"]["rounded_validation"]
    assert results["accuracy"]["quantised student"]["validation"] == before, "measured twice, the same model"
    assert results["accuracy"]["teacher"]["test"]["value"] > 0.8, "the task is easy: one word decides"
    assert results["accuracy"]["integer student"]["test"]["value"] > 0.7
    assert 0 < results["mean_firing_rate"] < 1
    assert sorted(path.name for path in (trained / "run").iterdir() if path.is_dir()) == [
        "integer", "stage1", "stage2", "teacher"
    ]  # fmt: skip
    assert list((trained / "run" / "stage2" / "tensorboard").iterdir())
    assert not list((trained / "run").rglob("*.pt")), "no checkpoint stays behind"


def test_a_second_run_trains_nothing_and_measures_the_same(trained: Path, capfd) -> None:
    before = (trained / "run" / "results.json").read_bytes()
    assert train_main(recipe_arguments(trained)) == 0
    assert capfd.readouterr().err.count("finished before") == 4
    assert (trained / "run" / "results.json").read_bytes() == before


def test_a_run_of_an_older_version_goes_on(trained: Path, tmp_path: Path, capfd) -> None:
    """Its records say nothing of what there was not, and name the threshold that null stands for now."""
    shutil.copytree(trained, tmp_path / "old")
    for record in (tmp_path / "old" / "run").glob("*/stage.json"):
        stage = json.loads(record.read_text().replace(str(trained), str(tmp_path / "old")))
        if student := stage["made_from"].get("student"):
            for section in ADDED["student"]:
                del student[section]
            student["attention_threshold"] = 16
        record.write_text(json.dumps(stage))
    assert train_main(recipe_arguments(tmp_path / "old")) == 0
    assert capfd.readouterr().err.count("finished before") == 4


def test_a_changed_recipe_does_not_pass_for_the_old_one(trained: Path, capfd) -> None:
    assert train_main([*recipe_arguments(trained), "--stage2.epochs=4"]) == 2
    assert "stage2.epochs 3 -> 4" in capfd.readouterr().err


def test_changed_labels_do_not_pass_for_the_old_ones(trained: Path, tmp_path: Path, capfd) -> None:
    shutil.copytree(trained / "data", tmp_path / "data")
    path = tmp_path / "data" / "train.tsv"
    path.write_text(path.read_text().replace("\t1\n", "\t0\n", 1))
    shutil.copytree(trained / "run", tmp_path / "run")
    for record in (tmp_path / "run").glob("*/stage.json"):  # the same recipe, with its data somewhere else
        record.write_text(record.read_text().replace(str(trained / "data"), str(tmp_path / "data")))
    moved = [*recipe_arguments(trained), f"--out={tmp_path / 'run'}", f"--data.folder={tmp_path / 'data'}"]
    assert train_main(moved) == 2
    assert "sha256.data" in capfd.readouterr().err


def test_a_teacher_is_never_overwritten(trained: Path, tmp_path: Path, capfd) -> None:
    shutil.copytree(trained / "teacher", tmp_path / "teacher")
    weights = (tmp_path / "teacher" / "model.safetensors").read_bytes()
    arguments = [*recipe_arguments(trained), f"--out={tmp_path}", f"--teacher.model={tmp_path / 'teacher'}"]
    assert train_main(arguments) == 2
    assert "choose another --out" in capfd.readouterr().err
    assert (tmp_path / "teacher" / "model.safetensors").read_bytes() == weights


def test_figures_of_another_model_are_not_its_own(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "run" / "integer", tmp_path / "stranger")
    shutil.copy(trained / "run" / "results.json", tmp_path)
    assert training_results(tmp_path / "stranger") == {}
    results = training_results(trained / "run" / "integer")
    assert results["recipe"]["seed"] == 42 and "test, integer student" in figures_of_training(results, {}).accuracies


def test_results_of_another_recipe_are_refused_but_not_those_of_another_version(trained: Path, tmp_path: Path) -> None:
    """A version that knows more fields measures a run that an earlier one trained; and one that wrote fewer."""
    run = tmp_path / "run"
    shutil.copytree(trained / "run" / "integer", run / "integer")
    results, stage = json.loads((trained / "run" / "results.json").read_text()), run / "integer" / "stage.json"

    def written(changed: dict) -> dict:
        (run / "results.json").write_text(json.dumps(changed))
        return changed

    earlier = {name: value for name, value in results.items() if name != "integer_stage_sha256"}
    for found in (results, earlier):
        assert written(found) == training_results(run)
    record = json.loads(stage.read_text())
    del record["made_from"]["stage2"]["patience"]
    stage.write_text(json.dumps(record))
    for found in (results, earlier):  # trained again meanwhile
        written(found)
        with pytest.raises(UserError, match="was measured with another recipe"):
            training_results(run)
    measured_now = written(results | {"integer_stage_sha256": hashlib.sha256(stage.read_bytes()).hexdigest()})
    assert training_results(run) == measured_now


def test_the_model_card_says_of_which_network_the_activity_is() -> None:
    graph = random_graph(np.random.default_rng(0), blocks=1)
    on = {"texts": 2, "tokens": 9, "firing_rate": 0.1, "operations_per_token": 7.0, "energy_of_dense_45nm": 0.05}

    def card(*passes: str, **more: object) -> str:
        provenance = {"passes": dict.fromkeys(passes, "what it did"), **more}
        return model_card(graph, {"activity": {"validation": on}}, provenance, None, "bundle")

    said = "Counted by the engine `fast`. Passes may have changed neurons and operations since: expand-attention. The"
    assert said in card("prove-ranges", "expand-attention")
    assert said in card("balance-delays", exported_from={"passes": {"expand-attention": "what it did"}})
    assert "Counted by the engine `fast`. The energy" in card("prove-ranges", "balance-delays")


def test_the_model_card_says_the_licences() -> None:
    recipe = asdict(Recipe(out="run", licence="research only"))
    recipe["data"]["folder"], recipe["teacher"]["model"] = "some/where/waimai", "registry:m3e-small"
    recipe["stage1"]["text"] = recipe["stage2"]["extra_text"] = ["deep/in/wiki.txt.xz", "hub:some/texts:zh"]
    known = licences({"recipe": recipe, "teacher_licence": "not for commerce"})
    assert known == {
        "Learnt from the texts": "waimai, wiki.txt.xz, hub:some/texts:zh",
        "and from the teacher": "registry:m3e-small (not for commerce)",
        "The recipe says of its own texts and teacher": "research only",
    }
    recipe["teacher"]["model"] = "runs/other/teacher"
    origin = {"model": "registry:m3e-small", "texts": ["data/chnsenti"]}
    known = licences({"recipe": recipe, "teacher_licence": "not for commerce", "teacher_origin": origin})
    assert known["and from the teacher"] == "registry:m3e-small (not for commerce)", "and not the folder it stood in"
    assert known["Learnt from the texts"] == "waimai, wiki.txt.xz, hub:some/texts:zh, chnsenti"
    assert "and those that fine-tuned its teacher" not in known
    terms = {"terms": ["research only", "of hotels", "of hotels"]}
    known = licences({"recipe": recipe, "teacher_origin": origin | terms})
    assert known["and those that fine-tuned its teacher"] == "of hotels", "what its own recipe says is said"
    graph = random_graph(np.random.default_rng(0), blocks=1)
    card = model_card(graph, {"licences": known}, {}, None, "bundle")
    assert "## Licence\n\n- Learnt from the texts: waimai, wiki" in card and "teacher: research only\n" in card
    recipe["stage1"] = recipe["stage1"] | {"text": [], "reuse": "runs/english/stage1"}
    taken_over = licences({"recipe": recipe, "stages": {"stage1": {"learnt_from": ["corpus/films.txt"]}}})
    assert taken_over["Learnt from the texts"] == "waimai, films.txt", "what it learnt from, not where that stands"
    assert licences({"recipe": recipe})["Learnt from the texts"] == "waimai, stage1", "a run of old tells no more"
    assert licences({}) == {}
    assert "## Licence\n\nNot said. " in model_card(graph, {}, {}, None, "bundle")


def test_stage1_of_another_run_is_taken_over(trained: Path, tmp_path: Path, capfd) -> None:
    shutil.copytree(trained / "run" / "teacher", tmp_path / "run" / "teacher")
    arguments = [
        *recipe_arguments(trained),
        f"--out={tmp_path / 'run'}",
        f"--stage1.reuse={trained / 'run' / 'stage1'}",
    ]
    assert train_main(arguments) == 0
    assert "stage 1: epoch" not in capfd.readouterr().err
    other = [*arguments, f"--out={tmp_path / 'wide'}", "--student.hidden_size=16"]
    assert train_main(other) == 2
    assert "has another shape" in capfd.readouterr().err


def test_equal_features_and_learned_positions_go_all_the_way(trained: Path, tmp_path: Path, capfd) -> None:
    """Train, export, run: every value of every engine is the reference's."""
    shutil.copytree(trained / "run" / "teacher", tmp_path / "run" / "teacher")
    options = ["--student.attention_similarity=xnor", "--student.attention_position=learned"]
    assert train_main([*recipe_arguments(trained), f"--out={tmp_path / 'run'}", *options]) == 0
    bundle = tmp_path / "bundle"
    assert export_main(["--model", str(tmp_path / "run"), "--out", str(bundle), "--target", "lava"]) == 0
    nodes = [node for node in read_bundle(bundle).graph if isinstance(node, Attention)]
    assert nodes and all(node.similarity == "xnor" and node.bias is not None and node.bias.any() for node in nodes)
    capfd.readouterr()
    for engine in ("fast", "lava-inline", "torch"):
        model = ["--model", str(tmp_path / "run")] if engine == "torch" else []
        texts = ["--text", "a good film", "--text", "bad"]
        assert run_main([str(bundle), "--engine", engine, "--verify", "--json", *texts, *model]) == 0
        verified = json.loads(capfd.readouterr().out)["verify"]
        assert verified["mismatches"] == 0 and verified["values_compared"] > 0


def test_the_bundle_says_what_it_is(trained: Path, exported: Path) -> None:
    bundle = read_bundle(exported)
    assert bundle.labels == ("bad", "good")
    measured = json.loads((trained / "run" / "results.json").read_text())["accuracy"]["integer student"]["test"][
        "value"
    ]
    assert bundle.config["accuracies"]["test, integer student"] == measured
    assert bundle.manifest["target"] == "lava"
    assert len(bundle.golden.batch) == 8


def test_the_card_tells_what_the_network_did_with_the_texts(
    trained: Path, exported: Path, tmp_path: Path, capfd
) -> None:
    config, card = read_bundle(exported).config, (exported / "README.md").read_text()
    assert set(config["activity"]) == {"validation", "test"}
    for split, on in config["activity"].items():
        flags = [str(exported), "--file", str(trained / "data" / f"{split}.tsv"), "--json"]
        assert run_main(flags) == 0
        ran = json.loads(capfd.readouterr().out)
        operations = ran["activity"]["synaptic_operations"]
        assert (
            on["right"] / on["texts"] == ran["accuracy"]
            and round(on["operations_per_token"] * on["tokens"]) == operations
        )
        assert config["counts"][f"{split}, integer student"] == [on["right"], on["texts"]]
        assert f"| {split} | {on['texts']} | " in card and f"| {100 * on['firing_rate']:.1f} % " in card
        assert f"| {on['right']} of {on['texts']} |" in card


def test_the_recipe_of_the_card_is_one_to_train(
    trained: Path, exported: Path, tmp_path: Path, capfd, monkeypatch
) -> None:
    making = (exported / "README.md").read_text().split("## How it was made\n\n```\n")[1].split("\n```")[0].splitlines()
    assert making[0] == f"spikebert-train --recipe {exported.name}/manifest.json"
    assert making[1].startswith("spikebert-export ") and len(making) == 2
    shutil.copytree(exported, tmp_path / exported.name)
    monkeypatch.chdir(tmp_path)
    assert train_main(shlex.split(making[0])[1:]) == 0
    said = capfd.readouterr().err
    assert f"integer: finished before, in {trained / 'run' / 'integer'}" in said, "the same in all that made the stages"


@pytest.mark.parametrize("hashed", [True, False])
def test_texts_that_are_gone_or_others_are_told(trained: Path, tmp_path: Path, capfd, hashed: bool) -> None:
    run, data = tmp_path / "run", Path(shutil.copytree(trained / "data", tmp_path / "data"))
    shutil.copytree(trained / "run" / "integer", run / "integer")
    results = json.loads((trained / "run" / "results.json").read_text())
    results["recipe"]["data"]["folder"] = str(data)
    if not hashed:  # as older versions wrote them
        del results["texts_sha256"]
    (run / "results.json").write_text(json.dumps(results))
    (data / "test.tsv").unlink()
    lines = (data / "validation.tsv").read_text().splitlines()
    swapped = [line[:-1] + ("1" if line.endswith("0") else "0") for line in lines[1:]]
    (data / "validation.tsv").write_text("\n".join([lines[0], *swapped]) + "\n")
    assert export_main(["--model", str(run), "--out", str(tmp_path / "bundle")]) == 0
    said, config = capfd.readouterr().err, read_bundle(tmp_path / "bundle").config
    assert "test: not run on its texts, so the card tells less: no texts in " in said
    assert ("are others than were measured" if hashed else "these are other texts") in said
    recorded = results["accuracy"]["integer student"]
    for split in ("validation", "test"):
        assert config["accuracies"][f"{split}, integer student"] == recorded[split]["value"], "as training has it"
    assert config["activity"] == {}


def test_a_record_of_another_version_tells_less(trained: Path, tmp_path: Path, capfd) -> None:
    run = Path(shutil.copytree(trained / "run", tmp_path / "run"))
    results = json.loads((run / "results.json").read_text())
    results["recipe"]["data"]["colour"] = "blue"
    (run / "results.json").write_text(json.dumps(results))
    assert export_main(["--model", str(run), "--out", str(tmp_path / "bundle")]) == 0
    assert "the card tells less: " in capfd.readouterr().err
    assert read_bundle(tmp_path / "bundle").config["activity"] == {}


def test_without_texts_nothing_is_run(trained: Path, tmp_path: Path, capfd) -> None:
    flags = ["--model", str(trained / "run"), "--no-texts", "--name", "Film reviews"]
    assert export_main([*flags, "--out", str(tmp_path / "bundle")]) == 0
    config, card = read_bundle(tmp_path / "bundle").config, (tmp_path / "bundle" / "README.md").read_text()
    assert config["activity"] == {} and "test, integer student" in config["accuracies"]
    assert "--name 'Film reviews'" in card, "a command to paste"
    assert "running" not in capfd.readouterr().err


def test_the_bundle_holds_its_report(trained: Path, exported: Path) -> None:
    bundle = read_bundle(exported)
    assert {"report.json", "report.html"} <= set(bundle.manifest["files"]), "they are checked as all others are"
    report = json.loads((exported / "report.json").read_text(encoding="utf-8"))
    measured = json.loads((trained / "run" / "results.json").read_text())["accuracy"]
    assert [stage["splits"]["test"] for stage in report["accuracy"]] == [
        measured[name]["test"]
        for name in ("teacher", "float student", "folded student", "quantised student", "integer student")
    ]
    steps = json.loads((exported / "lava" / "schedule.json").read_text())["latency_steps"]
    told = {node["name"]: node["latency_steps"] for node in report["nodes"]}
    assert told == {name: steps[name] for name in told}, "the lowering has nodes of its own besides"
    spikes = {name: values[:, bundle.golden.batch.mask == 1] for name, values in bundle.golden.spikes.items()}
    assert {node["name"]: node["neurons"]["silent_observed"] for node in report["nodes"] if node["neurons"]} == {
        name: int((~values.any(axis=(0, 1))).sum()) for name, values in spikes.items()
    }
    assert report["files"]["weights.safetensors"] == (exported / "weights.safetensors").stat().st_size
    assert set(report["files"]) == set(bundle.manifest["files"]) - {"report.json", "report.html"}
    assert "<title>bundle: export report</title>" in (exported / "report.html").read_text(encoding="utf-8")


def test_the_report_tells_what_rounding_cut(trained: Path, exported: Path) -> None:
    from spikebert.model import SpikeBertForSequenceClassification

    model = SpikeBertForSequenceClassification.from_pretrained(trained / "run" / "integer")
    report = json.loads((exported / "report.json").read_text(encoding="utf-8"))
    told = {node["name"]: node["weights"]["rounding"] for node in report["nodes"] if node["weights"]}
    table = (model.encoder.token.weight.detach() * model.encoder.threshold).round()
    assert told["encoder"]["clipped"] == int((table.abs() > 127).sum())
    for name in ("blocks.0.query", "blocks.0.down"):
        layer = model.get_submodule(name)
        scaled = (layer.linear.weight.detach() * layer.threshold).round().numpy()
        stored = next(node.weight for node in read_bundle(exported).graph if node.name == name)
        assert told[name]["scale"] == float(layer.threshold) and told[name]["values"] == scaled.size
        assert told[name]["clipped"] + told[name]["shrunk"] == int((scaled != stored).sum())
        assert told[name]["clipped"] == int((abs(scaled) > 127).sum())


def test_a_changed_report_is_noticed(exported: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(exported, tmp_path / "bundle"))
    page = bundle / "report.html"
    page.write_text(page.read_text(encoding="utf-8").replace("81", "99"), encoding="utf-8")
    with pytest.raises(BundleError, match=r"report\.html is damaged or was changed"):
        read_bundle(bundle)


def test_export_says_where_the_report_is(trained: Path, tmp_path: Path, capfd) -> None:
    out = tmp_path / "bundle"
    command = ["--model", str(trained / "run" / "integer"), "--out", str(out), "--pass", "merge-query-key-value"]
    assert export_main(command) == 0
    assert f"report: {out / 'report.html'} " in capfd.readouterr().err
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert "blocks.0.query" in report["replaced"], "a layer that was trained, and is a part of a node now"
    assert all(node["latency_steps"] is None for node in report["nodes"])


@pytest.mark.parametrize("engine", ["reference", "fast", "torch"])
def test_run_verifies_on_the_test_split(trained: Path, exported: Path, engine: str, capfd) -> None:
    command = [str(exported), "--engine", engine, "--verify", "--json", "--file", str(trained / "data" / "test.tsv")]
    model = ["--model", str(trained / "run")] if engine == "torch" else []
    assert run_main([*command, *model]) == 0
    report = json.loads(capfd.readouterr().out)
    results = json.loads((trained / "run" / "results.json").read_text())
    assert report["verify"]["mismatches"] == 0 and report["verify"]["values_compared"] > 10_000
    assert report["accuracy"] == results["accuracy"]["integer student"]["test"]["value"]


def test_another_model_is_caught(trained: Path, exported: Path, tmp_path: Path, capfd) -> None:
    from spikebert.model import SpikeBertForSequenceClassification

    model = SpikeBertForSequenceClassification.from_pretrained(trained / "run" / "integer")
    model.blocks[0].up.linear.bias.data += 3 / model.blocks[0].up.threshold
    model.save_pretrained(tmp_path)
    command = [
        str(exported),
        "--engine",
        "torch",
        "--model",
        str(tmp_path),
        "--verify",
        "--json",
        "--text",
        "a good film",
    ]
    assert run_main(command) == 1
    first = json.loads(capfd.readouterr().out)["verify"]["first_mismatch"]
    assert first["node"] == "blocks.0.up" and abs(first["expected"] - first["got"]) == 3


def test_export_refuses_what_it_must(trained: Path, exported: Path, tmp_path: Path, capfd) -> None:
    out = tmp_path / "bundle"
    assert export_main(["--model", str(trained / "run"), "--out", str(exported)]) == 2
    assert "exists" in capfd.readouterr().err
    assert export_main(["--model", str(tmp_path / "nothing"), "--out", str(out)]) == 2
    assert "no model there" in capfd.readouterr().err
    assert export_main(["--model", str(trained / "run" / "stage2"), "--out", str(out)]) == 2
    assert "float mode" in capfd.readouterr().err
    assert export_main(["--model", str(trained / "run"), "--out", str(out), "--target", "abacus"]) == 2
    assert "there is no target 'abacus'" in capfd.readouterr().err
    assert not out.exists()


def test_export_notices_a_graph_that_is_not_the_model(trained: Path, tmp_path: Path, capfd, monkeypatch) -> None:
    """The mistake put back: a converter that leaves out a bias."""
    import converters.from_torch as bridge

    honest = bridge._linear

    def forgetful(*arguments):
        synapses, lif = honest(*arguments)
        zero = np.zeros_like(synapses.bias)
        return [type(synapses)(synapses.name, synapses.inputs, synapses.weight, zero, synapses.weight_bits), lif]

    monkeypatch.setattr(bridge, "_linear", forgetful)
    assert export_main(["--model", str(trained / "run"), "--out", str(tmp_path / "bundle")]) == 1
    assert "the graph is not the network of the torch model" in capfd.readouterr().err
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("timesteps", [1, 2, 8])
def test_a_model_runs_for_another_number_of_timesteps(
    trained: Path, exported: Path, tmp_path: Path, capfd, timesteps: int
) -> None:
    """Every engine gives what the first timesteps gave before, and is the reference's."""
    out, model = tmp_path / "bundle", str(trained / "run")
    assert export_main(["--model", model, "--out", str(out), "--target", "lava", f"--timesteps={timesteps}"]) == 0
    bundle, before = read_bundle(out), read_bundle(exported)
    assert bundle.graph.timesteps == timesteps and before.graph.timesteps == 4
    assert bundle.config["model"]["timesteps"] == timesteps
    assert set(bundle.config["accuracies"]) == {"validation, integer student", "test, integer student"}
    for split, on in bundle.config["activity"].items():
        assert bundle.config["counts"][f"{split}, integer student"] == [on["right"], on["texts"]]
    assert bundle.config["licences"] == before.config["licences"], "that of another T learnt from the same texts"
    batch = bundle.batch([bundle.tokenise(text) for text in ("good", "a bad , sad film")])
    names = [node.name for node in bundle.graph]
    now, then = (ReferenceEngine(each.graph).run(batch, names).values for each in (bundle, before))
    both = min(timesteps, 4)
    for name in names:
        assert np.array_equal(now[name][:both], then[name][:both])
    capfd.readouterr()
    for engine in ("fast", "lava-inline", "torch"):
        arguments = ["--text", "a bad , sad film", "--engine", engine, "--verify", "--json"]
        assert run_main([str(out), *arguments, *(["--model", model] if engine == "torch" else [])]) == 0
        report = json.loads(capfd.readouterr().out)
        assert report["verify"]["mismatches"] == 0 and report["activity"]["timesteps"] == timesteps


@pytest.mark.parametrize("timesteps", ["0", "-1"])
def test_no_timesteps_are_refused(trained: Path, tmp_path: Path, capfd, timesteps: str) -> None:
    arguments = ["--model", str(trained / "run"), "--out", str(tmp_path / "bundle"), "--timesteps", timesteps]
    assert export_main(arguments) == 2
    assert f"--timesteps: timesteps is {timesteps}, it must be 1 or more" in capfd.readouterr().err
