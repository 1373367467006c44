"""`spikebert-train --recipe BUNDLE`: the recipe that a bundle was made by, from its folder, its manifest or a zip."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from small_bundles import small_bundle

from spikebert.commands import UserError
from spikebert.recorded_recipe import MANIFEST_BYTES_MAX, recorded_recipe
from spikebert.train_command import make_parser, parse

RECIPE = {"out": "runs/it", "seed": 7, "data": {"folder": "DATA"}, "stage2": {"epochs": 9}}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return small_bundle(tmp_path / "bundle", provenance={"recipe": RECIPE}).folder


def zipped(bundle: Path, folder: str) -> Path:
    path = bundle.parent / "bundle.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(bundle.rglob("*")):
            archive.write(file, folder + file.relative_to(bundle).as_posix())
    return path


@pytest.mark.parametrize("what", ["folder", "manifest", "zip", "flat zip"])
def test_a_bundle_is_a_recipe(bundle: Path, what: str) -> None:
    place = {
        "folder": lambda: bundle,
        "manifest": lambda: bundle / "manifest.json",
        "zip": lambda: zipped(bundle, "bundle/"),
        "flat zip": lambda: zipped(bundle, ""),
    }[what]()
    found = parse(make_parser(), [f"--recipe={place}", "--data.folder", "MINE"])
    assert (found.out, found.seed, found.stage2.epochs, found.data.folder) == ("runs/it", 7, 9, "MINE")


def test_a_folder_named_like_a_recipe_does_not_hide_it(bundle: Path, monkeypatch, capfd) -> None:
    shutil.copytree(bundle, bundle.parent / "mr")
    (bundle.parent / "mr.yaml").write_text("out: beside\n")
    monkeypatch.chdir(bundle.parent)
    assert parse(make_parser(), ["--recipe", "mr"]).out == "runs/mr"
    assert "the installed recipe; that of the bundle beside you is mr/manifest.json" in capfd.readouterr().err
    for place in ("mr/manifest.json", "./mr", "mr/", str(bundle.parent / "mr")):
        assert parse(make_parser(), ["--recipe", place]).out == "runs/it"
    assert capfd.readouterr().err == ""


def test_any_text_comes_through(tmp_path: Path) -> None:
    recipe = RECIPE | {
        "licence": "\U0001f600 \U00020000 服务 'a': \n\t\x85 no",
        "data": {"labels": ["yes", "no", "1e3"]},
    }
    place = small_bundle(tmp_path / "bundle", provenance={"recipe": recipe}).folder
    found = parse(make_parser(), [f"--recipe={place}"])
    assert (found.licence, found.data.labels) == (recipe["licence"], recipe["data"]["labels"])


@pytest.mark.parametrize("section", ["stage1", "stage2", "student"])
@pytest.mark.parametrize("value", [None, 5, [1]])
def test_a_section_that_is_none_is_named(tmp_path: Path, section: str, value: object) -> None:
    place = small_bundle(tmp_path / "bundle", provenance={"recipe": RECIPE | {section: value}}).folder
    with pytest.raises(UserError, match=f"{section} is .*, it is a section"):
        recorded_recipe(place)


def test_what_is_no_bundle_is_none(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("out: x\n")
    (tmp_path / "folder").mkdir()
    assert [recorded_recipe(tmp_path / name) for name in ("my.yaml", "folder", "nothing")] == [None] * 3


@pytest.mark.parametrize(
    "manifest",
    [
        "{",
        "[]",
        "{}",
        '{"provenance": {}}',
        '{"provenance": {"recipe": {}}}',
        '{"provenance": {"recipe": [1]}}',
        "[" * 100_000,
    ],
)
def test_a_manifest_without_a_recipe_is_named(bundle: Path, manifest: str) -> None:
    (bundle / "manifest.json").write_text(manifest)
    for place in (bundle, bundle / "manifest.json", zipped(bundle, "bundle/")):
        with pytest.raises(UserError, match=r": no manifest\.json with a recipe; give a YAML file or another bundle"):
            recorded_recipe(place)


def test_a_zip_is_read_with_care(bundle: Path) -> None:
    path = zipped(bundle, "a/b/")
    with pytest.raises(UserError, match=r"no manifest\.json with a recipe"):
        recorded_recipe(path)
    recipe = json.dumps({"provenance": {"recipe": RECIPE}}).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", b" " * MANIFEST_BYTES_MAX + recipe)
    with pytest.raises(UserError, match=r"no manifest\.json with a recipe"):
        recorded_recipe(path)
    whole = zipped(bundle, "bundle/")
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", recipe + b" " * 5_000)
    assert recorded_recipe(whole)
    content = whole.read_bytes()
    for damaged in (content[:60] + bytes(30) + content[90:], content[:200], b""):
        whole.write_bytes(damaged)
        with pytest.raises(UserError, match=r"no manifest\.json with a recipe"):
            recorded_recipe(whole)


def test_its_wrong_values_are_named_with_the_bundle(bundle: Path) -> None:
    with pytest.raises(UserError, match=rf"stage9.*\(recipe {bundle}\)"):
        parse(make_parser(), [f"--recipe={bundle}", "--stage9.epochs=3"])
