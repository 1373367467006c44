"""Gathers a report: the graph, what is proven of it, what it did on the golden inputs, what training recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from converters.graph import ACCUMULATOR_MAX, NEURONS, Graph, Node
from converters.in_words import rule_in_words
from converters.model_card import sizes
from converters.ranges import Range, logit_range, prove_ranges
from converters.report.accuracy import stage_accuracies
from converters.report.contents import (
    Interval,
    Membrane,
    Neurons,
    NodeReport,
    PassReport,
    Report,
    Rounding,
    StageAccuracy,
    Values,
    Weights,
)
from converters.report.observe import Observations, Observed
from converters.serialise import stored_weight

BYTE_BITS = 8  # of a weight whose node says nothing else
CHUNK = 2**20  # weights that are counted at a time: numpy counts in int64


def gather(
    graph: Graph,
    observations: Observations,
    *,
    name: str,
    labels: Sequence[str],
    target: str | None = None,
    latency_steps: Mapping[str, int] | None = None,
    roundings: Mapping[str, Rounding] | None = None,
    accuracy: Sequence[StageAccuracy] | None = None,
    passes: Sequence[PassReport] = (),
    files: Mapping[str, int] | None = None,
) -> Report:
    """The report of a graph.

    observations  what it did on the golden inputs, every node
    latency_steps node -> steps behind the source, from the target; None where there is none
    roundings     node -> what rounding did to its weights, from the torch model
    accuracy      of every stage of training; None: nothing is known
    files         name -> bytes, of the bundle's files
    """
    ranges = prove_ranges(graph)
    logits = logit_range(graph, ranges)
    nodes = [
        _node_report(
            graph,
            node,
            ranges[node.name],
            observations.nodes[node.name],
            None if latency_steps is None else latency_steps.get(node.name),
            (roundings or {}).get(node.name),
        )
        for node in graph
    ]
    return Report(
        name=name,
        target=target,
        timesteps=graph.timesteps,
        n_max=graph.n_max,
        labels=tuple(labels),
        samples=observations.samples,
        tokens=observations.tokens,
        nodes=tuple(nodes),
        replaced={name: rounding for name, rounding in (roundings or {}).items() if name not in ranges},
        logits=Values(_ends(logits), Interval(observations.logit_low, observations.logit_high), logits.bits, None),
        accuracy=stage_accuracies({}) if accuracy is None else tuple(accuracy),
        passes=tuple(passes),
        sizes=sizes(graph),
        files=dict(files or {}),
    )


def _node_report(
    graph: Graph, node: Node, proven: Range, seen: Observed, latency_steps: int | None, rounding: Rounding | None
) -> NodeReport:
    spiking = node.name in graph.spiking
    of_limit = None if spiking else proven.reach / ACCUMULATOR_MAX
    return NodeReport(
        name=node.name,
        op=node.op,
        inputs=tuple(node.inputs),
        features=graph.features[node.name],
        spiking=spiking,
        latency_steps=latency_steps,
        values=Values(_ends(proven), Interval(seen.low, seen.high), proven.bits, of_limit),
        membrane=_membrane(proven),
        neurons=_neurons(node, proven, seen),
        weights=_weights(node, rounding),
    )


def _ends(proven: Range) -> Interval:
    return Interval(int(proven.low.min()), int(proven.high.max()))


def _membrane(proven: Range) -> Membrane | None:
    if proven.membrane_low is None or proven.membrane_high is None or proven.membrane_bits is None:
        return None
    ends = Interval(int(proven.membrane_low.min()), int(proven.membrane_high.max()))
    return Membrane(ends, proven.membrane_bits, proven.may_saturate)


def _neurons(node: Node, proven: Range, seen: Observed) -> Neurons | None:
    if not isinstance(node, NEURONS):
        return None
    threshold = getattr(node, "threshold", None)
    return Neurons(
        count=len(seen.nonzero),
        rule=rule_in_words(node),
        threshold=None if threshold is None else Interval(int(np.min(threshold)), int(np.max(threshold))),
        rate=int(seen.nonzero.sum()) / (seen.sites * len(seen.nonzero)),
        silent_proven=int(proven.silent.sum()),
        silent_observed=int((seen.nonzero == 0).sum()),
        always_proven=int(((proven.low > 0) | (proven.high < 0)).sum()),
        always_observed=int((seen.nonzero == seen.sites).sum()),
    )


def _weights(node: Node, rounding: Rounding | None) -> Weights | None:
    """Of a node with weights, or with a token table."""
    array = getattr(node, "weight", getattr(node, "table", None))
    if array is None:
        return None
    bits = getattr(node, "weight_bits", None)
    bias = getattr(node, "bias", None)
    counts = _count(array)
    used = np.flatnonzero(counts)
    first, last = int(used[0]), int(used[-1])
    return Weights(
        shape=(array.shape[0], array.shape[1]),
        bits=bits or BYTE_BITS,
        bytes=array.nbytes if bits is None else stored_weight(node).nbytes,  # type: ignore[arg-type]
        first=first - 128,
        counts=tuple(counts[first : last + 1].tolist()),
        zeros=int(counts[128]),
        bias=None if bias is None else Interval(int(bias.min()), int(bias.max())),
        rounding=rounding,
    )


def _count(array: np.ndarray) -> np.ndarray:
    """int64 [256]: how often an int8 array holds -128, -127 .. 127."""
    flat, counts = array.reshape(-1).view(np.uint8), np.zeros(256, np.int64)
    for start in range(0, flat.size, CHUNK):
        counts += np.bincount(flat[start : start + CHUNK], minlength=256)
    return np.roll(counts, 128)
