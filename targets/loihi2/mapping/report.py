"""A mapping as a document (`mapping.json`) and as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from targets.loihi2.mapping.check import SCHEMA
from targets.loihi2.mapping.chips import BOARDS
from targets.loihi2.mapping.place import Mapping
from targets.loihi2.mapping.remedies import Remedy
from targets.loihi2.mapping.timing import SOURCE, estimate

MAPPING_FILE = "mapping.json"
LINKS_SHOWN = 5


def to_json(mapping: Mapping, remedies: Sequence[Remedy] = ()) -> dict[str, Any]:
    """All that a mapping says; docs/mapping.md tells each field."""
    network, traffic = mapping.network, mapping.traffic
    index = {each.name: number for number, each in enumerate(network.on_chip)}
    times = estimate(mapping)
    return {
        "schema": SCHEMA,
        "tokens": network.tokens,
        "timesteps": network.timesteps,
        "depth_steps": network.depth_steps,
        "model": asdict(mapping.model),
        "board": None if mapping.board is None else asdict(mapping.board),
        "fits": mapping.fits,
        "chips": mapping.chips,
        "cores": mapping.cores,
        "fewest_cores": mapping.fewest_cores,
        "neurons": network.neurons,
        "synapses": sum(network.synapses(one) for one in network.connections),
        "utilisation": mapping.utilisation,
        "of_board": mapping.of_board,
        "binds": mapping.binds,
        "populations": [
            {
                "name": each.name,
                "kind": each.kind,
                "node": each.node or None,
                "tokens": each.tokens,
                "keys": each.keys,
                "features": each.features,
                "lanes": each.lanes,
                "rate": mapping.rates[each.name],
            }
            for each in network.on_chip
        ],
        "connections": [
            {
                "name": one.name,
                "source": one.source,
                "target": one.target,
                "reads": one.reads,
                "shared": one.shared,
                "weight_bits": one.weight_bits,
                "delay_steps": one.delay_steps,
                "synapses": network.synapses(one),
            }
            for one in network.connections
        ],
        "boxes": [
            [index[box.population], *box.tokens, *box.keys, *box.features, int(core)]
            for box, core in zip(mapping.boxes, mapping.core)
        ],
        "core_chip": mapping.chip.tolist(),
        "core_use": mapping.core_use.tolist(),
        "traffic": {
            "rates": mapping.rates_from,
            "messages_a_step": float(traffic.between.sum()),
            "from_host_a_step": float(traffic.from_host.sum()),
            "between_chips_a_step": mapping.crossing,
            "chip_links": [[a, b, sent] for (a, b), sent in mapping.chip_links().items()],
        },
        "time": {"source": SOURCE, **asdict(times)},
        "remedies": [asdict(remedy) for remedy in remedies],
    }


def to_text(mapping: Mapping, remedies: Sequence[Remedy] = ()) -> str:
    """A mapping for a person."""
    network, times = mapping.network, estimate(mapping)
    board = (
        "no known board has as many" if mapping.board is None else f"{mapping.board.name} has {mapping.board.chips:,}"
    )
    board_name = (mapping.board or BOARDS[-1]).name
    chips = f"{mapping.chips:,} chip{'' if mapping.chips == 1 else 's'}"
    lines = [
        f"{network.neurons:,} neurons, {network.tokens} tokens: {mapping.cores:,} cores, {chips} "
        f"({board}){'' if mapping.fits else ': IT DOES NOT FIT'}",
        f"no fewer cores than {mapping.fewest_cores:,} would do, for the neurons alone",
        "taken of all cores: " + ", ".join(f"{name} {share:.0%}" for name, share in mapping.utilisation.items()),
        f"of {board_name}: " + ", ".join(f"{name} {share:.0%}" for name, share in mapping.of_board.items()),
        "what binds: " + ", ".join(f"{name} in {boxes:,} boxes" for name, boxes in mapping.binds.items() if boxes),
        "",
        f"{'population':<44} {'neurons':>11} {'boxes':>6}  a box: tokens x keys x features",
    ]
    boxes = Counter(box.population for box in mapping.boxes)
    first = {box.population: box for box in reversed(mapping.boxes)}
    for each in network.on_chip:
        spans = (first[each.name].tokens, first[each.name].keys, first[each.name].features)
        size = " x ".join(str(stop - start) for start, stop in spans)
        lines.append(f"{each.name:<44} {each.size:>11,} {boxes[each.name]:>6,}  {size}")
    links = sorted(mapping.chip_links().items(), key=lambda link: (-link[1], link[0]))
    lines += [
        "",
        f"messages a step ({mapping.rates_from}): {mapping.traffic.between.sum():,.0f} from core to core, "
        f"{mapping.crossing:,.0f} of them between chips, {mapping.traffic.from_host.sum():,.0f} from the host",
    ]
    if links:
        busiest = ", ".join(f"{a} to {b} {sent:,.0f}" for (a, b), sent in links[:LINKS_SHOWN])
        lines.append(f"{len(links):,} links between chips, mean {np.mean([sent for _, sent in links]):,.0f}; {busiest}")
    slowest = {box.population for box, core in zip(mapping.boxes, mapping.core) if core == times.slowest_core}
    parts = ", ".join(f"{name.replace('_', ' ')} {part:.1f}" for name, part in times.parts_us.items() if part >= 0.05)
    lines += [
        f"a step: {times.step_us:.1f} us, a barrier and the slowest core, {times.slowest_core} of "
        f"{' and '.join(sorted(slowest))} ({parts}); the mean core is busy for {times.mean_core_us:.1f}",
        f"a sentence: {times.stream_ms:.2f} ms in a stream (T = {network.timesteps}), {times.alone_ms:.2f} ms alone "
        f"({network.depth_steps} steps more)",
        f"times: {SOURCE}",
    ]
    if remedies:
        lines += ["", f"{'what would change it':<26} {'cores':>8} {'chips':>6} fits  in return"]
        lines += [
            f"{each.change:<26} {each.cores:>8,} {each.chips:>6,} {'yes' if each.fits else 'no':<4}  {each.cost}"
            for each in remedies
        ]
    return "\n".join(lines)
