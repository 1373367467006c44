"""One training loop for every stage: batches, optimiser, progress, TensorBoard, best model, checkpoints.

A checkpoint holds all that decides what comes next (weights, optimiser, position, random state, best model
so far), and the order of batches depends on seed and epoch alone, so a killed stage goes on where it was.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from spikebert.commands import UserError
from spikebert.data import TokenisedTexts, shuffled_batches
from spikebert.progress import Progress
from spikebert.recipe import PRECISIONS

WARMUP = 0.1  # share of the steps over which the learning rate rises
GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Schedule:
    """epochs over the texts, texts a batch (of one process), the highest learning rate, AdamW's weight decay.

    token_rate      how many times faster the token table learns; see `parameter_groups`
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.01
    token_rate: float = 1.0


def learning_rate(schedule: Schedule, step: int, steps: int) -> float:
    """Linear from 0 over the first tenth of the steps, then linear to 0."""
    warmup = max(1, int(steps * WARMUP))
    if step < warmup:
        return schedule.learning_rate * (step + 1) / warmup
    return schedule.learning_rate * (steps - step) / max(1, steps - warmup)


def parameter_groups(model: nn.Module, table: nn.Parameter | None, schedule: Schedule) -> list[dict]:
    """AdamW's groups: all parameters at rate 1, and the token table at `schedule.token_rate`, not decayed.

    A batch holds few rows of the table, so each row is seldom moved; decay would move the others all the time.
    """
    others = [parameter for parameter in model.parameters() if parameter is not table]
    groups: list[dict] = [{"params": others, "rate": 1.0, "weight_decay": schedule.weight_decay}]
    if table is not None:
        groups.append({"params": [table], "rate": schedule.token_rate, "weight_decay": 0.0})
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


def fit(
    model: nn.Module,
    loss_of: Callable[[nn.Module, dict[str, Tensor]], Tensor],
    texts_of_epoch: Callable[[int], TokenisedTexts],
    schedule: Schedule,
    folder: Path,
    accelerator: Accelerator,
    pad_id: int,
    seed: int,
    evaluate: Callable[[], float] | None = None,
    keep_start: bool = False,
    checkpoint_seconds: float = 120,
    title: str = "training",
    table: nn.Parameter | None = None,
) -> float | None:
    """Train `model` in place; it ends as the best epoch by `evaluate` (higher is better), or as the last.

    loss_of         the (possibly distributed) model and one batch -> the loss
    texts_of_epoch  the texts of an epoch; their number must be the same in every epoch
    keep_start      the model as it came competes with the epochs for the best
    folder          where `checkpoint.pt` and TensorBoard's files go; a checkpoint there is resumed from
    table           the token table among the model's parameters; see `parameter_groups`
    Returns the best value of `evaluate`. Raises RuntimeError where the loss is no number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimiser = torch.optim.AdamW(parameter_groups(model, table, schedule), lr=schedule.learning_rate, fused=True)
    wrapped, optimiser = accelerator.prepare(model, optimiser)
    checkpoint = folder / "checkpoint.pt"
    state = _Position()
    if checkpoint.exists():
        state = _resume(checkpoint, model, optimiser)
    elif evaluate is not None and keep_start:
        state.best, state.best_weights = evaluate(), copy_weights(model)
    texts = texts_of_epoch(state.epoch) if state.epoch < schedule.epochs else None
    steps_an_epoch = -(-len(texts) // schedule.batch_size) // accelerator.num_processes if texts else 0
    steps = steps_an_epoch * schedule.epochs
    writer = SummaryWriter(str(folder / "tensorboard")) if accelerator.is_main_process else None
    with Progress(title, total=steps, done=state.step, enabled=accelerator.is_main_process) as progress:
        saved_at = time.monotonic()
        while state.epoch < schedule.epochs and texts is not None:
            batches = shuffled_batches(len(texts), schedule.batch_size, (seed, state.epoch))
            mine = batches[accelerator.process_index :: accelerator.num_processes][:steps_an_epoch]
            model.train()
            for indices in mine[state.step - state.epoch * steps_an_epoch :]:
                rate = learning_rate(schedule, state.step, steps)
                for group in optimiser.param_groups:
                    group["lr"] = rate * group["rate"]
                batch = {k: v.to(accelerator.device) for k, v in texts.batch(indices, pad_id).items()}
                loss = loss_of(wrapped, batch)
                if not bool(torch.isfinite(loss)):
                    raise RuntimeError(
                        f"{title}: the loss is {float(loss.detach())} at step {state.step}: lower learning_rate"
                    )
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
                optimiser.step()
                optimiser.zero_grad()
                state.step += 1
                state.loss_sum, state.loss_count = state.loss_sum + float(loss.detach()), state.loss_count + 1
                progress.advance(loss=state.loss_sum / state.loss_count)
                if writer and state.step % 20 == 0:
                    writer.add_scalar("loss", float(loss.detach()), state.step)
                    writer.add_scalar("learning_rate", rate, state.step)
                if accelerator.is_main_process and time.monotonic() - saved_at > checkpoint_seconds:
                    _save(checkpoint, model, optimiser, state)
                    saved_at = time.monotonic()
            state.epoch += 1
            _end_of_epoch(model, state, evaluate, writer, progress)
            if state.epoch < schedule.epochs:
                texts = texts_of_epoch(state.epoch)
    if writer:
        writer.close()
    if state.best_weights is not None:
        model.load_state_dict(state.best_weights)
    checkpoint.unlink(missing_ok=True)
    return state.best


@dataclass
class _Position:
    """How far a stage is: all of a checkpoint but weights, optimiser and random state."""

    step: int = 0
    epoch: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    best: float | None = None
    best_weights: dict[str, Tensor] | None = None


def _end_of_epoch(
    model: nn.Module, state: _Position, evaluate: Callable[[], float] | None, writer: SummaryWriter | None,
    progress: Progress,
) -> None:  # fmt: skip
    message = f"epoch {state.epoch}: loss {state.loss_sum / max(1, state.loss_count):.4f}"
    state.loss_sum, state.loss_count = 0.0, 0
    if evaluate is not None:
        value = evaluate()
        message += f", validation accuracy {value:.2%}"
        if writer:
            writer.add_scalar("validation_accuracy", value, state.step)
        if state.best is None or value > state.best:
            state.best, state.best_weights = value, copy_weights(model)
    progress.say(message)


def _save(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, state: _Position) -> None:
    content = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "position": dict(vars(state))}
    content["random"] = torch.get_rng_state()
    partial = path.with_suffix(".partial")
    try:
        with open(partial, "wb") as file:
            torch.save(content, file)
    except RuntimeError as error:  # torch hides what the file system said
        if isinstance(error.__context__, OSError):
            raise OSError(error.__context__.errno, error.__context__.strerror, str(partial)) from error
        raise
    os.replace(partial, path)  # a kill while writing leaves the checkpoint before


def _resume(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> _Position:
    content = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(content["model"])
    optimiser.load_state_dict(content["optimiser"])
    torch.set_rng_state(content["random"])
    return _Position(**content["position"])
