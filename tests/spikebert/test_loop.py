"""The training loop: it learns, keeps the best, and goes on after being killed as if nothing had happened."""

from __future__ import annotations

import io
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from spikebert import loop
from spikebert.commands import UserError
from spikebert.data import TokenisedTexts, shuffled_batches
from spikebert.loop import Losses, Schedule, Score, choose_precision, fit, learning_rate, parameter_groups

TEXTS = TokenisedTexts([[i % 5, i % 3] for i in range(40)], [i % 2 for i in range(40)])


class Killed(Exception):
    """Stands for a kill in the middle of training."""


def train(folder, epochs: int = 3, kill_at: int | None = None, evaluate=None, patience: int = 0, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 2))
    steps = 0

    def loss_of(wrapped: nn.Module, batch: dict) -> Losses:
        nonlocal steps
        if steps == kill_at:
            raise Killed
        steps += 1
        loss = nn.functional.cross_entropy(wrapped(batch["input_ids"]), batch["labels"])
        return {"loss": 2 * loss, "half": loss.detach()}

    schedule = Schedule(epochs, batch_size=8, learning_rate=0.05, patience=patience)
    device = Accelerator(cpu=True)
    outcome = fit(model, loss_of, lambda epoch: TEXTS, schedule, folder, device, 0, 1, evaluate, **options)
    return model, outcome, steps


def test_a_killed_run_goes_on_bit_by_bit(tmp_path) -> None:
    whole, outcome, steps = train(tmp_path / "whole")
    assert steps == 15 and outcome.sentences == 15 * 8
    with pytest.raises(Killed):
        train(tmp_path / "killed", kill_at=8, checkpoint_seconds=0)
    resumed, outcome, steps = train(tmp_path / "killed", checkpoint_seconds=0)
    assert steps == 7 and outcome.sentences == 15 * 8, "what was done before the kill counts"
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_checkpoint_of_an_earlier_version_is_a_start(tmp_path) -> None:
    """It had one random state, that of the one process, and counted neither seconds nor sentences."""
    whole, _, _ = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "killed", kill_at=8, checkpoint_seconds=0)
    checkpoint = tmp_path / "killed" / "checkpoint.pt"
    content = torch.load(checkpoint, weights_only=True)
    content["random"] = content["random"][0][0]
    for name in ("seconds", "sentences", "best_figures"):
        del content["position"][name]
    torch.save(content, checkpoint)
    resumed, _, steps = train(tmp_path / "killed")
    assert steps == 7
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_checkpoint_in_which_all_learned_at_one_rate_is_refused(tmp_path) -> None:
    """Where the model has more groups of parameters by now."""
    with pytest.raises(Killed):
        train(tmp_path, kill_at=8, checkpoint_seconds=0)
    checkpoint = tmp_path / "checkpoint.pt"
    content = torch.load(checkpoint, weights_only=True)
    content["optimiser"]["param_groups"] *= 2
    torch.save(content, checkpoint)
    with pytest.raises(UserError, match=r"checkpoint\.pt is of an earlier version.*delete it to start again"):
        train(tmp_path)
    assert checkpoint.exists()


def test_another_number_of_threads_is_said(tmp_path, capsys) -> None:
    """It rounds otherwise. With the number it had nothing is said."""
    torch.set_num_threads(1)
    for threads, said in ((2, "written with 1 threads, this run has 2"), (1, "")):
        folder = tmp_path / str(threads)
        with pytest.raises(Killed):
            train(folder, kill_at=8, checkpoint_seconds=0)
        torch.set_num_threads(threads)
        capsys.readouterr()
        train(folder, checkpoint_seconds=0)
        noted = capsys.readouterr().err
        assert said in noted and ("OMP_NUM_THREADS=1" in noted) == bool(said)
        torch.set_num_threads(1)


def test_another_arithmetic_is_said(tmp_path, capsys) -> None:
    with pytest.raises(Killed):
        train(tmp_path, kill_at=8, checkpoint_seconds=0)
    checkpoint = tmp_path / "checkpoint.pt"
    content = torch.load(checkpoint, weights_only=True)
    assert content["arithmetic"] == "no on cpu"
    torch.save(content | {"arithmetic": "bf16 on cuda"}, checkpoint)
    capsys.readouterr()
    train(tmp_path)
    assert "written with precision bf16 on cuda, this run has no on cpu: numbers are rounded" in capsys.readouterr().err


class Interrupted(io.BytesIO):
    """A file in whose midst Ctrl-C is pressed."""

    def write(self, data: object) -> int:
        if self.tell() > 1000:
            raise KeyboardInterrupt
        return super().write(data)  # type: ignore[arg-type]


def test_ctrl_c_while_a_checkpoint_is_written(tmp_path, monkeypatch) -> None:
    """torch makes a RuntimeError of it; the checkpoint before stays."""
    with pytest.raises(Killed):
        train(tmp_path, kill_at=8, checkpoint_seconds=0)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with monkeypatch.context() as full:
        full.setattr(loop, "open", lambda *_: Interrupted(), raising=False)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, checkpoint_seconds=0)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_checkpoint_of_other_texts_is_refused(tmp_path) -> None:
    with pytest.raises(Killed):
        train(tmp_path, kill_at=8, checkpoint_seconds=0)
    checkpoint = tmp_path / "checkpoint.pt"
    content = torch.load(checkpoint, weights_only=True)
    content["position"]["step"] = 4  # the second of two processes that each counted for itself
    torch.save(content, checkpoint)
    with pytest.raises(UserError, match="delete it to start again"):
        train(tmp_path)


def test_the_figures_of_a_stage(tmp_path) -> None:
    _, outcome, _ = train(tmp_path)
    figures = outcome.figures()
    assert figures["sentences_per_second"] == pytest.approx(120 / figures["seconds"])
    (peak,) = figures["peak_memory_bytes"]
    assert 50e6 < peak < 1e12, "bytes, of one process with torch in it"
    assert "gpu_peak_memory_bytes" not in figures
    nothing_done = train(tmp_path / "none", epochs=0)[1].figures()
    assert nothing_done["sentences_per_second"] is None


def scored(value: float) -> Score:
    return Score(value, {"accuracy": value}, f"accuracy {value}")


def test_the_best_epoch_is_kept(tmp_path) -> None:
    seen = []

    def evaluate() -> Score:
        seen.append(len(seen))
        return [scored(0.2), scored(0.9), scored(0.5)][seen[-1]]

    _, outcome, _ = train(tmp_path, evaluate=evaluate)
    assert outcome.best == {"accuracy": 0.9} and len(seen) == 3
    figures = outcome.figures()
    assert (figures["accuracy"], figures["best_epoch"], figures["epochs"]) == (0.9, 2, 3)


def test_a_checkpoint_stays_until_what_was_trained_is_kept(tmp_path) -> None:
    """Keeping it may fail, or be killed: the same command again goes on from the last checkpoint."""
    trained, _, _ = train(tmp_path, checkpoint_seconds=0)
    again, outcome, steps = train(tmp_path, checkpoint_seconds=0)
    assert steps == 0 and outcome.epochs == 3 and outcome.sentences == 15 * 8
    for name, value in trained.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"PK\x03\x04 cut off"], ids=["empty", "zeros", "cut"])
def test_a_damaged_checkpoint_is_named(tmp_path, content: bytes) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"checkpoint\.pt is damaged \(.*\): delete it to start again"):
        train(tmp_path)
    with pytest.raises(UserError, match="is damaged"):
        loop.checkpoint_names(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_score_that_is_no_number_stops_the_run(tmp_path, value: float) -> None:
    """Of the last step's weights nothing else tells that they are spoilt; and nothing is better than nan."""
    scores = iter([0.5, value])
    with pytest.raises(RuntimeError, match=r"training: accuracy (nan|-inf), after epoch 2: lower learning_rate"):
        train(tmp_path, evaluate=lambda: scored(next(scores)))


def test_the_start_competes_if_asked(tmp_path) -> None:
    torch.manual_seed(0)
    values = iter([0.95, 0.2, 0.9, 0.5])
    model, outcome, _ = train(tmp_path, evaluate=lambda: scored(next(values)), keep_start=True)
    assert outcome.best == {"accuracy": 0.95} and outcome.best_epoch == 0
    fresh, _, _ = train(tmp_path / "fresh", epochs=0)
    assert torch.equal(model[3].weight, fresh[3].weight)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path) -> None:
    model = nn.Linear(2, 2)

    def loss_of(wrapped: nn.Module, batch: dict) -> Losses:
        return {"loss": wrapped(batch["input_ids"].float()).sum() * float("nan")}

    first = ", ".join(map(str, shuffled_batches(40, 12, (1, 0))[0][:8]))
    said = rf"nan at step 0, in epoch 1, in a batch of 12 texts of 2 to 2 tokens \(numbers {first}, \.\.\. of .*lower"
    with pytest.raises(RuntimeError, match=said):
        fit(model, loss_of, lambda epoch: TEXTS, Schedule(1, 12, 0.1), tmp_path, Accelerator(cpu=True), 0, 1)


@pytest.mark.parametrize("step", [1, 3], ids=["in the middle", "in the last step"])
def test_a_gradient_that_is_no_number_stops_the_run_where_it_is(tmp_path, step: int) -> None:
    """And not a step later, when the weights are spoilt and perhaps in the checkpoint."""
    model, steps = nn.Linear(2, 2), 0

    def loss_of(wrapped: nn.Module, batch: dict) -> Losses:
        nonlocal steps
        loss = wrapped(batch["input_ids"].float()).square().mean()
        if steps == step:
            loss = loss + (0 * wrapped(batch["input_ids"].float())).sum().sqrt()  # of 0: its slope is infinite
        steps += 1
        return {"loss": loss}

    batch = ", ".join(map(str, shuffled_batches(40, 10, (1, 0))[step][:8]))
    said = (
        rf"the gradient of a loss of \d\S* is nan at step {step}, in epoch 1, .* \(numbers {batch}, \.\.\. of .*lower"
    )
    with pytest.raises(RuntimeError, match=said):
        fit(
            model, loss_of, lambda epoch: TEXTS, Schedule(1, 10, 0.1), tmp_path, Accelerator(cpu=True), 0, 1,
            checkpoint_seconds=0,
        )  # fmt: skip
    assert steps == step + 1 and all(value.isfinite().all() for value in model.parameters())
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert kept["position"]["step"] == step and all(value.isfinite().all() for value in kept["model"].values())


def entries(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows of a run: name -> step -> value."""
    shown = EventAccumulator(str(folder / "tensorboard"))
    shown.Reload()
    assert all(
        len({e.step for e in shown.Scalars(name)}) == len(shown.Scalars(name)) for name in shown.Tags()["scalars"]
    )
    return {name: {e.step: e.value for e in shown.Scalars(name)} for name in shown.Tags()["scalars"]}


def test_tensorboard_shows_what_the_loss_is_made_of(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(loop, "LOGGED", 4)
    train(tmp_path, evaluate=lambda: scored(0.5))
    shown = entries(tmp_path)
    steps = {1, 4, 8, 12, 15}
    assert {"loss", "loss_half", "learning_rate", "sentences_per_second", "accuracy"} <= shown.keys()
    assert shown["loss"].keys() == shown["loss_half"].keys() == steps and shown["accuracy"].keys() == {5, 10, 15}
    assert all(shown["loss"][step] == pytest.approx(2 * shown["loss_half"][step]) for step in steps)


def test_tensorboard_shows_each_step_once_of_a_run_that_was_killed(tmp_path, monkeypatch) -> None:
    """What came after the checkpoint is done again."""
    monkeypatch.setattr(loop, "LOGGED", 1)
    train(tmp_path / "whole")
    now = iter([0.0] * 5 + [100.0] * 2 + [0.0] * 99)  # the fifth step, or so, is kept, and no other
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(now), perf_counter=time.perf_counter))
    with pytest.raises(Killed):
        train(tmp_path / "killed", kill_at=9, checkpoint_seconds=50)
    kept = torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)["position"]["step"]
    assert 0 < kept < 9
    monkeypatch.undo()
    monkeypatch.setattr(loop, "LOGGED", 1)
    train(tmp_path / "killed")
    assert entries(tmp_path / "killed")["loss"] == entries(tmp_path / "whole")["loss"]


def test_tensorboard_shows_each_step_once_of_a_run_that_had_kept_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(loop, "LOGGED", 1)
    train(tmp_path / "whole", evaluate=lambda: scored(0.5))
    with pytest.raises(Killed):
        train(tmp_path / "killed", kill_at=9, evaluate=lambda: scored(0.5))
    assert not (tmp_path / "killed" / "checkpoint.pt").exists()
    train(tmp_path / "killed", evaluate=lambda: scored(0.5))
    shown, expected = entries(tmp_path / "killed"), entries(tmp_path / "whole")
    assert shown["loss"] == expected["loss"] and shown["accuracy"] == expected["accuracy"]


def test_tensorboard_shows_a_validation_once_that_is_done_again(tmp_path, monkeypatch) -> None:
    """The last step of an epoch was kept, and the run was killed behind the validation."""
    monkeypatch.setattr(loop, "LOGGED", 2)
    with pytest.raises(Killed):
        train(tmp_path, kill_at=5, evaluate=lambda: scored(0.5), checkpoint_seconds=0)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["position"]["step"] == 5
    train(tmp_path, evaluate=lambda: scored(0.5))
    shown = entries(tmp_path)
    assert shown["accuracy"].keys() == {5, 10, 15} and shown["loss"].keys() == {1, 2, 4, 6, 8, 10, 12, 14, 15}


@pytest.mark.parametrize(
    ("patience", "epochs"), [(0, 7), (1, 2), (2, 6), (3, 7)], ids=["none", "one", "two", "longer than it takes"]
)
def test_training_ends_where_validation_gets_no_better(tmp_path, patience: int, epochs: int) -> None:
    scores = [0.5, 0.5, 0.6, 0.9, 0.8, 0.9, 0.7]
    seen: list[float] = []

    def evaluate() -> Score:
        seen.append(scores[len(seen)])
        return scored(seen[-1])

    _, outcome, steps = train(tmp_path, epochs=7, evaluate=evaluate, patience=patience)
    assert len(seen) == epochs and steps == 5 * epochs
    assert outcome.best == {"accuracy": max(scores[:epochs])} and outcome.epochs == epochs


def test_a_run_that_goes_on_remembers_how_long_it_got_no_better(tmp_path) -> None:
    scores = iter([0.9, 0.8])
    with pytest.raises(Killed):
        train(
            tmp_path, epochs=5, evaluate=lambda: scored(next(scores)), patience=3, kill_at=12, checkpoint_seconds=0
        )  # fmt: skip
    scores = iter([0.7, 0.6])
    _, outcome, steps = train(
        tmp_path, epochs=5, evaluate=lambda: scored(next(scores)), patience=3, checkpoint_seconds=0
    )
    assert outcome.best == {"accuracy": 0.9} and next(scores, None) is None
    assert steps == 8, "the rest of the third epoch and the fourth: the first one is still the best"


def test_some_parameters_learn_faster(tmp_path) -> None:
    """Adam's first step is the learning rate itself, whatever the gradient: it shows the rate of each parameter."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 2))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}

    def loss_of(wrapped: nn.Module, batch: dict) -> Losses:
        return {"loss": nn.functional.cross_entropy(wrapped(batch["input_ids"]), batch["labels"])}

    schedule = Schedule(1, batch_size=40, learning_rate=0.01, weight_decay=0.0)
    fit(
        model,
        loss_of,
        lambda epoch: TEXTS,
        schedule,
        tmp_path,
        Accelerator(cpu=True),
        0,
        1,
        rates={model[0].weight: 3.0},
    )
    moved = {name: (value.detach() - before[name]).abs() for name, value in model.named_parameters()}
    torch.testing.assert_close(moved["2.weight"].max(), torch.tensor(0.01), rtol=1e-3, atol=0)
    torch.testing.assert_close(moved["0.weight"].max(), torch.tensor(0.03), rtol=1e-3, atol=0)


def test_those_that_learn_faster_are_not_decayed() -> None:
    model = nn.ParameterDict({name: nn.Parameter(torch.ones(3)) for name in ("table", "norm", "other")})
    rates = {model["table"]: 8.0, model["norm"]: 4.0}
    others, norms, tokens = parameter_groups(model, rates, Schedule(1, 8, 0.1, weight_decay=0.5))
    assert others["params"] == [model["other"]] and (others["rate"], others["weight_decay"]) == (1.0, 0.5)
    assert norms["params"] == [model["norm"]] and (norms["rate"], norms["weight_decay"]) == (4.0, 0.0)
    assert tokens["params"] == [model["table"]] and (tokens["rate"], tokens["weight_decay"]) == (8.0, 0.0)
    (only,) = parameter_groups(model, {}, Schedule(1, 8, 0.1))
    assert len(only["params"]) == 3


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(Schedule(1, 1, 1.0), step, 100) for step in range(100)]
    assert max(rates) == 1.0 and rates[0] == 0.1 and rates.index(1.0) in (9, 10) and 0 < rates[-1] < 0.02


def test_precision_by_name() -> None:
    assert choose_precision("bf16") == "bf16" and choose_precision("float32") == "no"
    assert choose_precision("auto") in ("bf16", "no")
