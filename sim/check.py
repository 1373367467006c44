"""What `spikebert-run --check` tells: what holds of a bundle, and whether this machine repeats its golden vectors.

Reading a bundle has checked all but the last (`converters.bundle.read_bundle` raises BundleError otherwise), so most
lines here only say what was found. Needs neither torch nor Lava.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from converters.bundle import Bundle
from converters.graph import ACCUMULATOR_MAX, Graph
from converters.ranges import largest_current, prove_ranges
from converters.readout import logits_of
from sim.reference import walk
from sim.verify import LOGITS, Comparison, Differences
from spikebert.commands import CheckFailed


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    name  of the thing
    text  what was found, for people
    facts the same in numbers, for machines
    ok    whether it is as it must be
    """

    name: str
    text: str
    facts: Mapping[str, object] = field(default_factory=dict)
    ok: bool = True

    def __str__(self) -> str:
        return f"{'ok' if self.ok else 'FAILED':<7} {self.name:<15} {self.text}"

    def to_json(self) -> dict[str, object]:
        return {"check": self.name, "ok": self.ok, **self.facts}


def check_bundle(bundle: Bundle) -> list[Check]:
    """All that can be said of a bundle that was read. Only the last check, the golden vectors, may have failed."""
    return [
        _manifest(bundle),
        _files(bundle),
        _graph(bundle.graph),
        _ranges(bundle.graph),
        _tokenizer(bundle),
        _golden(bundle),
    ]


def compare_golden(bundle: Bundle) -> Comparison:
    """What the reference does here, against what it did where the bundle was made: every recorded spike and logit."""
    golden, differences = bundle.golden, Differences()
    for node, value in walk(bundle.graph, golden.batch):
        if node.name in golden.spikes:
            differences.add(node.name, golden.spikes[node.name], value)
    differences.add(LOGITS, golden.logits, logits_of(bundle.graph, value))  # the last node is the readout
    return differences.comparison


def require_golden(bundle: Bundle) -> Comparison:
    """What was compared. Raises CheckFailed where the reference does not repeat the golden vectors of a bundle."""
    comparison = compare_golden(bundle)
    if comparison.mismatches:
        raise CheckFailed(f"{bundle.place / 'golden.safetensors'}: {_difference(comparison)}")
    return comparison


def _manifest(bundle: Bundle) -> Check:
    schema, digest = bundle.manifest["schema"], bundle.manifest["digest"]
    text = f"schema {schema}, digest {digest[:16]}... as computed"
    return Check("manifest", text, {"schema": schema, "digest": digest})


def _files(bundle: Bundle) -> Check:
    names = bundle.manifest["files"]
    size = sum((bundle.folder / name).stat().st_size for name in names)
    text = f"{len(names)} files, {size:,} bytes, each sha256 as listed, none missing, none besides"
    return Check("files", text, {"files": len(names), "bytes": size})


def _graph(graph: Graph) -> Check:
    text = (
        f"{len(graph.nodes)} nodes, T = {graph.timesteps}, at most {graph.n_max} tokens; "
        "fields, edges, shapes and dtypes are legal"
    )
    return Check("graph", text, {"nodes": len(graph.nodes), "T": graph.timesteps, "n_max": graph.n_max})


def _ranges(graph: Graph) -> Check:
    node, bound = largest_current(graph, prove_ranges(graph))
    text = f"no accumulator can pass {bound:,} of {ACCUMULATOR_MAX:,} for any text; the largest is '{node}'"
    return Check("ranges", text, {"largest": bound, "limit": ACCUMULATOR_MAX, "node": node})


def _tokenizer(bundle: Bundle) -> Check:
    ids, rows = bundle.tokenizer.get_vocab_size(with_added_tokens=True), bundle.graph.source.table.shape[0]
    return Check("tokenizer", f"{ids:,} tokens, the table has {rows:,} rows", {"tokens": ids, "rows": rows})


def _golden(bundle: Bundle) -> Check:
    comparison = compare_golden(bundle)
    samples = len(bundle.golden.batch)
    facts = {"samples": samples, **comparison.to_json()}
    if comparison.mismatches:
        return Check("golden vectors", _difference(comparison), facts, ok=False)
    text = f"the reference repeats {samples} samples, {comparison.values_compared:,} spikes and logits, on this machine"
    return Check("golden vectors", text, facts)


def _difference(comparison: Comparison) -> str:
    return (
        f"the reference differs from the recorded spikes: {comparison.first_mismatch}. "
        "Check numpy on this machine, or have the bundle made again from its model"
    )
