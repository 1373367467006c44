"""The table of limits of Loihi 2: as the documentation tells it, with its sources, and what holds each."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from converters.graph import ACCUMULATOR_MAX, DV_MAX, MEMBRANE_MAX, THRESHOLD_MAX
from targets.lava import limits as lava_limits
from targets.lava.plan import DOUBLING
from targets.legality import Limit
from targets.loihi2 import limits
from targets.loihi2.limits import CORE_LIMITS, LIMITS
from targets.loihi2.rules import LAID_OUT_RULES, RULES

DOCS = Path(__file__).parents[2] / "docs" / "loihi2.md"
MAPPING_DOCS = DOCS.parent / "mapping.md"
ALL_RULES = (*RULES, *LAID_OUT_RULES)
HELD_OTHERWISE = {
    limits.SYNAPTIC_MEMORY: "rule bounded-fan-in",
    limits.THRESHOLD: "the graph",
    limits.DECAY: "the graph",
    limits.MEMBRANE: "the graph",
}
SHARED = {limit for limit in LIMITS if limit in lava_limits.LIMITS}


def test_every_limit_of_the_module_is_in_one_table_once() -> None:
    tables = (*LIMITS, *CORE_LIMITS)
    assert {value for value in vars(limits).values() if isinstance(value, Limit)} == set(tables)
    assert len({limit.name for limit in tables}) == len(tables)
    assert {rule.limit for rule in ALL_RULES} | set(HELD_OTHERWISE) == set(LIMITS)


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.name)
def test_the_documentation_tells_every_limit_and_its_source(limit: Limit) -> None:
    (holder,) = [f"rule {rule.name}" for rule in ALL_RULES if rule.limit == limit] or [HELD_OTHERWISE[limit]]
    row = f"| {limit.name} | {limit.value} {limit.unit} | {holder} | {limit.source} |"
    assert row in DOCS.read_text(encoding="utf-8").splitlines()


def test_the_table_of_the_documentation_has_no_other_rows() -> None:
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    start = lines.index("| limit | value | held by | source |") + 2
    rows = lines[start : lines.index("", start)]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == [limit.name for limit in LIMITS]


@pytest.mark.parametrize("limit", CORE_LIMITS, ids=lambda limit: limit.name)
def test_the_documentation_tells_every_limit_of_a_core(limit: Limit) -> None:
    row = f"| {limit.name} | {limit.value} {limit.unit} | {limit.source} |"
    assert row in MAPPING_DOCS.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    "limit", [each for each in (*LIMITS, *CORE_LIMITS) if each not in SHARED], ids=lambda limit: limit.name
)
def test_a_source_says_what_kind_it_is(limit: Limit) -> None:
    assert re.match(r"\((Lava|Loihi 2|Loihi 1|unpublished|ours)\) .{20}", limit.source)


def test_numbers_that_lava_has_too_are_its_own() -> None:
    assert {
        limits.THRESHOLDS, limits.DELAY, limits.WEIGHT, limits.CURRENT, limits.RELAY_READERS,
        limits.THRESHOLD, limits.DECAY, limits.MEMBRANE,
    } == SHARED  # fmt: skip


def test_what_no_rule_checks_is_held_otherwise() -> None:
    assert limits.FAN_IN.value <= limits.SYNAPTIC_MEMORY.value  # a byte for each weight
    assert limits.THRESHOLD.value >= DOUBLING * THRESHOLD_MAX
    assert limits.DECAY.value == DV_MAX
    assert limits.MEMBRANE.value == MEMBRANE_MAX
    assert limits.CURRENT.value >= DOUBLING * ACCUMULATOR_MAX


def test_the_installed_lava_reads_messages_of_the_chip_like_this(monkeypatch) -> None:
    pytest.importorskip("lava.magma")
    from lava.networks.gradedvecnetwork import OutputVec

    monitor = OutputVec(shape=(3,), buffer=1)
    assert monitor.num_message_bits == limits.MESSAGE_BITS.value + 1
    most = 2**limits.MESSAGE_BITS.value
    monkeypatch.setattr(monitor.outport_plug.data, "get", lambda: np.array([most - 1, most, 2 * most - 1]))
    assert monitor.get_data().tolist() == [most - 1, -most, -1]
