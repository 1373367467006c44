"""What `spikebert-export` does: model -> graph -> the same bits? -> passes -> legal for the target? -> bundle."""

from __future__ import annotations

import hashlib
import json
import operator
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import reduce
from importlib.metadata import entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from converters.bundle import (
    GOLDEN_MAX,
    Bundle,
    Golden,
    check_beside,
    check_destination,
    golden_dtype,
    golden_nodes,
    make_golden,
    write_bundle,
)
from converters.execution import Execution, TokenBatch
from converters.figures import Figures, figures_of_training
from converters.graph import Graph, GraphError
from converters.passes.balance_delays import balance_delays
from converters.passes.catalogue import DEFAULT_PASSES, PassContext, choose_passes, make_passes
from converters.passes.run import Interpreters, PassedGraph, PassRecord, run_passes
from converters.report.accuracy import of_fewer_tokens
from converters.report.contents import PassReport, Rounding
from converters.report.gather import gather
from converters.report.observe import Observations, observe
from converters.report.write import file_sizes, write_report
from converters.schedule import LatencyTable
from sim.clocked import run_clocked
from sim.reference import ReferenceEngine
from sim.verify import Comparison, compare
from spikebert.commands import CheckFailed, UserError
from spikebert.tokenizer_rows import write_with_rows
from targets.legality import IllegalGraphError, Violation

if TYPE_CHECKING:  # it needs torch
    from spikebert.data import LabelledTexts

TARGETS = "spikebert.targets"
# Short inputs of our own: an empty text, one word, repetition, punctuation, another script, a longer sentence.
GOLDEN_TEXTS = (
    "",
    "good",
    "not good , not good at all",
    "a gripping , funny film",
    "The battery died after two days !",
    "服务很好，下次还会来。",
    "what a waste of an evening",
    "the soup was cold , the waiter was rude and we still paid thirty dollars each",
)
CHINESE_GOLDEN_TEXTS = (
    "",
    "好",
    "不好，一点都不好",
    "味道很好，送餐也快",
    "电池用了两天就坏了！",
    "The battery died after two days !",
    "浪费了一个晚上",
    "汤是凉的，服务员态度很差，我们每个人还付了两百块钱",
)
EXAMPLE = 3  # which of them a bundle's card shows


class Target(Protocol):
    """What an entry point of `spikebert.targets` names: a class that is made without arguments.

    latencies how many steps of its machine each kind of node takes; None where that is not known
    """

    name: str
    latencies: LatencyTable | None

    def check(self, graph: Graph) -> Sequence[Violation]: ...

    def emit(self, graph: Graph, folder: Path) -> None: ...


@dataclass(frozen=True)
class Request:
    """What is wanted of an export, of a model or of a bundle; the flags of spikebert-export.

    target      name of the target, None for any engine
    example     a text that the bundle's card classifies; the bundle's, or one of `golden_texts`, if left out
    passes      passes (`converters.passes`), `NAME` or `NAME:option=value,...`; `prove-ranges` is run in any case
    save_passes a folder for the graph before and after each pass, as text
    timesteps   T, where it shall be another than before; what was measured then counts no more
    vocabulary  at most so many tokens stay, those that the files of `vocabulary_text` use most; None: all
    run_texts   run the network on the texts on which training measured the integer student, where they can be read: the
                card then tells how good it is, how often neurons fire and how many operations that takes
    """

    out: Path
    target: str | None = None
    name: str | None = None
    example: str | None = None
    overwrite: bool = False
    command: str = ""
    passes: Sequence[str] = DEFAULT_PASSES
    save_passes: Path | None = None
    timesteps: int | None = None
    vocabulary: int | None = None
    vocabulary_text: Sequence[str] = ()
    run_texts: bool = True


@dataclass(frozen=True, eq=False)
class Checked:
    """A network to be exported, and what that was held against.

    batch       the golden inputs, with the ids that the graph takes
    tokenizer   its folder
    against     "torch": the model, every value; "golden": what a bundle has recorded
    comparison  how that went
    roundings   node -> what rounding did to its weights, where that is known
    """

    graph: Graph
    batch: TokenBatch
    tokenizer: Path
    against: Literal["torch", "golden"]
    comparison: Comparison
    roundings: Mapping[str, Rounding] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Export:
    """What an export did: the bundle, what the network was held against before any pass, and what each pass did."""

    bundle: Bundle
    against: Literal["torch", "golden"]
    comparison: Comparison
    passes: tuple[PassRecord, ...]


def find_target(name: str) -> Target:
    """Raises UserError for a target that is not registered."""
    registered = {point.name: point for point in entry_points(group=TARGETS)}
    if name not in registered:
        raise UserError(f"there is no target '{name}'. Targets: {', '.join(sorted(registered))}")
    return registered[name].load()()


def golden_texts(vocabulary: Collection[str]) -> tuple[str, ...]:
    """Those in the language of a tokenizer: Chinese where most of its tokens hold a Chinese character, else English."""
    chinese = sum(any("\u4e00" <= character <= "\u9fff" for character in token) for token in vocabulary)
    return CHINESE_GOLDEN_TEXTS if chinese > len(vocabulary) / 2 else GOLDEN_TEXTS


def tokenise_golden(texts: Sequence[str], tokenizer: Any, n_max: int, pad_id: int) -> TokenBatch:
    """At most 8 texts as a batch [8, N], tokenised by a transformers tokenizer."""
    encoded = [tokenizer(text, truncation=True, max_length=n_max)["input_ids"] for text in texts[:GOLDEN_MAX]]
    width = max(map(len, encoded))
    ids = np.array([text + [pad_id] * (width - len(text)) for text in encoded])
    return TokenBatch(ids, np.arange(width) < np.array([[len(text)] for text in encoded]))


def run_reference(graph: Graph, batch: TokenBatch) -> Execution:
    """What the definition makes of a batch, every value of every node."""
    return ReferenceEngine(graph).run(batch, [node.name for node in graph])


def run_golden(graph: Graph, batch: TokenBatch) -> tuple[Execution, Observations]:
    """What the reference does with the golden inputs: the spikes that a bundle records, and what a report
    tells of every node. One sample after another, so that no more than the values of one are in memory."""
    names, done, seen = golden_nodes(graph), [], []
    for i in range(len(batch)):
        one = run_reference(graph, batch[i : i + 1])
        done.append(Execution(one.logits, {name: one.values[name].astype(golden_dtype(graph, name)) for name in names}))
        seen.append(observe(graph, one, batch.mask[i : i + 1]))
    values = {name: np.concatenate([one.values[name] for one in done], axis=1) for name in names}
    return Execution(np.concatenate([one.logits for one in done]), values), reduce(operator.add, seen)


def check_against_torch(graph: Graph, torch_engine: Any, batch: TokenBatch) -> Comparison:
    """Every value of every node, torch model against reference, one sample after another: all at once would take
    gigabytes for a large network. Raises CheckFailed with the first difference."""
    names, comparison = [node.name for node in graph], Comparison()
    for i in range(len(batch)):
        one = batch[i : i + 1]
        comparison += compare(graph, torch_engine.run(one, names), run_reference(graph, one), first_sample=i)
    if comparison.mismatches:
        raise CheckFailed(
            f"the graph is not the network of the torch model: {comparison.mismatches} of "
            f"{comparison.values_compared} values differ, first {comparison.first_mismatch}"
        )
    return comparison


def check_legal(graph: Graph, target: Target) -> None:
    """Raises IllegalGraphError with every violation."""
    violations = target.check(graph)
    if violations:
        raise IllegalGraphError(target.name, violations)


def check_legal_early(graph: Graph, target: Target | None, chosen: Collection[str]) -> None:
    """`check_legal` before the long work, where no pass is chosen that may make a graph legal."""
    if target is not None and set(chosen) == set(DEFAULT_PASSES):
        check_legal(graph, target)


def check_request(request: Request) -> tuple[Target | None, dict[str, dict[str, Any]]]:
    """Target and passes. Raises UserError for all that can be told before anything is read."""
    check_destination(request.out, request.overwrite)
    if request.save_passes is not None:
        check_beside(request.save_passes, request.out)
    if (request.vocabulary is not None) != bool(request.vocabulary_text):
        raise UserError(
            "--vocabulary and --vocabulary-text: give both, a number of tokens and the texts that choose them"
        )
    target = None if request.target is None else find_target(request.target)
    return target, choose_passes([*DEFAULT_PASSES, *request.passes])


def export(model_folder: Path, request: Request) -> Export:
    """Write the bundle of a trained model.

    Raises UserError for what the user can mend, CheckFailed where the graph differs from the torch model or
    is illegal for the target. Nothing is written then.
    """
    check_request(request)
    results = training_results(model_folder)

    from converters.fewer_tokens import check_texts, with_fewer_tokens
    from converters.from_torch import load_integer_model
    from converters.on_texts import measured_texts

    check_texts(request.vocabulary_text)
    texts = measured_texts(results) if request.run_texts else {}
    model = load_integer_model(model_folder)
    if request.timesteps not in (None, model.config.timesteps):
        try:
            model.set_timesteps(request.timesteps)
        except ValueError as error:
            raise UserError(f"--timesteps: {error}") from None
        results = unmeasured(results)
    config = model.config
    with ExitStack() as stack:
        tokenizer = Path(config.name_or_path)
        if request.vocabulary is not None:
            results = of_fewer_tokens(results, config.vocab_size)
            tokenizer = stack.enter_context(with_fewer_tokens(model, request.vocabulary, request.vocabulary_text))
        return export_module(
            model,
            request.out,
            request.target,
            tokenizer=tokenizer,
            labels=[config.id2label[i] for i in range(config.num_labels)],
            description={key: value for key, value in config.to_diff_dict().items() if key != "_name_or_path"},
            results=results,
            texts=texts,
            name=request.name,
            example=request.example,
            overwrite=request.overwrite,
            command=request.command,
            passes=request.passes,
            save_passes=request.save_passes,
        )


def export_module(
    module: Any,
    out: Path,
    target_name: str | None = None,
    *,
    tokenizer: Path,
    labels: Sequence[str] | None = None,
    description: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
    texts: Mapping[str, LabelledTexts] | None = None,
    name: str | None = None,
    example: str | None = None,
    overwrite: bool = False,
    command: str = "",
    passes: Sequence[str] = DEFAULT_PASSES,
    save_passes: Path | None = None,
) -> Export:
    """Write the bundle of any module of spiking layers in integer mode, as `export` does for a trained SpikeBERT.

    module      from `spikebert.quantise` or `spikebert.from_spikingjelly`
    tokenizer   a folder that `save_pretrained` of a transformers tokenizer wrote; it must add special tokens
    labels      names of the classes in order; "0", "1", ... if left out
    description what the manifest tells of the model; its class if left out
    results     what training measured (results.json of spikebert-train)
    texts       by the name of their split, such as "validation": labelled texts that the network is run on, for the
                card to tell what it does with them

    The others as in `Request`; what is raised as for `export`.
    """
    check_destination(out, overwrite)
    if save_passes is not None:
        check_beside(save_passes, out)
    target = None if target_name is None else find_target(target_name)
    chosen = choose_passes([*DEFAULT_PASSES, *passes])
    results = results or {}

    from converters.from_torch import graph_from_model, load_tokenizer, roundings
    from converters.on_texts import run_on_splits, with_own_accuracy
    from converters.torch_engine import TorchEngine

    loaded = load_tokenizer(tokenizer)
    try:
        graph = graph_from_model(module)
    except GraphError as error:
        raise CheckFailed(f"{type(module).__name__}: the model makes no legal graph: {error}") from error
    labels = labels or [str(i) for i in range(graph.features[graph.output])]
    check_fits(graph, loaded, labels)
    check_legal_early(graph, target, chosen)
    golden_inputs = golden_texts(loaded.get_vocab())
    batch = tokenise_golden(golden_inputs, loaded, graph.n_max, loaded.pad_token_id or 0)
    comparison = check_against_torch(graph, TorchEngine(graph, module), batch)
    checked = Checked(graph, batch, tokenizer, "torch", comparison, roundings(module, graph))
    passed = pass_on(checked, target, chosen, save_passes)
    on_splits = run_on_splits(graph, loaded, texts or {})  # passes change no value of it, but what is counted
    results = with_own_accuracy(results, on_splits)
    return write_export(
        checked,
        passed,
        out,
        target,
        figures=figures_of_training(results, {split: on.to_json() for split, on in on_splits.items()}),
        config={
            "name": name or out.name,
            "labels": list(labels),
            "licences": licences(results),
            "example": example or golden_inputs[EXAMPLE],
            "model": dict(description or {"class": f"{type(module).__module__}.{type(module).__qualname__}"}),
        },
        provenance={"command": command, "recipe": results.get("recipe", {})},
        overwrite=overwrite,
    )


def pass_on(
    checked: Checked, target: Target | None, chosen: Mapping[str, Mapping[str, Any]], save_passes: Path | None
) -> PassedGraph:
    """What the chosen passes make of a network. Raises CheckFailed where one changes it, or the target refuses it."""
    latencies = None if target is None else target.latencies
    todo = make_passes(chosen, PassContext(checked.tokenizer, latencies or LatencyTable()))
    passed = run_passes(checked.graph, todo, checked.batch, Interpreters(run_reference, run_clocked), save_passes)
    if target is not None:
        check_legal(passed.graph, target)
    return passed


def write_export(
    checked: Checked,
    passed: PassedGraph,
    out: Path,
    target: Target | None,
    *,
    figures: Figures,
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
    overwrite: bool,
    earlier_passes: Sequence[PassReport] = (),
) -> Export:
    """Write the bundle of what passes made of a network.

    config          of the manifest, without the figures
    provenance      of the manifest, without what is the same for every export
    earlier_passes  that the network had been through before it was `checked`, for the report
    """
    graph, records = passed.graph, passed.records
    execution, observations = run_golden(graph, passed.batch)
    golden: Golden = make_golden(graph, passed.batch, execution)
    latencies = None if target is None else target.latencies

    def add_report(folder: Path) -> None:
        report = gather(
            graph,
            observations,
            name=config["name"],
            labels=config["labels"],
            target=None if target is None else target.name,
            latency_steps=balance_delays(graph, latencies).latency_steps if latencies else None,
            roundings=checked.roundings,
            accuracy=figures.stages,
            passes=[*earlier_passes, *(PassReport(record.name, record.summary) for record in records)],
            files=file_sizes(folder),
        )
        write_report(folder, report)

    with tokenizer_for(passed, checked.tokenizer) as tokenizer_folder:
        bundle = write_bundle(
            out,
            graph,
            tokenizer=tokenizer_folder,
            golden=golden,
            config={**config, **figures.for_manifest()},
            provenance={
                **provenance,
                "passes": {record.name: record.summary for record in records},
                "versions": _versions(),
            },
            target=None if target is None else target.name,
            add_target=None if target is None else lambda folder: target.emit(graph, folder),
            add_report=add_report,
            overwrite=overwrite,
        )
    return Export(bundle, checked.against, checked.comparison, records)


def check_fits(graph: Graph, tokenizer: Any, labels: Sequence[str]) -> None:
    """Raises UserError where a tokenizer gives ids or texts that the graph cannot take, or the labels are too few."""
    rows, classes = graph.source.table.shape[0], graph.features[graph.output]
    added = tokenizer.num_special_tokens_to_add()
    if len(tokenizer) > rows:
        raise UserError(f"the tokenizer knows {len(tokenizer)} tokens, the Encoder's table has {rows}: make it larger")
    if not 1 <= added <= graph.n_max:
        raise UserError(f"the tokenizer adds {added} special tokens to a text: it must be 1 .. n_max ({graph.n_max})")
    if len(labels) != classes:
        raise UserError(f"labels names {len(labels)} classes, the model has {classes}")


@contextmanager
def tokenizer_for(passed: PassedGraph, folder: Path) -> Iterator[Path]:
    """The folder of a tokenizer that gives the ids a graph takes after its passes: `folder`, or one for a time."""
    if passed.token_ids is None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as changed:
        write_with_rows(folder, np.flatnonzero(passed.token_ids >= 0), Path(changed))
        yield Path(changed)


def training_results(model_folder: Path) -> dict[str, Any]:
    """results.json, where `model_folder` is a run of spikebert-train or its `integer/`.

    Empty for any other model: figures of another one beside it are not its own. Raises UserError where the
    record is damaged.
    """
    run = model_folder if (model_folder / "integer").is_dir() else model_folder.parent
    path, stage = run / "results.json", run / "integer" / "stage.json"
    if not (path.is_file() and stage.is_file() and model_folder in (run, run / "integer")):
        return {}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if not _measured_here(results, stage):
            raise UserError(f"{path} was measured with another recipe than {stage.parent}: run spikebert-train again")
        figures_of_training(results, {})  # whether what is read later can be read
        return results
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged: run spikebert-train again to measure again") from None


def unmeasured(results: Mapping[str, Any]) -> dict[str, Any]:
    """What stays true of a model that is another than the one that was measured: what it learnt from, and which texts
    it may be measured on."""
    kept = {
        name: results[name]
        for name in ("recipe", "teacher_licence", "teacher_origin", "texts_sha256")
        if name in results
    }
    stage1 = results.get("stages", {}).get("stage1")
    return kept | ({"stages": {"stage1": stage1}} if stage1 else {})


def _measured_here(results: Mapping[str, Any], stage: Path) -> bool:
    """Whether results are of the integer stage whose record this is."""
    if "integer_stage_sha256" in results:
        return bool(results["integer_stage_sha256"] == hashlib.sha256(stage.read_bytes()).hexdigest())
    made_from = json.loads(stage.read_text(encoding="utf-8"))["made_from"]  # earlier versions wrote the recipe alone
    return all(made_from[section] == value for section, value in results["recipe"].items() if section in made_from)


def licences(results: Mapping[str, Any]) -> dict[str, str]:
    """Of `training_results`: what the weights learnt from, and what is known of licences, for the model card."""
    recipe = results.get("recipe")
    if not recipe:
        return {}
    data, stage1, stage2 = (recipe[part] for part in ("data", "stage1", "stage2"))
    extra = stage2["extra_text"] if stage2["extra_lines"] else []
    taken_over = results.get("stages", {}).get("stage1", {})
    earlier = taken_over.get("learnt_from")
    if earlier is None:  # or nobody knew: a run of old, which tells the folder alone
        earlier = filter(None, [stage1["reuse"]])
    origin = results.get("teacher_origin", {})  # older runs told the folder of a fine-tuned teacher alone
    texts = [
        data["folder"] or data["hub"],
        *([] if stage1["reuse"] else stage1["text"]),
        *extra,
        *earlier,
        *origin.get("texts", ()),
    ]
    names = dict.fromkeys(text if ":" in text else Path(text).name for text in texts)
    teacher, terms = origin.get("model") or recipe["teacher"]["model"], results.get("teacher_licence")
    own = recipe.get("licence", "")
    known = {
        "Learnt from the texts": ", ".join(names),
        "and from the teacher": f"{teacher} ({terms})" if terms else teacher,
        "The recipe says of its own texts and teacher": own,
        "and those that fine-tuned its teacher": "; ".join(
            said for said in dict.fromkeys(origin.get("terms", ())) if said != own
        ),
        **taken_over.get("licences", {}),  # of a bundle that it went on from
    }
    return {what: said for what, said in known.items() if said}


def _versions() -> dict[str, str]:
    """Of what is installed: to export a bundle again neither torch nor transformers is needed."""
    names = ("spikebert", "torch", "transformers", "numpy")
    return {package: version(package) for package in names if find_spec(package) is not None}
