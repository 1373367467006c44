"""All passes, in the order in which they run, and how a person names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from converters.passes.balance_delays import BalanceDelays
from converters.passes.expand_attention import ExpandAttention
from converters.passes.lay_out_bias_lanes import LayOutBiasLanes
from converters.passes.merge_query_key_value import MergeQueryKeyValue
from converters.passes.prove_ranges import ProveRanges
from converters.passes.remove_dead_neurons import RemoveDeadNeurons
from converters.passes.remove_unreachable_tokens import RemoveUnreachableTokens
from converters.passes.remove_unread_nodes import RemoveUnreadNodes
from converters.passes.rewrite import Pass
from converters.passes.split_wide_layers import SplitWideLayers
from converters.schedule import LatencyTable
from spikebert.commands import UserError
from spikebert.tokenizer_rows import reachable_ids


@dataclass(frozen=True)
class PassContext:
    """What passes may need beside the graph and their options.

    tokenizer the folder of the model's tokenizer
    latencies of the target
    """

    tokenizer: Path
    latencies: LatencyTable = field(default_factory=LatencyTable)


PASSES: Mapping[str, type[Any]] = {  # each makes a Pass
    "prove-ranges": ProveRanges,
    "remove-unread-nodes": RemoveUnreadNodes,
    "remove-unreachable-tokens": RemoveUnreachableTokens,
    "remove-dead-neurons": RemoveDeadNeurons,
    "merge-query-key-value": MergeQueryKeyValue,
    "expand-attention": ExpandAttention,
    "lay-out-bias-lanes": LayOutBiasLanes,
    "split-wide-layers": SplitWideLayers,
    "balance-delays": BalanceDelays,
}
# What passes take from the context beside their options.
FROM_CONTEXT: Mapping[str, Callable[[PassContext], dict[str, Any]]] = {
    "remove-unreachable-tokens": lambda context: {"reachable": reachable_ids(context.tokenizer)},
    "balance-delays": lambda context: {"latencies": context.latencies},
}
PASS_NAMES = tuple(PASSES)
ABOUT = {  # for --help; the docstrings of the passes say more
    "prove-ranges": "no accumulator can overflow (always run)",
    "remove-unread-nodes": "nodes from which no way leads to the readout",
    "remove-unreachable-tokens": "rows of the token table that no text leads to",
    "remove-dead-neurons": "neurons that never fire, and their synapses",
    "merge-query-key-value": "one layer in the place of three",
    "expand-attention": "attention made of stock neurons and synapses",
    "lay-out-bias-lanes": "biases become synapses from neurons that mark real tokens",
    "split-wide-layers": "several layers in the place of one that is too wide",
    "balance-delays": "what must wait on a machine; a schedule, the graph stays",
}
DEFAULT_PASSES = ("prove-ranges",)


def choose_passes(named: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Passes as a person names them, `NAME` or `NAME:option=value,option=value`: name -> options.

    Of a name given twice the later counts. Raises UserError for a name that is none, and for a wrong option or value.
    """
    chosen: dict[str, dict[str, Any]] = {}
    for text in named:
        name, _, options = text.partition(":")
        if name not in PASSES:
            raise UserError(f"there is no pass '{name}'. Passes: {', '.join(PASSES)}")
        chosen[name] = _options(name, options)
        if name not in FROM_CONTEXT:
            try:
                PASSES[name](**chosen[name])
            except ValueError as error:
                raise UserError(f"pass '{name}': {error}") from error
    return chosen


def make_passes(chosen: Mapping[str, Mapping[str, Any]], context: PassContext) -> tuple[Pass, ...]:
    """The passes that `choose_passes` found, in the order in which they run."""
    made = []
    for name, make in PASSES.items():
        if name in chosen:
            given = FROM_CONTEXT[name](context) if name in FROM_CONTEXT else {}
            made.append(make(**given, **chosen[name]))
    return tuple(made)


def options_of(name: str) -> dict[str, type]:
    """The options of a pass that a person may set, with their types: its fields that are whole numbers or yes/no."""
    kinds = {"int": int, "bool": bool}
    return {each.name: kinds[str(each.type)] for each in fields(PASSES[name]) if str(each.type) in kinds}


def _options(name: str, text: str) -> dict[str, Any]:
    known = options_of(name)
    found: dict[str, bool | int] = {}
    for part in filter(None, text.split(",")):
        option, _, value = part.partition("=")
        if option not in known:
            has = f"its options: {', '.join(known)}" if known else "it has none"
            raise UserError(f"pass '{name}' has no option '{option}'; {has}")
        if known[option] is bool and value in ("true", "false"):
            found[option] = value == "true"
        elif known[option] is int and value.isdecimal():
            found[option] = int(value)
        else:
            wanted = "true or false" if known[option] is bool else "a whole number"
            raise UserError(f"pass '{name}': {option} is {wanted}, not '{value}'")
    return found
