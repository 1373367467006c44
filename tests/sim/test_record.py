"""A record: every value of some nodes in a file that numpy reads, and nothing half written."""

import json
import resource
import zipfile

import numpy as np
import pytest
from random_graphs import random_batch, random_graph

import sim.record
from converters.graph import Add, Graph, Readout, Source, Synapses
from sim.record import check_record_path, read_record, record_file, value_dtype
from sim.reference import ReferenceEngine
from sim.rows import Row
from spikebert.commands import UserError


@pytest.fixture(scope="module")
def graph():
    return random_graph(np.random.default_rng(0), blocks=1)


@pytest.fixture(scope="module")
def batches(graph):
    """Of several sizes, and not all as wide as n_max."""
    sizes = [(3, None), (1, 2), (5, 4)]
    return [random_batch(np.random.default_rng(seed), graph, *size) for seed, size in enumerate(sizes)]


def write(path, graph, batches, nodes, stop=None):
    """Rows are numbered 10, 11, ..., the even ones labelled 1."""
    number = 10
    with record_file(path, graph, nodes, {"bundle": {"digest": "abc"}}) as record:
        for batch in batches:
            execution = ReferenceEngine(graph).run(batch, nodes)
            rows = [Row(number + i, "", 1 if i % 2 == 0 else None) for i in range(len(batch))]
            record.add(rows, batch, execution.logits, execution.values)
            number += len(batch)
        assert not path.exists()
        if stop is not None:
            raise stop
    return record


def padded(array, axis, size):
    return np.pad(array, [(0, size - array.shape[axis] if i == axis else 0) for i in range(array.ndim)])


def test_what_was_written_is_read(tmp_path, graph, batches):
    nodes, path = tuple(graph.features), tmp_path / "out.npz"
    write(path, graph, batches, nodes)
    record = read_record(path)
    assert record.nodes == nodes and len(record) == 9
    assert record.rows.tolist() == list(range(10, 19))
    assert record.labels.tolist() == [1, -1, 1, 1, 1, -1, 1, -1, 1]
    assert np.array_equal(record.token_ids, np.concatenate([padded(each.ids, 1, graph.n_max) for each in batches]))
    assert np.array_equal(record.mask, np.concatenate([padded(each.mask, 1, graph.n_max) for each in batches]))
    executions = [ReferenceEngine(graph).run(batch, nodes) for batch in batches]
    assert np.array_equal(record.logits, np.concatenate([each.logits for each in executions]))
    for node in nodes:
        wanted = np.concatenate([padded(each.values[node].swapaxes(0, 1), 2, graph.n_max) for each in executions])
        values = record[node]
        assert values.shape == (9, graph.timesteps, graph.n_max, graph.features[node])
        assert values.dtype == value_dtype(graph, node) and np.array_equal(values, wanted)
        assert np.array_equal(np.stack(list(record.each(node))), wanted)
    assert list(tmp_path.iterdir()) == [path]


def test_numpy_alone_reads_it_without_pickle(tmp_path, graph, batches):
    path = tmp_path / "out.npz"
    write(path, graph, batches, ("block0.q", "block0.q.synapses"))
    with np.load(path, allow_pickle=False) as arrays:
        about = json.loads(str(arrays["about"]))
        names = {name for name in arrays.files if not name.startswith("values/")}
        assert names == {name for name in about["arrays"] if not name.startswith("values/")}
        assert arrays["values/block0.q"].shape == (9, graph.timesteps, graph.n_max, 16)
    assert about["bundle"] == {"digest": "abc"}
    assert (about["schema"], about["timesteps"], about["n_max"], about["samples"]) == (1, 4, graph.n_max, 9)
    assert about["nodes"]["block0.q"] == {"op": "lif", "gives": "spikes", "features": 16, "largest_possible": 1}
    assert about["nodes"]["block0.q.synapses"]["gives"] == "currents"


@pytest.mark.parametrize(
    ("weight", "inputs", "dtype"),
    [(1, 16, np.int8), (7, 16, np.int8), (8, 16, np.int16), (127, 258, np.int16), (127, 259, np.int32)],
)
def test_currents_are_held_by_the_smallest_integers_that_hold_what_is_possible(weight, inputs, dtype):
    rows = np.full((2, inputs), weight)
    layer = Synapses("layer", ("source",), rows, np.zeros(2, int))
    readout = Readout("out", ("source",), rows, np.zeros(2, int))
    graph = Graph(1, 2, (Source("source", np.ones((3, inputs), int)), layer, readout))
    assert value_dtype(graph, "layer") == dtype and value_dtype(graph, "source") == np.uint8


@pytest.mark.parametrize(("additions", "dtype"), [(2, np.uint8), (255, np.uint8), (256, np.uint16)])
def test_sums_of_spikes_too(additions, dtype):
    source, add = Source("source", np.ones((3, 2), int)), Add("add", ("source",) * additions)
    graph = Graph(1, 2, (source, add, Readout("out", ("add",), np.ones((2, 2), int), np.zeros(2, int))))
    assert value_dtype(graph, "add") == dtype


def test_no_samples(tmp_path, graph):
    write(tmp_path / "out.npz", graph, [], ("block0.q",))
    record = read_record(tmp_path / "out.npz")
    assert len(record) == 0 and record["block0.q"].shape == (0, 4, graph.n_max, 16)
    assert list(record.each("block0.q")) == []


def test_the_same_run_gives_the_same_bytes(tmp_path, graph, batches):
    for name in ("a.npz", "b.npz"):
        write(tmp_path / name, graph, batches, ("block0.q",))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("of an engine")])
def test_a_run_that_stops_leaves_nothing_and_its_error_as_it_is(tmp_path, graph, batches, error):
    with pytest.raises(type(error)) as raised:
        write(tmp_path / "out.npz", graph, batches, ("block0.q",), stop=error)
    assert raised.value is error
    assert list(tmp_path.iterdir()) == []


def test_while_it_is_written_there_is_one_hidden_file(tmp_path, graph, batches):
    """The spool has no name: a process that is killed leaves no more than the file that it would have renamed."""
    with record_file(tmp_path / "out.npz", graph, ("block0.q",), {}):
        assert [path.name.startswith(".out.npz.") for path in tmp_path.iterdir()] == [True]


@pytest.mark.parametrize("limit", [10, 3000])
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, graph, batches, limit):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(UserError, match=r"--record .*out\.npz: File too large"):
            write(tmp_path / "out.npz", graph, batches * 20, tuple(graph.features))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("node", "value"), [("block0.q", 2), ("block0.q", -1), ("block0.add1", 3)])
def test_a_value_that_is_not_possible_is_refused(tmp_path, graph, batches, node, value):
    batch = batches[0]
    execution = ReferenceEngine(graph).run(batch, (node,))
    execution.values[node][0, 0, 0, 0] = value
    with (
        pytest.raises(ValueError, match=rf"\.\. \d+ for node '{node}', where only 0 \.\. \d is possible"),
        record_file(tmp_path / "out.npz", graph, (node,), {}) as record,
    ):
        record.add([Row(i, "") for i in range(len(batch))], batch, execution.logits, execution.values)


def test_values_of_a_wrong_shape_are_refused(tmp_path, graph, batches):
    batch = batches[0]
    execution = ReferenceEngine(graph).run(batch, ("block0.q",))
    values = {"block0.q": execution.values["block0.q"].swapaxes(0, 1)}
    with (
        pytest.raises(ValueError, match=r"gave shape \(3, 4, 6, 16\) for node 'block0\.q', expected \(4, 3, 6, 16\)"),
        record_file(tmp_path / "out.npz", graph, ("block0.q",), {}) as record,
    ):
        record.add([Row(i, "") for i in range(3)], batch, execution.logits, values)


def test_paths_are_checked(tmp_path):
    path = tmp_path / "out.npz"
    check_record_path(path, overwrite=False)
    path.write_text("mine")
    with pytest.raises(UserError, match=r"--record .* exists\. Give --overwrite"):
        check_record_path(path, overwrite=False)
    check_record_path(path, overwrite=True)
    with pytest.raises(UserError, match=r"ends with \.npz"):
        check_record_path(tmp_path / "out.npy", overwrite=False)
    with pytest.raises(UserError, match="there is no folder"):
        check_record_path(tmp_path / "none" / "out.npz", overwrite=False)


def test_a_node_that_was_not_recorded(tmp_path, graph, batches):
    write(tmp_path / "out.npz", graph, batches, ("block0.q",))
    record = read_record(tmp_path / "out.npz")
    with pytest.raises(KeyError, match=r"no values of 'block0\.k', but of block0\.q"):
        record["block0.k"]
    with pytest.raises(KeyError, match=r"block0\.k"):
        next(record.each("block0.k"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_bytes(b""), "is no record"),
        (lambda path: path.write_text("text"), "is no record"),
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "is no record"),
        (lambda path: np.savez(path, about=np.array("[]")), "is no record"),
        (lambda path: np.savez(path, spikes=np.zeros(3)), "is no record"),
        (lambda path: np.savez(path, about=np.array({"schema": 1}, dtype=object)), "is no record"),
        (lambda path: np.savez(path, about=np.array('{"schema": 2}')), "schema 2, this reads 1"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path, graph, batches, spoil, message):
    path = tmp_path / "out.npz"
    write(path, graph, batches, ("block0.q",))
    spoil(path)
    with pytest.raises(UserError, match=message):
        read_record(path)


def test_an_array_is_written_batch_by_batch(tmp_path, graph, batches, monkeypatch):
    """However many samples there are, one batch of one node is in memory."""
    sizes = []
    honest = sim.record._write_array

    def told(archive, name, dtype, shape, parts):
        def counted():
            for part in parts:
                sizes.append(len(np.atleast_1d(part)))
                yield part

        honest(archive, name, dtype, shape, counted())

    monkeypatch.setattr(sim.record, "_write_array", told)
    write(tmp_path / "out.npz", graph, batches, ("block0.q",))
    assert sizes == [1, *[3, 1, 5] * 6]


def test_files_beyond_4_gb_are_possible(tmp_path, graph, batches, monkeypatch):
    """The limit beyond which a zip needs larger numbers is brought down to what this file has."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    path = tmp_path / "out.npz"
    write(path, graph, batches, ("block0.q",))
    assert read_record(path)["block0.q"].nbytes > 1000
