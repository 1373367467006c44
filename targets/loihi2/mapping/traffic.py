"""Messages between boxes, and from cores to cores, in one step.

A neuron that sends does so once for each box that reads it. How often it sends is a *rate*, messages a step of each
neuron of a population: the mean of a real run (`measured_rates`), or assumed (`assumed_rates`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spikebert.commands import UserError
from targets.loihi2.mapping.boxes import Counter, Tiling, overlaps, ranges
from targets.loihi2.mapping.network import ChipNetwork, Connection, Population, order_of

FIRING_RATE = 0.1  # where nothing else is said
Rates = Mapping[str, float]  # population -> messages of a neuron in a step


@dataclass(frozen=True, eq=False)
class Traffic:
    """What is sent in one step, on average.

    between   scipy.sparse.csr_matrix float64 [cores, cores]: messages from one core to another, or to itself
    from_host float64 [cores]
    spikes    float64 [cores]: how many neurons of a core send
    events    float64 [2, cores]: synapses that messages reach, one by one: of shared weights, and of others
    """

    between: Any
    from_host: np.ndarray
    spikes: np.ndarray
    events: np.ndarray


def assumed_rates_name(firing_rate: float) -> str:
    """How a report calls them."""
    return f"assumed: every LIF fires at {firing_rate:.0%} of all steps"


def assumed_rates(network: ChipNetwork, firing_rate: float) -> dict[str, float]:
    """Rates where every LIF fires so often, independently of all others; valid lanes send at every step.

    A coincidence sends where q and k do, a sum unless all that it reads is silent, a product where both factors are
    not.
    """
    rates: dict[str, float] = {}
    for population in network.populations:
        own = _assumed(network, population, firing_rate, rates)
        rates[population.name] = _with_lanes(population, own)
    return rates


def _assumed(network: ChipNetwork, population: Population, firing_rate: float, rates: Rates) -> float:
    if population.kind == "host" or (population.kind == "lif" and not population.keyed):
        return firing_rate
    silent, both = 1.0, 1.0
    for one in network.into[population.name]:
        rate = rates[one.source]
        silent *= (1 - rate) ** float(one.pattern.sum(axis=1).mean())
        both *= rate
    return 1 - silent if population.kind == "sum" else both


def _with_lanes(population: Population, rate: float) -> float:
    return (rate * (population.features - population.lanes) + population.lanes) / population.features


def measured_rates(network: ChipNetwork, run: Mapping[str, Any], where: str) -> dict[str, float]:
    """Rates of what `spikebert-run --json` printed of a run of the same graph; padding counts as silent neurons.

    What is no node of that graph (attention that is still one node, relays) is derived from the nodes it reads, as
    `assumed_rates` does. Raises UserError where the run is of another graph.
    """
    if isinstance(run, dict) and run.get("early_exit"):
        raise UserError(
            f"{where}: a run whose sentences stopped early; a chip runs all timesteps. Run it without --exit-margin"
        )
    try:
        samples, steps, nodes = run["samples"], run["activity"]["timesteps"], run["activity"]["per_node"]
        sent = {name: did["messages"] for name, did in nodes.items()}
        runs = int(samples) * int(steps)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{where}: not what 'spikebert-run BUNDLE --file FILE --json' prints: no activity") from None
    if steps != network.timesteps or runs < 1:
        raise UserError(f"{where}: a run of {steps} timesteps, the graph has {network.timesteps}")
    rates: dict[str, float] = {}
    for population in network.populations:
        if population.node in sent:
            sites = runs * population.tokens * population.keys * (population.features - population.lanes)
            rate = sent[population.node] / max(sites, 1)
            if rate > 1:
                raise UserError(
                    f"{where}: node '{population.node}' sent more than its neurons can: another graph's run"
                )
            rates[population.name] = _with_lanes(population, rate)
        elif population.kind == "host" or (population.kind == "lif" and not population.keyed):
            raise UserError(f"{where}: the run has no node '{population.name}': it is of another graph")
        else:
            rates[population.name] = _with_lanes(population, _assumed(network, population, 0.0, rates))
    return rates


def reaching(counter: Counter, one: Connection, source: Tiling, target: Tiling) -> Any:
    """scipy.sparse matrix int64 [boxes of the source, boxes of the target]: neurons of the one that reach the other."""
    from scipy.sparse import coo_matrix, kron

    sums = counter.reached(one, target)
    cuts = np.asarray(source.features)
    channels = coo_matrix((sums[:, cuts[1:]] - sums[:, cuts[:-1]]).T)  # [feature ranges of source, of target]
    every_key = np.ones((1, len(target.keys) - 1), dtype=np.int64)
    if one.reads == "token":
        places = kron(overlaps(source.tokens, target.tokens), every_key)
    elif one.reads == "key":
        every_token = np.ones((1, len(target.tokens) - 1), dtype=np.int64)
        places = kron(every_token, overlaps(source.tokens, target.keys))
    elif one.reads == "pair":
        places = kron(overlaps(source.tokens, target.tokens), overlaps(source.keys, target.keys))
    else:
        lengths = np.array([[stop - start] for start, stop in ranges(source.keys)])
        places = kron(overlaps(source.tokens, target.tokens), lengths)
    return kron(coo_matrix(places), channels).tocoo()


def traffic(
    network: ChipNetwork, counter: Counter, tilings: Mapping[str, Tiling], core: np.ndarray, rates: Rates
) -> Traffic:
    """Messages of a step, of boxes at `core` int64 [boxes], numbered as `order_of` and `Tiling.boxes` give them."""
    from scipy.sparse import coo_matrix

    starts = first_boxes(network, tilings)
    cores = int(core.max()) + 1
    from_host, spikes, events = np.zeros(cores), np.zeros(cores), np.zeros((2, cores))
    rows, columns, values = [], [], []
    for one in network.connections:
        target, rate = tilings[one.target], rates[one.source]
        into = core[starts[one.target] : starts[one.target] + target.count]
        synapses = [counter.synapses(one, box) for box in target.boxes()]
        np.add.at(events[0 if one.shared else 1], into, rate * np.asarray(synapses))
        if network[one.source].host:
            source = whole_tiling(network[one.source])
            sent = reaching(counter, one, source, target)
            np.add.at(from_host, into[sent.col], rate * sent.data)
            continue
        sent = reaching(counter, one, tilings[one.source], target)
        rows.append(core[starts[one.source] + sent.row])
        columns.append(into[sent.col])
        values.append(rate * sent.data)
    for name in order_of(network):
        boxes = tilings[name].boxes()
        here = core[starts[name] : starts[name] + len(boxes)]
        np.add.at(spikes, here, rates[name] * np.array([box.neurons for box in boxes]))
    shape = (cores, cores)
    if not rows:
        return Traffic(coo_matrix(shape).tocsr(), from_host, spikes, events)
    all_of = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    return Traffic(coo_matrix(all_of, shape=shape).tocsr(), from_host, spikes, events)


def first_boxes(network: ChipNetwork, tilings: Mapping[str, Tiling]) -> dict[str, int]:
    """Population -> the number of its first box; boxes are numbered one population after another."""
    starts, total = {}, 0
    for name in order_of(network):
        starts[name] = total
        total += tilings[name].count
    return starts


def whole_tiling(population: Population) -> Tiling:
    """A population in one piece."""
    return Tiling(population.name, (0, population.tokens), (0, population.keys), (0, population.features))
