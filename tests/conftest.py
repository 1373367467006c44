"""Puts this folder on the import path, so that tests can share helpers: `from random_graphs import random_graph`."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")

sys.path.insert(0, str(Path(__file__).parent))

# A shell that starts tests by `nohup` or in the background has them ignore these, and so would every program that tests
# start and then interrupt.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGQUIT, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """A test that sets PyTorch's threads leaves them as they were: how a sum is rounded depends on their number, and
    runs of several tests are compared bit by bit."""
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 0
    yield
    if torch and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A folder with `teacher`, `data` and `run`, a finished run of spikebert-train. Tests leave them as they are."""
    pytest.importorskip("torch")
    from small_teachers import recipe_arguments

    from spikebert.train_command import main

    folder = tmp_path_factory.mktemp("trained")
    assert main(recipe_arguments(folder)) == 0
    return folder


@pytest.fixture(scope="session")
def compiled() -> None:
    """The fast engine has been compiled for the graph of `small_bundle`, so that it says nothing of it any more."""
    import numpy as np
    from random_graphs import random_graph

    from sim.fast.engine import FastEngine

    FastEngine(random_graph(np.random.default_rng(0), blocks=1)).close()
