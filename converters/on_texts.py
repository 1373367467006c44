"""What a network does with labelled texts: how many it classifies rightly, how often neurons fire, and what that takes.

Counted by the engine `fast`, whose every value is that of the definition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.execution import Activity, EngineOptions, TokenBatch
from converters.from_torch import load_tokenizer
from converters.graph import Graph
from converters.report.accuracy import MEASURED, TOKENS_BEFORE
from sim.energy import Tokens, estimate, read_cost_table
from sim.engines import open_engine
from spikebert.commands import UserError, note
from spikebert.data import TokenisedTexts, read_split, sorted_batches, tokenise
from spikebert.evaluation import Accuracy
from spikebert.recipe import Data

ENGINE = "fast"
BATCH = 64  # texts
PRICES = "45nm"  # the cost table of `sim/costs` that prices a dense network too


@dataclass(frozen=True)
class OnTexts:
    """What a network did.

    right      bool [texts], whether each was classified rightly
    activity   of the whole network, with all texts
    tokens     of all texts, special ones included
    of_dense   energy by the table `45nm`, over that of a dense network of the same connections
    """

    right: np.ndarray
    activity: Activity
    tokens: int
    of_dense: float

    @property
    def accuracy(self) -> Accuracy:
        return Accuracy.of(int(self.right.sum()), len(self.right))

    @property
    def firing_rate(self) -> float:
        """Of all spiking nodes, over neurons, tokens and timesteps: 0 .. 1."""
        return self.activity.total.rate or 0.0

    @property
    def operations_per_token(self) -> float:
        """Synaptic operations, of all layers and timesteps."""
        return self.activity.total.synaptic_operations / self.tokens

    def to_json(self) -> dict[str, float]:
        """For a bundle's manifest."""
        return {
            "texts": len(self.right),
            "right": int(self.right.sum()),
            "tokens": self.tokens,
            "firing_rate": self.firing_rate,
            "operations_per_token": self.operations_per_token,
            "energy_of_dense_45nm": self.of_dense,
        }


def run_on_texts(graph: Graph, texts: TokenisedTexts) -> OnTexts:
    """All texts, at least one, which have labels."""
    right, total, tokens = np.zeros(len(texts), bool), None, Tokens()
    engine = open_engine(ENGINE, graph, EngineOptions())
    try:
        for indices in sorted_batches(texts.lengths, BATCH):
            batch = {name: value.numpy() for name, value in texts.batch(indices, 0).items()}
            execution = engine.run(TokenBatch(batch["input_ids"], batch["attention_mask"]))
            right[indices] = execution.predictions == texts.labels[indices]
            assert execution.activity is not None  # fast counts
            total = execution.activity if total is None else total + execution.activity
            for length in texts.lengths[indices].tolist():
                tokens = tokens.with_sentence(length)
    finally:
        engine.close()
    assert total is not None  # there is one text at least
    (energy,) = estimate(graph, total, tokens, [read_cost_table(PRICES)])
    assert energy.of_dense is not None  # this table prices a dense network too
    return OnTexts(right, total, tokens.real, energy.of_dense)


def run_on_splits(graph: Graph, tokenizer: Path, results: Mapping[str, Any]) -> dict[str, OnTexts]:
    """By split: what the network does with the texts on which training measured the integer student.

    tokenizer  the folder of one that gives the ids of this graph
    results    results.json of spikebert-train; nothing is run where it tells no accuracy

    A split whose texts cannot be read, or are not as many as were measured, is left out, and that is said. Raises
    UserError where the record is damaged.
    """
    if MEASURED not in results.get("accuracy", {}):
        return {}
    try:
        data = Data(**results["recipe"]["data"])
        counts = {split: record["texts"] for split, record in results["accuracy"][MEASURED].items()}
    except (KeyError, TypeError):
        raise UserError("results.json is damaged, or of another version: run spikebert-train again") from None
    found, words = {}, load_tokenizer(tokenizer)
    for split, count in counts.items():
        try:
            labelled = read_split(data, split)
            if labelled is None or len(labelled.texts) != count:
                there = "no texts" if labelled is None else f"{len(labelled.texts)} texts"
                raise UserError(f"{there} of {split} in {data.folder or data.hub}, where {count} were measured")
        except UserError as error:
            untold = "activity" if TOKENS_BEFORE not in results else "accuracy, for with fewer tokens it may be another"
            note(f"the card will tell no {split} {untold}: {error}")
            continue
        found[split] = run_on_texts(graph, tokenise(words, labelled.texts, graph.n_max, labelled.labels))
        note(
            f"{split}: {found[split].accuracy}, firing rate {found[split].firing_rate:.1%}, "
            f"{found[split].operations_per_token:,.0f} synaptic operations a token"
        )
    return found


def with_own_accuracy(results: Mapping[str, Any], found: Mapping[str, OnTexts]) -> dict[str, Any]:
    """`results` (of spikebert-train) with the integer student's accuracy as the network itself has it.

    Where it knows fewer tokens than training measured (`TOKENS_BEFORE`), none stays of a split that is not found.
    """
    if MEASURED not in results.get("accuracy", {}):
        return dict(results)
    recorded, fewer = results["accuracy"][MEASURED], TOKENS_BEFORE in results
    own = {split: on.accuracy.to_dict() for split, on in found.items()}
    for split, measured in own.items():
        if not fewer and recorded[split]["correct"] != measured["correct"]:
            note(
                f"{split}: training counted {recorded[split]['correct']} of {measured['texts']} texts right, the "
                f"network {measured['correct']}, which is what the card tells: were those other texts?"
            )
    others = {name: value for name, value in results["accuracy"].items() if name != MEASURED}
    kept = own if fewer else recorded | own
    again = {name: value for name, value in results.items() if not (fewer and name == "changed_predictions")}
    return again | {"accuracy": others | ({MEASURED: kept} if kept else {})}
