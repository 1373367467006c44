"""Removes rows of the token table that no input can produce."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from converters.graph import Graph, GraphError
from converters.passes.edit import with_nodes
from converters.passes.rewrite import Rewrite


@dataclass(frozen=True, eq=False)
class RemoveUnreachableTokens:
    """Rows of the token table go that are not in `reachable`; the ids of the others close up. Exact.

    The identity: a row that is never read may hold anything, or be absent.

    reachable int64, rising: the ids that the tokenizer can produce (`spikebert.tokenizer_rows`). The bundle's
    tokenizer gets the new ids, so that the same texts lead to the same rows.
    """

    reachable: np.ndarray
    name: str = "remove-unreachable-tokens"

    def rewrite(self, graph: Graph) -> Rewrite:
        """Raises GraphError where an id lies outside the table."""
        table = graph.source.table
        if len(self.reachable) == 0 or self.reachable.max() >= len(table):
            raise GraphError(f"node '{graph.source.name}': the tokenizer's ids do not fit a table of {len(table)} rows")
        removed = len(table) - len(self.reachable)
        if not removed:
            return Rewrite(graph, "a text can lead to every token")
        new_ids = np.full(len(table), -1)
        new_ids[self.reachable] = np.arange(len(self.reachable))
        source = replace(graph.source, table=table[self.reachable])
        summary = f"{removed:,} of {len(table):,} tokens removed"
        return Rewrite(with_nodes(graph, {source.name: (source,)}), summary, token_ids=new_ids)
