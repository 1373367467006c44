"""A bundle is written whole or not at all, and a damaged one is refused with the file's name."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from independent_interpreter import golden as read_golden
from independent_interpreter import interpret
from random_graphs import random_batch, random_dag, random_graph, random_machine_dag
from safetensors.numpy import load_file, save_file
from small_bundles import (
    rewrite_as_schema_1,
    sign_again,
    small_bundle,
    small_golden,
    write_tokenizer,
    zip_bundle,
)
from tokenizers import Tokenizer

from converters.bundle import BundleError, Golden, manifest_digest, read_bundle
from converters.execution import TokenBatch
from converters.serialise import graph_to_plain
from sim.find_bundle import known_bundles
from sim.reference import ReferenceEngine


@pytest.fixture
def bundle(tmp_path):
    return small_bundle(tmp_path / "bundle")


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith("_tokenizer"))


def change_manifest(folder: Path, change) -> None:
    """Change the manifest and sign it again."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    manifest["digest"] = manifest_digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def change_file(folder: Path, name: str, content: bytes) -> None:
    """Change a file and its hash in the manifest: what a hash cannot find must be found by other checks."""
    (folder / name).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    change_manifest(folder, lambda manifest: manifest["files"].__setitem__(name, digest))


def test_round_trip(bundle):
    again = read_bundle(bundle.folder)
    one, other = graph_to_plain(bundle.graph), graph_to_plain(again.graph)
    assert one.structure == other.structure
    assert all(np.array_equal(one.weights[name], other.weights[name]) for name in one.weights)
    assert again.labels == ("negative", "neutral", "positive")
    expected = small_golden(bundle.graph)
    assert np.array_equal(again.golden.logits, expected.logits)
    assert np.array_equal(again.golden.batch.ids, expected.batch.ids)
    assert set(again.golden.spikes) == set(expected.spikes)
    assert all(np.array_equal(again.golden.spikes[name], expected.spikes[name]) for name in expected.spikes)


def test_a_config_with_numbers_for_keys_can_be_read_again(tmp_path):
    names = {number: str(number) for number in range(12)}  # sorted as numbers and as texts they differ
    bundle = small_bundle(tmp_path / "bundle", config={"id2label": names})
    assert read_bundle(bundle.folder).config["id2label"]["11"] == "11"


def test_two_writes_give_the_same_bytes(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    one, other = small_bundle(tmp_path / "1" / "bundle"), small_bundle(tmp_path / "2" / "bundle")
    for path in one.folder.rglob("*.*"):
        assert path.read_bytes() == (other.folder / path.relative_to(one.folder)).read_bytes()


def coded_graph(rng, **sizes):
    return random_graph(rng, code_features=3, **sizes)


@pytest.mark.parametrize(
    ("make", "schema"),
    [
        (random_graph, 1), (random_graph, 2), (random_dag, 1), (random_dag, 2), (random_machine_dag, 3),
        (random_graph, 4), (random_machine_dag, 4), (coded_graph, 4), (random_graph, 5), (random_machine_dag, 5),
        (random_graph, 6), (random_graph, 7), (coded_graph, 7), (random_dag, 7), (random_machine_dag, 7),
    ],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(4))
def test_an_interpreter_written_from_the_documentation_agrees(tmp_path, make, seed, schema):
    rng = np.random.default_rng(seed)
    sizes = {
        "source_kind": ("lif", "sign")[seed % 2],
        "timesteps": (1, 4, 8, 16)[seed],
        "weight_bits": (8, 4, 3, 2)[seed],
        "hidden": (6, 9)[seed % 2],
    }
    options = {"heads": 3} if make in (random_graph, coded_graph) else {}
    options |= {"attention": "any", "norms": 1.0} if schema == 4 else {}
    options |= {"neurons": "soft" if schema == 5 else "any"} if schema in (5, 7) else {}
    sizes |= {"weight_bits": 1} if schema == 6 else {}
    bundle = small_bundle(tmp_path / "bundle", make(rng, **sizes, **options))
    if schema == 1:
        bundle = rewrite_as_schema_1(bundle)
    assert bundle.manifest["schema"] in ((5, 7) if schema == 7 else (schema,)), (
        "5 where no graded source or v was drawn"
    )
    ids, mask, logits, spikes = read_golden(bundle.folder)
    assert np.array_equal(ids, bundle.golden.batch.ids) and np.array_equal(mask, bundle.golden.batch.mask)
    assert np.array_equal(logits, bundle.golden.logits)
    assert spikes.keys() == bundle.golden.spikes.keys()
    assert all(np.array_equal(spikes[name], bundle.golden.spikes[name]) for name in spikes)
    batch = random_batch(rng, bundle.graph, 4)
    names = [node.name for node in bundle.graph]
    expected = ReferenceEngine(bundle.graph).run(batch, names)
    logits, values = interpret(bundle.folder, batch.ids, batch.mask)
    assert np.array_equal(logits, expected.logits)
    assert all(np.array_equal(values[name], expected.values[name]) for name in names)


def test_a_flipped_byte_is_found_in_each_file(bundle):
    for path in sorted(path for path in bundle.folder.rglob("*") if path.is_file()):
        original = path.read_bytes()
        for place in {0, len(original) // 2, len(original) - 2}:
            path.write_bytes(original[:place] + bytes([original[place] ^ 0x40]) + original[place + 1 :])
            with pytest.raises(BundleError) as error:
                read_bundle(bundle.folder)
            assert path.name in str(error.value)
        path.write_bytes(original)
    read_bundle(bundle.folder)


def test_a_changed_manifest_is_found(bundle):
    manifest = json.loads((bundle.folder / "manifest.json").read_text())
    manifest["config"]["labels"] = ["positive", "neutral", "negative"]
    (bundle.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="digest"):
        read_bundle(bundle.folder)


def test_each_file_is_needed(bundle):
    for path in sorted(path for path in bundle.folder.rglob("*") if path.is_file()):
        moved = bundle.folder.parent / "moved"
        path.rename(moved)
        with pytest.raises(BundleError, match=path.name):
            read_bundle(bundle.folder)
        moved.rename(path)


def test_a_file_that_is_not_listed_is_refused_and_a_hidden_one_ignored(bundle):
    (bundle.folder / ".DS_Store").write_text("x")
    read_bundle(bundle.folder)
    (bundle.folder / "tokenizer" / "added_tokens.json").write_text("{}")
    with pytest.raises(BundleError, match=r"added_tokens\.json is not listed"):
        read_bundle(bundle.folder)


def test_a_newer_schema_is_refused(bundle):
    change_manifest(bundle.folder, lambda manifest: manifest.__setitem__("schema", 8))
    with pytest.raises(BundleError, match=r"manifest\.json: schema 8 is newer than 7"):
        read_bundle(bundle.folder)


def test_a_newer_graph_schema_is_refused(bundle):
    structure = graph_to_plain(bundle.graph).structure | {"schema": 8}
    change_file(bundle.folder, "graph.json", json.dumps(structure).encode())
    with pytest.raises(BundleError, match=r"graph\.json: schema 8 is newer than 7"):
        read_bundle(bundle.folder)


def test_manifest_and_graph_have_one_schema(bundle):
    change_manifest(bundle.folder, lambda manifest: manifest.__setitem__("schema", 1))
    with pytest.raises(BundleError, match=r"graph\.json has schema 2, manifest\.json has 1"):
        read_bundle(bundle.folder)


def test_a_bundle_of_what_passes_make_is_of_schema_3(tmp_path):
    bundle = small_bundle(tmp_path / "bundle", random_machine_dag(np.random.default_rng(0)))
    structure = json.loads((bundle.folder / "graph.json").read_text())
    assert structure["schema"] == bundle.manifest["schema"] == 3
    change_file(bundle.folder, "graph.json", json.dumps(structure | {"schema": 2}).encode())
    change_manifest(bundle.folder, lambda manifest: manifest.__setitem__("schema", 2))
    with pytest.raises(BundleError, match="exists since schema 3"):
        read_bundle(bundle.folder)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_bundle_of_schema_1_is_read(tmp_path, bits):
    graph = random_graph(np.random.default_rng(1), blocks=1, hidden=9, heads=3, weight_bits=bits)
    bundle = small_bundle(tmp_path / "bundle", graph)
    written = {name: (bundle.folder / name).stat().st_size for name in ("weights.safetensors", "golden.safetensors")}
    again = rewrite_as_schema_1(bundle)
    assert again.manifest["schema"] == 1
    sizes = {name: (bundle.folder / name).stat().st_size for name in written}
    assert (sizes["weights.safetensors"] > written["weights.safetensors"]) == (bits <= 4)
    assert sizes["golden.safetensors"] > written["golden.safetensors"]
    one, other = graph_to_plain(graph), graph_to_plain(again.graph)
    assert one.structure == other.structure
    assert all(np.array_equal(one.weights[name], other.weights[name]) for name in one.weights)
    assert all(np.array_equal(bundle.golden.spikes[name], again.golden.spikes[name]) for name in bundle.golden.spikes)


def test_the_shipped_bundle_is_read_as_documented():
    folder = known_bundles()["reviews"]
    bundle = read_bundle(folder)
    assert bundle.manifest["schema"] == 2
    first = bundle.golden.batch[:2]
    logits, values = interpret(folder, first.ids, first.mask)
    assert np.array_equal(logits, bundle.golden.logits[:2])
    for name, spikes in bundle.golden.spikes.items():
        assert np.array_equal(values[name], spikes[:, :2])


def test_golden_spikes_are_stored_for_real_tokens_only(bundle):
    stored = load_file(bundle.folder / "golden.safetensors")
    mask = bundle.golden.batch.mask
    assert (mask == 0).sum() > 0
    for name, spikes in bundle.golden.spikes.items():
        bits = bundle.graph.timesteps * int(mask.sum()) * bundle.graph.features[name]
        assert stored[f"spikes.{name}"].shape == ((bits + 7) // 8,)
        assert not spikes[:, mask == 0].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda packed: packed[:, :-1], r"tensor 'block0\.q\.synapses\.weight': has shape \(16, 7\)"),
        (lambda packed: packed[:-1], r"node 'block0\.q\.synapses': weight has 15 rows"),
        (
            lambda packed: packed * 0 + 8,
            r"tensor 'block0\.q\.synapses\.weight': the weight in row 0, column 0 is -8",
        ),
        (lambda packed: packed.view(np.int8), r"tensor 'block0\.q\.synapses\.weight' is int8, not uint8"),
    ],
)
def test_damaged_packed_weights_are_refused_by_name(tmp_path, change, message):
    graph = random_graph(np.random.default_rng(0), blocks=1, weight_bits=4)
    bundle = small_bundle(tmp_path / "bundle", graph)
    weights = load_file(bundle.folder / "weights.safetensors")
    name = "block0.q.synapses.weight"
    save_file(weights | {name: np.ascontiguousarray(change(weights[name]))}, bundle.folder / "weights.safetensors")
    sign_again(bundle.folder)
    with pytest.raises(BundleError, match=message):
        read_bundle(bundle.folder)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("name", ["manifest.json", "graph.json"])
def test_what_is_no_number_of_json_is_refused(bundle, name, number):
    path = bundle.folder / name
    path.write_text(path.read_text().replace("{", f'{{"more": {number},', 1))
    if name == "graph.json":
        sign_again(bundle.folder)
    with pytest.raises(BundleError, match=rf"{name} is not JSON: {number}"):
        read_bundle(bundle.folder)


@pytest.mark.parametrize(("target", "labels"), [(3, ["a", "b", "c"]), (None, ["a", "b", 3])])
def test_a_target_and_labels_are_texts(bundle, target, labels):
    sign_again(bundle.folder, target=target, config={"labels": labels})
    with pytest.raises(BundleError, match=r"manifest\.json"):
        read_bundle(bundle.folder)


@pytest.mark.parametrize(
    "name",
    ["graph.json", "weights.safetensors", "encoder.safetensors", "golden.safetensors", "tokenizer/tokenizer.json"],
)
@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x80\x04N.", b"{}", b"[" * 100_000], ids=range(5))
def test_nonsense_with_a_right_hash_is_refused(bundle, name, content):
    change_file(bundle.folder, name, content)
    with pytest.raises(BundleError):
        read_bundle(bundle.folder)


@pytest.mark.parametrize("field", ["files", "config", "target", "digest", "extra"])
def test_a_manifest_has_exactly_its_fields(bundle, field):
    manifest = json.loads((bundle.folder / "manifest.json").read_text())
    manifest = manifest | {"extra": 1} if field == "extra" else {k: v for k, v in manifest.items() if k != field}
    (bundle.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"manifest\.json"):
        read_bundle(bundle.folder)


def test_what_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(BundleError, match="not a folder and no zip"):
        read_bundle(tmp_path / "nothing")
    (tmp_path / "file").write_text("a,b")
    with pytest.raises(BundleError, match="file: no zip"):
        read_bundle(tmp_path / "file")
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        read_bundle(tmp_path)


def test_an_existing_bundle_is_replaced_only_on_request(tmp_path):
    bundle = small_bundle(tmp_path / "bundle")
    with pytest.raises(BundleError, match="exists"):
        small_bundle(bundle.folder)
    small_bundle(bundle.folder, overwrite=True, config={"name": "second"})
    assert read_bundle(bundle.folder).config == {"name": "second"}
    assert visible(tmp_path) == ["bundle"]


def test_where_a_link_leads_a_bundle_is_replaced_and_the_link_stays(tmp_path):
    small_bundle(tmp_path / "first", config={"name": "first"})
    (tmp_path / "latest").symlink_to("first")
    with pytest.raises(BundleError, match="exists"):
        small_bundle(tmp_path / "latest")
    small_bundle(tmp_path / "latest", overwrite=True, config={"name": "second"})
    assert (tmp_path / "latest").is_symlink()
    assert read_bundle(tmp_path / "first").config == {"name": "second"}
    assert sorted(path.name for path in tmp_path.iterdir() if "tokenizer" not in path.name) == ["first", "latest"]


def test_a_name_that_is_no_utf8_is_spelled_out_in_the_card(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    small_bundle(folder, tokenizer=write_tokenizer(tmp_path / "tokenizer"))
    assert "caf\\udce9" in (folder / "README.md").read_text(encoding="utf-8")


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "precious.txt").write_text("x")
    with pytest.raises(BundleError, match="not a bundle"):
        small_bundle(tmp_path / "bundle", overwrite=True)
    assert (tmp_path / "bundle" / "precious.txt").read_text() == "x"


@pytest.mark.parametrize("name", ["notes.txt", "lava/mine.npz", ".git/HEAD"])
def test_what_somebody_put_into_a_bundle_is_not_replaced_with_it(tmp_path, name):
    bundle = small_bundle(tmp_path / "bundle", config={"name": "first"})
    (bundle.folder / name).parent.mkdir(exist_ok=True)
    (bundle.folder / name).write_text("days of work")
    with pytest.raises(BundleError, match=f"{re.escape(name)} would be lost"):
        small_bundle(bundle.folder, overwrite=True)
    assert (bundle.folder / name).read_text() == "days of work"
    (bundle.folder / name).rename(tmp_path / "moved")
    (bundle.folder / ".DS_Store").write_text("a system's own")
    small_bundle(bundle.folder, overwrite=True, config={"name": "second"})
    assert read_bundle(bundle.folder).config == {"name": "second"}


@pytest.mark.parametrize("name", ["README.md", "lava/schedule.json"])
def test_a_file_of_a_bundle_that_was_changed_is_not_replaced(tmp_path, name):
    def add(folder: Path) -> None:
        (folder / "schedule.json").write_text("{}")

    bundle = small_bundle(tmp_path / "bundle", target="lava", add_target=add)
    file = bundle.folder / name
    written = file.read_bytes()
    file.write_bytes(written + b"what we saw on the chip")
    with pytest.raises(BundleError, match=f"{re.escape(name)} was changed since the bundle was written"):
        small_bundle(bundle.folder, overwrite=True)
    assert file.read_bytes().endswith(b"what we saw on the chip")
    file.write_bytes(written)
    (bundle.folder / ".cache" / "huggingface").mkdir(parents=True)
    (bundle.folder / ".cache" / "huggingface" / "x.metadata").write_text("of a hub")
    small_bundle(bundle.folder, overwrite=True)


@pytest.mark.parametrize(
    "manifest",
    [
        *("{", "[]", "{}", '{"name": "an extension of a browser"}', '{"files": []}', "[" * 100_000),
        '{"files": {}, "schema": 2, "target": null, "config": {}, "provenance": {}}',
        '{"files": 3, "schema": 2, "target": null, "config": {}, "provenance": {}, "digest": ""}',
    ],
)
def test_another_folder_with_a_manifest_is_never_replaced(tmp_path, manifest):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text(manifest)
    with pytest.raises(BundleError, match="not a bundle, or a damaged one, so it is not overwritten"):
        small_bundle(tmp_path / "bundle", overwrite=True)
    assert (tmp_path / "bundle" / "manifest.json").read_text() == manifest


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError])
@pytest.mark.parametrize("existing", [False, True])
def test_a_stopped_write_leaves_what_was_there(tmp_path, error, existing):
    if existing:
        small_bundle(tmp_path / "bundle", config={"name": "first"})

    def stop(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise error

    with pytest.raises((error, BundleError)):
        small_bundle(tmp_path / "bundle", target="lava", add_target=stop, overwrite=existing)
    assert visible(tmp_path) == (["bundle"] if existing else [])
    if existing:
        assert read_bundle(tmp_path / "bundle").config == {"name": "first"}


def test_a_killed_write_leaves_no_bundle(tmp_path):
    program = (
        "import os, signal, sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from small_bundles import small_bundle\n"
        "small_bundle(Path(sys.argv[1]), target='lava', add_target=lambda f: os.kill(os.getpid(), signal.SIGKILL))"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "bundle"), str(Path(__file__).parents[1])]
    assert subprocess.run(arguments, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "bundle").exists()
    small_bundle(tmp_path / "bundle")  # what the killed one left is in nobody's way


def test_a_target_adds_files_that_are_hashed_too(tmp_path):
    bundle = small_bundle(
        tmp_path / "bundle", target="lava", add_target=lambda folder: (folder / "schedule.json").write_text("{}")
    )
    assert bundle.manifest["target"] == "lava"
    assert "lava/schedule.json" in bundle.manifest["files"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="file"):
        small_bundle(tmp_path / "file" / "bundle", tokenizer=write_tokenizer(tmp_path / "tokenizer"))
    with pytest.raises(BundleError, match="is not a folder"):
        small_bundle(tmp_path / "file", tokenizer=tmp_path / "tokenizer")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_named(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(BundleError, match="locked"):
        small_bundle(tmp_path / "locked" / "bundle", tokenizer=write_tokenizer(tmp_path / "t"))


def test_a_tokenizer_folder_without_tokenizer_json_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match=r"no tokenizer\.json"):
        small_bundle(tmp_path / "bundle", tokenizer=tmp_path / "empty")


def test_a_tokenizer_larger_than_the_table_is_refused(tmp_path):
    with pytest.raises(BundleError, match="token id 11, the table has 5 rows"):
        small_bundle(tmp_path / "bundle", random_graph(np.random.default_rng(0), blocks=1, vocabulary=5))


def test_a_graph_too_short_for_the_special_tokens_is_refused(tmp_path):
    with pytest.raises(BundleError, match="2 special tokens, the graph takes 1"):
        small_bundle(tmp_path / "bundle", random_graph(np.random.default_rng(0), blocks=1, n_max=1))


def test_labels_must_name_all_classes(tmp_path):
    with pytest.raises(BundleError, match="3 classes"):
        small_bundle(tmp_path / "bundle", config={"labels": ["yes", "no"]})


def test_more_than_eight_golden_samples_are_refused(tmp_path):
    graph = random_graph(np.random.default_rng(0), blocks=1)
    with pytest.raises(BundleError, match="at most 8"):
        small_bundle(tmp_path / "bundle", graph, golden=small_golden(graph, samples=9))


def test_golden_spikes_of_another_shape_are_refused(tmp_path):
    graph = random_graph(np.random.default_rng(0), blocks=1)
    golden = small_golden(graph)
    wrong = Golden(golden.batch, golden.logits, golden.spikes | {"source": golden.spikes["source"][:-1]})
    with pytest.raises(BundleError, match=r"spikes\.source"):
        small_bundle(tmp_path / "bundle", graph, golden=wrong)


def test_golden_samples_are_padded_no_further_than_the_longest(tmp_path):
    graph = random_graph(np.random.default_rng(0), blocks=1)
    golden = small_golden(graph)
    mask = golden.batch.mask.copy()
    mask[:, -1] = 0
    wider = Golden(TokenBatch(golden.batch.ids, mask), golden.logits, golden.spikes)
    with pytest.raises(BundleError, match=r"golden\.safetensors: 6 tokens, but no sample has as many"):
        small_bundle(tmp_path / "bundle", graph, golden=wider)


def test_texts_are_cut_and_padded_by_the_graph_and_not_by_the_tokenizer(bundle):
    batch, truncated = bundle.encode(["a good film", "", "a good film a good film"])
    assert batch.ids.tolist() == [[2, 4, 5, 7, 3, 0], [2, 3, 0, 0, 0, 0], [2, 4, 5, 7, 4, 3]]
    assert batch.mask.tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]]
    assert truncated == [False, False, True]


def test_a_batch_is_as_wide_as_asked(bundle):
    assert bundle.encode(["a"])[0].ids.shape == (1, 3)
    assert bundle.encode(["a"], pad_to=6)[0].ids.tolist() == [[2, 4, 3, 0, 0, 0]]
    with pytest.raises(ValueError, match="cannot pad 3 tokens to 2"):
        bundle.encode(["a"], pad_to=2)
    with pytest.raises(ValueError, match="no texts"):
        bundle.encode([])


def test_a_long_text_is_counted(bundle):
    text = bundle.tokenise("good " * 10_010)
    assert (len(text.ids), text.full, text.truncated) == (6, 10_012, True)


def test_unusual_texts_are_told_apart(bundle):
    assert bundle.tokenise("").is_empty
    assert not bundle.tokenise("").only_unknown
    assert bundle.tokenise("xyz uvw").only_unknown
    assert not bundle.tokenise("xyz film").only_unknown


def test_transformers_reads_the_tokenizer_and_cuts_the_same(bundle):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(bundle.folder / "tokenizer")
    for text in ("a good film", "", "xyz", "a good film a good film a good film"):
        theirs = tokenizer(text, truncation=True, max_length=bundle.graph.n_max, padding=False).input_ids
        assert theirs == list(bundle.tokenise(text).ids)


def test_no_pickle_in_a_bundle(bundle):
    for path in bundle.folder.rglob("*"):
        assert path.is_dir() or path.suffix in (".json", ".safetensors", ".md")
    Tokenizer.from_file(str(bundle.folder / "tokenizer" / "tokenizer.json"))


def test_a_bundle_may_be_moved(bundle, tmp_path):
    shutil.move(bundle.folder, tmp_path / "elsewhere")
    assert read_bundle(tmp_path / "elsewhere").manifest == bundle.manifest


# From a zip


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """Where temporary folders are made during a test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("top", ["", "reviews/"])
def test_a_zip_is_read_like_its_folder(bundle, tmp_path, temporary, top):
    again = read_bundle(zip_bundle(bundle.folder, tmp_path / "bundle.zip", top))
    assert again.manifest == bundle.manifest
    assert again.place == again.zip == tmp_path / "bundle.zip"
    one, other = graph_to_plain(bundle.graph), graph_to_plain(again.graph)
    assert all(np.array_equal(one.weights[name], other.weights[name]) for name in one.weights)
    (folder,) = temporary.iterdir()
    assert again.folder == folder
    assert folder.stat().st_mode & 0o777 == 0o700
    assert read_bundle(folder).manifest == bundle.manifest  # a worker opens it by its folder
    again = None
    assert list(temporary.iterdir()) == []


def test_the_zip_that_python_itself_makes_is_read(bundle, tmp_path, temporary):
    path = tmp_path / "bundle.zip"
    subprocess.run([sys.executable, "-m", "zipfile", "-c", path, bundle.folder], check=True)
    assert read_bundle(path).manifest == bundle.manifest
    assert list(temporary.iterdir()) == []


def test_a_damaged_bundle_in_a_zip_names_zip_and_file(bundle, tmp_path, temporary):
    path = bundle.folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    path = zip_bundle(bundle.folder, tmp_path / "bundle.zip")
    with pytest.raises(BundleError, match=f"^{path}/weights.safetensors is damaged"):
        read_bundle(path)
    assert list(temporary.iterdir()) == []


def test_a_zip_of_something_else_is_refused_and_leaves_nothing(tmp_path, temporary):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("x")
    path = zip_bundle(tmp_path / "folder", tmp_path / "notes.zip")
    with pytest.raises(BundleError, match=f"^{path}: holds no bundle"):
        read_bundle(path)
    assert list(temporary.iterdir()) == []


def test_a_full_disk_is_named_and_leaves_nothing(bundle, tmp_path, temporary, monkeypatch):
    def full(self, mode):
        raise OSError(28, "No space left on device", str(self))

    path = zip_bundle(bundle.folder, tmp_path / "bundle.zip")
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(BundleError, match="No space left on device"):
        read_bundle(path)
    assert list(temporary.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_does_not_remove_the_files_of_its_parent(bundle, tmp_path, temporary):
    again = read_bundle(zip_bundle(bundle.folder, tmp_path / "bundle.zip"))
    child = os.fork()
    if child == 0:
        del again
        os._exit(0)
    os.waitpid(child, 0)
    assert (again.folder / "manifest.json").is_file()
