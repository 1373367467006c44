"""Gradient checkpointing changes what is kept, and nothing else: gradients, statistics, spikes and runs are equal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from several_processes import run_to_the_end
from small_models import small_batch, small_model
from small_teachers import recipe_arguments
from small_training import train
from torch import Tensor, nn

from converters.from_torch import graph_from_model
from spikebert import Block, Encoder, Readout, SpikingLinear, checkpointed, model, synchronised_norm
from spikebert.layers import Logits
from spikebert.model import SpikeBertForSequenceClassification, SpikeBertOutput
from spikebert.neurons import LoihiLIF
from spikebert.quantisation import quantise
from spikebert.recording import record
from spikebert.spikes import Spikes
from spikebert.synchronised_norm import SynchronisedBatchNorm
from spikebert.train_command import main

TRAINING = Path(__file__).parents[1] / "small_training.py"
LABELS = torch.tensor([0, 1, 2, 1, 0])


def make(integer: bool = False, checkpointing: bool = False, path: str = "auto", **changes) -> nn.Module:
    """A small model in training. path: of its neurons."""
    student = small_model(**changes)
    student = (quantise(student) if integer else student).train()
    for module in student.modules():
        if isinstance(module, LoihiLIF):
            module.path = path
    if checkpointing:
        student.gradient_checkpointing_enable()
    return student


def forward(student: nn.Module, mixed: bool = False, **options) -> tuple[Tensor, SpikeBertOutput]:
    """A loss of labels and of hidden states, and all that was given."""
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        output = student(**small_batch(), labels=LABELS, output_hidden_states=True, **options)
        return output.loss + sum(state.square().mean() for state in output.hidden_states), output


def two_steps(student: nn.Module, mixed: bool = False) -> dict[str, Tensor]:
    """Losses, the gradients of both steps, and what the model holds then."""
    optimiser = torch.optim.SGD(student.parameters(), lr=0.1)
    found = {}
    for step in range(2):
        loss, _ = forward(student, mixed)
        loss.backward()
        found[f"loss of step {step}"] = loss.detach()
        for name, parameter in student.named_parameters():
            found[f"gradient {name} of step {step}"] = parameter.grad.clone()
        optimiser.step()
        optimiser.zero_grad()
    return found | {name: value.clone() for name, value in student.state_dict().items()}


def differences(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name, value in one.items() if not torch.equal(value, other[name])]


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize(
    ("decay", "path", "timesteps", "mixed"),
    [(2048, "auto", 4, False), (2048, "auto", 4, True), (410, "plain", 8, False), (4095, "auto", 1, True)],
)
def test_steps_are_equal_in_every_bit(integer: bool, decay: int, path: str, timesteps: int, mixed: bool) -> None:
    shape = {"integer": integer, "path": path, "decay": decay, "timesteps": timesteps}
    kept, again = (two_steps(make(checkpointing=on, **shape), mixed) for on in (False, True))
    assert differences(kept, again) == []
    assert kept["gradient blocks.0.query.linear.weight of step 1"].any(), "zeros would prove nothing"
    if not integer:
        assert int(again["blocks.1.down.norm.num_batches_tracked"]) == 2


@pytest.mark.parametrize("integer", [False, True])
def test_learned_positions_are_learned_alike(integer: bool) -> None:
    shape = {"integer": integer, "attention_similarity": "xnor", "attention_position": "learned"}
    kept, again = (two_steps(make(checkpointing=on, attention_threshold=16, **shape)) for on in (False, True))
    assert differences(kept, again) == []
    assert kept["gradient blocks.0.attention.position_bias.weight of step 1"].any()


def test_a_norm_that_counts_twice_is_noticed(monkeypatch) -> None:
    kept = two_steps(make())
    monkeypatch.setattr(synchronised_norm, "is_second_run", lambda: False)
    wrong = differences(kept, two_steps(make(checkpointing=True)))
    assert {name.rpartition(".")[2] for name in wrong} == {"running_mean", "running_var", "num_batches_tracked"}


def test_a_norm_asks_other_processes_once(monkeypatch) -> None:
    """Of several processes, here played by one: in backward it uses what it was told in the forward pass."""
    asked = []
    monkeypatch.setattr(synchronised_norm, "process_count", lambda: 2)
    statistics = synchronised_norm.statistics
    monkeypatch.setattr(synchronised_norm, "statistics", lambda x: (asked.append(1), statistics(x))[1])
    kept = two_steps(make())
    usual = len(asked)
    assert usual == 2 * sum(isinstance(module, SynchronisedBatchNorm) for module in make().modules())
    assert differences(kept, two_steps(make(checkpointing=True))) == [] and len(asked) == 2 * usual


# What is kept


def saved_bytes(student: nn.Module) -> int:
    """What autograd keeps of a forward pass, each piece of memory once."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _, output = forward(student)
    del output
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def still_there(student: nn.Module, mixed: bool = False) -> set[str]:
    """The modules whose outputs are still in memory after a forward pass."""
    outputs = {}

    def watch(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            values = output.values if isinstance(output, Spikes) else output
            if isinstance(values, Tensor):
                outputs[name] = torch.multiprocessing.reductions.StorageWeakRef(values.untyped_storage())

        return hook

    for name, module in student.named_modules():
        if isinstance(module, (LoihiLIF, nn.BatchNorm1d, Block)):
            module.register_forward_hook(watch(name))
    loss, output = forward(student, mixed)
    del output
    assert loss.requires_grad
    return {name for name, reference in outputs.items() if not reference.expired()}


@pytest.mark.parametrize("integer", [False, True])
def test_of_a_checkpointed_block_autograd_keeps_its_input(integer: bool) -> None:
    kept, again = (
        [saved_bytes(make(integer, checkpointing, num_hidden_layers=blocks)) for blocks in (1, 2, 3)]
        for checkpointing in (False, True)
    )
    of_a_block, of_a_block_again = kept[1] - kept[0], again[1] - again[0]
    mask = small_batch()["attention_mask"]
    given, state = 4 * int(mask.sum()) * 16 * 4, mask.numel() * 16 * 4  # float32 [T, R, D] and [B, N, D]
    assert of_a_block_again == again[2] - again[1] <= given + state
    assert of_a_block == kept[2] - kept[1] > 10 * of_a_block_again


def test_nothing_else_stays_in_memory() -> None:
    everything = still_there(make())
    assert {"blocks.0.query.norm", "blocks.0.up.norm", "blocks.0.up.lif", "blocks.0"} <= everything
    assert still_there(make(checkpointing=True)) == {"encoder.lif", "blocks.0", "blocks.1"}


def test_training_keeps_no_spikes_that_nobody_reads() -> None:
    """Under mixed precision autograd keeps them as bf16: those in float32 end with the forward pass of their block."""
    student, present = make(), []
    student.readout.register_forward_pre_hook(lambda module, inputs: present.append(inputs[0].inputs))
    assert not {name for name in still_there(student, mixed=True) if name.startswith("blocks.0.") and ".lif" in name}
    student.eval()(**small_batch())
    assert present[0] == () and len(present[1]) == 2, "in evaluation their history is there to be recorded"


# Recording, rounding, export


@pytest.mark.parametrize("integer", [False, True])
def test_outputs_on_request_are_the_same(integer: bool) -> None:
    trace = ["encoder", "blocks.0.attention", "blocks.1.up.lif", "readout"]
    wanted = {"output_firing_rates": True, "output_trace": trace}
    (loss, kept), (loss_again, again) = (forward(make(integer, on), **wanted) for on in (False, True))
    assert torch.equal(loss, loss_again) and torch.equal(kept.logits, again.logits)
    assert all(torch.equal(*states) for states in zip(kept.hidden_states, again.hidden_states))
    assert len(kept.firing_rates) > 15 and differences(kept.firing_rates, again.firing_rates) == []
    assert sorted(kept.trace) == sorted(trace) and differences(kept.trace, again.trace) == []


def test_a_model_that_was_trained_so_is_recorded_rounded_and_exported_as_any() -> None:
    kept, again = make(), make(checkpointing=True)
    batch = small_batch()
    recordings = [record(student, batch["input_ids"], batch["attention_mask"]).packed() for student in (kept, again)]
    assert len(recordings[0]) > 20 and differences(*recordings) == []
    assert again.training and again.is_gradient_checkpointing
    rounded = [quantise(student) for student in (kept, again)]
    assert differences(*(student.state_dict() for student in rounded)) == []
    assert rounded[1].config.to_dict() == rounded[0].config.to_dict()
    graphs = [graph_from_model(student.train()) for student in rounded]
    assert [(node.name, node.inputs) for node in graphs[0]] == [(node.name, node.inputs) for node in graphs[1]]


def test_it_can_be_switched_off_again_and_is_not_saved(tmp_path: Path) -> None:
    student = make(checkpointing=True)
    student.save_pretrained(tmp_path)
    assert not SpikeBertForSequenceClassification.from_pretrained(tmp_path).is_gradient_checkpointing
    student.gradient_checkpointing_disable()
    assert not student.is_gradient_checkpointing and still_there(student) == still_there(make())


# Models of one's own


class Own(nn.Module):
    """A block with dropout, checkpointed or not."""

    def __init__(self, checkpointing: bool, **options) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.checkpointing, self.options = checkpointing, options
        self.encoder, self.readout = Encoder(50, 16, 9), Readout(16, 3)
        self.part = nn.Sequential(SpikingLinear(16, 24), nn.Dropout(0.5), SpikingLinear(24, 16))
        self.part[0].norm.bias.data.fill_(1.0)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Logits:
        x = self.encoder(input_ids, attention_mask)
        return self.readout(x + (checkpointed(self.part, x) if self.checkpointing else self.part(x)))


def own_gradients(checkpointing: bool) -> dict[str, Tensor]:
    own = Own(checkpointing)
    torch.manual_seed(1)
    own(**small_batch()).logits.square().sum().backward()
    return {name: parameter.grad for name, parameter in own.named_parameters()} | {"random": torch.rand(3)}


def test_dropout_is_drawn_once() -> None:
    assert differences(own_gradients(False), own_gradients(True)) == []


def test_in_evaluation_and_without_gradients_nothing_is_checkpointed() -> None:
    own = Own(checkpointing=True).eval()
    assert [step.name for step in record(own, **small_batch()).steps] == ["encoder", "part.0", "part.2", "add"]
    with torch.no_grad():
        own.train()(**small_batch())
    assert int(own.part[2].norm.num_batches_tracked) == 1


def test_a_checkpointed_layer_within_another_is_refused() -> None:
    own = Own(checkpointing=True)
    own.part.append(Nested())
    with pytest.raises(RuntimeError, match="a checkpointed SpikingLinear within a checkpointed layer"):
        own(**small_batch())


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = SpikingLinear(16, 16)

    def forward(self, x: Spikes) -> Spikes:
        return checkpointed(self.layer, x)


# Several processes


@pytest.mark.parametrize("mode", ["float", pytest.param("integer", marks=pytest.mark.slow)])
def test_two_processes_do_the_same_steps(tmp_path: Path, mode: str) -> None:
    """The last of three batches is too small to be shared out: each process runs it whole, alone."""
    run_to_the_end(2, TRAINING, tmp_path / "kept", "--mode", mode)
    run_to_the_end(2, TRAINING, tmp_path / "again", "--mode", mode, "--checkpointing")
    for process in range(2):
        weights, steps = (
            [torch.load(tmp_path / run / f"{what}-{process}.pt", weights_only=True) for run in ("kept", "again")]
            for what in ("weights", "steps")
        )
        assert differences(*weights) == []
        assert len(steps[0]) == 3
        for kept, again in zip(*steps):
            assert kept["texts"] == again["texts"] and differences(kept["gradients"], again["gradients"]) == []


def test_one_process_trains_to_the_same_weights(tmp_path: Path) -> None:
    weights = []
    for checkpointing in (False, True):
        train(tmp_path / str(checkpointing), "float", checkpointing=checkpointing)
        weights.append(torch.load(tmp_path / str(checkpointing) / "weights-0.pt", weights_only=True))
    assert differences(*weights) == []


# Recipes


def test_a_recipe_with_it_gives_the_same_result(trained: Path, tmp_path: Path, monkeypatch) -> None:
    blocks = []
    monkeypatch.setattr(model, "checkpointed", lambda block, *rest: (blocks.append(1), checkpointed(block, *rest))[1])
    arguments = [*recipe_arguments(trained), f"--out={tmp_path / 'run'}", "--gradient_checkpointing=true"]
    shutil.copytree(trained / "run" / "teacher", tmp_path / "run" / "teacher")
    assert main(arguments) == 0
    assert len(blocks) > 30, "it was not switched on"
    for stage in ("stage1", "stage2", "integer"):
        kept, again = (load_file(run / "run" / stage / "model.safetensors") for run in (trained, tmp_path))
        assert differences(kept, again) == [], stage
    kept, again = (json.loads((run / "run" / "results.json").read_text()) for run in (trained, tmp_path))
    assert kept["accuracy"] == again["accuracy"] and kept["firing_rates"] == again["firing_rates"]


def test_it_is_no_other_recipe(trained: Path, tmp_path: Path, capfd) -> None:
    """A finished or a stopped run may go on with it, or without."""
    shutil.copytree(trained / "run", tmp_path / "run")  # its results.json is written again
    assert main([*recipe_arguments(trained), f"--out={tmp_path / 'run'}", "--gradient_checkpointing=true"]) == 0
    assert "integer: finished before" in capfd.readouterr().err
