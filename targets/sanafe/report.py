"""The totals of SANA-FE beside ours (`sim/costs/loihi1.json`), each difference in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from converters.execution import Activity
from converters.graph import Coincidence, Graph, Product, Readout, Synapses
from sim.energy import CostTable, Tokens, energy_of, work_of
from sim.report import joules
from spikebert.commands import CheckFailed
from targets.loihi2.mapping.network import Connection
from targets.sanafe.expected import events_by_node, lane_events
from targets.sanafe.layout import PLAYS, Layout, synapses
from targets.sanafe.machine import SOURCE, VERSION, Price
from targets.sanafe.run import ENERGIES, Run

HOT_SPOTS = 5
ATTENTION = "attention"  # its row


@dataclass(frozen=True)
class Row:
    """One kind of work: how often and how much, by our table and by SANA-FE, and why they differ."""

    work: str
    count: int
    joules: float
    sanafe_count: int
    sanafe_joules: float
    why: str


@dataclass(frozen=True)
class HotSpot:
    """A core, and the populations on it. Of all steps: how many it ended last, and seconds of work a step."""

    core: int
    populations: tuple[str, ...]
    last: int
    joules: float
    sending: float
    receiving: float


@dataclass(frozen=True, eq=False)
class Beside:
    """A run of SANA-FE, and what we say of the same sentences.

    in_turn seconds of each step if a core sends and receives in turn, as docs/mapping.md counts; float64 [steps]
    """

    layout: Layout
    tokens: Tokens
    run: Run
    rows: tuple[Row, ...]
    hot_spots: tuple[HotSpot, ...]
    in_turn: np.ndarray

    @property
    def total(self) -> float:
        """Joules of the whole run by SANA-FE; with our price of attention where that is not played."""
        apart = next(row for row in self.rows if row.work == ATTENTION)
        return float(self.run.joules["total"].sum()) + (apart.joules if self.layout.play == "token" else 0.0)


def require_same_work(layout: Layout, by_connection: Mapping[str, np.ndarray], activity: Activity) -> int:
    """How many synaptic operations are those that `sim.activity` counts, node by node.

    activity of `layout.graph`. Raises CheckFailed with the first node that has another count, or is not played.
    """
    events = events_by_node(layout, by_connection)
    for node in layout.graph:
        if not isinstance(node, (Synapses, Readout, Coincidence, Product)):
            continue
        if node.name not in events:
            if layout.play == "whole":
                raise CheckFailed(f"node '{node.name}' is not played")
            continue  # of an attention
        wanted = activity.per_node[node.name].synaptic_operations
        if events[node.name] != wanted:
            raise CheckFailed(
                f"node '{node.name}': {events[node.name]:,} events at its synapses, spikebert-run counts {wanted:,}"
            )
    return sum(events.values())


def put_beside(
    layout: Layout,
    graph: Graph,
    run: Run,
    by_connection: Mapping[str, np.ndarray],
    activity: Activity,
    tokens: Tokens,
    table: CostTable,
) -> Beside:
    """The same sentences by our table.

    graph, activity the bundle's own graph, and what it did
    by_connection   of `expected_counts`, which the run is known to keep to
    """
    rows = tuple(_rows(layout, graph, run, by_connection, activity, tokens, table))
    both = run.sending + run.receiving
    tiles = len({core // layout.machine.cores_a_tile for core in layout.names})
    barrier = layout.machine.sync[max(each for each in layout.machine.sync if each <= tiles)] * 1e-9
    return Beside(layout, tokens, run, rows, _hot_spots(layout, run), both.max(axis=1) + barrier)


def _rows(
    layout: Layout,
    graph: Graph,
    run: Run,
    by_connection: Mapping[str, np.ndarray],
    activity: Activity,
    tokens: Tokens,
    table: CostTable,
) -> list[Row]:
    work = work_of(graph, activity, tokens)
    ours = energy_of(work, table).by_work
    done = {kind: sum(getattr(each, kind) for each in work.values()) for kind in (*ours, "synaptic_operations")}
    machine, totals = layout.machine, run.counts.totals()
    layers, lanes, attention, sums = _events(layout, graph, by_connection)
    apart = layout.play == "token"
    graded = done["weighted_operations"] - done["synaptic_operations"]
    neurons = Price(machine.access.picojoules + machine.update.picojoules, 0)
    hops = run.joules["network"].sum() - totals["packets"] * machine.message_out.picojoules * 1e-12
    return [
        Row("synapses of layers", done["weighted_operations"], ours["weighted_operations"], *layers,
            "a sum of spikes or a graded one is one message there; "
            f"here it counts by value, {graded / tokens.sentences:,.0f} more"),
        Row("valid lanes", 0, 0.0, *lanes, "biases are synapses that each real token's lanes reach"),
        Row(ATTENTION, done["weighted_attention_operations"], ours["weighted_attention_operations"], *attention,
            "not played: our price is in its total" if apart else
            "stock neurons: a spike of q, k or v reaches all tokens, whether or not it meets another"),
        Row("sums and relays", 0, 0.0, *sums, "a spike reaches the neuron that adds it up"),
        Row("neuron updates", done["resident_updates"], ours["resident_updates"],
            *_priced(totals["updated"], neurons),
            "there no padding is played, here it is; sums, lanes and entry are neurons there" if apart else
            "sums, lanes, entry and attention are neurons there"),
        Row("spikes", done["spikes"], ours["spikes"], *_priced(totals["fired"], machine.spike),
            "sums, lanes, entry and readout fire there too" if apart else
            "sums, lanes, entry, readout and attention fire there too"),
        Row("messages", done["messages"], ours["messages"], *_priced(totals["packets"], machine.message_out),
            "there one to each core that reads, here one to each node"),
        Row("hops", 0, 0.0, totals["hops"], float(hops), "the way through the mesh; here left out"),
    ]  # fmt: skip


def _priced(count: int, price: Price) -> tuple[int, float]:
    return count, count * price.picojoules * 1e-12


def _events(layout: Layout, graph: Graph, by_connection: Mapping[str, np.ndarray]) -> list[tuple[int, float]]:
    """Events and joules: of layers, of valid lanes, of attention, and of all others."""
    kinds = ("layers", "lanes", "attention", "sums")
    counts, spent = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0.0)
    for one in layout.connections:
        price = layout.machine.dense if one.target in layout.dense else layout.machine.sparse
        lanes = lane_events(layout, one, by_connection)
        for kind, events in (("lanes", lanes), (_kind(layout, graph, one), int(by_connection[one.name].sum()) - lanes)):
            counts[kind] += events
            spent[kind] += events * price.picojoules * 1e-12
    return [(counts[kind], spent[kind]) for kind in kinds]


def _kind(layout: Layout, graph: Graph, one: Connection) -> str:
    """Synapses that are a node of the bundle's own graph are a layer; else what leads to or from pairs of tokens is of
    an attention."""
    name = one.name.partition("#")[0]
    if name in graph.features and isinstance(graph[name], (Synapses, Readout)):
        return "layers"
    return "attention" if layout.network[one.source].keyed or layout.network[one.target].keyed else "sums"


def _hot_spots(layout: Layout, run: Run) -> tuple[HotSpot, ...]:
    """The cores that ended most steps."""
    steps = len(run.seconds)
    last = np.bincount(run.last[run.last >= 0], minlength=layout.cores)
    busiest = np.lexsort((-run.core_joules, -last))[: min(HOT_SPOTS, len(layout.names))]
    return tuple(
        HotSpot(
            int(core),
            layout.names.get(int(core), ()),
            int(last[core]),
            float(run.core_joules[core]),
            float(run.sending[:, core].sum()) / steps,
            float(run.receiving[:, core].sum()) / steps,
        )
        for core in busiest
    )


def to_json(beside: Beside) -> dict[str, Any]:
    """All that is told; docs/sanafe.md tells each field."""
    layout, run, sentences = beside.layout, beside.run, beside.tokens.sentences
    used = sorted(layout.names)
    return {
        "sanafe": VERSION,
        "source": SOURCE,
        "play": layout.play,
        "neurons": layout.network.neurons,
        "synapses": synapses(layout.network),
        "chips": layout.mapping.chips,
        "cores": len(used),
        "sentences": sentences,
        "tokens": beside.tokens.real,
        "steps": len(run.seconds),
        "depth_steps": layout.network.depth_steps,
        "counts": run.counts.totals(),
        "joules": {kind: float(run.joules[kind].sum()) for kind in ENERGIES},
        "joules_per_sentence": beside.total / sentences,
        "loihi1_joules_per_sentence": sum(row.joules for row in beside.rows) / sentences,
        "seconds": {
            "step_mean": float(run.seconds.mean()),
            "step_largest": float(run.seconds.max()),
            "step_in_turn_mean": float(beside.in_turn.mean()),
            "sentence": float(run.seconds.sum()) / sentences,
            "each_step": run.seconds.tolist(),
        },
        "beside": [asdict(row) for row in beside.rows],
        "hot_spots": [asdict(spot) for spot in beside.hot_spots],
        "core_load": [
            {
                "core": core,
                "populations": list(layout.names[core]),
                "joules": float(run.core_joules[core]),
                "sending_seconds": float(run.sending[:, core].sum()),
                "receiving_seconds": float(run.receiving[:, core].sum()),
            }
            for core in used
        ],
    }


def to_text(beside: Beside) -> str:
    """For a person."""
    layout, run, sentences = beside.layout, beside.run, beside.tokens.sentences
    chips = layout.mapping.chips
    shares = ", ".join(f"{kind} {joules(float(run.joules[kind].sum()) / sentences)}" for kind in ENERGIES[:-1])
    in_time = "one token after the other"
    if layout.play == "whole":
        in_time = f"in a stream; alone it takes {layout.network.depth_steps} steps more, which are not played"
    apart = ", attention at our price" if layout.play == "token" else ""
    lines = [
        f"{PLAYS[layout.play]}: {layout.network.neurons:,} neurons, {synapses(layout.network):,} synapses, "
        f"{len(layout.names)} cores of {chips} chip{'' if chips == 1 else 's'} of Loihi 1",
        f"{sentences:,} sentences of {beside.tokens.real:,} real tokens, {len(run.seconds):,} steps",
        f"a sentence by SANA-FE: {joules(beside.total / sentences)} ({shares}{apart}); by our table loihi1: "
        f"{joules(sum(row.joules for row in beside.rows) / sentences)}",
        "",
        f"{'a sentence':<20} {'ours':>12} {'':>8}  {'SANA-FE':>12} {'':>8}  difference",
    ]
    lines += [
        f"{row.work:<20} {row.count / sentences:>12,.0f} {joules(row.joules / sentences):>8}  "
        f"{row.sanafe_count / sentences:>12,.0f} {joules(row.sanafe_joules / sentences):>8}  {row.why}"
        for row in beside.rows
    ]
    lines += [
        "",
        f"a step: mean {run.seconds.mean() * 1e6:.1f} us, largest {run.seconds.max() * 1e6:.1f} us, barrier included; "
        f"{beside.in_turn.mean() * 1e6:.1f} us if each core sends and receives in turn",
        f"a sentence: {run.seconds.sum() / sentences * 1e3:.3f} ms {in_time}",
        "",
        f"{'core':>5} {'ended last':>10} {'energy':>8} {'sends':>9} {'receives':>9}  holds",
    ]
    lines += [
        f"{spot.core:>5} {spot.last / len(run.seconds):>10.0%} {joules(spot.joules):>8} "
        f"{spot.sending * 1e6:>6.1f} us {spot.receiving * 1e6:>6.1f} us  {', '.join(spot.populations)}"
        for spot in beside.hot_spots
    ]
    return "\n".join(lines)
