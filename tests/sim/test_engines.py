"""Engines are found by name, and a missing one or a missing library is one clear error."""

import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from random_graphs import random_graph

import sim.engines
from sim.engines import engine_names, open_engine
from sim.reference import ReferenceEngine
from spikebert.commands import MissingExtra, UserError


@pytest.fixture
def graph():
    return random_graph(np.random.default_rng(0), blocks=1)


def test_the_engines_of_this_project_are_registered():
    assert {"reference", "torch", "lava", "lava-inline"} <= set(engine_names())


def test_the_reference_opens(graph):
    assert isinstance(open_engine("reference", graph), ReferenceEngine)


def test_an_unknown_name_lists_what_there_is(graph):
    with pytest.raises(UserError, match=r"no engine 'loihi9'\. Engines: .*reference"):
        open_engine("loihi9", graph)


def test_a_missing_library_names_the_extra(graph, monkeypatch, tmp_path):
    (tmp_path / "engine_that_needs_lava.py").write_text("import lava.magma\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "lava", None)
    point = EntryPoint("needy", "engine_that_needs_lava:open_it", sim.engines.GROUP)
    monkeypatch.setattr(sim.engines, "entry_points", lambda group: [point])
    with pytest.raises(MissingExtra, match=r"pip install 'spikebert\[lava\]'"):
        open_engine("needy", graph)


def test_a_broken_engine_is_not_mistaken_for_a_missing_extra(graph, monkeypatch, tmp_path):
    (tmp_path / "broken_engine.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("broken", "broken_engine:open_it", sim.engines.GROUP)
    monkeypatch.setattr(sim.engines, "entry_points", lambda group: [point])
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        open_engine("broken", graph)
