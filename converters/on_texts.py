"""What a network does with labelled texts: how many it classifies rightly, how often neurons fire, and what that takes.

Counted by the engine `fast`, whose every value is that of the definition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from converters.execution import Activity, EngineOptions, TokenBatch
from converters.graph import Graph
from converters.report.accuracy import MEASURED
from sim.energy import Tokens, estimate, read_cost_table
from sim.engines import open_engine
from spikebert.commands import UserError, note
from spikebert.data import LabelledTexts, TokenisedTexts, read_split, sorted_batches, tokenise
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


def measured_texts(results: Mapping[str, Any]) -> dict[str, LabelledTexts]:
    """By split the labelled texts on which training measured the integer student, as its recipe names them.

    results  results.json of spikebert-train: its recipe, and accuracies, sha256 of the texts, or both

    A split whose texts cannot be read, or are others than were measured, is left out, and that is said. (Older versions
    wrote no sha256 of them: then there must be as many.)
    """
    recorded, digests = results.get("accuracy", {}).get(MEASURED, {}), results.get("texts_sha256", {})
    found = {}
    for split in dict.fromkeys([*recorded, *digests]):
        try:
            data = Data(**results["recipe"]["data"])
            texts = read_split(data, split)
            if texts is None:
                raise UserError(f"no texts in {data.folder or data.hub}")
            there = len(texts.texts)
            measured = recorded[split]["texts"] if split in recorded else there
            if there != measured:
                raise UserError(f"{there} texts in {data.folder or data.hub}, where {measured} were measured")
            if texts.sha256() != digests.get(split, texts.sha256()):
                raise UserError(f"those in {data.folder or data.hub} are others than were measured")
            found[split] = texts
        except (UserError, OSError, KeyError, TypeError, ValueError) as error:
            note(f"{split}: not run on its texts, so the card tells less: {error}")
    return found


def run_on_splits(
    graph: Graph, tokenizer: PreTrainedTokenizerBase, splits: Mapping[str, LabelledTexts]
) -> dict[str, OnTexts]:
    """`run_on_texts` of each split; `tokenizer` gives the ids of this graph."""
    found = {}
    for split, texts in splits.items():
        note(f"{split}: running {len(texts.texts):,} texts ...")
        on = run_on_texts(graph, tokenise(tokenizer, texts.texts, graph.n_max, texts.labels))
        note(
            f"{split}: {on.accuracy}, firing rate {on.firing_rate:.1%}, {on.operations_per_token:,.0f} synaptic "
            "operations a token"
        )
        found[split] = on
    return found


def with_own_accuracy(results: Mapping[str, Any], found: dict[str, OnTexts]) -> dict[str, Any]:
    """`results` with the integer student's accuracy as the network itself has it.

    A split of which they tell another accuracy is removed from `found`, and that is said: the network is proven to be
    the one that was measured, so these are other texts.
    """
    own = dict(results.get("accuracy", {}).get(MEASURED, {}))
    for split, on in list(found.items()):
        if split in own and own[split]["correct"] != on.accuracy.correct:
            note(
                f"{split}: training counted {own[split]['correct']} of {on.accuracy.texts} texts right, the network "
                f"{on.accuracy.correct}: these are other texts, so the card tells nothing of them"
            )
            del found[split]
        else:
            own[split] = on.accuracy.to_dict()
    return {**results, "accuracy": {**results.get("accuracy", {}), MEASURED: own}} if own else dict(results)
