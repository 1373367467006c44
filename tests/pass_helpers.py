"""What tests of passes share: tiny and random graphs, equal networks, and passes broken on purpose."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from random_graphs import DECAYS, RULES, random_batch, random_dag, random_graph, random_machine_dag

from converters.execution import Execution, TokenBatch
from converters.graph import LIF, Add, Attention, Graph, Node, Readout, Source, Synapses
from converters.graph_text import graph_text
from converters.passes.balance_delays import balance_delays
from converters.passes.rewrite import Pass, Rewrite
from converters.passes.run import Interpreters, PassedGraph, run_passes
from converters.schedule import LatencyTable
from sim.clocked import run_clocked
from sim.fast.engine import FastEngine
from sim.reference import ReferenceEngine
from spikebert.commands import CheckFailed


def run_reference(graph: Graph, batch: TokenBatch) -> Execution:
    """Every value of every node."""
    return ReferenceEngine(graph).run(batch, [node.name for node in graph])


INTERPRETERS = Interpreters(run_reference, run_clocked)


def proven(each: Pass, graph: Graph, batch: TokenBatch | None = None) -> PassedGraph:
    """What a pass makes of a graph; `run_passes` has held it against the graph."""
    return run_passes(graph, [each], some_batch(graph) if batch is None else batch, INTERPRETERS)


def some_batch(graph: Graph, seed: int = 1, samples: int = 8) -> TokenBatch:
    return random_batch(np.random.default_rng(seed), graph, samples)


def outline(graph: Graph) -> str:
    """The text of a graph without the digests of its arrays, for people to read; line by line without indentation."""
    return re.sub("#[0-9a-f]{8}", "", graph_text(graph))


def unindented(text: str) -> str:
    return "".join(f"{line.strip()}\n" for line in text.strip().splitlines())


# Tiny graphs


def mlp(weight: Any, bias: Any, threshold: int | np.ndarray = 10) -> Graph:
    """source -> up -> down -> readout, up with these weights."""
    weight = np.asarray(weight)
    rows, columns = weight.shape
    nodes = (
        Source("source", np.array([[-1] * columns, [1] * columns]), kind="sign"),
        Synapses("up", ("source",), weight, bias), LIF("up.lif", ("up",), threshold, 2048),
        Synapses("down", ("up.lif",), np.arange(1, 2 * rows + 1).reshape(2, rows), [3, 4]),
        LIF("down.lif", ("down",), 2),
        Readout("readout", ("down.lif",), np.eye(2, dtype=int), [0, 1]),
    )  # fmt: skip
    return Graph(4, 3, nodes)


WEIGHTS = {"q": [[3, -1], [1, 2]], "k": [[2, 1], [-3, 3]], "v": [[1, 2], [-2, 3]]}


def attention_graph(timesteps: int = 2, n_max: int = 2, heads: int = 1) -> Graph:
    """source -> q, k, v -> attention -> an add of it and the source -> readout. No biases; the neurons forget.

    The spikes of the source are the two bits of the token id.
    """
    layers: list[Node] = []
    for name, weight in WEIGHTS.items():
        layers.append(Synapses(f"{name}.current", ("source",), weight, [0, 0], 3))
        layers.append(LIF(name, (f"{name}.current",), 1, 4095))
    nodes = (
        Source("source", [[-1, -1], [1, -1], [-1, 1], [1, 1]], kind="sign"),
        *layers,
        Attention("attention", ("q", "k", "v"), heads),
        LIF("attended", ("attention",), 0, 4095),
        Add("sum", ("source", "attended")),
        Readout("readout", ("sum",), [[5, -9], [2, 7]], [0, 0]),
    )
    return Graph(timesteps, n_max, nodes)


def changed(graph: Graph, changes: Mapping[str, Mapping[str, Any]]) -> Graph:
    """The graph in which fields of some nodes are others: `{"q": {"threshold": 5}}`."""
    assert set(changes) <= {node.name for node in graph}
    nodes = [replace(node, **changes.get(node.name, {})) for node in graph]  # type: ignore[arg-type]
    return Graph(graph.timesteps, graph.n_max, tuple(nodes))


def with_after(graph: Graph, name: str, *more: Node) -> Graph:
    """The graph with nodes more behind the one of this name."""
    nodes = [new for node in graph for new in ((node, *more) if node.name == name else (node,))]
    return Graph(graph.timesteps, graph.n_max, tuple(nodes))


# Random graphs


@dataclass(frozen=True, eq=False)
class Trial:
    """A random graph, golden inputs for the passes, and others that the passes have not seen."""

    graph: Graph
    golden: TokenBatch
    other: TokenBatch
    rng: np.random.Generator


def with_twins(rng: np.random.Generator, graph: Graph) -> Graph:
    """The graph in which some layers drive a second LIF with thresholds of its own, read by some of the readers."""
    nodes: list[Node] = []
    twins: dict[str, str] = {}
    for node in graph:
        inputs = tuple(twins[name] if name in twins and rng.random() < 0.5 else name for name in node.inputs)
        nodes.append(replace(node, inputs=inputs))
        if isinstance(node, LIF) and rng.random() < 0.4:
            width = graph.features[node.name]
            levels = rng.integers(0, 2 * int(np.max(node.threshold)) + 2, width).clip(max=65535)
            level = [int(levels[0]), levels, 65535][rng.choice(3, p=[0.3, 0.6, 0.1])]
            nodes.append(LIF(f"{node.name}.twin", node.inputs, level, int(rng.choice(DECAYS))))
            twins[node.name] = f"{node.name}.twin"
    return Graph(graph.timesteps, graph.n_max, tuple(nodes))


@st.composite
def trials(draw: Callable, make: Callable[..., Graph] | None = None, attention: str = "any") -> Trial:
    """Graphs of all shapes that `random_graphs` knows, with and without twins, with these kinds of attention."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    make = make or draw(st.sampled_from([random_graph, random_dag, random_machine_dag]))
    graph = make(
        rng,
        timesteps=draw(st.sampled_from([1, 2, 4, 8])),
        dv=draw(st.sampled_from([DECAYS, 2048, 0])),
        weight_bits=draw(st.sampled_from([1, 2, 4, 8])),
        bias_max=draw(st.sampled_from([0, 5, 300])),
        source_kind=draw(st.sampled_from(["lif", "sign"])),
        firing=draw(st.sampled_from([0.003, 0.3, 0.7])),
        attention=draw(st.sampled_from(["plain", attention])),
        norms=draw(st.sampled_from([0.0, 0.5])),
        neurons=draw(st.sampled_from(RULES)),
    )
    if draw(st.booleans()):
        graph = with_twins(rng, graph)
    return Trial(graph, random_batch(rng, graph, 2), random_batch(rng, graph, 3), rng)


@st.composite
def latency_tables(draw: Callable) -> LatencyTable:
    """0 too: a machine whose connections take no time."""
    return LatencyTable(*(draw(st.integers(0, 4)) for _ in range(6)))


def renamed(batch: TokenBatch, token_ids: np.ndarray | None) -> TokenBatch:
    """The batch with the ids that a graph takes after its passes."""
    if token_ids is None:
        return batch
    return TokenBatch(np.where(batch.mask == 1, token_ids[batch.ids], 0), batch.mask)


def assert_same_network(graph: Graph, passed: PassedGraph, batch: TokenBatch) -> None:
    """On every engine here that runs all kinds of node, the logits are those of the graph before."""
    expected = ReferenceEngine(graph).run(batch).logits
    batch = renamed(batch, passed.token_ids)
    assert np.array_equal(ReferenceEngine(passed.graph).run(batch).logits, expected)
    assert np.array_equal(
        run_clocked(passed.graph, balance_delays(passed.graph, LatencyTable()), batch).logits, expected
    )
    with closing(FastEngine(passed.graph)) as engine:
        assert np.array_equal(engine.run(batch).logits, expected)


# Passes broken on purpose

Change = Callable[[Rewrite], Rewrite]


@dataclass(frozen=True)
class Broken:
    """A pass whose work is spoiled afterwards."""

    honest: Pass
    change: Change

    @property
    def name(self) -> str:
        return self.honest.name

    def rewrite(self, graph: Graph) -> Rewrite:
        return self.change(self.honest.rewrite(graph))


def spoil(**fields: Any) -> Callable[[str], Change]:
    """`spoil(threshold=5)("up.lif")`: that node has another threshold. A value may be a function of the old one."""

    def of(name: str) -> Change:
        def change(rewrite: Rewrite) -> Rewrite:
            node = rewrite.graph[name]
            values = {key: value(getattr(node, key)) if callable(value) else value for key, value in fields.items()}
            return replace(rewrite, graph=changed(rewrite.graph, {name: values}))

        return change

    return of


def moved(weight: np.ndarray) -> np.ndarray:
    """The same weights, each row's one place further."""
    return np.roll(weight, 1, axis=1)


PLACE = re.compile(
    r"pass '(?P<name>[^']+)' (?P<what>changed the network|made a wrong schedule): golden sample (?P<sample>\d+), "
    r"node '(?P<node>[^']+)', timestep (?P<timestep>\d+), token (?P<token>\d+), feature (?P<feature>\d+): "
    r"expected (?P<expected>-?\d+), got (?P<got>-?\d+)"
)


def caught_at(broken: Pass, graph: Graph, batch: TokenBatch) -> str:
    """The node at which `run_passes` stops a broken pass. Fails unless it does, and names pass, node, timestep, token
    and feature, and unless the two graphs really have the two values there."""
    rewrite = broken.rewrite(graph)  # legal in itself: what stops it are the golden inputs
    with pytest.raises(CheckFailed) as stop:
        run_passes(graph, [broken], batch, INTERPRETERS)
    found = PLACE.fullmatch(str(stop.value))
    assert found is not None, str(stop.value)
    assert found["name"] == broken.name
    sample, node = int(found["sample"]), found["node"]
    place = (int(found["timestep"]), sample, int(found["token"]), int(found["feature"]))
    kept = rewrite.origins.get(node, np.arange(graph.features[node]) if node in {n.name for n in graph} else None)
    if found["what"] == "changed the network":
        assert kept is not None
        old = run_reference(graph, batch).values[node][..., kept]
        new = run_reference(rewrite.graph, renamed(batch, rewrite.token_ids)).values[node]
    else:
        assert rewrite.schedule is not None
        old = run_reference(graph, batch).values[node]
        new = run_clocked(graph, rewrite.schedule, batch).values[node]
    assert (old[place], new[place]) == (int(found["expected"]), int(found["got"])) and old[place] != new[place]
    return node
