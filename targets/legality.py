"""Legality: what a target cannot hold, said rule by rule.

A target has one table of `Limit`s, each with its source, and a list of small `Rule`s that hold a graph against them.
Everything it cannot run is named, not only the first thing. Only `converters.graph` is needed here, so that the
pipeline words every target's refusal in the same way.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from converters.graph import Graph
from spikebert.commands import CheckFailed

Measure = Callable[[Graph], Iterable[tuple[str, int]]]


@dataclass(frozen=True)
class Limit:
    """The most that a target holds of something.

    name   such as "delay"; unique within a target
    value  still held; more is not
    unit   of the value, as it reads behind a number: "steps"
    source where the number is from: a file and class of the vendor's library, or a measurement
    """

    name: str
    value: int
    unit: str
    source: str


@dataclass(frozen=True)
class Violation:
    """One thing a target cannot hold.

    node         name of the node
    rule         name of the rule, such as "scalar-threshold"
    value        what the graph asks for
    limit        what the target holds
    unit, source of the limit
    remedy       what to change, for a person
    """

    node: str
    rule: str
    value: int
    limit: int
    unit: str
    source: str
    remedy: str

    def __str__(self) -> str:
        return (
            f"node '{self.node}': {self.rule}: {self.value} {self.unit}, the limit is {self.limit}: {self.remedy} "
            f"[{self.source}]"
        )


@dataclass(frozen=True)
class Rule:
    """A named rule. Called with a graph it gives the violations of its limit, in graph order.

    measure node name -> what that node asks for, for the nodes that the rule is about. It must take any legal graph:
            a node of a kind that it does not know is passed over
    remedy  what to change, for a person
    """

    name: str
    limit: Limit
    remedy: str
    measure: Measure

    @property
    def explanation(self) -> str:
        """What the rule says and why: the docstring of `measure`."""
        return inspect.getdoc(self.measure) or ""

    def __call__(self, graph: Graph) -> Iterator[Violation]:
        limit = self.limit
        for node, value in self.measure(graph):
            if value > limit.value:
                yield Violation(node, self.name, value, limit.value, limit.unit, limit.source, self.remedy)


def rule(name: str, limit: Limit, remedy: str) -> Callable[[Measure], Rule]:
    """Makes a `Rule` of the function that it decorates."""
    return lambda measure: Rule(name, limit, remedy, measure)


def check(rules: Sequence[Rule], graph: Graph) -> list[Violation]:
    """Every violation of every rule."""
    return [violation for each in rules for violation in each(graph)]


class IllegalGraphError(CheckFailed):
    """A graph that a target refuses; `violations` holds every reason."""

    def __init__(self, target: str, violations: Sequence[Violation]) -> None:
        self.target, self.violations = target, tuple(violations)
        lines = "".join(f"\n  {violation}" for violation in self.violations)
        super().__init__(f"the graph is not legal for the target '{target}':{lines}")

    def __reduce__(self) -> tuple[type, tuple[str, tuple[Violation, ...]]]:
        """For its way to another process."""
        return type(self), (self.target, self.violations)

    def to_json(self) -> list[dict[str, object]]:
        """The violations for `--json`, in the order of the rules."""
        return [asdict(violation) for violation in self.violations]
