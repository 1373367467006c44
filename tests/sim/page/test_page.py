"""The page of a run: what stands on it, and that a browser shows it."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
from browser import DARK, needs_browser, open_in_browser
from small_bundles import small_bundle

from converters.bundle import Bundle
from converters.execution import TokenBatch
from sim.energy import SHIPPED
from sim.page.raster import raster_of
from sim.reference import ReferenceEngine
from sim.run_command import main

TEXT = 'a funny </script><script>alert("film")</script> & dull'


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return small_bundle(tmp_path_factory.mktemp("page") / "bundle")


@pytest.fixture(scope="module")
def page(bundle: Bundle) -> str:
    """Of a verified run on a file with classes."""
    file = bundle.folder.parent / "data.tsv"
    file.write_text(f"text\tlabel\n{TEXT}\t0\na good film\t2\nbad\t1\n", encoding="utf-8")
    out = bundle.folder.parent / "run.html"
    assert main([str(bundle.folder), "--file", str(file), "--verify", "--report", str(out)]) == 0
    return out.read_text(encoding="utf-8")


def test_what_stands_on_it(page: str, bundle: Bundle) -> None:
    for title in ("Result", "Sentence", "Layers", "Energy", "Again"):
        assert f'<h2 id="{title.lower()}">{title}</h2>' in page
    assert all(f">{name}</th>" in page for name in [node.name for node in bundle.graph] + list(SHIPPED))
    assert "verified: all" in page and "95 % interval" in page and bundle.manifest["digest"] in page
    assert "--verify --report" in page, "the command"


def test_no_text_becomes_a_tag(page: str) -> None:
    assert "alert(" in page and "<script>alert" not in page
    assert page.count("<script>") == 1


def test_it_asks_no_network(page: str) -> None:
    assert not re.search(r"(src|href)=\"(?!#|data:)", page)


def test_the_bits_are_the_spikes_of_the_reference(page: str, bundle: Bundle) -> None:
    ids = bundle.tokenise(TEXT).ids
    names = [name for name in bundle.graph.spiking if "add" not in name]
    batch = TokenBatch(np.array([ids]), np.ones((1, len(ids)), np.int64))
    values = ReferenceEngine(bundle.graph).run(batch, names).values
    options = re.findall(r'<option value="([^"]*)" data-features="(\d+)" data-bits="([^"]*)"', page)
    assert [name for name, _, _ in options] == names
    assert any(values[name].any() for name in names)
    for name, features, bits in options:
        shape = (len(ids), bundle.graph.timesteps, int(features))
        drawn = np.unpackbits(np.frombuffer(base64.b64decode(bits), np.uint8), count=int(np.prod(shape))).reshape(shape)
        assert np.array_equal(drawn, values[name][:, 0].transpose(1, 0, 2)), name


def test_layers_that_are_too_many_are_left_out_and_named(bundle: Bundle) -> None:
    ids = bundle.tokenise("a good film").ids
    whole = raster_of(bundle, ids)
    room = sum(layer.spikes.size // 8 for layer in whole.layers[:2])
    part = raster_of(bundle, ids, bytes_max=room)
    assert [layer.name for layer in part.layers] == [layer.name for layer in whole.layers[:2]]
    assert list(part.left_out) == [layer.name for layer in whole.layers[2:]]
    assert whole.left_out == [] and whole.tokens[0] == "[CLS]" and whole.tokens[-1] == "[SEP]"


def test_a_run_that_is_not_verified_says_so(bundle: Bundle, tmp_path: Path) -> None:
    assert main([str(bundle.folder), "--text", "a good film", "--report", str(tmp_path / "run.html")]) == 0
    page = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert "Not verified" in page and "NOT EQUAL" not in page and "nothing is known of the accuracy" in page


def test_the_bundles_own_samples_can_be_shown(bundle: Bundle, tmp_path: Path) -> None:
    assert main([str(bundle.folder), "--verify", "--report", str(tmp_path / "run.html")]) == 0
    assert "golden sample 0" in (tmp_path / "run.html").read_text(encoding="utf-8")


def test_a_file_is_not_replaced_unasked(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run.html"
    out.write_text("mine")
    command = [str(bundle.folder), "--text", "good", "--report", str(out)]
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err and out.read_text() == "mine"
    assert main([*command, "--predictions", str(out), "--overwrite"]) == 2
    assert "both name" in capsys.readouterr().err and out.read_text() == "mine"
    assert main([*command, "--overwrite", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["samples"] == 1 and out.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_nothing_is_written_where_no_row_could_be_read(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "bad.tsv").write_text("text\tlabel\ngood\t9\n")
    arguments = [str(bundle.folder), "--file", str(tmp_path / "bad.tsv"), "--report", str(tmp_path / "run.html")]
    assert main(arguments) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["bad.tsv"]


@needs_browser
@pytest.mark.parametrize("flags", [(), (DARK,), ("--window-size=420,900",)], ids=["light", "dark", "narrow"])
def test_a_browser_opens_it_without_a_word_on_the_console(page: str, tmp_path: Path, flags: tuple[str, ...]) -> None:
    document, console = open_in_browser(page, tmp_path, *flags)
    assert console == []
    assert 'hidden=""' not in document
    assert re.search(r'<canvas [^>]*aria-label="Spikes of [^"]+: \d+ features, \d+ columns"', document)


@needs_browser
def test_it_draws_every_spike_and_zooms(page: str, bundle: Bundle, tmp_path: Path) -> None:
    """Pixels of the colour of spikes are counted, of the last layer of neurons; then the picture is made larger."""
    probe = """<script>
        const select = document.querySelector("select"), canvas = document.querySelector("canvas");
        select.selectedIndex = select.options.length - 1;
        select.dispatchEvent(new Event("change"));
        const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        let spikes = 0;
        for (let i = 0; i < pixels.length; i += 4)
            spikes += pixels[i] === 0x2f && pixels[i + 1] === 0x6f && pixels[i + 2] === 0xb3;
        const before = canvas.getBoundingClientRect().width;
        document.querySelector("button[data-zoom='2']").click();
        document.title = [spikes, canvas.width, canvas.height, canvas.getBoundingClientRect().width / before].join(" ");
    </script></body>"""
    document, console = open_in_browser(page.replace("</body>", probe), tmp_path)
    assert console == []
    layer = raster_of(bundle, bundle.tokenise(TEXT).ids).layers[-1]
    steps, tokens, features = layer.spikes.shape
    assert layer.spikes.any() and not layer.spikes.all()
    assert f"<title>{layer.spikes.sum()} {steps * tokens} {features} 2</title>" in document


@needs_browser
def test_it_is_no_wider_than_the_window(page: str, tmp_path: Path) -> None:
    measure = "<script>document.title = document.documentElement.scrollWidth <= innerWidth;</script></body>"
    everything = page.replace("<details", "<details open").replace("</body>", measure)
    document, _ = open_in_browser(everything.replace("<body", '<body style="width: 420px"'), tmp_path)
    assert "<title>true</title>" in document
