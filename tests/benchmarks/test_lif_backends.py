"""The comparison of the neuron's backends runs, and notices a backend that gives something else."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from benchmarks import lif_backends  # noqa: E402, it needs torch


def test_it_runs_and_says_what_it_leaves_out(capsys):
    lif_backends.main(["--features", "3", "8", "--gpu-tokens", "6", "--cpu-tokens", "5", "--seconds", "0.01"])
    out = capsys.readouterr().out
    assert out.count("| ours, fused (numba)") == out.count("| SpikingJelly, torch") >= 2
    assert "T = 4, 5 tokens, D = 8, float32, on cpu" in out
    assert ("There is no GPU here" in out) == (not torch.cuda.is_available())
    assert ("| ours, Triton" in out) == torch.cuda.is_available()


def test_times_are_compared_with_the_plain_path_and_with_a_copy():
    taken = {lif_backends.COPY: 2.0, lif_backends.PLAIN: 40.0, "ours, fused (numba)": 10.0}
    report = lif_backends.report(taken, torch.zeros(4, 1000, 250))
    assert "5 tensors of 4 MB must move" in report
    assert "floor: 5.00 ms, at 4 GB/s" in report
    assert "| ours, fused (numba)  | 10.00 |                   4.00 |            2.00 |" in report


def test_another_spike_and_another_gradient_are_noticed():
    current = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(0)).requires_grad_()
    plain = lif_backends.ours("plain")
    for wrong, message in (
        (lambda x: plain(x, threshold=0.9), "other spikes"),
        (lambda x: plain(x) + 0.01 * (x - x.detach()), "a gradient that is"),
    ):
        with pytest.raises(SystemExit, match=message):
            lif_backends.check({lif_backends.PLAIN: plain, "ours, wrong": wrong}, current, torch.ones_like(current))
