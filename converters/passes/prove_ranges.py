"""Proves that no accumulator can overflow."""

from __future__ import annotations

from dataclasses import dataclass

from converters.graph import ACCUMULATOR_MAX, CURRENTS, Attention, Graph, GraphError, Norm
from converters.passes.rewrite import Rewrite
from converters.ranges import Range, largest_current, prove_ranges, reaching_inputs


@dataclass(frozen=True)
class ProveRanges:
    """Changes nothing. Every current a text can cause is proven to be at most `limit`; no option waives it.

    A `Graph` proves a coarser bound when it is made; here each feature has its own range. The membrane's saturation
    is part of the LIF rule, so it is reported and not refused.
    """

    limit: int = ACCUMULATOR_MAX
    name: str = "prove-ranges"

    def __post_init__(self) -> None:
        if self.limit > ACCUMULATOR_MAX:
            raise GraphError(f"limit is {self.limit}, no graph may have currents above {ACCUMULATOR_MAX}")

    def rewrite(self, graph: Graph) -> Rewrite:
        """Raises GraphError with every node whose current may pass the limit, and what would bring it there."""
        ranges = prove_ranges(graph)
        currents = [node.name for node in graph if isinstance(node, CURRENTS)]
        excess = [name for name in currents if ranges[name].reach > self.limit]
        if excess:
            raise GraphError("; ".join(self._reason(graph, ranges, name) for name in excess))
        top, reach = largest_current(graph, ranges)
        cut = [name for name, own in ranges.items() if own.may_saturate]
        summary = f"largest current {reach:,} of {self.limit:,}, at '{top}'"
        if cut:
            summary += f"; {len(cut)} membranes may saturate, first '{cut[0]}'"
        return Rewrite(graph, summary)

    def _reason(self, graph: Graph, ranges: dict[str, Range], name: str) -> str:
        reason = f"node '{name}': a current may reach {ranges[name].reach}, the limit is {self.limit}"
        if isinstance(graph[name], Attention):
            return f"{reason}: use more heads, fewer tokens, or a v of a smaller cap"
        if isinstance(graph[name], Norm):
            return f"{reason}: use a smaller gamma or beta"
        reach = reaching_inputs(graph, ranges, name)
        return f"{reason} (feature {reach.feature}, when {len(reach.inputs)} of its inputs spike): use smaller weights"
