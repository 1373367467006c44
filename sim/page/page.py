"""The page of a run, put together. It needs nothing but itself."""

from __future__ import annotations

from converters.report.shell import Tile, page
from sim.page.chips import chips_section, read_mapping
from sim.page.contents import RunReport
from sim.page.script import RASTER_SCRIPT
from sim.page.sections import again_section, energy_section, layers_section, result_section, sentence_section
from sim.report import joules

FIRST_TABLE = "45nm"  # the one whose figure comes first


def run_page(report: RunReport) -> str:
    """The whole page."""
    bundle, summary = report.bundle, report.summary
    name = bundle.place.name
    mapping = read_mapping(bundle.folder)
    sections = [
        result_section(report),
        sentence_section(report.sentence, bundle.graph.timesteps),
        layers_section(report),
        energy_section(report),
        *([] if mapping is None else [chips_section(mapping)]),
        again_section(report),
    ]
    said = (
        f"{summary.samples:,} texts on the engine '{summary.engine}', {summary.samples_per_second:,.2f} a second; a "
        f"network of {bundle.graph.timesteps} timesteps, at most {bundle.graph.n_max} tokens, classes "
        f"{', '.join(bundle.labels)}."
    )
    return page(f"{name}: report of a run", name, said, _tiles(report), _notes(report), sections, RASTER_SCRIPT)


def _tiles(report: RunReport) -> list[Tile]:
    summary = report.summary
    assert summary.activity is not None
    total, samples = summary.activity.total, summary.samples
    tiles = []
    if summary.accuracy is not None:
        labelled = int(summary.confusion.sum())
        tiles.append(Tile("Accuracy", f"{summary.accuracy:.1%}", f"of {labelled:,} texts with a class"))
    tiles.append(Tile("Firing rate", f"{total.rate or 0.0:.1%}", "of neurons, tokens and timesteps"))
    if summary.early_exit is not None:
        tiles.append(Tile("Timesteps", f"{summary.mean_timesteps:.2f}", f"a sentence, of {len(summary.stopped)}"))
    operations = total.synaptic_operations / samples
    tiles.append(Tile("Operations", f"{operations / 1e6:,.2f} M", "synaptic, a sentence"))
    first = next(energy for energy in report.energies if energy.table.name == FIRST_TABLE)
    share = "" if first.of_dense is None else f", {first.of_dense:.0%} of a dense network"
    tiles.append(Tile("Energy, estimated", joules(first.total / samples), f"a sentence, by '{FIRST_TABLE}'{share}"))
    if summary.comparison is not None:
        equal = summary.comparison.mismatches == 0
        compared = f"{summary.comparison.values_compared:,} values against the reference"
        tiles.append(Tile("Verified", "equal" if equal else "NOT EQUAL", compared))
    return tiles


def _notes(report: RunReport) -> list[str]:
    tokens = report.summary.tokens
    notes = [f"Texts have {tokens.real / tokens.sentences:.1f} tokens on average, special ones included."]
    assert report.summary.activity is not None
    cut = report.summary.activity.total.saturations
    if cut:
        notes.append(
            f"Membranes were cut at ±(2^23 - 1) {cut:,} times. That is part of the rule, but not what was trained."
        )
    silent = [layer.name for layer in report.sentence.raster.layers if not layer.spikes.any()]
    if silent:
        notes.append(f"Nothing fired in {', '.join(silent[:5])} for the sentence that is shown.")
    return notes
