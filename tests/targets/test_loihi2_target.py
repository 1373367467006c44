"""The target `loihi2`: every rule with a graph that just passes and one that just fails, and the schedule it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from random_graphs import random_dag, random_graph
from unheard import Unheard

from converters.bundle import read_bundle
from converters.export_command import main as spikebert_export
from converters.graph import LIF, Add, Attention, Graph, Node, Readout, Relay, Source, Synapses
from converters.passes.expand_attention import ExpandAttention
from converters.schedule import LatencyTable
from targets.lava import rules as lava_rules
from targets.lava.lowering import LATENCIES as LAVA_LATENCIES
from targets.lava.target import LavaTarget, describe, require_schedule
from targets.legality import IllegalGraphError, Rule
from targets.loihi2 import rules
from targets.loihi2.rules import LAID_OUT_RULES, LATENCIES, RULES
from targets.loihi2.target import Loihi2Target

ALL_RULES = (*RULES, *LAID_OUT_RULES)
EYE, ZERO = np.eye(2, dtype=np.int8), np.zeros(2, dtype=np.int32)


def chain(depth: int = 1, threshold: int | np.ndarray = 0) -> list[Node]:
    """A source x and `depth` layers s0, s1, ..."""
    nodes: list[Node] = [Source("x", np.ones((3, 2), dtype=np.int8))]
    for index in range(depth):
        before = "x" if index == 0 else f"s{index - 1}"
        nodes += [Synapses(f"a{index}", (before,), EYE, ZERO), LIF(f"s{index}", (f"a{index}",), threshold)]
    return nodes


def graph_of(*nodes: Node, timesteps: int = 4) -> Graph:
    """With a readout of the last node."""
    return Graph(timesteps, 2, (*nodes, Readout("y", (nodes[-1].name,), EYE, ZERO)))


def broken(graph: Graph) -> list[tuple[str, str, int, int]]:
    return [(each.node, each.rule, each.value, each.limit) for each in Loihi2Target().check(graph)]


def expanded(seed: int, **options: object) -> Graph:
    """A small transformer whose attention is made of stock neurons."""
    return ExpandAttention().rewrite(random_graph(np.random.default_rng(seed), blocks=1, n_max=3, **options)).graph


# Rules


@pytest.mark.parametrize("seed", range(10))
def test_random_graphs_without_attention_processes_are_legal(seed: int) -> None:
    attention = ("plain", "unbiased")[seed % 2]
    graph = random_dag(np.random.default_rng(seed), timesteps=(1, 2, 4, 8, 16)[seed % 5], attention=attention)
    assert broken(ExpandAttention().rewrite(graph).graph) == []


@pytest.mark.parametrize("timesteps", [1, 2, 4, 8, 16, 1024])
def test_a_power_of_two_of_timesteps_is_legal(timesteps: int) -> None:
    assert broken(graph_of(*chain(), timesteps=timesteps)) == []


@pytest.mark.parametrize(("timesteps", "odd"), [(3, 3), (6, 3), (12, 3), (10, 5), (15, 15), (1025, 1025)])
def test_other_timesteps_are_refused(timesteps: int, odd: int) -> None:
    assert broken(graph_of(*chain(), timesteps=timesteps)) == [("x", "power-of-two-timesteps", odd, 1)]
    assert LavaTarget().check(graph_of(*chain(), timesteps=timesteps)) == [], "a limit of the chip, not of Lava"


def test_an_attention_process_is_refused_with_its_remedy_which_helps() -> None:
    graph = graph_of(*chain(), Attention("attended", ("s0", "s0", "s0"), 1), LIF("s1", ("attended",), 0))
    (violation,) = Loihi2Target().check(graph)
    assert (violation.node, violation.rule, violation.value) == ("attended", "no-attention-process", 1)
    assert "--pass expand-attention" in violation.remedy and "--attention stock" in violation.remedy
    assert broken(ExpandAttention().rewrite(graph).graph) == []


def test_a_position_bias_is_refused_with_what_would_help() -> None:
    biased = Attention("attended", ("s0", "s0", "s0"), 1, "xnor", np.ones((1, 2, 2), int))
    graph = graph_of(*chain(), biased, LIF("s1", ("attended",), 0))
    assert broken(graph) == [("attended", "no-attention-process", 1, 0), ("attended", "no-position-bias", 1, 0)]
    assert "attention_position none" in Loihi2Target().check(graph)[1].remedy
    assert LavaTarget().check(graph) == [], "a limit of the chip, not of Lava"
    without = graph_of(*chain(), replace(biased, bias=None), LIF("s1", ("attended",), 0))
    assert broken(ExpandAttention().rewrite(without).graph) == []


def test_one_threshold_for_a_layer() -> None:
    assert broken(graph_of(*chain(threshold=np.array([3, 3])))) == []
    assert broken(graph_of(*chain(threshold=np.array([3, 4])))) == [("s0", "scalar-threshold", 2, 1)]


def wide(fan_in: int, bias: int = 0) -> Graph:
    """A readout whose row 0 reads `fan_in` neurons, all there are, and row 1 one."""
    weight = np.ones((2, fan_in), dtype=np.int8)
    weight[1, 1:] = 0
    source = Source("x", np.ones((3, fan_in), dtype=np.int8))
    return Graph(4, 2, (source, Readout("y", ("x",), weight, np.array([0, bias]))))


def test_a_neuron_reads_4096_others_at_most() -> None:
    assert broken(wide(4096)) == []
    assert broken(wide(4097)) == [("y", "bounded-fan-in", 4097, 4096)]


def test_weights_of_zero_are_no_fan_in() -> None:
    graph = wide(4097)
    weight = graph.readout.weight.copy()
    weight[0, 7] = 0
    assert broken(Graph(4, 2, (graph.source, replace(graph.readout, weight=weight)))) == []


def test_lanes_of_biases_are_fan_in_too() -> None:
    """Row 0 has no bias and stays; a bias of row 1, which reads one neuron, is one lane more there."""
    assert broken(wide(4096, bias=1)) == []
    graph = wide(4096)
    biased = Graph(4, 2, (graph.source, replace(graph.readout, bias=np.array([1, 0]))))
    assert broken(biased) == [("y", "bounded-fan-in", 4097, 4096)]


def test_a_residual_waits_63_steps_at_most() -> None:
    def with_residual(depth: int) -> Graph:
        return graph_of(*chain(depth), Add("sum", ("x", f"s{depth - 1}")))

    assert broken(with_residual(63)) == []
    assert broken(with_residual(64)) == [("sum", "bounded-delay", 64, 63)]


def test_delays_go_by_the_latencies_of_the_chip(monkeypatch) -> None:
    """Were a layer to take two steps there, half as many would be too many."""
    graph = graph_of(*chain(40), Add("sum", ("x", "s39")))
    assert broken(graph) == []
    slow = lava_rules.delay_rule(rules.limits.DELAY, LatencyTable(synapses=2))
    monkeypatch.setattr(Loihi2Target, "laid_out_rules", (slow,))
    assert broken(graph) == [("sum", "bounded-delay", 80, 63)]


def test_graded_messages_have_23_bits_and_a_sign() -> None:
    def doubled(times: int) -> Graph:
        sums = [Add(f"d{index}", ("x" if index == 0 else f"d{index - 1}",) * 2) for index in range(times)]
        return Graph(4, 2, (*chain(), *sums, Readout("y", ("s0",), EYE, ZERO)))

    assert broken(doubled(22)) == []
    assert broken(doubled(23)) == [("d22", "bounded-message-bits", 24, 23)]
    assert LavaTarget().check(doubled(23)) == [], "on a CPU the 24th bit is one more"


def test_a_weight_of_minus_128_is_refused() -> None:
    weight = np.array([[-128, -1], [-1, -127]])
    graph = Graph(4, 2, (*chain(), Readout("y", ("s0",), weight, ZERO)))
    assert broken(graph) == [("y", "bounded-weight", 256, 255)]
    assert broken(Graph(4, 2, (*chain(), Readout("y", ("s0",), weight + 1, ZERO)))) == []


def test_a_current_beyond_24_bits_of_u_is_refused_even_where_a_graph_would_allow_it(monkeypatch) -> None:
    monkeypatch.setattr("converters.graph.ACCUMULATOR_MAX", 2**20)

    def reaching(current: int) -> Graph:
        return Graph(4, 2, (*chain(), Readout("y", ("s0",), EYE, np.array([0, current - 1]))))

    assert ("y", "bounded-current", 131072, 131071) in broken(reaching(65536))
    assert broken(reaching(65535)) == []


def test_a_relay_is_for_products() -> None:
    nodes = (*chain(), Synapses("a", ("s0",), EYE, ZERO), Relay("twice", ("a",)), Add("sum", ("twice", "s0")))
    assert broken(graph_of(*nodes)) == [("twice", "relay-into-product", 1, 0)]
    assert broken(expanded(0)) == []


def test_everything_wrong_is_named_at_once() -> None:
    nodes = (
        *chain(65, np.array([1, 2])), Attention("attended", ("s0", "s0", "s0"), 1), LIF("last", ("attended",), 0),
        Add("sum", ("x", "s64", "last")),
    )  # fmt: skip
    graph = Graph(6, 2, (*nodes, Readout("y", ("sum",), -128 * EYE, ZERO)))
    found = {(node, rule) for node, rule, _, _ in broken(graph)}
    assert found == {
        ("x", "power-of-two-timesteps"), ("attended", "no-attention-process"), ("y", "bounded-weight"),
        ("sum", "bounded-delay"), *((f"s{index}", "scalar-threshold") for index in range(65)),
    }  # fmt: skip
    with pytest.raises(IllegalGraphError, match="not legal for the target 'loihi2'") as raised:
        Loihi2Target().lower(graph)
    assert len(raised.value.to_json()) == len(found)


def test_rules_that_lava_has_too_are_the_same_functions() -> None:
    of_lava = {rule.name: rule for rule in (*lava_rules.RULES, *lava_rules.LAID_OUT_RULES)}
    common = [rule for rule in ALL_RULES if rule.name in of_lava and rule.name != "bounded-delay"]
    assert {rule.name for rule in common} == set(of_lava) - {"bounded-delay", "attention-inputs"}
    assert all(rule.measure is of_lava[rule.name].measure for rule in common)
    delay, of_chip = of_lava["bounded-delay"], rules.bounded_delays
    assert (delay.measure.__code__, delay.remedy) == (
        of_chip.measure.__code__,
        of_chip.remedy,
    )  # two tables of latencies


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: rule.name)
def test_a_rule_explains_itself(rule: Rule) -> None:
    assert rule.explanation.endswith(".") and rule.remedy


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: rule.name)
def test_a_rule_passes_over_nodes_it_does_not_know(rule: Rule) -> None:
    """The node is smuggled in after the Graph was checked."""
    honest = graph_of(*chain(), Add("sum", ("x", "s0")))
    graph = object.__new__(Graph)
    vars(graph).update(timesteps=4, n_max=2, nodes=(*honest.nodes[:-1], Unheard("new", ("x", "s0")), honest.readout))
    assert list(rule(graph)) == []


# The schedule


def test_the_chip_takes_a_step_for_every_connection() -> None:
    """Equal to Lava's on a CPU: docs/loihi2.md says why. Whoever changes one must say why the other stays."""
    assert LATENCIES == LAVA_LATENCIES == Loihi2Target.latencies
    latency = Loihi2Target().lower(expanded(1)).schedule.latency_steps
    assert latency["block0.attention"] - latency["block0.q"] == 4  # coincidence, scores, product, sum
    assert latency["readout"] == 11


def test_an_emitted_schedule_is_that_of_the_plan(tmp_path: Path) -> None:
    graph = expanded(1)
    Loihi2Target().emit(graph, tmp_path / "loihi2")
    stored = json.loads((tmp_path / "loihi2" / "schedule.json").read_text())
    plan = Loihi2Target().lower(graph)
    assert stored == json.loads(json.dumps(describe(plan)))
    require_schedule(plan, tmp_path / "loihi2")
    resets = {entry["reset_interval_steps"] for entry in stored["processes"] if "reset_interval_steps" in entry}
    assert resets == {4}
    kinds = {entry["process"] for entry in stored["processes"]}
    assert kinds == {"SpikeFeed", "Conv", "LIFReset", "GradedVec", "ProdNeuron", "Sparse", "DelaySparse"}
    LavaTarget().emit(graph, tmp_path / "lava")
    assert stored == json.loads((tmp_path / "lava" / "schedule.json").read_text())  # as long as the latencies are equal


def test_a_slower_chip_would_have_another_schedule(monkeypatch) -> None:
    """The control of that equality: the table is really used."""
    monkeypatch.setattr(Loihi2Target, "latencies", LatencyTable(synapses=2, add=3))
    schedule = Loihi2Target().lower(graph_of(*chain(2), Add("sum", ("x", "s1")))).schedule
    assert (schedule.latency_steps["s1"], schedule.latency_steps["sum"]) == (4, 7)
    assert schedule.delay_steps["sum"] == (4, 0)


def test_an_illegal_graph_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(IllegalGraphError):
        Loihi2Target().emit(graph_of(*chain(), timesteps=3), tmp_path / "loihi2")
    assert not (tmp_path / "loihi2").exists()


# spikebert-export


def test_export_refuses_a_transformer_as_it_is_and_takes_it_expanded(trained: Path, tmp_path: Path, capfd) -> None:
    out = tmp_path / "bundle"
    arguments = ["--model", str(trained / "run"), "--out", str(out), "--target", "loihi2", "--json"]
    assert spikebert_export(arguments) == 1
    captured = capfd.readouterr()
    refused = json.loads(captured.out)
    assert refused["bundle"] is None and not out.exists()
    assert [each["rule"] for each in refused["violations"]] == ["no-attention-process"]
    assert captured.err.startswith(
        "error: the graph is not legal for the target 'loihi2':\n  node 'blocks.0.attention'"
    )
    assert "--pass expand-attention" in captured.err and "Traceback" not in captured.err

    assert spikebert_export([*arguments, "--pass", "expand-attention"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["target"] == "loihi2" and report["verify"]["mismatches"] == 0
    assert not any(isinstance(node, Attention) for node in read_bundle(out).graph)
    stored = json.loads((out / "loihi2" / "schedule.json").read_text())
    assert stored["timesteps"] == 4 and len(stored["processes"]) > 30


def test_checking_and_writing_need_no_lava(tmp_path: Path) -> None:
    script = f"""
import sys
sys.path[:] = {sys.path!r}
sys.modules["lava"] = None
import numpy as np
from pathlib import Path
from random_graphs import random_graph
from converters.passes.expand_attention import ExpandAttention
from targets.loihi2.chip_plan import for_chip
from targets.loihi2.target import Loihi2Target

graph = ExpandAttention().rewrite(random_graph(np.random.default_rng(1), blocks=1, n_max=2)).graph
Loihi2Target().emit(graph, Path({str(tmp_path)!r}))
for_chip(Loihi2Target().lower(graph))
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert (tmp_path / "schedule.json").exists()
