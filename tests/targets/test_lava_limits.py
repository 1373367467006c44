"""The table of limits: as the documentation tells it, as the installed Lava has it, and as a Graph proves it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from converters.graph import ACCUMULATOR_MAX, DV_MAX, MEMBRANE_MAX, THRESHOLD_MAX
from targets.lava import limits
from targets.lava.limits import LIMITS
from targets.lava.plan import DOUBLING
from targets.lava.rules import LAID_OUT_RULES, RULES
from targets.legality import Limit

DOCS = Path(__file__).parents[2] / "docs" / "lava.md"


def test_every_limit_of_the_module_is_in_the_table_once() -> None:
    assert {value for value in vars(limits).values() if isinstance(value, Limit)} == set(LIMITS)
    assert len({limit.name for limit in LIMITS}) == len(LIMITS)
    assert {rule.limit for rule in (*RULES, *LAID_OUT_RULES)} <= set(LIMITS)


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.name)
def test_the_documentation_tells_every_limit_and_its_source(limit: Limit) -> None:
    (holder,) = [f"rule {rule.name}" for rule in (*RULES, *LAID_OUT_RULES) if rule.limit == limit] or ["the graph"]
    row = f"| {limit.name} | {limit.value} {limit.unit} | {holder} | {limit.source} |"
    assert row in DOCS.read_text(encoding="utf-8").splitlines()


def test_what_no_rule_checks_is_proven_by_a_graph() -> None:
    assert limits.CURRENT.value >= DOUBLING * ACCUMULATOR_MAX
    assert limits.THRESHOLD.value >= DOUBLING * THRESHOLD_MAX
    assert limits.DECAY.value == DV_MAX
    assert limits.MEMBRANE.value == MEMBRANE_MAX
    assert limits.WEIGHT.value >= DOUBLING * 127  # the largest of 8 weight_bits
    checked = {rule.limit for rule in (*RULES, *LAID_OUT_RULES)}
    assert set(LIMITS) - checked == {limits.THRESHOLD, limits.DECAY, limits.MEMBRANE}


def test_the_installed_lava_has_these_limits() -> None:
    pytest.importorskip("lava.magma")
    from lava.proc.graded.models import PyGradedVecModelFixed
    from lava.proc.lif.models import PyLifResetModelBitAcc
    from lava.proc.lif.process import LIFReset
    from lava.proc.sparse.models import PyDelaySparseModelBitAcc
    from lava.utils.weightutils import SignMode, clip_weights

    assert LIFReset(shape=(5,)).vth.shape == (limits.THRESHOLDS.value,)
    assert 2**PyDelaySparseModelBitAcc.delays.precision - 1 == limits.DELAY.value
    assert PyGradedVecModelFixed.s_out.precision == limits.MESSAGE_BITS.value
    assert 2**PyLifResetModelBitAcc.vth.precision - 1 == limits.THRESHOLD.value
    assert 2**PyLifResetModelBitAcc.dv.precision - 1 == limits.DECAY.value
    assert 2 ** (PyLifResetModelBitAcc.v.precision - 1) - 1 == limits.MEMBRANE.value
    for sign_mode, sign in ((SignMode.EXCITATORY, 1), (SignMode.INHIBITORY, -1)):
        (clipped,) = clip_weights(sign * np.array([256]), sign_mode, num_bits=8)
        assert clipped == sign * limits.WEIGHT.value


@pytest.mark.parametrize(
    ("current", "holds"),
    [
        (limits.CURRENT.value, True),
        (-limits.CURRENT.value, True),
        (-limits.CURRENT.value - 1, False),
        (limits.CURRENT.value + 2, False),  # 2^17 itself is still held on this side
    ],
)
def test_a_current_wraps_beyond_its_limit(current: int, holds: bool) -> None:
    pytest.importorskip("lava.magma")
    from lava.proc.lif.models import PyLifResetModelBitAcc

    model = PyLifResetModelBitAcc({"reset_interval": 1, "reset_offset": 0})
    model.u, model.v = np.zeros(1, np.int32), np.zeros(1, np.int32)
    model.du, model.dv = limits.DECAY.value, 0
    model.subthr_dynamics(np.array([current], np.int32))
    assert (model.u[0] == current << 6) == holds
    if holds:  # the membrane is cut where the current is not
        assert abs(int(model.v[0])) == min(abs(current) << 6, limits.MEMBRANE.value)
