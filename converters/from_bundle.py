"""A bundle is exported again, for another target, by other passes, for other timesteps or with fewer tokens.

The trained model is not needed: the graph is that of the bundle, and it is held against the spikes that are recorded
there, which were those of the PyTorch model when the bundle was written. Needs torch and transformers only to leave
tokens out, and to run on texts what is no longer the network that was measured.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from converters.bundle import Bundle
from converters.execution import TokenBatch
from converters.graph import Graph, GraphError
from converters.pipeline import (
    EXAMPLE,
    Export,
    Proven,
    Target,
    check_legal_early,
    golden_texts,
    pass_on,
    tokenise_golden,
    unmeasured,
    write_export,
)
from converters.report.accuracy import TOKENS_BEFORE, WITH_TOKENS, of_fewer_tokens
from converters.report.contents import Rounding
from sim.check import require_golden
from sim.report import wilson_interval
from spikebert.commands import CheckFailed, UserError, note


@dataclass(frozen=True, eq=False)
class Taken:
    """What is taken of a bundle.

    batch      the golden inputs, with the ids that the graph takes
    tokenizer  its folder
    kept       int64, rising: the ids, in the bundle, of the tokens that have stayed; None where all have
    """

    graph: Graph
    batch: TokenBatch
    tokenizer: Path
    kept: np.ndarray | None = None


def export_again(
    bundle: Bundle,
    out: Path,
    target: Target | None,
    chosen: Mapping[str, Mapping[str, Any]],
    *,
    name: str | None = None,
    example: str | None = None,
    overwrite: bool = False,
    command: str = "",
    save_passes: Path | None = None,
    timesteps: int | None = None,
    vocabulary: int | None = None,
    vocabulary_text: Sequence[str] = (),
    run_texts: bool = True,
) -> Export:
    """Write a bundle of what the `chosen` passes make of the graph of another one.

    What was measured of the network is told again where it is the same network; one of other timesteps or tokens is run
    on the texts that its recipe names, where they can be read.

    The others, and what is raised, as for `converters.pipeline.export`; CheckFailed too where the reference does not
    repeat here what the bundle has recorded.
    """
    graph = with_timesteps(bundle.graph, timesteps)
    check_legal_early(graph, target, chosen)
    comparison = require_golden(bundle)
    results, activity = results_of(bundle), bundle.config.get("activity", {})
    with tokens_left(bundle, graph, vocabulary, vocabulary_text) as taken:
        if taken.graph is not bundle.graph:
            results, activity = measured_again(results, bundle, taken, run_texts)
        proven = Proven(taken.graph, taken.batch, taken.tokenizer, "golden", comparison, roundings_of(bundle, taken))
        return write_export(
            proven,
            pass_on(proven, target, chosen, save_passes),
            out,
            target,
            results=results,
            config={
                **bundle.config,
                "name": name or out.name,
                "labels": list(bundle.labels),
                "activity": activity,
                "example": example or bundle.config.get("example", golden_texts(bundle.tokenizer.get_vocab())[EXAMPLE]),
                "model": description_of(bundle, taken),
            },
            provenance={"command": command, "exported_from": origin_of(bundle)},
            overwrite=overwrite,
        )


def with_timesteps(graph: Graph, timesteps: int | None) -> Graph:
    """The graph for so many timesteps; None: as it is.

    What happens at a timestep does not depend on how many follow, so the values of the first ones stay as they are.
    Raises UserError below 1 and beyond the timesteps of spike-coded positions, CheckFailed where a sum may overflow.
    """
    if timesteps in (None, graph.timesteps):
        return graph
    if timesteps < 1:
        raise UserError(f"--timesteps: timesteps is {timesteps}, it must be 1 or more")
    source = graph.source
    if source.code is not None:
        known = len(source.code)
        if timesteps > known:
            raise UserError(
                f"--timesteps: timesteps is {timesteps}, the spike-coded positions are those of {known} timesteps"
            )
        source = replace(source, code=source.code[:timesteps])
    try:
        return Graph(timesteps, graph.n_max, (source, *graph.nodes[1:]))
    except GraphError as error:
        raise CheckFailed(f"--timesteps {timesteps}: that makes no legal graph: {error}") from error


@contextmanager
def tokens_left(bundle: Bundle, graph: Graph, vocabulary: int | None, texts: Sequence[str]) -> Iterator[Taken]:
    """What is taken of a bundle whose graph is to be `graph`: all of its tokens, or the `vocabulary` that texts use
    most. Raises what `converters.fewer_tokens.most_used` raises."""
    folder = bundle.folder / "tokenizer"
    if vocabulary is None:
        yield Taken(graph, bundle.golden.batch, folder)
        return
    from converters.fewer_tokens import most_used, saved

    source = graph.source
    found = most_used(folder, len(source.table), vocabulary, texts)
    smaller = Graph(graph.timesteps, graph.n_max, (replace(source, table=source.table[found.kept]), *graph.nodes[1:]))
    tokenizer, pad_id = found.tokenizer, found.tokenizer.pad_token_id or 0
    with saved(tokenizer) as folder:
        batch = tokenise_golden(golden_texts(tokenizer.get_vocab()), tokenizer, graph.n_max, pad_id)
        yield Taken(smaller, batch, folder, found.kept)


def results_of(bundle: Bundle) -> dict[str, Any]:
    """What a bundle tells of what training measured, as results.json of spikebert-train has it."""
    results: dict[str, Any] = {"recipe": bundle.manifest["provenance"].get("recipe", {}), "accuracy": {}}
    for told, (correct, texts) in bundle.config.get("counts", {}).items():
        split, _, model = told.partition(", ")
        model, _, tokens = model.partition(WITH_TOKENS)
        low, high = wilson_interval(correct, texts)
        measured = {"correct": correct, "texts": texts, "value": correct / texts, "low": low, "high": high}
        results["accuracy"].setdefault(model, {})[split] = measured
        if tokens:  # "12,000 tokens"
            results[TOKENS_BEFORE] = int(tokens.split()[0].replace(",", ""))
    return results


def roundings_of(bundle: Bundle, taken: Taken) -> dict[str, Rounding]:
    """What rounding did to the weights of the trained model, by the bundle's report; of a token table while it has all
    of its rows."""
    path = bundle.folder / "report.json"
    if not path.is_file():
        return {}
    report = json.loads(path.read_text(encoding="utf-8"))
    told = {node["name"]: (node["weights"] or {}).get("rounding") for node in report["nodes"]} | report["replaced"]
    if taken.kept is not None:
        told.pop(bundle.graph.source.name)
    fields = [field.name for field in dataclasses.fields(Rounding)]
    return {name: Rounding(**{field: found[field] for field in fields}) for name, found in told.items() if found}


def measured_again(
    results: Mapping[str, Any], bundle: Bundle, taken: Taken, run_texts: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Results and activity of what is another network than the bundle's: what it did with the texts of the recipe."""
    if taken.graph.timesteps != bundle.graph.timesteps:
        kept = unmeasured(results)
    else:
        kept = of_fewer_tokens(results, len(bundle.graph.source.table))
    if not run_texts:
        return kept, {}
    if find_spec("torch") is None or find_spec("transformers") is None:
        note("not run on its texts, so the card tells less: that needs torch and transformers")
        return kept, {}
    from converters.from_torch import load_tokenizer
    from converters.on_texts import measured_texts, run_on_splits, with_own_accuracy

    found = run_on_splits(taken.graph, load_tokenizer(taken.tokenizer), measured_texts(results))
    return with_own_accuracy(kept, found), {split: on.to_json() for split, on in found.items()}


def description_of(bundle: Bundle, taken: Taken) -> dict[str, Any]:
    """What the manifest tells of the model, as it is now."""
    told = dict(bundle.config.get("model", {}))
    now = {"timesteps": taken.graph.timesteps, "vocab_size": len(taken.graph.source.table)}
    told |= {field: value for field, value in now.items() if field in told}
    if taken.kept is not None:
        from spikebert.vocabulary import ID_FIELDS

        new = {int(old): place for place, old in enumerate(taken.kept)}
        told |= {field: new.get(told[field]) for field in ID_FIELDS if told.get(field) is not None}
    return told


def origin_of(bundle: Bundle) -> dict[str, Any]:
    """Of the manifest's provenance: which bundle this was made from, and how that had been."""
    before = bundle.manifest["provenance"]
    told = {field: before[field] for field in ("command", "passes", "exported_from") if field in before}
    return {"name": bundle.config.get("name", bundle.place.stem), "digest": bundle.manifest["digest"], **told}
