"""The benchmark of a training step's memory does such steps, and extrapolates from two of them."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from benchmarks import activation_memory
from benchmarks.activation_memory import Case, Measured
from benchmarks.export import Size

SMALL = Size(layers=2, hidden=16, heads=2, intermediate=32, n_max=6, timesteps=2)


@pytest.mark.parametrize("mode", activation_memory.MODES)
@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_a_step_is_done(mode: str, precision: str) -> None:
    measured = activation_memory.measure_step(Case(mode, precision, True, 3), SMALL)
    assert measured.seconds > 0 and measured.bytes > 1_000_000


def test_larger_batches_are_predicted_from_two() -> None:
    def case(checkpointing: bool, texts: int) -> Case:
        return Case("float", "bf16", checkpointing, texts)

    def measured(gigabytes: float) -> Measured:
        return Measured(1.25, int(gigabytes * 1e9), None)

    kept = {case(False, 8): measured(5), case(False, 16): measured(9)}
    again = {case(True, 8): measured(3), case(True, 16): measured(3.5)}
    report = activation_memory.report(kept | again, [64])
    assert "| float, bf16, all kept     | 5.00 (1.2 s) | 9.00 (1.2 s) |      500 MB |                33.0 |" in report
    assert "| float, bf16, checkpointed | 3.00 (1.2 s) | 3.50 (1.2 s) |       62 MB |                 6.5 |" in report
    assert "predicted" not in activation_memory.report({case(True, 8): measured(3)}, [64])
