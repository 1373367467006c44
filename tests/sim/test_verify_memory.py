"""`spikebert-run --verify` of a network whose values, of one sample, take gigabytes: they are never all in memory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from random_graphs import random_batch
from small_bundles import small_bundle

from converters.bundle import golden_nodes, make_golden
from converters.graph import LIF, Graph, Node, Readout, Source, Synapses
from sim.reference import ReferenceEngine
from sim.shards import SAMPLE_BYTES, parts_of, sample_bytes

ROOT = Path(__file__).parents[2]
WIDTH, LAYERS, FEATURES, TIMESTEPS, TOKENS = 32, 67, 1536, 16, 128
MEASURED = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE)
print(done.stdout.decode())
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def wide_graph() -> Graph:
    """As many values a sample as 12 blocks of 768 features have at T = 16 and 128 tokens, but few weights."""
    rng = np.random.default_rng(0)
    nodes: list[Node] = [Source("source", rng.integers(-50, 51, (40, WIDTH)), threshold=20, dv=2048)]
    for number in range(LAYERS):
        weight = rng.integers(-100, 101, (FEATURES, WIDTH))
        nodes.append(Synapses(f"layer{number}", ("source",), weight, rng.integers(-99, 99, FEATURES)))
        nodes.append(LIF(f"layer{number}.lif", (f"layer{number}",), 300, 2048))
    last = nodes[-1].name
    readout = Readout("readout", (last,), rng.integers(-9, 9, (3, FEATURES)), np.zeros(3, int))
    return Graph(TIMESTEPS, TOKENS, (*nodes, readout))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_two_gigabytes_are_enough(tmp_path, engine):
    graph = wide_graph()
    assert sample_bytes(graph, graph.features) > 3 * SAMPLE_BYTES and len(parts_of(graph, tuple(graph.features))) >= 4
    batch = random_batch(np.random.default_rng(0), graph, 1, tokens=2)
    golden = make_golden(graph, batch, ReferenceEngine(graph).run(batch, golden_nodes(graph)))
    folder, path = small_bundle(tmp_path / "wide", graph, golden=golden).folder, tmp_path / "data.tsv"
    path.write_text("text\n" + "good bad funny film " * 50 + "\n")
    command = ["-m", "sim.run_command", folder, "--file", path, "--verify", "--json", "--engine", engine]
    words = [sys.executable, "-c", MEASURED, sys.executable, *map(str, command)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    output, _, kilobytes = done.stdout.strip().rpartition("\n")
    verify = json.loads(output)["verify"]
    assert verify["mismatches"] == 0
    assert verify["values_compared"] == sum(graph.features.values()) * TIMESTEPS * TOKENS + 3
    assert int(kilobytes) < 2_000_000
