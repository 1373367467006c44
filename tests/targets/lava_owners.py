"""Processes that own a network in the Lava runtime, for tests that let them fail, and what such processes leave behind.

    python lava_owners.py FAULT SAMPLES            LavaEngine in Python: prints the keeper's id, runs a batch
    python lava_owners.py FAULT command ARGUMENTS  spikebert-run, its engine `lava` with faulty ProcessModels

FAULT is a class of lava_faults.py, or "none". LAVA_STEP_SECONDS sets the deadline of a step, and with LAVA_UNCHECKED
resources are not checked, as if they had vanished right after the check.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
WITHIN_SECONDS = 5.0  # of a fault its error has come


def environment(**variables: object) -> dict[str, str]:
    """For an owner: where it finds our packages and the helpers of tests, and the variables above."""
    paths = [str(HERE.parents[1]), str(HERE.parent), str(HERE)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **{key: str(value) for key, value in variables.items()}}


def command(fault: str, *arguments: object) -> list[str]:
    return [sys.executable, str(HERE / "lava_owners.py"), fault, *map(str, arguments)]


def running_below(owner_pid: int) -> list[int]:
    """Ids of what runs for an owner, in whatever session: all of them are forks of its keeper, whose command names it.

    Those that only wait to be reaped have no command any more.
    """
    mark = re.compile(rf"targets\.lava\.keeper .*main\([\d, ]+, {owner_pid}\)")
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.search(path.read_text(errors="replace")):
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):  # it ended just now
            continue
    return found


def wait_until_clean(owner_pid: int, seconds: float = 30.0) -> None:
    """Wait until nothing of the owner's runs; raises AssertionError after so long."""
    deadline = time.monotonic() + seconds
    while running := running_below(owner_pid):
        assert time.monotonic() < deadline, running
        time.sleep(0.05)


def finished(
    fault: str, *arguments: object, prefix: tuple[str, ...] = (), seconds: float = 120.0, **variables: object
) -> subprocess.CompletedProcess[str]:
    """Run an owner to its end. Everything it started must have ended with it."""
    owner = subprocess.Popen(
        [*prefix, *command(fault, *arguments)],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, errors = owner.communicate(timeout=seconds)
    assert running_below(owner.pid) == []
    return subprocess.CompletedProcess(owner.args, owner.returncode, out, errors)


def main() -> int:
    fault, what, *arguments = sys.argv[1:]
    import lava_faults
    import numpy as np
    from random_graphs import random_batch, random_dag

    import targets.lava.engine as engines
    from targets.lava import supervisor

    step_seconds = float(os.environ.get("LAVA_STEP_SECONDS", "30"))
    models = None
    if fault != "none":
        assert hasattr(lava_faults, fault)
        models = {**engines.FAST_MODELS, "lava.proc.conv.process:Conv": f"lava_faults:{fault}"}
    if "LAVA_UNCHECKED" in os.environ:
        supervisor.check_resources = lambda *_: resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if what == "command":
        import sim.run_command

        class FaultyEngine(engines.LavaEngine):
            def __init__(self, graph, _models, **options):
                super().__init__(graph, models, step_seconds=step_seconds, **options)

        engines.LavaEngine = FaultyEngine
        return sim.run_command.main(arguments)
    rng = np.random.default_rng(3)
    graph = random_dag(rng, nodes=2, hidden=4, n_max=2)
    engine = engines.LavaEngine(graph, models, step_seconds=step_seconds)
    engine.open()
    print(engine._session.network.pid, flush=True)
    engine.run(random_batch(rng, graph, int(what)))
    engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
