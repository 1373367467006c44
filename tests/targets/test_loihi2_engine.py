"""The engine `loihi2`: what it says without a chip, the plan for one, and its network with a stand-in for the chip.

`loihi2_stand_in/` holds modules with the names of Intel's extension to Lava, which is not public. Whatever needs them
runs in a process of its own, since Lava keeps what it has imported.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from random_graphs import random_batch, random_dag, random_graph
from small_bundles import small_bundle

from converters.execution import TokenBatch
from converters.graph import Attention, Graph
from converters.passes.expand_attention import ExpandAttention
from sim.reference import ReferenceEngine
from targets.lava.lowering import lower
from targets.lava.plan import AdderSpec, NeuronSpec, Plan
from targets.loihi2.chip_plan import Connection, Neuron, for_chip, with_probes
from targets.loihi2.target import Loihi2Target

ROOT = Path(__file__).parents[2]
STAND_IN = Path(__file__).parent / "loihi2_stand_in"


def require_lava() -> None:
    """Skips a test where Lava is not installed."""
    pytest.importorskip("lava.magma")


def expanded(seed: int, dag: bool = False, **options: object) -> Graph:
    rng = np.random.default_rng(seed)
    graph = random_dag(rng, **options) if dag else random_graph(rng, blocks=1, hidden=8, n_max=3, **options)
    return ExpandAttention().rewrite(graph).graph


def run_python(script: str, *arguments: object, extension: bool = False, **environment: str) -> tuple[int, str, str]:
    """A script in a process of its own: exit code, standard output, standard error."""
    path = [str(ROOT), *([str(STAND_IN)] if extension else []), str(ROOT / "tests")]
    names = ("SLURM", "NOSLURM", "NXSDKHOST", "PYTHONPATH")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{script}", *map(str, arguments)],
        capture_output=True, text=True, cwd=ROOT, timeout=300, check=False,
        env=clean | {"OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


# Without a chip

RUN = "from sim.run_command import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("bundles") / "bundle", expanded(0)).folder


def one_line(bundle: Path, script: str = RUN, **options: object) -> str:
    """What spikebert-run says without a chip: one line, exit code 3, no traceback."""
    code, out, err = run_python(script, bundle, "--engine", "loihi2", "--text", "good", **options)
    assert (code, out) == (3, "")
    assert err.count("\n") == 1 and err.startswith("error: NoLoihi2Error: no Loihi 2 chip here: ")
    return err


def test_without_lava_that_is_missing(bundle: Path) -> None:
    said = one_line(bundle, f"sys.modules['lava'] = None\n{RUN}")
    assert "Lava is not installed" in said and "pip install 'spikebert[lava]'" in said


def test_without_the_extension_that_is_missing(bundle: Path) -> None:
    require_lava()
    assert "Intel's extension lava-loihi" in one_line(bundle)


def test_without_a_board_that_is_missing(bundle: Path) -> None:
    require_lava()
    said = one_line(bundle, extension=True)
    assert "Intel's extension is here, but no board" in said and "NXSDKHOST" in said


@pytest.mark.parametrize(
    ("sinfo", "environment", "is_board"),
    [
        (None, {}, False),
        ("exit 1", {}, False),
        ("exit 0", {}, True),
        (None, {"NXSDKHOST": "198.51.100.7"}, True),
        (None, {"NOSLURM": "1"}, True),
    ],
)
def test_what_counts_as_a_board(tmp_path: Path, sinfo: str | None, environment: dict[str, str], is_board: bool) -> None:
    require_lava()
    if sinfo is not None:
        (tmp_path / "sinfo").write_text(f"#!/bin/sh\n{sinfo}\n")
        (tmp_path / "sinfo").chmod(0o755)
    script = "from targets.loihi2.system import missing; print(missing() is None)"
    code, out, err = run_python(script, extension=True, PATH=str(tmp_path), **environment)
    assert (code, out.strip(), err) == (0, str(is_board), "")


def test_asking_leaves_the_start_method_of_this_process_alone() -> None:
    require_lava()
    script = (
        "import multiprocessing; multiprocessing.set_start_method('spawn')\n"
        "from targets.loihi2.system import missing; missing()\n"
        "print(multiprocessing.get_start_method(), 'lava.magma.core.process.process' in sys.modules)"
    )
    assert run_python(script)[1].split() == ["spawn", "False"]


def test_another_library_that_is_missing_is_not_taken_for_lava(monkeypatch) -> None:
    require_lava()
    script = "sys.modules['subprocess'] = None\nfrom targets.loihi2.system import missing; missing()"
    code, _, err = run_python(script)
    assert code == 1 and "import of subprocess halted" in err


# The plan for a chip


def run_inline(graph: Graph, batch: TokenBatch, plan: Plan) -> dict[str, np.ndarray] | None:
    """Every value of a graph whose plan runs on Lava's CPU models; None where it is not silent when it must be."""
    require_lava()
    from targets.lava.engine import LavaInlineEngine
    from targets.lava.records import LavaMismatchError

    engine = LavaInlineEngine(graph, models={}, plan=plan)
    try:
        return engine.run(batch, [node.name for node in graph]).values
    except LavaMismatchError:
        return None
    finally:
        engine.close()


def agrees(graph: Graph, batch: TokenBatch, plan: Plan) -> bool:
    expected = ReferenceEngine(graph).run(batch, [node.name for node in graph]).values
    actual = run_inline(graph, batch, plan)
    return actual is not None and all(np.array_equal(actual[name], expected[name]) for name in expected)


def chip_plan(graph: Graph) -> Plan:
    return for_chip(Loihi2Target().lower(graph))


@pytest.mark.parametrize("seed", range(6))
def test_a_plan_for_the_chip_gives_every_value_on_lavas_cpu_models(seed: int) -> None:
    neurons = ("stock", "graded source")[seed % 2]
    graph = expanded(seed, dag=True, timesteps=(1, 2, 4, 8)[seed % 4], neurons=neurons)
    assert Loihi2Target().check(graph) == [] and graph.source.spike == ("binary", "graded")[seed % 2]
    batch = random_batch(np.random.default_rng(seed), graph, 4)
    assert agrees(graph, batch, chip_plan(graph))


@pytest.mark.parametrize("seed", range(20))
def test_on_the_chip_only_neurons_are_read(seed: int) -> None:
    plan = chip_plan(expanded(seed, dag=True, nodes=10))
    known = {plan.specs[0].name}
    for spec in plan.specs:
        assert known.issuperset(spec.inputs), "each after its inputs"
        known.add(spec.name)
        if isinstance(spec, Connection) and spec.inputs != (plan.specs[0].name,):
            assert all(isinstance(plan[name], Neuron) for name in spec.inputs)
        if isinstance(spec, Neuron):
            assert all(isinstance(plan[name], Connection) for name in spec.inputs)
    assert [spec.name for spec in plan.specs if plan.specs[0].name in spec.inputs] == [f"{plan.specs[0].name}#into"]


def test_lanes_beside_an_attention_need_a_relay() -> None:
    """Else the relays would be tested by nothing: on a CPU the plan does without."""
    graph = expanded(0)
    without = Loihi2Target().lower(graph)
    direct = [
        spec.name
        for spec in without.specs
        if isinstance(spec, Connection) and any(isinstance(without[name], Connection) for name in spec.inputs)
    ]
    assert direct
    relays = [spec for spec in chip_plan(graph).specs if spec.name.endswith("#relay")]
    assert len(relays) == len(direct) and all(isinstance(spec, AdderSpec) and spec.vth == 0 for spec in relays)


@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_recorded_is_sent_by_a_neuron(seed: int) -> None:
    plan = chip_plan(expanded(seed, dag=True))
    recorded = sorted({segment.process for home in plan.homes.values() for segment in home})
    probed, senders = with_probes(plan, recorded)
    assert set(senders) == set(recorded)
    for name, sender in senders.items():
        assert isinstance(probed[sender], Neuron) and probed[sender].channels == plan[name].channels
        if sender != name:
            (connection,) = probed[sender].inputs
            copied, original = probed[connection], plan[name]
            assert copied.inputs == original.inputs and type(copied) is type(original)
            readers = [spec.name for spec in probed.specs if connection in spec.inputs]
            assert readers == [sender], "its current goes to one neuron alone"
    assert senders["readout"] == "readout#probe" and "readout#copy" not in {spec.name for spec in probed.specs}


def test_everything_is_one_step_later_than_in_the_schedule() -> None:
    graph = expanded(0)
    plan = Loihi2Target().lower(graph)
    later = for_chip(plan)
    for name, latency in plan.schedule.latency_steps.items():
        assert later.schedule.latency_steps[name] == latency + 1
    assert later.schedule.delay_steps == plan.schedule.delay_steps
    for name, reset in plan.schedule.resets.items():
        assert later.schedule.resets[name].offset_steps == (reset.offset_steps + 1) % 4 == later[name].reset_offset


def test_an_attention_process_has_no_place_in_a_plan_for_the_chip() -> None:
    graph = random_graph(np.random.default_rng(0), blocks=1)
    (attention,) = [node.name for node in graph if isinstance(node, Attention)]
    with pytest.raises(ValueError, match=f"no such process on Loihi 2: {attention}"):
        for_chip(lower(graph))


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("block0.fc1", {}),  # none: without a mistake they agree
        ("block0.fc1", {"reset_offset": -1}),  # one step earlier, as before the entry
        ("source#entry", {"vth": 1}),  # GradedVec's default: single spikes are lost
        ("source#into", {"delay_steps": 1}),
    ],
)
def test_mistakes_in_a_plan_for_the_chip_are_noticed(name: str, mistake: dict[str, int]) -> None:
    graph = expanded(3, dv=410)
    batch = random_batch(np.random.default_rng(3), graph, 8)
    plan = chip_plan(graph)
    spec = plan[name]
    if "reset_offset" in mistake:
        assert isinstance(spec, NeuronSpec)
        mistake = {"reset_offset": (spec.reset_offset + mistake["reset_offset"]) % spec.reset_interval}
    wrong = replace(spec, **mistake)
    specs = tuple(wrong if each is spec else each for each in plan.specs)
    assert agrees(graph, batch, replace(plan, specs=specs)) == (not mistake)


# The network, with adapters that pass everything on

NETWORK = """
import json
import numpy as np
from random_graphs import random_batch, random_dag
from converters.execution import EngineOptions
from converters.passes.expand_attention import ExpandAttention
from sim.reference import ReferenceEngine
from targets.loihi2 import engine, network
from lava.magma.core.run_configs import Loihi2HwCfg

assert type(network.run_config()) is Loihi2HwCfg
# on a chip Lava takes the models of the extension, which has none here: then the fixed point ones for a CPU
network.run_config = lambda: Loihi2HwCfg(select_tag="fixed_pt")
NEURONS, SYNAPSES = ("LIFReset", "GradedVec", "ProdNeuron"), ("Conv", "Sparse", "DelaySparse")

def connect_as_a_chip_can(producer, consumer, honest=network.connect):
    ends = type(producer.process).__name__, type(consumer.process).__name__
    into = {{"SpikeFeed": ("PyToNxAdapter",), "PyToNxAdapter": SYNAPSES, "NxToPyAdapter": ("Recorder",)}}
    into |= dict.fromkeys(SYNAPSES, NEURONS) | dict.fromkeys(NEURONS, (*SYNAPSES, "NxToPyAdapter"))
    assert ends[1] in into[ends[0]], ends
    honest(producer, consumer)

network.connect = connect_as_a_chip_can
{mistake}
rng = np.random.default_rng(int(sys.argv[1]))
graph = ExpandAttention().rewrite(random_dag(rng, nodes=6)).graph
names = [node.name for node in graph]
opened = engine.open_loihi2(graph, EngineOptions())
different = []
for samples in (3, 2):  # the second batch goes through the network that the first has left
    batch = random_batch(rng, graph, samples)
    expected, actual = ReferenceEngine(graph).run(batch, names), opened.run(batch, names)
    different += [name for name in names if not np.array_equal(expected.values[name], actual.values[name])]
    different += [] if np.array_equal(expected.logits, actual.logits) else ["the logits"]
opened.close()
opened.close()
print(json.dumps({{"nodes": len(names), "different": different}}))
"""


def run_network(seed: int, mistake: str = "") -> tuple[int, str, str]:
    require_lava()
    return run_python(NETWORK.format(mistake=mistake), seed, extension=True, NXSDKHOST="198.51.100.7")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_network_gives_every_value_between_adapters(seed: int) -> None:
    code, out, err = run_network(seed)
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    assert result["different"] == [] and result["nodes"] > 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("network.signed = lambda messages: messages", "LavaMismatchError|readout"),
        ("network.with_probes = lambda plan, names: (plan, {name: name for name in names})", "'Conv', 'NxToPyAdapter'"),
        ("engine.for_chip = lambda plan: plan", "Sparse', 'Conv'"),
    ],
)
def test_mistakes_where_host_and_chip_meet_are_noticed(mistake: str, said: str) -> None:
    code, out, err = run_network(0, mistake)
    different = json.loads(out.splitlines()[-1])["different"] if code == 0 else []
    assert re.search(said, f"{different} {err}")


@pytest.mark.slow
def test_the_command_of_a_lab_verifies_the_golden_samples(bundle: Path) -> None:
    """`spikebert-run BUNDLE --engine loihi2 --verify --json`, and the logits of the reference."""
    require_lava()
    on_cpu = (
        "import targets.loihi2.network as network\n"
        "from lava.magma.core.run_configs import Loihi2HwCfg\n"
        "network.run_config = lambda: Loihi2HwCfg(select_tag='fixed_pt')\n"
    )
    code, out, err = run_python(
        on_cpu + RUN, bundle, "--engine", "loihi2", "--verify", "--json", extension=True, NXSDKHOST="198.51.100.7"
    )
    assert code == 0, err
    result = json.loads(out)
    assert result["engine"] == "loihi2" and result["verify"]["mismatches"] == 0
    assert result["verify"]["values_compared"] > 1000
    code, out, _ = run_python(RUN, bundle, "--engine", "reference", "--verify", "--json")
    assert code == 0 and json.loads(out)["logits"] == result["logits"]


# What a chip gave

TUTORIALS = """
import json
import numpy as np
import lava.frameworks.loihi2 as lv

def run(network, monitor, steps):
    try:
        network.run(condition=lv.RunSteps(num_steps=steps), run_cfg=lv.Loihi2SimCfg(select_tag="fixed_pt"))
        return monitor.get_data().tolist()
    finally:
        network.stop()

first, second = np.array([[2, 6, 10, -2, -6]]).T / 16, np.array([[4, 8, 12, -4, 8]]).T / 16
inputs = np.zeros((1, 10))
inputs[0, [2, 6]] = 16, 32
one, two = lv.GradedDense(weights=first), lv.GradedDense(weights=second)
product, monitor = lv.ProductVec(shape=(5,), vth=1, exp=0), lv.OutputVec(shape=(5,), buffer=10)
product << (one @ lv.InputVec(inputs.copy()), two @ lv.InputVec(inputs.copy()))
monitor << product
results = [run(product, monitor, 10)]

one, two = lv.GradedDense(weights=first), lv.GradedDense(weights=second)
a, b, out = (lv.GradedVec(shape=(5,), vth=1, exp=0) for _ in range(3))
monitor = lv.OutputVec(shape=(5,), buffer=10)
a << one @ lv.InputVec(inputs.copy())
b << two @ lv.InputVec(inputs.copy())
out << a * b
monitor << out
results.append(run(a, monitor, 10))
print(json.dumps(results))
"""


@pytest.mark.slow
def test_published_outputs_of_the_chip_come_at_the_steps_of_lavas_cpu_models() -> None:
    """Cells 8 and 12 of lava-nc's tutorials/lava_va/Tutorial02, whose output begins with "Running on Loihi 2".

    A connection took the chip one step and a neuron none, and so did it Lava's CPU models: `LATENCIES`.
    """
    require_lava()
    code, out, err = run_python(TUTORIALS)
    assert code == 0, err
    product, of_neurons = (np.array(result) for result in json.loads(out.splitlines()[-1]))
    chip = np.array([[8, 48, 120, 8, -48], [32, 192, 480, 32, -192]]).T
    assert np.array_equal(product[:, (3, 7)], chip)  # inputs at 2 and 6: one connection
    assert np.array_equal(of_neurons[:, 5], chip[:, 0])  # three connections
    assert np.count_nonzero(product) == 10 and np.count_nonzero(of_neurons) == 10
