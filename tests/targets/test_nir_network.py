"""The NIR graph that a graph becomes, and the file: what is written is what is read, or nothing is done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("nir")

import nir
from machine_graphs import machine_graph
from nir_graphs import random_paths

from converters.graph import LIF, Add, Concat, Graph, Readout, Relay, Slice, Source, Synapses, ValidLane
from spikebert.commands import CheckFailed
from targets.nir.files import first_difference, write
from targets.nir.network import DT, build


def graph_of(*nodes: object, timesteps: int = 4) -> Graph:
    source = Source("source", [[1, 1], [-1, 1]], kind="sign")
    return Graph(timesteps, 3, (source, *nodes))


def residual() -> Graph:
    """A residual and the same value twice: x + x + neuron(W x + b)."""
    return graph_of(
        Synapses("current", ("source",), [[1, 2], [3, 4]], [5, 0]),
        LIF("neuron", ("current",), np.array([10, 20], np.int32), 2048),
        Add("sum", ("source", "neuron", "source")),
        Readout("readout", ("sum",), [[1, -1]], [0], scale=0.5),
    )


def test_a_residual_is_edges_and_names_are_those_of_the_graph() -> None:
    network = build(residual())
    assert {name: type(node).__name__ for name, node in network.nodes.items()} == {
        "input": "Input",
        "current": "Affine",
        "neuron": "LIF",
        "input.times2": "Linear",
        "readout": "Linear",
        "output": "Output",
    }
    assert set(network.edges) == {
        *(("input", "current"), ("current", "neuron"), ("neuron", "readout")),
        *(("input", "input.times2"), ("input.times2", "readout"), ("readout", "output")),
    }
    assert np.array_equal(network.nodes["current"].weight, [[1, 2], [3, 4]])
    assert np.array_equal(network.nodes["current"].bias, [5, 0])
    assert np.array_equal(network.nodes["input.times2"].weight, [[2, 0], [0, 2]])


def test_the_constants_of_neurons() -> None:
    lif = build(residual()).nodes["neuron"]  # T = 4: membranes are multiples of 1/8, the membrane of NIR is half
    assert np.array_equal(lif.v_threshold, [(10 + 1 / 16) / 2, (20 + 1 / 16) / 2])
    assert np.array_equal(lif.tau, np.full(2, 2 * DT, np.float32))
    for field, value in (("r", 1), ("v_leak", 0), ("v_reset", 0)):
        assert np.array_equal(getattr(lif, field), np.full(2, value, np.float32))
    keeps = build(graph_of(*_neuron(7, 0))).nodes["neuron"]
    assert isinstance(keeps, nir.IF)
    assert np.array_equal(keeps.v_threshold, [7.5]) and np.array_equal(keeps.v_reset, [0])
    forgets = build(graph_of(*_neuron(7, 4095))).nodes["neuron"]
    assert np.array_equal(forgets.v_threshold, [7.5]) and np.array_equal(forgets.tau, np.float32([DT]))
    assert all(
        getattr(node, field).dtype == np.float32 for node in (lif, keeps) for field in ("r", "v_threshold", "v_reset")
    )


def _neuron(threshold: int, dv: int) -> tuple:
    return (
        Synapses("current", ("source",), [[9, 2]], [0]),
        LIF("neuron", ("current",), threshold, dv),
        Readout("readout", ("neuron",), [[1]], [0]),
    )


def test_what_moves_features_is_a_matrix_of_zeros_and_ones() -> None:
    network = build(
        graph_of(
            ValidLane("valid", 2),
            Slice("second", ("source",), 1, 2),
            Concat("both", ("second", "valid")),
            Readout("readout", ("both",), [[1, 2, 3]], [0]),
        )
    )
    assert list(network.nodes["input"].input_type["input"]) == [3]  # two features and the lane
    weights = {name: node.weight.tolist() for name, node in network.nodes.items() if isinstance(node, nir.Linear)}
    assert weights == {
        "source": [[1, 0, 0], [0, 1, 0]],
        "valid": [[0, 0, 1], [0, 0, 1]],
        "second": [[0, 1]],
        "both.part0": [[1], [0], [0]],
        "both.part1": [[0, 0], [1, 0], [0, 1]],
        "readout": [[1, 2, 3]],
    }
    assert ("both.part0", "readout") in network.edges and ("both.part1", "readout") in network.edges


def test_a_relay_is_an_edge_and_what_nobody_reads_is_left_out() -> None:
    network = build(
        graph_of(
            Synapses("excite", ("source",), [[1, 2]], [3]),
            Relay("relay", ("excite",)),
            Synapses("unread", ("relay",), [[1]], [0]),
            LIF("unread.lif", ("unread",), 0, 0),
            ValidLane("unread.lane", 1),
            Readout("readout", ("relay",), [[1]], [0]),
        )
    )
    assert set(network.nodes) == {"input", "excite", "readout", "output"}
    assert ("excite", "readout") in network.edges
    assert list(network.nodes["input"].input_type["input"]) == [2]


def test_names_that_are_taken_are_not_taken_twice() -> None:
    network = build(
        graph_of(
            Synapses("input", ("source",), [[1, 2]], [0]),
            LIF("output", ("input",), 0, 0),
            LIF("output_2", ("input",), 0, 0),
            Add("output.times2", ("output_2", "output", "output")),
            Readout("readout", ("output.times2",), [[1]], [0]),
        )
    )
    kinds = {name: type(node) for name, node in network.nodes.items()}
    assert kinds == {
        "input_2": nir.Input,
        "input": nir.Linear,
        "output": nir.IF,
        "output_2": nir.IF,
        "output.times2_2": nir.Linear,
        "readout": nir.Linear,
        "output_3": nir.Output,
    }
    assert ("output.times2_2", "readout") in network.edges and ("readout", "output_3") in network.edges


def test_a_kind_that_nir_has_not_is_never_written() -> None:
    with pytest.raises(ValueError, match="node 'match': NIR has no coincidence"):
        build(machine_graph())


def test_the_file_tells_its_conventions(tmp_path: Path) -> None:
    write(build(residual()), tmp_path / "network.nir")
    metadata = nir.read(tmp_path / "network.nir").metadata
    assert (metadata["dt"], metadata["timesteps"], metadata["most_tokens"]) == (DT, 4, 3)
    assert metadata["logit_scale"] == 0.5
    assert "forward Euler" in metadata["time"] and "no padding" in metadata["tokens"]
    assert {"input", "output", "units"} <= set(metadata)


# The round trip


@pytest.mark.parametrize("seed", range(10))
def test_what_is_read_is_what_was_written(tmp_path: Path, seed: int) -> None:
    network = build(random_paths(np.random.default_rng(seed), 4, (0, 2048)))
    write(network, tmp_path / "network.nir")
    read = nir.read(tmp_path / "network.nir")
    assert read is not network and first_difference(network, read) is None


def change_array(field: str, name: str) -> Callable[[nir.NIRGraph], None]:
    def change(network: nir.NIRGraph) -> None:
        array = getattr(network.nodes[name], field).copy()
        array.flat[-1] = np.nextafter(array.flat[-1], np.float32(np.inf))  # the least there is
        setattr(network.nodes[name], field, array)

    return change


def change_dtype(network: nir.NIRGraph) -> None:
    network.nodes["current"].weight = network.nodes["current"].weight.astype(np.float64)


DAMAGE = {
    "weight": (change_array("weight", "current"), "'weight' of node 'current'"),
    "bias": (change_array("bias", "current"), "'bias' of node 'current'"),
    "threshold": (change_array("v_threshold", "neuron"), "'v_threshold' of node 'neuron'"),
    "tau": (change_array("tau", "neuron"), "'tau' of node 'neuron'"),
    "reset": (change_array("v_reset", "neuron"), "'v_reset' of node 'neuron'"),
    "type of number": (change_dtype, "'weight' of node 'current'"),
    "node": (lambda network: network.nodes.pop("readout"), "the nodes ['readout']"),
    "kind": (
        lambda network: network.nodes.update(current=nir.Linear(weight=network.nodes["current"].weight)),
        "'type' of node 'current'",
    ),
    "edge": (lambda network: network.edges.pop(), "the edges [('readout', 'output')]"),
    "edge twice": (lambda network: network.edges.append(network.edges[0]), "how often"),
    "metadata": (lambda network: network.metadata.update(dt=1.0), "the metadata"),
    "width": (
        lambda network: network.nodes.update(input=nir.Input(input_type={"input": np.array([3])})),
        "'input_type' of node 'input'",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_file_that_is_read_back_as_another_network_is_refused(tmp_path: Path, kind: str, monkeypatch) -> None:
    damage, said = DAMAGE[kind]
    read = nir.read

    def read_damaged(path: Path) -> nir.NIRGraph:
        network = read(path)
        damage(network)
        return network

    monkeypatch.setattr("targets.nir.files.nir.read", read_damaged)
    with pytest.raises(CheckFailed) as raised:
        write(build(residual()), tmp_path / "network.nir")
    assert said in str(raised.value) and "network.nir: what nir reads back is not what was written" in str(raised.value)
