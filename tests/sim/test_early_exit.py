"""Early exit on the engines and in the command: equal to the reference in every bit, and noticed where it is not."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from neuron_cases import KINDS, Kind, rule_graph
from random_graphs import middle_margin, random_batch, random_dag, random_graph, random_machine_dag
from small_bundles import small_bundle

import sim.shards
from converters.early_exit import EarlyExit, shortened
from converters.execution import EngineOptions, Execution, TokenBatch
from converters.graph import Graph
from converters.readout import logits_over_time
from sim.activity import count_activity
from sim.energy import Tokens, work_of
from sim.engines import open_engine
from sim.fast.engine import FastEngine
from sim.record import read_record
from sim.reference import ReferenceEngine
from sim.run_command import main
from sim.verify import compare
from spikebert.commands import UserError


def assert_stops_exactly(graph: Graph, batch: TokenBatch, early_exit: EarlyExit, threads: int = 2) -> np.ndarray:
    """The fast engine does what the reference says, and a sample that stopped after t what it does in a network of t
    timesteps; activity, too. Returns the timesteps."""
    names = tuple(node.name for node in graph)
    expected = ReferenceEngine(graph, early_exit).run(batch, names)
    stops = expected.timesteps
    assert stops is not None
    engine = FastEngine(graph, threads, early_exit)
    counted = count_activity(graph, expected.values, batch, stops=stops)
    for observe in (names, (), names[:1], ()):  # not observed: calls that were bound before are used again
        given = engine.run(batch, observe)
        asked = Execution(expected.logits, {name: expected.values[name] for name in observe}, timesteps=stops)
        comparison = compare(graph, asked, given)
        assert comparison.mismatches == 0, str(comparison.first_mismatch)
        assert given.activity == counted
    engine.close()
    for sample, t in enumerate(stops.tolist()):
        alone = ReferenceEngine(shortened(graph, t)).run(batch[sample : sample + 1], names)
        assert np.array_equal(alone.logits[0], expected.logits[sample])
        for name in names:
            assert np.array_equal(alone.values[name][:, 0], expected.values[name][:t, sample]), name
    return stops


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    n_max=st.integers(1, 7),
    timesteps=st.sampled_from([1, 2, 3, 4, 5, 8, 16]),
    dv=st.sampled_from([0, 410, 2048, 4095, (0, 410, 2048, 4095)]),
    kind=st.sampled_from(["lif", "sign"]),
    code=st.sampled_from([0, 3]),
    samples=st.integers(1, 5),
    threads=st.integers(1, 3),
    scale=st.sampled_from([0.0, 0.7, 1.0, 1.5]),
    checks=st.sets(st.integers(1, 15), max_size=4),
)
def test_random_transformers(seed, n_max, timesteps, dv, kind, code, samples, threads, scale, checks) -> None:
    rng = np.random.default_rng(seed)
    graph = random_graph(
        rng, hidden=8, n_max=n_max, timesteps=timesteps, dv=dv, source_kind=kind, code_features=code,
        attention="any", norms=0.3,
    )  # fmt: skip
    batch = random_batch(rng, graph, samples)
    after = tuple(sorted(t for t in checks if t < timesteps)) or None
    assert_stops_exactly(graph, batch, EarlyExit(int(scale * middle_margin(graph, batch)), after), threads)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), timesteps=st.sampled_from([2, 4, 7]), machine=st.booleans())
def test_random_wirings(seed: int, timesteps: int, machine: bool) -> None:
    """What passes make, too: their neurons carry membranes as well."""
    rng = np.random.default_rng(seed)
    make = random_machine_dag if machine else random_dag
    graph = make(rng, nodes=5, timesteps=timesteps)
    batch = random_batch(rng, graph, 3)
    assert_stops_exactly(graph, batch, EarlyExit(middle_margin(graph, batch)))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("after", [None, (1, 3)])
def test_every_kind_of_neuron_goes_on_from_its_membrane(kind: Kind, after: tuple[int, ...] | None) -> None:
    graph = rule_graph(kind, timesteps=6, n_max=5)
    batch = random_batch(np.random.default_rng(0), graph, 6)
    stops = assert_stops_exactly(graph, batch, EarlyExit(middle_margin(graph, batch), after))
    assert stops.max() > 1


def test_samples_stop_at_every_timestep() -> None:
    """Or the tests above would show little."""
    seen: set[int] = set()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        graph = random_graph(rng, blocks=1, hidden=8, timesteps=4)
        batch = random_batch(rng, graph, 6)
        seen |= set(assert_stops_exactly(graph, batch, EarlyExit(middle_margin(graph, batch))).tolist())
    assert seen == {1, 2, 3, 4}


def test_padding_and_the_batch_change_nothing() -> None:
    rng = np.random.default_rng(1)
    graph = random_graph(rng, blocks=1, hidden=8, n_max=6)
    batch = random_batch(rng, graph, 5, tokens=3)
    padded = TokenBatch(np.pad(batch.ids, ((0, 0), (0, 3))), np.pad(batch.mask, ((0, 0), (0, 3))))
    engine = FastEngine(graph, 2, EarlyExit(middle_margin(graph, batch)))
    one, other = engine.run(batch), engine.run(padded)
    singles = [engine.run(batch[i : i + 1]) for i in range(5)]
    assert np.array_equal(one.logits, other.logits)
    assert np.array_equal(one.timesteps, other.timesteps)
    assert np.array_equal(one.logits, np.concatenate([each.logits for each in singles]))
    assert np.array_equal(one.timesteps, np.concatenate([each.timesteps for each in singles]))
    assert len(set(one.timesteps.tolist())) > 1
    engine.close()


def test_less_is_computed() -> None:
    """Counters are those of the kernels: what was not run was not counted."""
    rng = np.random.default_rng(2)
    graph = random_graph(rng, blocks=1, hidden=8)
    batch = random_batch(rng, graph, 6)
    whole, first = (FastEngine(graph, 1, each).run(batch).activity for each in (None, EarlyExit(0)))
    assert whole is not None and first is not None
    assert first.total.sites * graph.timesteps == whole.total.sites
    assert 0 < first.total.synaptic_operations < whole.total.synaptic_operations


def test_neurons_of_a_machine_rest_when_a_sample_has_stopped() -> None:
    graph = random_graph(np.random.default_rng(0), blocks=1)
    batch = random_batch(np.random.default_rng(0), graph, 2)
    done = FastEngine(graph, 1, EarlyExit(0)).run(batch)
    tokens = Tokens()
    for real in batch.mask.sum(1).tolist():
        tokens = tokens.with_sentence(real, timesteps_spared=graph.timesteps - 1)
    work = work_of(graph, done.activity, tokens)
    assert work["source"].resident_updates == 2 * graph.n_max * graph.features["source"]
    assert work["source"].neuron_updates == int(batch.mask.sum()) * graph.features["source"]


@pytest.mark.parametrize("engine", ["lava", "lava-inline", "loihi2", "netx"])
def test_engines_that_cannot_stop_say_so(engine) -> None:
    graph = random_graph(np.random.default_rng(0), blocks=1)
    with pytest.raises(UserError, match=f"engine '{engine}' cannot stop a sample.*--engine fast, reference or torch"):
        open_engine(engine, graph, EngineOptions(early_exit=EarlyExit(5)))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, compiled):
    return small_bundle(tmp_path_factory.mktemp("bundles") / "small")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.tsv"
    lines = ["a good film\tpositive", "bad\t0", "a bad row", "\tneutral", "funny\t2", "dull dull\tnegative"]
    path.write_text("\n".join(["text\tlabel", *lines]) + "\n", encoding="utf-8")
    return path


TEXTS = ("a good film", "bad", "", "funny", "dull dull")


def lead_of(bundle) -> str:
    """Of which some texts stop early."""
    batch, _ = bundle.encode(TEXTS)
    return str(middle_margin(bundle.graph, batch) * bundle.graph.readout.scale)


def run_json(capsys, *arguments: object) -> tuple[int, dict]:
    code = main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--batch-size", "1"],
        ["--engine", "reference"],
        pytest.param(["--workers", "2"], marks=pytest.mark.slow),
    ],
)
def test_the_command_tells_when_texts_stopped(bundle, data, capsys, options, tmp_path) -> None:
    """A bad row loses nothing; every way to run it gives the same."""
    path, lead = tmp_path / "out.tsv", lead_of(bundle)
    code, told = run_json(
        capsys, bundle.folder, "--file", data, "--exit-margin", lead, "--predictions", path, *options
    )  # fmt: skip
    assert code == 2
    batch, _ = bundle.encode(TEXTS)
    early_exit = EarlyExit.of_logits(bundle.graph, float(lead))
    expected = ReferenceEngine(bundle.graph, early_exit).run(batch, bundle.graph.spiking)
    stops = expected.timesteps.tolist()
    assert len(set(stops)) > 1
    assert told["timesteps"] == [*stops[:2], None, *stops[2:]]
    assert [logits for logits in told["logits"] if logits] == expected.logits.tolist()
    assert told["early_exit"] == {
        "margin_units": early_exit.margin,
        "after": None,
        "mean_timesteps": sum(stops) / 5,
        "stopped_after": {str(t): stops.count(t) for t in range(1, 5)},
    }
    counted = count_activity(bundle.graph, expected.values, batch, stops=expected.timesteps).total
    for name in ("spikes", "synaptic_operations", "messages"):
        assert told["activity"][name] == getattr(counted, name)
    column = [line.split("\t")[-1] for line in path.read_text(encoding="utf-8").splitlines()]
    assert column == ["timesteps", *map(str, stops[:2]), "", *map(str, stops[2:])]


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_verify_compares_what_was_run(bundle, capsys, engine) -> None:
    texts = [part for text in TEXTS for part in ("--text", text)]
    arguments = (bundle.folder, *texts, "--exit-margin", lead_of(bundle), "--verify", "--engine", engine)
    code, told = run_json(capsys, *arguments)
    assert (code, told["verify"]["mismatches"]) == (0, 0)
    in_a_timestep = sum(bundle.graph.features.values()) * bundle.graph.n_max
    assert sum(told["timesteps"]) < len(TEXTS) * bundle.graph.timesteps
    compared = sum(told["timesteps"]) * in_a_timestep + len(TEXTS) * (len(bundle.labels) + 1)
    assert told["verify"]["values_compared"] == compared, "what was not computed does not count"


def test_what_comes_after_a_stop_must_be_silent(bundle) -> None:
    batch, _ = bundle.encode(TEXTS)
    early_exit, nodes = EarlyExit.of_logits(bundle.graph, float(lead_of(bundle))), tuple(bundle.graph.features)
    right = ReferenceEngine(bundle.graph, early_exit).run(batch, nodes)
    sample = int(right.timesteps.argmin())
    wrong = {name: value.copy() for name, value in right.values.items()}
    wrong[bundle.graph.output][-1, sample, 0, 0] = 1
    compared = compare(bundle.graph, right, Execution(right.logits, wrong, timesteps=right.timesteps))
    assert compared.mismatches == 1 and compared.first_mismatch.sample == sample
    assert compared.values_compared == compare(bundle.graph, right, right).values_compared


class StopsLate(ReferenceEngine):
    """A timestep later than it should, and in all else right."""

    by = 1

    def run(self, batch, observe=()):
        right = super().run(batch, (*observe, self.graph.output))
        stops = np.minimum(right.timesteps + self.by, self.graph.timesteps)
        whole = ReferenceEngine(self.graph).run(batch, tuple(self.graph.features))
        over_time = logits_over_time(self.graph, whole.values[self.graph.output])
        ran = (np.arange(self.graph.timesteps)[:, None] < stops)[..., None, None]
        values = {name: whole.values[name] * ran for name in observe}
        return Execution(over_time[stops - 1, np.arange(len(stops))], values, timesteps=stops)


class SaysWrong(StopsLate):
    """Stops in time, but gives the logits of the timestep before."""

    def run(self, batch, observe=()):
        right = ReferenceEngine.run(self, batch, observe)
        whole = ReferenceEngine(self.graph).run(batch, (self.graph.output,))
        over_time = logits_over_time(self.graph, whole.values[self.graph.output])
        logits = over_time[np.maximum(right.timesteps - 2, 0), np.arange(len(batch))]
        return replace(right, logits=logits)


class RunsOn(StopsLate):
    """Tells the right timesteps and logits, but its neurons fired on."""

    def run(self, batch, observe=()):
        right = ReferenceEngine.run(self, batch, observe)
        return replace(right, values=ReferenceEngine(self.graph).run(batch, observe).values)


@pytest.mark.parametrize(
    ("flawed", "says"),
    [(StopsLate, "stopped after [2-4] timesteps, expected [1-3]"), (SaysWrong, "'logits'"), (RunsOn, "timestep [1-3]")],
)
def test_verify_notices_what_is_wrong(bundle, monkeypatch, capsys, flawed, says) -> None:
    monkeypatch.setattr(sim.shards, "open_engine", lambda name, graph, options: flawed(graph, options.early_exit))
    texts = [part for text in TEXTS for part in ("--text", text)]
    assert main([str(bundle.folder), *texts, "--exit-margin", lead_of(bundle), "--verify", "--engine", "flawed"]) == 1
    error = capsys.readouterr().err
    assert "differs from the reference" in error
    assert re.search(says, error), error


def test_an_engine_that_does_not_tell_is_found_out(bundle, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sim.shards, "open_engine", lambda name, graph, options: ReferenceEngine(graph))
    assert main([str(bundle.folder), "--text", "a", "--exit-margin", "1"]) == 3
    assert "does not say after how many timesteps" in capsys.readouterr().err


def test_the_table_is_what_each_margin_gives(bundle, data, capsys) -> None:
    lead = lead_of(bundle)
    _, told = run_json(capsys, bundle.folder, "--file", data, "--exit-table", "0", lead)
    for row in told["exit_table"][:-1]:
        _, alone = run_json(capsys, bundle.folder, "--file", data, "--exit-margin", row["margin"])
        assert row["accuracy"] == alone["accuracy"]
        assert row["mean_timesteps"] == alone["early_exit"]["mean_timesteps"]
        assert row["stopped_after"] == alone["early_exit"]["stopped_after"]
    never = told["exit_table"][-1]
    assert (never["margin"], never["mean_timesteps"], never["class_as_after_all"]) == (None, 4.0, 1.0)
    assert never["accuracy"] == told["accuracy"]


def test_words_and_page(bundle, data, capsys, tmp_path) -> None:
    page = tmp_path / "run.html"
    arguments = [str(bundle.folder), "--file", str(data), "--exit-margin", lead_of(bundle), "--report", str(page)]
    assert main(arguments) == 2
    assert "a sample, of 4 (stopped: " in capsys.readouterr().out
    assert "Early exit: a text stops once" in page.read_text(encoding="utf-8")
    assert main([str(bundle.folder), "--text", "good", "--exit-margin", "0"]) == 0
    assert "after 1 of 4 timesteps" in capsys.readouterr().out
    assert main([str(bundle.folder), "--file", str(data), "--exit-table"]) == 2
    assert "never" in capsys.readouterr().out


def test_probes_and_records_end_where_texts_do(bundle, capsys, tmp_path) -> None:
    path, texts = tmp_path / "spikes.npz", [part for text in TEXTS for part in ("--text", text)]
    arguments = (bundle.folder, *texts, "--exit-margin", "0", "--probe", "source", "--record", path)
    _, told = run_json(capsys, *arguments)
    record = read_record(path)
    assert record.timesteps.tolist() == [1] * len(TEXTS)
    assert not record["source"][:, 1:].any()
    probe = told["probes"]["source"]
    assert probe["nonzero_by_timestep"][1:] == [0, 0, 0]
    assert probe["rate"] == probe["nonzero"] / (int(record.mask.sum()) * bundle.graph.features["source"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--exit-margin", "-1"], "no number from 0"),
        (["--exit-margin", "nan"], "no number from 0"),
        (["--exit-margin", "1e9"], "a lead of 1e+09 logits"),
        (["--exit-margin", "1", "--exit-after", "4"], "the network has 4, so it can be after 1 .. 3"),
        (["--exit-after", "1"], "give --exit-margin or --exit-table too"),
        (["--exit-margin", "1", "--exit-table"], "Leave out --exit-margin"),
        (["--exit-table", "--exit-after", "9"], "the network has 4"),
        (["--exit-margin", "1", "--engine", "lava"], "cannot stop a sample"),
    ],
)
def test_wrong_use(bundle, capsys, arguments, says) -> None:
    try:
        code = main([str(bundle.folder), "--text", "a", *arguments])
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert says in capsys.readouterr().err
