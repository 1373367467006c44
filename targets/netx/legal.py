"""Whether a graph is legal for the target `netx`, and its chain if so. Needs neither Lava nor lava-dl."""

from __future__ import annotations

from converters.graph import Graph
from targets import legality
from targets.lava.lowering import lay_out
from targets.legality import IllegalGraphError, Violation
from targets.netx.chain import Chain, make_chain
from targets.netx.rules import LAID_OUT_RULES, RULES

NAME = "netx"


def check(graph: Graph) -> list[Violation]:
    """Everything in a graph that a network file of lava-dl cannot hold."""
    return [*legality.check(RULES, graph), *legality.check(LAID_OUT_RULES, lay_out(graph).graph)]


def lower_legal(graph: Graph) -> Chain:
    """The chain of a graph. Raises IllegalGraphError with every violation where it is not legal."""
    violations = check(graph)
    if violations:
        raise IllegalGraphError(NAME, violations)
    return make_chain(graph)
