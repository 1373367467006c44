"""One training loop for every stage: batches, optimiser, progress, TensorBoard, best model, checkpoints.

A checkpoint holds all that decides what comes next (weights, optimiser, position, random states, best model
so far), and the order of batches depends on seed and epoch alone, so a killed stage goes on where it was.
Several processes share each batch out among themselves: their number changes the speed, not the result.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from types import MappingProxyType

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from spikebert.commands import UserError, note
from spikebert.data import TokenisedTexts, shuffled_batches
from spikebert.machine_use import MachineUse
from spikebert.processes import each_alone, process_count, summed
from spikebert.progress import Progress
from spikebert.recipe import PRECISIONS

WARMUP = 0.1  # share of the steps over which the learning rate rises
GRADIENT_NORM = 1.0
LOGGED = 20  # steps from one entry of TensorBoard to the next

Losses = Mapping[str, Tensor]  # "loss", which is learnt from, and perhaps what it is made of, by name: float [] each


@dataclass(frozen=True)
class Schedule:
    """epochs over the texts, texts a batch (of all processes), the highest learning rate, AdamW's weight decay.

    patience  training ends after so many epochs in which validation was not better than before; 0: it does not
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.01
    patience: int = 0


def learning_rate(schedule: Schedule, step: int, steps: int) -> float:
    """Linear from 0 over the first tenth of the steps, then linear to 0."""
    warmup = max(1, int(steps * WARMUP))
    if step < warmup:
        return schedule.learning_rate * (step + 1) / warmup
    return schedule.learning_rate * (steps - step) / max(1, steps - warmup)


def parameter_groups(model: nn.Module, rates: Mapping[nn.Parameter, float], schedule: Schedule) -> list[dict]:
    """AdamW's groups: all parameters at rate 1, and those that learn so many times faster, not decayed.

    A batch holds few rows of a token table, so each row is seldom moved; decay would move the others all the time.
    """
    others = [parameter for parameter in model.parameters() if parameter not in rates]
    groups: list[dict] = [{"params": others, "rate": 1.0, "weight_decay": schedule.weight_decay}]
    for rate in sorted(set(rates.values())):
        own = [parameter for parameter, its_rate in rates.items() if its_rate == rate]
        groups.append({"params": own, "rate": rate, "weight_decay": 0.0})
    return groups


def choose_precision(precision: str) -> str:
    """accelerate's name for it. "auto" is bf16 where the GPU or the CPU multiplies it natively.

    Raises UserError for a name that is none of `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision is '{precision}', it must be one of {', '.join(PRECISIONS)}")
    if precision == "auto":
        gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        cpu = not torch.cuda.is_available() and torch.cpu._is_avx512_bf16_supported()
        return "bf16" if gpu or cpu else "no"
    return {"bf16": "bf16", "float32": "no"}[precision]


def copy_weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@dataclass(frozen=True)
class Score:
    """How good a model is on validation.

    value    the more the better: what a model is chosen by
    figures  name -> what it was made of, such as "validation_accuracy"
    text     the same for people
    """

    value: float
    figures: dict[str, float]
    text: str


@dataclass(frozen=True)
class Outcome:
    """How a stage went.

    best               the figures of the best `Score`; empty where there was none
    best_epoch         whose it is: 1 for the first, 0 for the model as it came; None where there was none
    epochs             that were trained, perhaps fewer than the schedule has
    seconds            spent on steps, over all runs that a stopped stage took; validation and checkpoints left out
    sentences          that these steps were made of, those of all processes together
    peak_memory_bytes  of each process, the most main memory it has ever held
    gpu_peak_bytes     of each process, the most memory it has held of its GPU; None without one
    """

    best: dict[str, float]
    best_epoch: int | None
    epochs: int
    seconds: float
    sentences: int
    peak_memory_bytes: list[int]
    gpu_peak_bytes: list[int] | None

    def figures(self) -> dict:
        """For `stage.json`."""
        speed = self.sentences / self.seconds if self.seconds else None
        figures: dict = dict(self.best)
        if self.best_epoch is not None:
            figures["best_epoch"] = self.best_epoch
        figures |= {
            "epochs": self.epochs,
            "seconds": self.seconds,
            "sentences_per_second": speed,
            "peak_memory_bytes": self.peak_memory_bytes,
        }
        return figures if self.gpu_peak_bytes is None else figures | {"gpu_peak_memory_bytes": self.gpu_peak_bytes}


def own_share(texts: TokenisedTexts, batch: np.ndarray, process: int, processes: int) -> np.ndarray:
    """Which texts of a batch (indices) are one process's: every so-manieth by length, so that all have like work.

    All of them where there are fewer than processes; see `each_alone`.
    """
    if processes == 1 or len(batch) < processes:
        return batch
    return batch[np.argsort(texts.lengths_of(batch), kind="stable")][process::processes]


def fit(
    model: nn.Module,
    loss_of: Callable[[nn.Module, dict[str, Tensor]], Losses],
    texts_of_epoch: Callable[[int], TokenisedTexts],
    schedule: Schedule,
    folder: Path,
    accelerator: Accelerator,
    pad_id: int,
    seed: int,
    evaluate: Callable[[], Score] | None = None,
    keep_start: bool = False,
    checkpoint_seconds: float = 120,
    title: str = "training",
    rates: Mapping[nn.Parameter, float] = MappingProxyType({}),
) -> Outcome:
    """Train `model` in place; it ends as the best epoch by `evaluate` (higher is better), or as the last.

    loss_of         the (possibly distributed) model and this process's texts of a batch -> its part of the mean losses
                    (`mean_over_processes`); they are computed by the model's own forward pass
    texts_of_epoch  the texts of an epoch; their number must be the same in every epoch
    evaluate        called by all processes at once; the main one's score counts
    keep_start      the model as it came competes with the epochs for the best
    folder          where `checkpoint.pt` and TensorBoard's files go, one folder for all processes; a checkpoint there
                    is resumed from, whatever the number of processes that wrote it, and stays until what was trained is
                    kept: the caller removes it
    rates           parameters that learn faster, and how many times; see `parameter_groups`
    Raises RuntimeError where the loss, its gradient or a score is no number, UserError where the checkpoint is damaged
    or of other texts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimiser = torch.optim.AdamW(parameter_groups(model, rates, schedule), lr=schedule.learning_rate, fused=True)
    wrapped, optimiser = accelerator.prepare(model, optimiser)
    checkpoint = folder / "checkpoint.pt"
    state = _Position()
    if checkpoint.exists():
        state = _resume(checkpoint, model, optimiser, accelerator, seed)
    else:
        _seed_process(accelerator.process_index, seed)
        if evaluate is not None and keep_start:
            _compete(state, _score(evaluate, title, state), model)
    texts = texts_of_epoch(state.epoch) if state.epoch < schedule.epochs else None
    steps_an_epoch = -(-len(texts) // schedule.batch_size) if texts else 0
    steps = steps_an_epoch * schedule.epochs
    if texts is not None and not 0 <= state.step - state.epoch * steps_an_epoch <= steps_an_epoch:
        raise UserError(f"{checkpoint} is of other texts or another number of processes: delete it to start again")
    validates_again = evaluate is not None and 0 < state.step == (state.epoch + 1) * steps_an_epoch
    done = state.step - validates_again  # what a killed run wrote of later steps is struck out
    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1) if accelerator.is_main_process else None
    machine = MachineUse(accelerator.device)
    seconds_before, sentences_before = state.seconds, state.sentences  # of the runs before this one
    with Progress(title, steps, state.step, accelerator.is_main_process, machine.describe) as progress:
        saved_at = time.monotonic()
        while state.epoch < schedule.epochs and texts is not None and not state.given_up(schedule.patience):
            batches = shuffled_batches(len(texts), schedule.batch_size, (seed, state.epoch))
            model.train()
            for indices in batches[state.step - state.epoch * steps_an_epoch :]:
                began = time.perf_counter()
                rate = learning_rate(schedule, state.step, steps)
                for group in optimiser.param_groups:
                    group["lr"] = rate * group["rate"]
                with each_alone() if len(indices) < accelerator.num_processes else nullcontext():
                    losses = loss_of(wrapped, _own_batch(texts, indices, pad_id, accelerator))
                save_is_due = accelerator.is_main_process and time.monotonic() - saved_at > checkpoint_seconds
                accelerator.backward(losses["loss"])
                norm = accelerator.clip_grad_norm_(model.parameters(), GRADIENT_NORM)  # the mean over processes by now
                value, save_is_due = _agree(losses["loss"], save_is_due)  # a GPU is waited for here, once a step
                if not (math.isfinite(value) and math.isfinite(norm)):
                    raise RuntimeError(_no_number(title, value, float(norm), state, texts, indices))
                optimiser.step()
                optimiser.zero_grad()
                state.step += 1
                state.loss_sum, state.loss_count = state.loss_sum + value, state.loss_count + 1
                state.seconds += time.perf_counter() - began
                state.sentences += len(indices)
                speed = (state.sentences - sentences_before) / (state.seconds - seconds_before)
                progress.advance(state.loss_sum / state.loss_count, speed)
                if state.step % LOGGED == 0 or state.step in (1, steps):
                    scalars = {"loss": value, **_parts(losses), "learning_rate": rate, "sentences_per_second": speed}
                    _log(writer, scalars | machine.figures(), state.step)
                if save_is_due:
                    _save(checkpoint, model, optimiser, state, accelerator)
                    saved_at = time.monotonic()
            state.epoch += 1
            score = None if evaluate is None else _score(evaluate, title, state)
            _end_of_epoch(model, state, score, writer, progress)
            if state.given_up(schedule.patience) and state.epoch < schedule.epochs:
                progress.say(f"no better for {schedule.patience} epochs: ended, the best epoch is kept")
            elif state.epoch < schedule.epochs:
                texts = texts_of_epoch(state.epoch)
    if writer:
        writer.close()
    if state.best_weights is not None:
        model.load_state_dict(state.best_weights)
    accelerator.wait_for_everyone()  # all have read the checkpoint
    return _outcome(state, machine)


def _log(writer: SummaryWriter | None, scalars: Mapping[str, float], step: int) -> None:
    if writer:
        for name, scalar in scalars.items():
            writer.add_scalar(name, scalar, step)


def _parts(losses: Losses) -> dict[str, float]:
    """What the loss of a whole batch is made of, for TensorBoard. All processes call this."""
    names = [name for name in losses if name != "loss"]
    if not names:
        return {}
    values = summed(torch.stack([losses[name].detach().double() for name in names])) / process_count()
    return {f"loss_{name}": value for name, value in zip(names, values.tolist())}


def _own_batch(texts: TokenisedTexts, batch: np.ndarray, pad_id: int, accelerator: Accelerator) -> dict[str, Tensor]:
    """This process's share of a batch, on its device."""
    own = own_share(texts, batch, accelerator.process_index, accelerator.num_processes)
    return {name: value.to(accelerator.device) for name, value in texts.batch(own, pad_id).items()}


def _outcome(state: _Position, machine: MachineUse) -> Outcome:
    memory = gather_object([machine.peak_memory_bytes()])
    gpu = gather_object([machine.gpu_peak_bytes()])
    return Outcome(
        best=state.best_figures,
        best_epoch=None if state.best is None else state.best_epoch,
        epochs=state.epoch,
        seconds=state.seconds,
        sentences=state.sentences,
        peak_memory_bytes=memory,
        gpu_peak_bytes=None if None in gpu else gpu,
    )


def _score(evaluate: Callable[[], Score], title: str, state: _Position) -> Score:
    """How good the model is, by the main process: others may round otherwise, and all must agree on what is best.

    Raises RuntimeError where that is no number: weights are spoilt, or so large that they might as well be.
    """
    score: Score = gather_object([evaluate()])[0]
    if not math.isfinite(score.value):
        raise RuntimeError(f"{title}: {score.text}, after epoch {state.epoch}: lower learning_rate")
    return score


def _agree(loss: Tensor, save_is_due: bool) -> tuple[float, bool]:
    """The loss of the whole batch, and whether the main process wants a checkpoint: the same in every process."""
    if process_count() == 1:
        return float(loss.detach()), save_is_due
    loss = loss.detach().double()
    total, wishes = summed(torch.stack([loss, torch.full_like(loss, float(save_is_due))])).tolist()
    return total / process_count(), wishes > 0


def _seed_process(process: int, seed: int) -> None:
    """Dropout of its own for every process but the first, which goes on with the random state it has."""
    if process:
        torch.manual_seed(int(np.random.SeedSequence([seed, process]).generate_state(1)[0]))


@dataclass
class _Position:
    """How far a stage is: all of a checkpoint but weights, optimiser and random state."""

    step: int = 0
    epoch: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    best: float | None = None
    best_epoch: int = 0
    best_figures: dict[str, float] = field(default_factory=dict)
    best_weights: dict[str, Tensor] | None = None
    seconds: float = 0.0
    sentences: int = 0

    def given_up(self, patience: int) -> bool:
        """Whether validation was not better in the last `patience` epochs."""
        return bool(patience) and self.best is not None and self.epoch - self.best_epoch >= patience


def _no_number(
    title: str, loss: float, norm: float, state: _Position, texts: TokenisedTexts, indices: np.ndarray
) -> str:
    """What is said of a loss, or of a gradient (its `norm`), that is no number: where it was, and in which batch."""
    what = f"the gradient of a loss of {loss:.4g} is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
    lengths = texts.lengths_of(indices)
    shown = ", ".join(str(index) for index in indices[:8]) + (", ..." if len(indices) > 8 else "")
    return (
        f"{title}: {what} at step {state.step}, in epoch {state.epoch + 1}, in a batch of {len(indices)} "
        f"texts of {lengths.min()} to {lengths.max()} tokens (numbers {shown} of the epoch's): lower learning_rate"
    )


def _end_of_epoch(
    model: nn.Module, state: _Position, score: Score | None, writer: SummaryWriter | None, progress: Progress
) -> None:
    message = f"epoch {state.epoch}: loss {state.loss_sum / max(1, state.loss_count):.4f}"
    state.loss_sum, state.loss_count = 0.0, 0
    if score is not None:
        message += f", {score.text}"
        _log(writer, score.figures, state.step)
        _compete(state, score, model)
    progress.say(message)


def _compete(state: _Position, score: Score, model: nn.Module) -> None:
    """Keep the model where it is better than the best so far."""
    if state.best is None or score.value > state.best:
        state.best, state.best_figures, state.best_weights = score.value, score.figures, copy_weights(model)
        state.best_epoch = state.epoch


def _save(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, state: _Position, accelerator: Accelerator
) -> None:
    """All processes call this, the main one writes."""
    random = gather_object([_random_state(accelerator.device)])
    if not accelerator.is_main_process:
        return
    content = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "position": dict(vars(state))}
    content["random"], content["threads"] = random, torch.get_num_threads()
    content["arithmetic"] = _arithmetic(accelerator)
    partial = path.with_suffix(".partial")
    try:
        with open(partial, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())  # else a machine that stops might leave the name without the content
    except RuntimeError as error:  # torch hides what the file system said, and that the user wants to stop
        if isinstance(error.__context__, OSError):
            raise OSError(error.__context__.errno, error.__context__.strerror, str(partial)) from error
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise
    os.replace(partial, path)  # a kill while writing leaves the checkpoint before


def _arithmetic(accelerator: Accelerator) -> str:
    return f"{accelerator.mixed_precision} on {accelerator.device.type}"


def checkpoint_names(folder: Path) -> set[str]:
    """Of the checkpoint of a stage that was stopped, the names of what its model holds; none where there is none."""
    path = folder / "checkpoint.pt"
    return set(_read_checkpoint(path, mmap=True)["model"]) if path.exists() else set()


def _read_checkpoint(path: Path, mmap: bool = False) -> dict:
    """Raises UserError where it is damaged."""
    try:
        content: dict = torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
        return content
    except (RuntimeError, EOFError, ValueError, UnpicklingError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is damaged ({why}): delete it to start again") from None


def _random_state(device: torch.device) -> list[Tensor]:
    """Of this process: the CPU's generator, and its GPU's where it has one."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _resume(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, accelerator: Accelerator, seed: int
) -> _Position:
    content = _read_checkpoint(path)
    model.load_state_dict(content["model"])
    if len(content["optimiser"]["param_groups"]) != len(optimiser.param_groups):
        raise UserError(
            f"{path} is of an earlier version, in which parameters learned at other rates: delete it to start again"
        )
    optimiser.load_state_dict(content["optimiser"])
    position = _Position(**content["position"])
    if position.best is not None and not position.best_figures:  # an earlier version wrote the accuracy alone
        position.best_figures = {"validation_accuracy": position.best}
    threads = content.get("threads", torch.get_num_threads())  # earlier versions did not write it
    if threads != (now := torch.get_num_threads()) and accelerator.is_main_process:
        note(
            f"{path}: written with {threads} threads, this run has {now}: sums are rounded in another order. For "
            f"the weights that an uninterrupted run gives, start it with OMP_NUM_THREADS={threads}"
        )
    was = content.get("arithmetic", _arithmetic(accelerator))
    if was != (is_now := _arithmetic(accelerator)) and accelerator.is_main_process:
        note(f"{path}: written with precision {was}, this run has {is_now}: numbers are rounded otherwise from here on")
    saved = content["random"]
    states = [[saved]] if isinstance(saved, Tensor) else saved  # one process, as checkpoints once had it
    if accelerator.process_index < len(states):
        cpu, *gpu = states[accelerator.process_index]
        torch.set_rng_state(cpu)
        if gpu and accelerator.device.type == "cuda":
            torch.cuda.set_rng_state(gpu[0], accelerator.device)
    else:  # more processes than before
        _seed_process(accelerator.process_index, seed + position.step)
    return position
