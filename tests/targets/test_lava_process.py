"""A lowered graph as one process in a Lava program of somebody else's, run by Lava's own runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lava.magma")

from random_graphs import random_batch, random_graph

from targets.legality import IllegalGraphError

ROOT = Path(__file__).parents[2]
# In a process of its own: Lava changes the interpreter it is imported in, and a hang must not hang the tests.
PROGRAM = """
import sys
sys.path[:] = {path!r}
import numpy as np
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.proc.io.sink import RingBuffer as Sink
from lava.proc.io.source import RingBuffer as Feed
from random_graphs import random_batch, random_graph
from sim.reference import ReferenceEngine
from targets.lava.process import as_process

rng = np.random.default_rng(1)
graph = random_graph(rng, blocks=1, hidden=6, n_max=3)
batch = random_batch(rng, graph, 4)
network = as_process(graph)
feed = Feed(data=np.moveaxis(network.spikes(batch), 0, -1))
feed.s_out.connect(network.spikes_in)
sink = Sink(shape=network.spikes_in.shape[:2] + (graph.features[graph.output],), buffer=network.steps(len(batch)))
for port in network.currents_out:
    port.connect(sink.a_in)
sink.run(
    condition=RunSteps(num_steps=network.steps(len(batch))),
    run_cfg=Loihi2SimCfg(select_tag="fixed_pt", select_sub_proc_model={stock}),
)
logits = network.logits(np.moveaxis(sink.data.get(), -1, 0), batch)
sink.stop()
assert np.array_equal(logits, ReferenceEngine(graph).run(batch).logits)
print("equal")
"""


@pytest.mark.parametrize("stock", [False, True], ids=["one process", "stock processes"])
def test_inside_a_program_of_stock_processes(stock: bool) -> None:
    script = PROGRAM.format(path=[str(ROOT / "tests"), *sys.path], stock=stock)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.slow
def test_the_example_agrees_with_the_reference() -> None:
    command = [sys.executable, str(ROOT / "examples" / "inside_lava.py"), "--text", "good", "--text", "so bad !"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    good, bad, verdict = done.stdout.splitlines()
    assert good.startswith("positive") and bad.startswith("negative")
    assert verdict == "the same as the reference, to the last bit"


def test_too_few_steps_and_illegal_graphs_are_refused() -> None:
    from targets.lava.start_method import start_method_kept

    with start_method_kept():
        from targets.lava.process import as_process

    rng = np.random.default_rng(2)
    graph = random_graph(rng, blocks=1, hidden=6, n_max=3)
    batch = random_batch(rng, graph, 2)
    network = as_process(graph)
    assert network.spikes(batch).shape == (network.steps(2), *network.spikes_in.shape)
    with pytest.raises(ValueError, match="2 samples take"):
        network.logits(np.zeros((3, 3, 1, 3), np.int32), batch)
    from dataclasses import replace

    from converters.graph import LIF, Graph

    vector = [
        replace(node, threshold=np.arange(graph.features[node.name]) + 1) if isinstance(node, LIF) else node
        for node in graph
    ]
    with pytest.raises(IllegalGraphError, match="scalar-threshold"):
        as_process(Graph(graph.timesteps, graph.n_max, tuple(vector)))
