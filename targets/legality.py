"""Legality: what a target cannot hold, said rule by rule.

A target's `check` looks at a whole graph and names everything it cannot run, not only the first thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spikebert.commands import CheckFailed


@dataclass(frozen=True)
class Violation:
    """One thing a target cannot hold.

    node   name of the node
    rule   name of the rule, such as "scalar-threshold"
    value  what the graph asks for
    limit  what the target holds
    remedy what to change, for a person
    """

    node: str
    rule: str
    value: int
    limit: int
    remedy: str

    def __str__(self) -> str:
        return f"node '{self.node}': {self.rule}: {self.value}, the limit is {self.limit}: {self.remedy}"


class IllegalGraphError(CheckFailed):
    """A graph that a target refuses; `violations` holds every reason."""

    def __init__(self, target: str, violations: Sequence[Violation]) -> None:
        self.violations = tuple(violations)
        lines = "\n".join(f"  {violation}" for violation in self.violations)
        super().__init__(f"the graph does not fit the target '{target}':\n{lines}")
