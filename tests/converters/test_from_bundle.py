"""`spikebert-export --model BUNDLE`: what the trained model would have given, without the trained model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_output import one_error
from random_graphs import random_graph
from small_bundles import sign_again, small_bundle, small_golden

from converters.bundle import Bundle, Golden, read_bundle
from converters.export_command import main
from converters.graph import Attention, Graph
from converters.serialise import graph_to_plain
from sim.run_command import main as run_main

FILES = ("graph.json", "weights.safetensors", "encoder.safetensors", "golden.safetensors", "tokenizer/tokenizer.json")


def export(model: Path | str, out: Path, *flags: str) -> Bundle:
    assert main(["--model", str(model), "--out", str(out), *flags]) == 0
    return read_bundle(out)


@pytest.fixture(scope="module")
def bundle(trained: Path, tmp_path_factory) -> Bundle:
    """Of the trained model, for Lava."""
    return export(trained / "run", tmp_path_factory.mktemp("again") / "first", "--target", "lava")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("the film good bad\nthe film good bad\nthe soup was sad\n")
    return path


def same_network(one: Bundle, other: Bundle) -> bool:
    return all((one.folder / name).read_bytes() == (other.folder / name).read_bytes() for name in FILES)


def counts_by_stage(bundle: Bundle) -> list[tuple]:
    """What its report tells of each stage: what it is, and how many of how many texts it classified rightly."""
    stages = json.loads((bundle.folder / "report.json").read_text())["accuracy"]
    splits = [[found and (found["correct"], found["texts"]) for found in stage["splits"].values()] for stage in stages]
    return [(stage["meaning"], *found) for stage, found in zip(stages, splits, strict=True)]


def roundings(bundle: Bundle, whole: bool) -> dict[str, dict]:
    report = json.loads((bundle.folder / "report.json").read_text())
    found = {node["name"]: node["weights"]["rounding"] for node in report["nodes"] if node["weights"]}
    return {name: each for name, each in (found | report["replaced"]).items() if whole or name != "encoder"}


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--target", "loihi2", "--pass", "expand-attention"],
        ["--target", "sanafe"],
        ["--pass", "remove-dead-neurons", "--pass", "remove-unread-nodes"],
        ["--pass", "merge-query-key-value"],
        ["--timesteps", "1"],
        ["--timesteps", "7", "--target", "lava"],
        ["--vocabulary", "9"],
        ["--vocabulary", "9", "--timesteps", "2", "--attention", "stock"],
        ["--no-texts"],
        ["--no-texts", "--timesteps", "2"],
    ],
)
def test_it_is_what_the_model_gives_with_the_same_flags(trained, bundle, texts, tmp_path, flags) -> None:
    """To the last byte of what is computed; and the card tells as much of it."""
    more = ["--vocabulary-text", str(texts)] if "--vocabulary" in flags else []
    wanted = export(trained / "run", tmp_path / "wanted", *flags, *more)
    found = export(bundle.folder, tmp_path / "found", *flags, *more)
    assert same_network(found, wanted)
    told, expected = dict(found.config), dict(wanted.config)
    if flags == ["--no-texts"]:  # the bundle tells what was counted when it was made
        expected["activity"] = bundle.config["activity"]
    assert told | {"name": ""} == expected | {"name": ""}
    assert told["model"]["timesteps"] == found.graph.timesteps
    assert found.manifest["target"] == wanted.manifest["target"]
    assert found.manifest["provenance"]["recipe"] == wanted.manifest["provenance"]["recipe"]
    assert found.manifest["provenance"]["passes"] == wanted.manifest["provenance"]["passes"]
    assert counts_by_stage(found) == counts_by_stage(wanted)
    whole = "--vocabulary" not in flags  # of a table that lost rows nobody knows what rounding did to the others
    assert roundings(found, whole) == roundings(wanted, whole) != {}


def test_another_network_has_other_values(bundle, texts, tmp_path) -> None:
    """A control of `same_network`."""
    assert same_network(bundle, export(bundle.folder, tmp_path / "same"))
    assert not same_network(bundle, export(bundle.folder, tmp_path / "fewer", "--timesteps", "2"))
    flags = ["--vocabulary", "9", "--vocabulary-text", str(texts)]
    assert not same_network(bundle, export(bundle.folder, tmp_path / "smaller", *flags))


@pytest.mark.parametrize("engine", ["reference", "fast", "torch", "lava-inline"])
def test_it_runs_and_is_proven_as_any_other(trained, bundle, tmp_path, capfd, engine) -> None:
    export(bundle.folder, tmp_path / "again", "--timesteps", "3", "--target", "lava")
    capfd.readouterr()
    model = ["--model", str(trained / "run")] if engine == "torch" else []
    flags = ["--text", "the good soup", "--engine", engine, *model, "--verify", "--json"]
    assert run_main([str(tmp_path / "again"), *flags]) == 0
    assert json.loads(capfd.readouterr().out)["verify"]["mismatches"] == 0


def test_a_zip_and_a_name_will_do(bundle, tmp_path, capfd, monkeypatch) -> None:
    zipped = Path(shutil.make_archive(str(tmp_path / "small"), "zip", bundle.folder.parent, bundle.folder.name))
    assert same_network(bundle, export(zipped, tmp_path / "of_zip"))
    monkeypatch.setattr("converters.from_bundle.known_bundles", lambda: {"small": zipped})
    monkeypatch.chdir(tmp_path)
    assert same_network(bundle, export("small", tmp_path / "of_name"))
    (tmp_path / "small").mkdir()  # what stands there counts, as for spikebert-run
    assert main(["--model", "small", "--out", str(tmp_path / "none")]) == 2
    assert "small: no model there" in capfd.readouterr().err


def test_what_is_said_of_the_proof(bundle, tmp_path, capfd) -> None:
    export(bundle.folder, tmp_path / "again")
    recorded = sum(bundle.golden.spikes[name][:, bundle.golden.batch.mask == 1].size for name in bundle.golden.spikes)
    said = capfd.readouterr().err
    assert "the bundle's graph repeats what it has recorded: " in said and recorded > 0
    assert main(["--model", str(bundle.folder), "--out", str(tmp_path / "json"), "--json"]) == 0
    verify = json.loads(capfd.readouterr().out)["verify"]
    assert verify["against"] == "golden" and verify["mismatches"] == 0
    assert verify["values_compared"] >= recorded + bundle.golden.logits.size


def test_the_card_tells_every_command(bundle, tmp_path) -> None:
    second = export(bundle.folder, tmp_path / "second", "--timesteps", "2")
    third = export(second.folder, tmp_path / "third", "--target", "sanafe")
    commands = [each.manifest["provenance"]["command"] for each in (bundle, second, third)]
    card = (third.folder / "README.md").read_text()
    places = [card.index(f"\n{command}\n") for command in commands]
    assert places == sorted(places)
    origin = third.manifest["provenance"]["exported_from"]
    assert origin["digest"] == second.manifest["digest"] and origin["name"] == "second"
    assert origin["exported_from"]["digest"] == bundle.manifest["digest"]
    assert third.config["licences"] == bundle.config["licences"] != {}


def test_spikes_that_are_not_repeated_are_refused(bundle, tmp_path, capfd) -> None:
    golden = bundle.golden
    name = next(iter(golden.spikes))
    spikes = golden.spikes[name].copy()
    spikes[0, 1, 0, 0] ^= 1
    wrong = small_bundle(
        tmp_path / "wrong",
        bundle.graph,
        tokenizer=bundle.folder / "tokenizer",
        golden=Golden(golden.batch, golden.logits, golden.spikes | {name: spikes}),
        config=bundle.config,
    )
    out = tmp_path / "place" / "out"
    assert main(["--model", str(wrong.folder), "--out", str(out)]) == 1
    line = one_error(capfd)
    assert f"{wrong.folder / 'golden.safetensors'}: the reference differs" in line and name in line
    assert not out.parent.exists()


def test_a_damaged_bundle_is_named(bundle, tmp_path, capfd) -> None:
    copy = Path(shutil.copytree(bundle.folder, tmp_path / "copy"))
    (copy / "weights.safetensors").write_bytes(b"no")
    assert main(["--model", str(copy), "--out", str(tmp_path / "out")]) == 2
    assert f"{copy / 'weights.safetensors'} is damaged" in one_error(capfd)


def test_what_a_target_cannot_have_is_told_before_any_work(bundle, tmp_path, capfd, monkeypatch) -> None:
    monkeypatch.setattr("converters.from_bundle.require_golden", lambda bundle: pytest.fail("long work"))
    assert main(["--model", str(bundle.folder), "--out", str(tmp_path / "out"), "--target", "nir"]) == 1
    assert "not legal for the target 'nir'" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("timesteps", ["0", "-1"])
def test_timesteps_must_be_one_or_more(bundle, tmp_path, capfd, timesteps) -> None:
    assert main(["--model", str(bundle.folder), "--out", str(tmp_path / "out"), "--timesteps", timesteps]) == 2
    assert f"--timesteps: timesteps is {timesteps}, it must be 1 or more" in one_error(capfd)


def with_code(graph: Graph) -> Graph:
    rng = np.random.default_rng(1)
    code = rng.integers(0, 2, (graph.timesteps, graph.n_max, 2), dtype=np.uint8)
    table = graph.source.table[:, 2:]
    position = None if graph.source.position is None else graph.source.position[:, 2:]
    return Graph(
        graph.timesteps,
        graph.n_max,
        (replace(graph.source, table=table, position=position, code=code), *graph.nodes[1:]),
    )


def test_spike_coded_positions_have_so_many_timesteps(tmp_path, capfd) -> None:
    graph = with_code(random_graph(np.random.default_rng(0), blocks=1))
    made = small_bundle(tmp_path / "code", graph)
    assert graph.timesteps > 1
    fewer = export(made.folder, tmp_path / "fewer", "--timesteps", "1")
    assert np.array_equal(fewer.graph.source.code, graph.source.code[:1])
    more = str(graph.timesteps + 1)
    capfd.readouterr()
    assert main(["--model", str(made.folder), "--out", str(tmp_path / "more"), "--timesteps", more]) == 2
    assert f"timesteps is {more}, the spike-coded positions are those of {graph.timesteps}" in one_error(capfd)


def test_bundles_of_own_models_and_of_old_will_do(tmp_path, capfd) -> None:
    """One whose manifest tells neither counts nor a model nor an example, with inputs of its own."""
    graph = random_graph(np.random.default_rng(0), blocks=1)
    config = {"accuracies": {"SST-2 dev": 0.9, "test, a student, with 12 norms": 0.8}, "model": None, "activity": None}
    made = small_bundle(
        tmp_path / "own", graph, golden=small_golden(graph, samples=2), config=config, provenance={"passes": None}
    )
    again = export(made.folder, tmp_path / "again", "--attention", "stock")
    assert len(again.golden.batch) == 2
    assert not any(isinstance(node, Attention) for node in again.graph)
    assert again.labels == made.labels and again.config["accuracies"] == config["accuracies"]
    assert "| SST-2 dev | 90.00 % |" in (again.folder / "README.md").read_text()
    back = export(made.folder, tmp_path / "plain")
    old, new = graph_to_plain(graph), graph_to_plain(back.graph)
    assert old.structure == new.structure
    assert all(np.array_equal(new.weights[name], value) for name, value in old.weights.items())
    other = export(made.folder, tmp_path / "other", "--timesteps", "1")
    assert other.config["accuracies"] == {}, "what was measured was another network"
    counted = small_bundle(tmp_path / "counted", graph, config={"counts": {"dev, integer student": [1, 2]}})
    export(counted.folder, tmp_path / "last", "--timesteps", "1")
    assert "not run on its texts, so the card tells less: no recipe names them" in capfd.readouterr().err


def test_texts_that_cannot_be_read_are_told_and_the_card_says_less(bundle, tmp_path, capfd, monkeypatch) -> None:
    monkeypatch.setattr("converters.on_texts.read_split", lambda data, split: None)
    capfd.readouterr()
    same = export(bundle.folder, tmp_path / "same")
    assert same.config["activity"] == bundle.config["activity"] != {}, "the same network needs no texts"
    assert "not run on its texts" not in capfd.readouterr().err
    other = export(bundle.folder, tmp_path / "other", "--timesteps", "2")
    assert other.config["activity"] == other.config["accuracies"] == {}
    assert "validation: not run on its texts, so the card tells less: no texts in" in capfd.readouterr().err


def of_old(bundle: Bundle, place: Path) -> Bundle:
    """A copy that does not tell which texts it was measured on, as older ones do not."""
    shutil.copytree(bundle.folder, place)
    sign_again(place, config={name: value for name, value in bundle.config.items() if name != "texts_sha256"})
    return read_bundle(place)


@pytest.mark.parametrize("old", [False, True])
def test_other_texts_of_the_same_number_are_not_taken_for_those(bundle, tmp_path, capfd, monkeypatch, old) -> None:
    from converters import on_texts

    source = of_old(bundle, tmp_path / "old") if old else bundle
    assert ("texts_sha256" in source.config) != old
    honest = on_texts.read_split
    right = export(source.folder, tmp_path / "right", "--timesteps", "2")
    assert set(right.config["activity"]) == {"validation", "test"}, "a control: these are those"

    def others(data, split):
        texts = honest(data, split)
        return replace(texts, texts=[f"{text} good" for text in texts.texts])

    monkeypatch.setattr(on_texts, "read_split", others)
    capfd.readouterr()
    wrong = export(source.folder, tmp_path / "wrong", "--timesteps", "2")
    assert wrong.config["activity"] == wrong.config["accuracies"] == {}
    assert "validation: not run on its texts" in capfd.readouterr().err


def test_a_report_of_another_layout_tells_nothing(bundle, tmp_path) -> None:
    other = of_old(bundle, tmp_path / "old")
    (other.folder / "report.json").write_text('{"accuracy": [{"stage": "dream", "meaning": "", "splits": {}}]}')
    sign_again(other.folder)
    again = export(other.folder, tmp_path / "again")
    assert again.config["accuracies"] == bundle.config["accuracies"]
    assert all(value is None for row in counts_by_stage(again) for value in row[1:])
    assert not any(roundings(again, whole=True).values())


def test_texts_that_were_found_again_are_known_from_then_on(bundle, tmp_path) -> None:
    old = of_old(bundle, tmp_path / "old")
    assert (
        export(old.folder, tmp_path / "now", "--timesteps", "2").config["texts_sha256"] == bundle.config["texts_sha256"]
    )


def test_what_was_left_unmeasured_can_be_measured_later(trained, tmp_path) -> None:
    wanted = export(trained / "run", tmp_path / "wanted", "--timesteps", "2")
    quick = export(trained / "run", tmp_path / "quick", "--timesteps", "2", "--no-texts")
    assert quick.config["accuracies"] == quick.config["activity"] == {}
    found = export(quick.folder, tmp_path / "found")
    assert found.config["accuracies"] == wanted.config["accuracies"] != {}
    assert found.config["activity"] == wanted.config["activity"] != {}
    assert counts_by_stage(found) == counts_by_stage(wanted)


def test_fewer_tokens_twice_tell_what_the_teacher_knew(bundle, texts, tmp_path) -> None:
    more = tmp_path / "more.txt"
    more.write_text(f"{texts.read_text()}was soup sad\nfilm was dull and slow\n")
    first = export(bundle.folder, tmp_path / "first", "--vocabulary", "12", "--vocabulary-text", str(more))
    second = export(first.folder, tmp_path / "second", "--vocabulary", "9", "--vocabulary-text", str(texts))
    assert len(second.graph.source.table) == 9 < len(first.graph.source.table)
    told = second.config["accuracies"]
    assert told["validation, teacher, with 20 tokens"] == bundle.config["accuracies"]["validation, teacher"]
    meanings = [row[0] for row in counts_by_stage(second)]
    assert [meaning.count(", with 20 tokens") for meaning in meanings] == [1, 1, 1, 1, 0]
    same = export(second.folder, tmp_path / "same")
    assert same.config["accuracies"] == told and counts_by_stage(same) == counts_by_stage(second)


def test_a_bundle_that_was_passed_on_before(bundle, tmp_path, capfd) -> None:
    """Its report names the passes it has been through, and what is proven for T alone does not go on to more."""
    flags = ["--timesteps", "2", "--pass", "remove-dead-neurons", "--pass", "balance-delays"]
    first = export(bundle.folder, tmp_path / "first", *flags)
    second = export(first.folder, tmp_path / "second", "--attention", "stock")
    named = [each["name"] for each in json.loads((second.folder / "report.json").read_text())["passes"]]
    assert named == ["remove-dead-neurons", "prove-ranges", "expand-attention"]
    assert export(second.folder, tmp_path / "fewer", "--timesteps", "1").graph.timesteps == 1
    capfd.readouterr()
    assert main(["--model", str(second.folder), "--out", str(tmp_path / "more"), "--timesteps", "4"]) == 2
    assert "remove-dead-neurons has removed neurons that are known to be dead for 2" in one_error(capfd)


def test_places_where_it_would_do_harm_are_refused(bundle, tmp_path, capfd) -> None:
    copy = Path(shutil.copytree(bundle.folder, tmp_path / "copy"))
    assert main(["--model", str(copy), "--out", str(copy / "inner")]) == 2
    assert f"is within the bundle {copy}, which it would spoil" in one_error(capfd)
    assert same_network(read_bundle(copy), bundle)
    (tmp_path / "other").symlink_to(copy)
    assert main(["--model", str(bundle.folder), "--out", str(tmp_path / "other" / "inner")]) == 2, "by a link too"
    assert same_network(export(copy, copy / ".." / "beside"), bundle), "beside it is no harm"
    again = export(copy, copy, "--overwrite", "--timesteps", "2")  # over itself: whole, or as it was
    assert again.graph.timesteps == 2


def test_a_file_that_is_no_zip_is_named(tmp_path, capfd) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    assert main(["--model", str(tmp_path / "notes.txt"), "--out", str(tmp_path / "out")]) == 2
    assert "notes.txt is a file: give the folder of a run, an integer model or a bundle" in one_error(capfd)


def test_texts_that_choose_tokens_are_looked_for_first(bundle, tmp_path, capfd, monkeypatch) -> None:
    monkeypatch.setattr("converters.from_bundle.read_bundle", lambda source: pytest.fail("work"))
    flags = ["--vocabulary", "9", "--vocabulary-text", str(tmp_path / "none.txt")]
    assert main(["--model", str(bundle.folder), "--out", str(tmp_path / "out"), *flags]) == 2
    assert "none.txt: no such file" in one_error(capfd)
