"""The benchmark of the export exports what it says. Nothing here depends on how fast that is."""

import pytest

from converters.bundle import read_bundle
from sim.run_command import main as run_main

SMALL = "--layers 2 --hidden 16 --heads 2 --intermediate 32 --n-max 30 --timesteps 2 --bits 8 4"


@pytest.mark.slow
def test_both_bundles_are_written_measured_and_sound(tmp_path, capsys):
    pytest.importorskip("torch")
    from benchmarks import export

    export.main(["--out", str(tmp_path), *SMALL.split()])
    out = capsys.readouterr().out
    weights = {}
    for bits in (8, 4):
        folder = tmp_path / f"{bits}_bits"
        graph = read_bundle(folder).graph
        assert graph["blocks.1.up"].weight.shape == (32, 16) and graph["blocks.1.up"].weight_bits == bits
        assert (graph.timesteps, graph.n_max, graph.source.table.shape) == (2, 30, (30522, 16))
        weights[bits] = (folder / "weights.safetensors").stat().st_size
        assert f"{weights[bits]:,}" in out
        assert run_main([str(folder), "--check"]) == 0
    assert weights[4] < weights[8]
    assert "seconds" in out and "peak memory" in out and "all but golden.safetensors" in out
