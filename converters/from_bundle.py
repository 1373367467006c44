"""A bundle is exported again, for another target, by other passes, for other timesteps or with fewer tokens.

The trained model is not needed: the graph is that of the bundle, and the reference must repeat the spikes that are
recorded there, which were those of the PyTorch model when the bundle was written. Needs torch and transformers only to
leave tokens out, and to run on texts what is no longer the network that was measured.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import is_zipfile

from converters.bundle import Bundle, read_bundle
from converters.execution import TokenBatch
from converters.figures import Figures, figures_of_bundle, of_other_timesteps, of_other_tokens, with_own
from converters.graph import Graph, GraphError
from converters.model_card import PROOFS, passes_of
from converters.pipeline import (
    EXAMPLE,
    Checked,
    Export,
    Request,
    check_legal_early,
    check_request,
    golden_texts,
    pass_on,
    tokenise_golden,
    write_export,
)
from converters.report.accuracy import MEASURED
from converters.report.contents import PassReport, Rounding
from sim.check import require_golden
from sim.find_bundle import known_bundles
from spikebert.commands import CheckFailed, UserError, note

if TYPE_CHECKING:  # it needs torch
    from converters.on_texts import OnTexts

FOR_T_TIMESTEPS = "remove-dead-neurons"  # a pass that holds for T and fewer, not for more


@dataclass(frozen=True, eq=False)
class Taken:
    """What is taken of a bundle.

    batch      the golden inputs, with the ids that the graph takes
    tokenizer  its folder
    same       whether it is the bundle's own network
    special    what a model's config tells of special tokens, where ids are others now: "pad_token_id" -> id
    """

    graph: Graph
    batch: TokenBatch
    tokenizer: Path
    same: bool
    special: Mapping[str, int | None] = dataclasses.field(default_factory=dict)


def bundle_at(model: Path) -> Path | None:
    """The bundle that stands at `model`, a folder or a zip, or is known by that name; None where a model may be.

    Raises UserError where there is nothing, and for a file that is no zip.
    """
    if model.is_file():
        if model.suffix != ".zip" and not is_zipfile(model):
            raise UserError(f"{model} is a file: give the folder of a run, an integer model or a bundle, or its zip")
        return model
    if model.exists():
        return model if (model / "manifest.json").is_file() else None
    known = known_bundles()
    if str(model) not in known:
        names = ", ".join(sorted(known)) or "none"
        raise UserError(f"{model}: no model there (no such folder), and the bundles known by name are {names}")
    return known[str(model)]


def export_again(source: Path, request: Request) -> Export:
    """Write a bundle of what passes make of the graph of another one, the folder or zip `source`.

    What was measured of the network is told again where it is the same network; one of other timesteps or tokens is run
    on the texts that its recipe names, where they can be read and are those that were measured.

    Raises what `converters.pipeline.export` raises; CheckFailed too where the reference does not
    repeat here what the bundle has recorded.
    """
    target, chosen = check_request(request)
    if request.vocabulary is not None:
        from converters.fewer_tokens import check_texts

        check_texts(request.vocabulary_text)
    bundle = read_bundle(source)
    graph = with_timesteps(bundle, request.timesteps)
    if request.vocabulary is None:
        check_legal_early(graph, target, chosen)
    comparison = require_golden(bundle)
    with tokens_left(bundle, graph, request.vocabulary, request.vocabulary_text) as taken:
        checked = Checked(taken.graph, taken.batch, taken.tokenizer, "golden", comparison, roundings_of(bundle, taken))
        before = bundle.manifest["provenance"]
        return write_export(
            checked,
            pass_on(checked, target, chosen, request.save_passes),
            request.out,
            target,
            figures=figures_now(bundle, taken, request.run_texts),
            config={
                **bundle.config,
                "name": request.name or request.out.name,
                "labels": list(bundle.labels),
                "licences": bundle.config.get("licences") or {},
                "example": request.example
                or bundle.config.get("example")
                or golden_texts(bundle.tokenizer.get_vocab())[EXAMPLE],
                "model": description_of(bundle, taken),
            },
            provenance={
                "command": request.command,
                "recipe": before.get("recipe") or {},
                "exported_from": origin_of(bundle),
            },
            overwrite=request.overwrite,
            earlier_passes=passes_before(before),
        )


def with_timesteps(bundle: Bundle, timesteps: int | None) -> Graph:
    """The bundle's graph for so many timesteps; None: as it is.

    What happens at a timestep does not depend on how many follow, so the values of the first ones stay as they are.
    Raises UserError below 1, beyond the timesteps of spike-coded positions, and beyond those for which a pass found
    neurons dead; CheckFailed where a sum may overflow.
    """
    graph, source = bundle.graph, bundle.graph.source
    if timesteps in (None, graph.timesteps):
        return graph
    if timesteps < 1:
        raise UserError(f"--timesteps: timesteps is {timesteps}, it must be 1 or more")
    if source.code is not None:
        known = len(source.code)
        if timesteps > known:
            raise UserError(
                f"--timesteps: timesteps is {timesteps}, the spike-coded positions are those of {known} timesteps"
            )
        source = replace(source, code=source.code[:timesteps])
    removed = any(each.name == FOR_T_TIMESTEPS for each in passes_before(bundle.manifest["provenance"]))
    if removed and timesteps > graph.timesteps:
        raise UserError(
            f"--timesteps: timesteps is {timesteps}; the pass {FOR_T_TIMESTEPS} has removed neurons that are known to "
            f"be dead for {graph.timesteps}. Take the bundle or the model from before that pass"
        )
    try:
        return Graph(timesteps, graph.n_max, (source, *graph.nodes[1:]))
    except GraphError as error:
        raise CheckFailed(f"--timesteps {timesteps}: that makes no legal graph: {error}") from error


@contextmanager
def tokens_left(bundle: Bundle, graph: Graph, vocabulary: int | None, texts: Sequence[str]) -> Iterator[Taken]:
    """What is taken of a bundle whose graph is to be `graph`: all of its tokens, or the `vocabulary` that texts use
    most. Raises what `converters.fewer_tokens.most_used` raises."""
    folder, same = bundle.folder / "tokenizer", graph.timesteps == bundle.graph.timesteps
    if vocabulary is None:
        yield Taken(graph, bundle.golden.batch, folder, same)
        return
    from converters.fewer_tokens import most_used, saved
    from spikebert.vocabulary import ID_FIELDS

    source = graph.source
    found = most_used(folder, len(source.table), vocabulary, texts)
    smaller = Graph(graph.timesteps, graph.n_max, (replace(source, table=source.table[found.kept]), *graph.nodes[1:]))
    tokenizer = found.tokenizer
    special = {field: getattr(tokenizer, field, None) for field in ID_FIELDS}
    with saved(tokenizer) as folder:
        golden = golden_texts(tokenizer.get_vocab())
        batch = tokenise_golden(golden, tokenizer, graph.n_max, tokenizer.pad_token_id or 0)
        yield Taken(smaller, batch, folder, same and len(found.kept) == len(source.table), special)


def figures_now(bundle: Bundle, taken: Taken, run_texts: bool) -> Figures:
    """What is known of the network that is taken of a bundle."""
    told = figures_of_bundle(bundle)
    counted = {name.partition(", ")[0] for name in told.counts if name.endswith(f", {MEASURED}")}
    measurable = counted | set(told.texts_sha256)
    if taken.same:
        known, done = told, measurable <= set(told.activity)
    elif taken.graph.timesteps != bundle.graph.timesteps:
        known, done = of_other_timesteps(told), False
    else:
        model = bundle.config.get("model") or {}  # a pass may have removed rows that no text leads to
        known, done = of_other_tokens(told, model.get("vocab_size") or len(bundle.graph.source.table)), False
    if done or not run_texts or not measurable:
        return known
    if find_spec("torch") is None or find_spec("transformers") is None:
        note("not run on its texts, so the card tells less: that needs torch and transformers")
        return known
    found, digests = run_on_own_texts(bundle, told, taken)
    known = replace(known, texts_sha256={**known.texts_sha256, **digests})
    accuracies = {split: on.accuracy.to_dict() for split, on in found.items()}
    return with_own(known, accuracies, {split: on.to_json() for split, on in found.items()})


def run_on_own_texts(bundle: Bundle, told: Figures, taken: Taken) -> tuple[dict[str, OnTexts], dict[str, str]]:
    """What the network does with the texts that the bundle's recipe names, by split, and the sha256 of those texts.

    Without a sha256, which older bundles do not tell, they must give as many tokens as were counted.
    """
    recipe = bundle.manifest["provenance"].get("recipe")
    if not recipe:
        note("not run on its texts, so the card tells less: no recipe names them")
        return {}, {}
    from converters.from_torch import load_tokenizer
    from converters.on_texts import measured_texts, run_on_splits
    from spikebert.data import tokenise

    counts = {name.partition(", ")[0]: counts for name, counts in told.counts.items() if name.endswith(MEASURED)}
    own = {split: {"texts": texts} for split, (_, texts) in counts.items()}
    results = {
        "recipe": recipe,
        "accuracy": {MEASURED: own},
        "texts_sha256": told.texts_sha256,
    }
    found = measured_texts(results)
    before = load_tokenizer(bundle.folder / "tokenizer")
    for split, texts in list(found.items()):
        if split not in told.texts_sha256:
            counted = told.activity.get(split, {}).get("tokens")
            tokens = int(tokenise(before, texts.texts, bundle.graph.n_max).lengths.sum())
            if tokens != counted:
                note(f"{split}: not run on its texts, so the card tells less: these may be others than were measured")
                del found[split]
    digests = {split: texts.sha256() for split, texts in found.items()}
    return run_on_splits(taken.graph, load_tokenizer(taken.tokenizer), found), digests


def roundings_of(bundle: Bundle, taken: Taken) -> dict[str, Rounding]:
    """What rounding did to the weights of the trained model, by the bundle's report; of a token table while it has all
    of its rows."""
    source = bundle.graph.source
    fields = [field.name for field in dataclasses.fields(Rounding)]
    try:
        report = json.loads((bundle.folder / "report.json").read_text(encoding="utf-8"))
        told = {node["name"]: (node["weights"] or {}).get("rounding") for node in report["nodes"]} | report["replaced"]
        known = {name: Rounding(**{field: found[field] for field in fields}) for name, found in told.items() if found}
    except (OSError, ValueError, KeyError, TypeError):  # none, or of another layout
        return {}
    if len(taken.graph.source.table) != len(source.table):
        known.pop(source.name, None)
    return known


def description_of(bundle: Bundle, taken: Taken) -> dict[str, Any]:
    """What the manifest tells of the model, as it is now."""
    told = dict(bundle.config.get("model") or {})
    now = {"timesteps": taken.graph.timesteps, **taken.special}
    if taken.special:
        now["vocab_size"] = len(taken.graph.source.table)
    return told | {field: value for field, value in now.items() if told.get(field) is not None}


def origin_of(bundle: Bundle) -> dict[str, Any]:
    """Of the manifest's provenance: which bundle this was made from, and how that had been."""
    before = bundle.manifest["provenance"]
    told = {field: before[field] for field in ("command", "passes", "exported_from") if field in before}
    place = bundle.folder.name if bundle.zip is None else bundle.zip.stem
    return {"name": bundle.config.get("name") or place, "digest": bundle.manifest["digest"], **told}


def passes_before(provenance: Mapping[str, Any]) -> list[PassReport]:
    """Those that changed the network of a bundle, those of the first export first."""
    return [PassReport(name, summary) for name, summary in passes_of(provenance) if name not in PROOFS]
