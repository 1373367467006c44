"""One network for fewer and more timesteps: run by the engine, compared with its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from random_graphs import random_graph
from small_bundles import small_bundle

from benchmarks.text_lengths import cut_texts
from benchmarks.timesteps import main, measure, with_timesteps
from converters.bundle import Bundle
from converters.execution import TokenBatch
from converters.graph import Graph, Readout, Source
from sim.reference import ReferenceEngine
from spikebert.commands import UserError
from spikebert.data import LabelledTexts

TEXTS = LabelledTexts(["a good film", "bad", "a dull dull dull film", "fun"], [2, 0, 1, 1])


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    graph = random_graph(np.random.default_rng(0), blocks=1, n_max=6)
    return small_bundle(tmp_path / "bundle", replace(graph, timesteps=3))


@pytest.fixture
def file(bundle: Bundle, tmp_path: Path) -> Path:
    rows = [f"{text}\t{bundle.labels[label]}" for text, label in zip(TEXTS.texts, TEXTS.labels, strict=True)]
    (tmp_path / "texts.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    return tmp_path / "texts.tsv"


def test_each_number_is_what_the_definition_gives_for_it(bundle: Bundle) -> None:
    found = measure(bundle, TEXTS, [5, 1, 5])
    assert list(found) == [1, 3, 5], "its own among them"
    texts, _ = cut_texts(bundle, TEXTS, 6)
    batch = texts.batch(np.arange(4), bundle.pad_id)
    tokens = TokenBatch(batch["input_ids"].numpy(), batch["attention_mask"].numpy())
    for count, on in found.items():
        reference = ReferenceEngine(replace(bundle.graph, timesteps=count)).run(tokens)
        assert np.array_equal(on.right, reference.predictions == np.array(TEXTS.labels))
    operations = [on.activity.total.synaptic_operations for on in found.values()]
    assert operations == sorted(operations) and operations[0] < operations[-1]


def test_spike_coded_positions_are_cut_and_no_more_made_up() -> None:
    graph = random_graph(np.random.default_rng(0), blocks=1, n_max=6)
    code = np.random.default_rng(1).integers(0, 2, (graph.timesteps, 6, graph.source.table.shape[1]), np.uint8)
    plain, readers = graph.source, [node for node in graph if graph.source.name in node.inputs]
    assert with_timesteps(graph, 1).timesteps == 1 and plain.code is None and readers
    source = Source(plain.name, plain.table, plain.position, plain.kind, plain.threshold, plain.dv, code=code)
    readout = Readout("readout", (plain.name,), np.ones((2, 2 * plain.table.shape[1]), np.int8), np.zeros(2, np.int64))
    coded = Graph(graph.timesteps, 6, (source, readout))
    fewer = with_timesteps(coded, 1)
    assert np.array_equal(fewer.source.code, code[:1])
    with pytest.raises(UserError, match=f"of {graph.timesteps} timesteps"):
        with_timesteps(coded, graph.timesteps + 1)


def test_the_command_prints_a_row_for_each_and_draws_them(bundle: Bundle, file: Path, tmp_path: Path, capsys) -> None:
    plot = tmp_path / "plot.png"
    assert main([f"{bundle.folder}={file}", "--timesteps", "1", "2", "--plot", str(plot)]) == 0
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:2] for row in cells] == [[str(bundle.folder), count] for count in "123"]
    assert cells[2][3] == "" and ".." in cells[0][3], "its own is compared with nothing"
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments, message", [(["{}", "--timesteps", "0"], "--timesteps 0"), (["{}="], "give BUNDLE")]
)
def test_wrong_use_is_told(bundle: Bundle, file: Path, capsys, arguments: list[str], message: str) -> None:
    first = arguments[0].format(f"{bundle.folder}={file}" if "=" not in arguments[0] else bundle.folder)
    assert main([first, *arguments[1:]]) == 2
    assert message in capsys.readouterr().err
