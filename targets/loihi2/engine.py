"""The engine `loihi2`: a graph on the chip, where Lava can reach one."""

from __future__ import annotations

from converters.execution import EngineOptions
from converters.graph import Graph
from targets.lava.program import LavaProgram
from targets.lava.target import require_schedule
from targets.loihi2.chip_plan import for_chip
from targets.loihi2.system import require_loihi2
from targets.loihi2.target import Loihi2Target


def open_loihi2(graph: Graph, options: EngineOptions) -> LavaProgram:
    """The engine `loihi2`. Raises NoLoihi2Error without a chip, IllegalGraphError, ScheduleError."""
    require_loihi2()
    plan = Loihi2Target().lower(graph)
    if options.bundle is not None:
        require_schedule(plan, options.bundle / Loihi2Target.name)
    # Lava's runtime will live in this process, so the start method that Lava sets at import is the right one here
    from targets.loihi2.network import ChipNetwork

    return LavaProgram(graph, ChipNetwork, models={}, plan=for_chip(plan))  # each process on its own
