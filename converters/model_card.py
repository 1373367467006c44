"""The README.md of a bundle: what it is, how good, how large, what it learnt from, how it was made, how to run it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from converters.graph import LIF, NEURONS, Attention, Graph, Source, Synapses
from converters.in_words import readout_in_words, rule_in_words
from converters.serialise import stored_weight

PROOFS = ("prove-ranges", "balance-delays")  # passes that look at a graph and leave it as it is

STUDENTS = {  # what training measures, in words
    "folded": "the norms are put into the weights",
    "quantised": "these are rounded, and nothing was trained on since",
    "integer": "what this bundle computes",
}


def model_card(
    graph: Graph, config: Mapping[str, Any], provenance: Mapping[str, Any], target: str | None, folder_name: str
) -> str:
    """Markdown. What it tells if it is there:

    config      "name", "labels", "accuracies" (what was measured -> fraction), "counts" (the same -> [right, texts]),
                "activity" (split -> `OnTexts.to_json`), "licences" (what -> what is known), "example" (a text), and
                of "model" its "token_bits"
    provenance  "command" and "recipe", and where a bundle was exported again "exported_from": the provenance of that
    """
    labels = config.get("labels") or []
    example = shlex.quote(config.get("example", "a text to classify"))
    lines = [
        f"# {config.get('name', folder_name)}",
        "",
        f"A spiking BERT as an integer network: spikes, weights of {_weight_bits(graph)}"
        f"{_token_bits(config.get('model') or {})}, no floating point.",
        "",
        f"- Task: classification into {graph.features[graph.output]} classes"
        + (f": {', '.join(labels)}" if labels else ""),
        f"- Made for: {target or 'any engine'}",
        "",
        *_accuracies(config.get("accuracies") or {}, config.get("counts") or {}),
        *_activity(config.get("activity") or {}, [name for name, _ in passes_of(provenance)]),
        "## Sizes",
        "",
        "| what | how many |",
        "|---|---:|",
        *(f"| {what} | {count:,} |" for what, count in sizes(graph).items()),
        "",
        "## Neurons",
        "",
        "| a neuron | of these for each token |",
        "|---|---:|",
        *(f"| {rule} | {count:,} |" for rule, count in _rules(graph).items()),
        "",
        f"Logits: {readout_in_words(graph.readout)}.",
        "",
        *_licences(config.get("licences") or {}),
        *_making(provenance, folder_name),
        "## Run it",
        "",
        "```",
        f"spikebert-run {folder_name} --text {example}",
        f"spikebert-run {folder_name} --check",
        "```",
        "",
        "The first line classifies a text, the second checks every file, and this machine against the recorded spikes.",
        "Both are given in the folder that holds the bundle's; a zip is unpacked first.",
        "What each file holds is described in docs/bundle.md of spikebert.",
        "",
    ]
    return "\n".join(lines)


def _accuracies(accuracies: Mapping[str, float], counts: Mapping[str, Sequence[int]]) -> list[str]:
    if not accuracies:
        return []
    rows = []
    for name, fraction in accuracies.items():
        right, texts = counts.get(name, (None, None))
        rows.append(f"| {name} | {100 * fraction:.2f} % | {'' if right is None else f'{right:,} of {texts:,}'} |")
    table = ["| measured on | correct | texts |", "|---|---:|---:|", *rows]
    words = [f"{what}: {meaning}" for what, meaning in STUDENTS.items() if any(what in name for name in accuracies)]
    said = [f"Of these students {'; '.join(words)}.", ""] if words else []
    return ["## Accuracy", "", *table, "", *said]


def _activity(activity: Mapping[str, Mapping[str, float]], passes: Sequence[str]) -> list[str]:
    """What the network did with the texts that its accuracy was measured on. Passes give the same answers, but make
    another network of it, mostly after it was counted."""
    if not activity:
        return []
    rows = [
        f"| {split} | {on['texts']:,} | {on['tokens'] / on['texts']:.1f} | {100 * on['firing_rate']:.1f} % "
        f"| {on['operations_per_token']:,.0f} | {100 * on['energy_of_dense_45nm']:.1f} % |"
        for split, on in activity.items()
    ]
    others = dict.fromkeys(name for name in passes if name not in PROOFS)
    since = f" Passes may have changed neurons and operations since: {', '.join(others)}." if others else ""
    header = "| on the texts of | texts | tokens a text | firing rate | synaptic operations a token | energy of dense |"
    return [
        "## Activity", "", header, "|---|---:|---:|---:|---:|---:|", *rows, "",
        f"Counted by the engine `fast`.{since} The energy is by the table 45nm, over that of a dense network of the "
        "same connections (docs/energy.md of spikebert).",
        "",
    ]  # fmt: skip


def passes_of(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and summary of all passes that a network has been through, those of the first export first."""
    earlier = provenance.get("exported_from")
    return [*(passes_of(earlier) if earlier else []), *(provenance.get("passes") or {}).items()]


def _licences(licences: Mapping[str, str]) -> list[str]:
    said = [f"- {what}: {said}" for what, said in licences.items()]
    unsaid = "Not said. Weights learnt from texts and from a teacher may be bound by the licences of both."
    return ["## Licence", "", *(said or [unsaid]), ""]


def _making(provenance: Mapping[str, Any], folder_name: str) -> list[str]:
    """The commands that make the bundle; its manifest records the recipe."""
    manifest = shlex.quote(f"{folder_name}/manifest.json")
    train = [f"spikebert-train --recipe {manifest}"] if provenance.get("recipe") else []
    lines = [*train, *_commands(provenance)]
    training = "The training that the manifest records, and the exports" if train else "The exports"
    about = f"{training} as they were given: with the paths of that time."
    return ["## How it was made", "", "```", *lines, "```", "", about, ""] if lines else []


def _commands(provenance: Mapping[str, Any]) -> list[str]:
    """Of its export, behind those of the bundles that it was exported from."""
    before, command = provenance.get("exported_from"), provenance.get("command")
    return [*(_commands(before) if before else []), *([command] if command else [])]


def _rules(graph: Graph) -> dict[str, int]:
    """What neurons do with a current -> how many of them there are for each token."""
    rules: Counter[str] = Counter()
    for node in graph:
        if isinstance(node, NEURONS):
            rules[rule_in_words(node)] += graph.features[node.name]
    return dict(rules)


def _weight_bits(graph: Graph) -> str:
    bits = max((node.weight_bits for node in graph if isinstance(node, Synapses)), default=8)
    return "1 bit" if bits == 1 else f"{bits} bits"


def _token_bits(model: Mapping[str, Any]) -> str:
    bits = model.get("token_bits", 8)
    return "" if bits == 8 else f", a token table of {bits} bits"


def sizes(graph: Graph) -> dict[str, int]:
    """What a network is made of, in numbers, for a person."""
    attentions = [node for node in graph if isinstance(node, Attention)]
    scoring = {
        "attentions by equal features": sum(node.similarity == "xnor" for node in attentions),
        "position biases of attentions": sum(node.bias.size for node in attentions if node.bias is not None),
    }
    layers = [node for node in graph if isinstance(node, Synapses)]
    neurons = sum(graph.features[node.name] for node in graph if isinstance(node, (LIF, Source)))
    return {
        "timesteps": graph.timesteps,
        "tokens at most": graph.n_max,
        "vocabulary": graph.source.table.shape[0],
        "nodes in the graph": len(graph.nodes),
        "neurons for each token": neurons,
        "weights in synapses": sum(node.weight.size for node in layers),
        "bytes of those weights": sum(stored_weight(node).nbytes for node in layers),
        "bytes of the encoder table": graph.source.table.size,
        **{what: count for what, count in scoring.items() if count},
    }
