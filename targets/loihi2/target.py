"""The target `loihi2`: which graphs the chip takes, and what it adds to a bundle. Needs no Lava."""

from __future__ import annotations

from targets.lava.target import LoweredTarget
from targets.loihi2.rules import LAID_OUT_RULES, LATENCIES, RULES


class Loihi2Target(LoweredTarget):
    """What the entry-point group `spikebert.targets` names `loihi2`. Its schedule is written as that of `lava`."""

    name = "loihi2"
    latencies = LATENCIES
    rules = RULES
    laid_out_rules = LAID_OUT_RULES
