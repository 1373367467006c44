"""How good a model is: accuracy with its interval, and how often its neurons fire."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import sqrt

import numpy as np
import torch
from torch import Tensor, nn

from spikebert.data import TokenisedTexts, sorted_batches
from spikebert.distillation import LossWeights
from spikebert.loop import Score
from spikebert.model import SpikeBertForSequenceClassification
from spikebert.processes import each_alone, process_count, process_index, summed
from spikebert.pupil import Pupil
from spikebert.teaching import Teaching

ABOUT = 0.1  # of a budget of operations: epochs of one training lie some per cent above or below it
OPERATION_TEXTS = 256  # on which operations are counted, at most


@dataclass(frozen=True)
class Accuracy:
    """correct of texts, and the Wilson 95 % interval of their ratio."""

    correct: int
    texts: int
    value: float
    low: float
    high: float

    @classmethod
    def of(cls, correct: int, texts: int) -> Accuracy:
        """Wilson's score interval (Wilson 1927) for z = 1.96."""
        z, p = 1.96, correct / texts
        centre, scale = p + z * z / (2 * texts), 1 + z * z / texts
        spread = z * sqrt(p * (1 - p) / texts + z * z / (4 * texts * texts))
        return cls(correct, texts, p, (centre - spread) / scale, (centre + spread) / scale)

    def to_dict(self) -> dict:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.2%} ({self.correct} of {self.texts}; 95 % {self.low:.1%} .. {self.high:.1%})"


@torch.no_grad()
def predict(
    model: nn.Module, texts: TokenisedTexts, pad_id: int, batch_size: int = 64, device: torch.device | None = None
) -> np.ndarray:
    """The class of every text, int64, in the order of `texts`. Runs in float32 or exact integers, never bf16."""
    was_training, predictions = model.training, np.empty(len(texts), dtype=np.int64)
    model.eval()
    for indices in sorted_batches(texts.lengths, batch_size):
        batch = {name: value.to(device) for name, value in texts.batch(indices, pad_id).items()}
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        exact = getattr(output, "integer_logits", None)
        logits = output.logits.float() if exact is None else exact
        predictions[indices] = logits.cpu().numpy().argmax(-1)  # numpy: the lowest index among the largest
    model.train(was_training)
    return predictions


def accuracy(predictions: np.ndarray, texts: TokenisedTexts) -> Accuracy:
    return Accuracy.of(int((predictions == texts.labels).sum()), len(texts))


def predict_together(model: nn.Module, texts: TokenisedTexts, pad_id: int, device: torch.device) -> np.ndarray:
    """As `predict`; every process calls it, runs its part of the texts, and gets the classes of all."""
    processes = process_count()
    if processes == 1:
        return predict(model, texts, pad_id, device=device)
    own = np.arange(process_index(), len(texts), processes)
    classes = np.zeros(len(texts), dtype=np.int64)
    classes[own] = predict(model, texts.select(own), pad_id, device=device)
    return summed(torch.from_numpy(classes).to(device)).cpu().numpy()


def validation(
    model: nn.Module, texts: TokenisedTexts, pad_id: int, device: torch.device, weights: LossWeights | None = None
) -> Callable[[], Score]:
    """A function without arguments that says how good the model is on `texts` as it is then; see `predict_together`.

    Its value is the accuracy. Where `weights` count synaptic operations, those beyond the budget and a tenth of it
    (`ABOUT`) cost what they cost in the loss.
    """

    def measure() -> Score:
        right = accuracy(predict_together(model, texts, pad_id, device), texts).value
        figures, text = {"validation_accuracy": right}, f"validation accuracy {right:.2%}"
        return _with_operations(Score(right, figures, text), model, texts, pad_id, device, weights)

    return measure


def _with_operations(
    score: Score, model: nn.Module, texts: TokenisedTexts, pad_id: int, device: torch.device,
    weights: LossWeights | None,
) -> Score:  # fmt: skip
    """Less what operations beyond the budget cost, where `weights` have one."""
    if weights is None or not weights.limits_operations:
        return score
    operations = operations_per_token(model, texts, pad_id, device)
    excess = weights.operations * max(0.0, operations / weights.operations_per_token - 1 - ABOUT)
    figures = score.figures | {"operations_per_token": operations}
    return Score(score.value - excess, figures, f"{score.text}, {operations:,.0f} synaptic operations a token")


def held_out(
    pupil: Pupil, taught: Teaching, texts: TokenisedTexts, learnt: int, pad_id: int, device: torch.device,
    weights: LossWeights,
) -> Callable[[], Score]:  # fmt: skip
    """A function without arguments that says how far a pupil is from its teacher, by the loss of its states, on those
    of `texts` that it does not learn from: all behind the first `learnt`. Processes share out the batches; the result
    is the same in every bit, however many there are.

    As in `validation`, synaptic operations beyond the budget and a tenth of it count against it as in the loss.
    """
    states = LossWeights(hidden=weights.hidden, embedding=weights.embedding)  # what spikes cost is no distance
    held_back = texts.select(np.arange(learnt, len(texts))[:OPERATION_TEXTS])
    batches = [part + learnt for part in sorted_batches(texts.lengths[learnt:], 64)]

    @torch.no_grad()
    def measure() -> Score:
        was_training = pupil.training
        pupil.eval()
        measured = torch.zeros(len(batches), 2, dtype=torch.float64)  # loss times real tokens, and those tokens
        own = range(process_index(), len(batches), process_count())
        with each_alone():
            for index in own:
                batch = {name: value.to(device) for name, value in texts.batch(batches[index], pad_id).items()}
                real = int(batch["attention_mask"].sum())
                losses = Pupil.forward(pupil, batch, *taught(batch), states)  # not prepared for mixed precision
                measured[index] = torch.tensor([float(losses["loss"]) * real, real], dtype=torch.float64)
        pupil.train(was_training)
        total, tokens = summed(measured.to(device)).sum(0).tolist()  # of each batch one process has more than 0
        loss = total / tokens
        distance = Score(-loss, {"held_out_loss": loss}, f"{loss:.4f} on texts held out")
        return _with_operations(distance, pupil.student, held_back, pad_id, device, weights)

    return measure


@torch.no_grad()
def operations_per_token(
    model: nn.Module, texts: TokenisedTexts, pad_id: int, device: torch.device, limit: int = OPERATION_TEXTS
) -> float:
    """Synaptic operations of linear layers and readout, over all timesteps, of at most `limit` texts."""
    was_training, operations, tokens = model.training, 0.0, 0
    model.eval()
    for indices in sorted_batches(texts.lengths[:limit], 64):
        batch = {name: value.to(device) for name, value in texts.batch(indices, pad_id).items()}
        output = model(batch["input_ids"], batch["attention_mask"], output_operations=True)
        operations += float(output.operations)
        tokens += int(batch["attention_mask"].sum())
    model.train(was_training)
    return operations / tokens


@torch.no_grad()
def mean_firing_rates(
    model: SpikeBertForSequenceClassification, texts: TokenisedTexts, pad_id: int, limit: int = 256
) -> dict[str, float]:
    """Of every spiking node: spikes / (T * real tokens * features), over at most `limit` texts."""
    sums: dict[str, Tensor] = {}
    tokens = 0
    for indices in sorted_batches(texts.lengths[:limit], 64):
        batch = {name: value.to(model.device) for name, value in texts.batch(indices, pad_id).items()}
        output = model(batch["input_ids"], batch["attention_mask"], output_firing_rates=True)
        real = int(batch["attention_mask"].sum())
        tokens += real
        for name, rate in output.firing_rates.items():
            sums[name] = sums.get(name, 0) + rate.double() * real
    return {name: float(total) / tokens for name, total in sums.items()}
