"""The page: whole, escaped, self-contained, small. And report.json: as its schema says."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import fastjsonschema
import numpy as np
import pytest
from neuron_cases import scalar_rule_graph
from random_graphs import random_dag, random_graph, random_machine_dag
from small_reports import small_report

import converters
from converters.report.accuracy import stage_accuracies
from converters.report.contents import PassReport, Report, Rounding
from converters.report.markup import VOID, Markup, join, number, tag
from converters.report.page import report_page
from converters.report.write import readable_json, write_report

NASTY = '</script><img src=x onerror="alert(1)">&amp; "\'<b>'
MEASURED = {"correct": 3, "texts": 4, "value": 0.75, "low": 0.3, "high": 0.95}


class Elements(HTMLParser):
    """Collects tags, attributes and texts, and refuses elements that are not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, text: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.texts.append(text)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def full_report(**changes: object) -> Report:
    """A report in which nothing is missing."""
    graph = random_graph(np.random.default_rng(0), blocks=2)
    names = ("teacher", "float student", "folded student", "quantised student", "integer student")
    options: dict[str, object] = {
        "target": "lava",
        "latency_steps": {node.name: place for place, node in enumerate(graph)},
        "roundings": {name: Rounding(96.5, 1000, 25, 5) for name in (*(node.name for node in graph), "trained")},
        "accuracy": stage_accuracies(
            {"accuracy": {name: {"validation": MEASURED, "test": MEASURED} for name in names}}
        ),
        "passes": [PassReport("prove-ranges", "largest current 5")],
        "files": {"graph.json": 900, "weights.safetensors": 100},
    }
    return small_report(graph, **(options | changes))


@pytest.fixture(scope="module")
def validate():
    text = (Path(converters.__file__).parent / "report.schema.json").read_text(encoding="utf-8")
    return fastjsonschema.compile(json.loads(text))


def test_report_json_is_as_its_schema_says(validate, tmp_path: Path) -> None:
    write_report(tmp_path, report := full_report())
    document = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    validate(document)
    assert document == json.loads(json.dumps(report.to_json()))
    assert document["nodes"][0]["weights"]["rounding"]["cut_fraction"] == 0.03
    validate(json.loads(json.dumps(small_report().to_json())))
    assert set(document["replaced"]) == {"trained"}
    document["nodes"][0]["extra"] = 1
    with pytest.raises(fastjsonschema.JsonSchemaValueException):
        validate(document)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_weights_of_any_bits_are_reported(validate, bits: int) -> None:
    report = small_report(random_graph(np.random.default_rng(0), blocks=1, weight_bits=bits))
    document = json.loads(json.dumps(report.to_json()))
    validate(document)
    weights = [node["weights"] for node in document["nodes"] if node["op"] == "synapses"]
    assert weights and all(each["bits"] == bits for each in weights)


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        write_report(tmp_path / folder, full_report())
    for name in ("report.json", "report.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_json_has_a_list_of_numbers_on_one_line() -> None:
    document = {"numbers": [1, 2, -3], "text": "[\n1, 2]", "objects": [{"a": []}]}
    text = readable_json(document).decode()
    assert '"numbers": [ 1, 2, -3 ]' in text and json.loads(text) == document
    with pytest.raises(ValueError, match="not JSON compliant"):
        readable_json({"value": float("nan")})


def test_the_page_says_what_it_must() -> None:
    page = Elements(report_page(full_report()))
    for text in (
        *("block0.fc1.synapses", "4 × N × 32", "step 5", "75.0% (30.0% to 95.0%)", "prove-ranges"),
        *("25 (2.50%)", "96.5", "weights.safetensors", "silent, proven", "silent, observed", "always firing, proven"),
        *("On the 3 golden inputs", "Trained layers that a pass merged, split or renamed"),
    ):
        assert text in page.text
    assert [name for name, _ in page.found if name in ("h1", "main")] == ["h1", "main"]
    headings = [attributes["id"] for name, attributes in page.found if name == "h2"]
    assert headings == ["accuracy", "network", "weights", "values", "neurons", "sizes"]
    links = [attributes["href"] for name, attributes in page.found if name == "a"]
    assert links == [f"#{heading}" for heading in headings]


def test_every_node_is_drawn_and_listed() -> None:
    report = full_report()
    page = Elements(report_page(report))
    for node in report.nodes:
        assert f"{node.name}: {node.op}, from" in page.text, "the title of its box"
        assert page.texts.count(node.name) >= 2, "in the table of nodes and in that of values"


def test_the_rule_of_neurons_is_said_once_and_where_they_differ_by_name() -> None:
    alike = Elements(report_page(small_report(scalar_rule_graph(("zero", "binary", 1)))))
    assert (
        alike.text.count("At each timestep a neuron keeps 0.8999 of its membrane, sends 0 or 1, then is set to 0.") == 1
    )
    page = Elements(report_page(small_report(scalar_rule_graph(("subtract", "graded", 3)))))
    assert "sends 0 or 1, then loses the threshold: q.lif, k.lif" in page.text
    assert "sends 0 to 3, then loses the threshold as often: source, v.lif, attended, out.lif, up.lif" in page.text


def test_without_record_target_and_files_it_says_so() -> None:
    page = Elements(report_page(small_report()))
    assert "without a record of its training" in page.text
    assert "Logical time only" in page.text and "exported for any engine" in page.text
    assert page.texts.count("not measured") == 10


def test_no_text_becomes_a_tag() -> None:
    report = full_report(name=NASTY, labels=[NASTY], target=NASTY, passes=[PassReport(NASTY, NASTY)], files={NASTY: 1})
    page = Elements(report_page(report))
    assert "img" not in {name for name, _ in page.found} and "b" in {name for name, _ in page.found}
    assert all("onerror" not in attributes for _, attributes in page.found)
    assert page.texts.count(NASTY) >= 3
    assert sum(name == "script" for name, _ in page.found) == 1


def test_it_asks_nobody_for_anything() -> None:
    text = report_page(full_report())
    page = Elements(text)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|/work|/home|/tmp", text)
    for name, attributes in page.found:
        assert name not in ("img", "iframe", "object", "embed", "audio", "video")
        assert "src" not in attributes
        assert attributes.get("href", "#")[0] == "#" or attributes["href"] == "data:,"
    assert any(attributes.get("http-equiv") == "Content-Security-Policy" for _, attributes in page.found)


def test_every_picture_has_words() -> None:
    for name, attributes in Elements(report_page(full_report())).found:
        if name == "svg":
            assert attributes["role"] == "img" and attributes["aria-label"]


@pytest.mark.parametrize("make", [random_dag, random_machine_dag])
@pytest.mark.parametrize("seed", range(4))
def test_any_graph_makes_a_page(validate, make, seed: int) -> None:
    """Of nodes that only passes make, too."""
    report = small_report(make(np.random.default_rng(seed), nodes=10))
    validate(json.loads(json.dumps(report.to_json())))
    assert len(Elements(report_page(report)).found) > 100


def test_twelve_blocks_are_folded_and_the_page_stays_small() -> None:
    report = small_report(random_graph(np.random.default_rng(0), blocks=12))
    page = report_page(report)
    assert len(page) < 1_000_000
    assert "block0; alike: block1 to block11, 11 blocks" in page
    assert "Draw the other 11" in page
    assert page.count('class="graph"') == 14


def test_tags_are_written_as_html_has_them() -> None:
    assert tag("p", "a < b", Markup("<b>c</b>"), None, 3) == "<p>a &lt; b<b>c</b>3</p>"
    assert tag("br") == "<br>" and join("&", None) == "&amp;"
    assert (
        tag("td", class_="n", aria_label='"', hidden=True, id=None) == '<td class="n" aria-label="&quot;" hidden></td>'
    )
    assert [number(value) for value in (1.0, 2.25, -0.5, 1e6)] == ["1", "2.2", "-0.5", "1000000"]
