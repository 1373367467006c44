"""Passes by name: their order, their options, and every file of the folder in its table of contents."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest

import converters.passes
from converters.passes.balance_delays import BalanceDelays
from converters.passes.catalogue import (
    ABOUT,
    DEFAULT_PASSES,
    PASS_NAMES,
    PASSES,
    PassContext,
    choose_passes,
    make_passes,
    options_of,
)
from converters.passes.merge_query_key_value import MergeQueryKeyValue
from converters.passes.remove_unreachable_tokens import RemoveUnreachableTokens
from converters.passes.split_wide_layers import SplitWideLayers
from converters.schedule import LatencyTable
from spikebert.commands import UserError

FOLDER = Path(converters.passes.__file__ or "").parent
NO_PASSES = {"__init__", "catalogue", "edit", "rewrite", "run"}
SHIPPED = Path(__file__).parents[3] / "recipes" / "bundles" / "reviews" / "tokenizer"
CONTEXT = PassContext(SHIPPED, LatencyTable(synapses=3))


def test_every_file_is_a_pass_of_its_name_and_in_the_table_of_contents() -> None:
    files = {path.stem for path in FOLDER.glob("*.py")} - NO_PASSES
    assert files == {name.replace("-", "_") for name in PASS_NAMES}
    contents = [line.split()[0] for line in (converters.passes.__doc__ or "").splitlines() if line.startswith("    ")]
    assert contents == [name.replace("-", "_") for name in PASS_NAMES], "in the order in which they run"
    assert tuple(ABOUT) == PASS_NAMES


@pytest.mark.parametrize("name", PASS_NAMES)
def test_a_pass_is_a_frozen_dataclass_that_says_why_it_is_right(name: str) -> None:
    kind = PASSES[name]
    (made,) = make_passes({name: {}}, CONTEXT)
    assert type(made) is kind and made.name == name and is_dataclass(kind)
    assert kind.__name__ == name.title().replace("-", "") and kind.__module__.endswith(name.replace("-", "_"))
    with pytest.raises(FrozenInstanceError):
        made.name = "other"  # type: ignore[misc]
    told = kind.__doc__ or ""
    assert "Exact" in told or "Changes nothing" in told
    assert {field.name for field in fields(kind)} >= {"name", *options_of(name)}


def test_passes_run_in_their_order_whatever_the_order_of_their_names() -> None:
    chosen = choose_passes(["balance-delays", "split-wide-layers", "merge-query-key-value", "prove-ranges"])
    names = ["prove-ranges", "merge-query-key-value", "split-wide-layers", "balance-delays"]
    assert [each.name for each in make_passes(chosen, CONTEXT)] == names
    assert DEFAULT_PASSES == ("prove-ranges",) and make_passes({}, CONTEXT) == ()


def test_options_and_what_comes_from_the_context() -> None:
    chosen = choose_passes(
        ["split-wide-layers:most_features=64", "merge-query-key-value:scalar_thresholds=true", "balance-delays",
         "remove-unreachable-tokens"]
    )  # fmt: skip
    reachable, merge, split, delays = make_passes(chosen, CONTEXT)
    assert (merge, split) == (MergeQueryKeyValue(True), SplitWideLayers(64))
    assert delays == BalanceDelays(LatencyTable(synapses=3))
    assert isinstance(reachable, RemoveUnreachableTokens) and 4_000 < len(reachable.reachable) < 4_856


def test_of_a_name_given_twice_the_later_counts_whole() -> None:
    assert choose_passes(["split-wide-layers:most_features=64", "split-wide-layers:most_features=32"]) == {
        "split-wide-layers": {"most_features": 32}
    }
    assert choose_passes(["split-wide-layers:most_features=64", "split-wide-layers"]) == {"split-wide-layers": {}}


def test_options_of_each_pass() -> None:
    assert {name: options_of(name) for name in PASS_NAMES if options_of(name)} == {
        "prove-ranges": {"limit": int},
        "merge-query-key-value": {"scalar_thresholds": bool},
        "expand-attention": {"most_weights": int},
        "split-wide-layers": {"most_features": int},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fuse", r"there is no pass 'fuse'\. Passes: prove-ranges, "),
        ("", r"there is no pass ''\. Passes: "),
        ("Merge-Query-Key-Value", "there is no pass 'Merge-Query-Key-Value'"),
        ("split-wide-layers:width=3", "'split-wide-layers' has no option 'width'; its options: most_features"),
        ("split-wide-layers:name=x", "'split-wide-layers' has no option 'name'"),
        ("balance-delays:latencies=1", "'balance-delays' has no option 'latencies'; it has none"),
        ("remove-unreachable-tokens:reachable=1", "has no option 'reachable'; it has none"),
        ("split-wide-layers:most_features=many", "most_features is a whole number, not 'many'"),
        ("split-wide-layers:most_features=-1", "most_features is a whole number, not '-1'"),
        ("prove-ranges:limit=65536", "'prove-ranges': limit is 65536, no graph may have currents above 65535"),
        ("split-wide-layers:most_features=0", "'split-wide-layers': most_features is 0, a layer has 1 or more"),
        ("split-wide-layers:most_features=²", "most_features is a whole number, not '²'"),
        ("split-wide-layers:most_features", "most_features is a whole number, not ''"),
        ("split-wide-layers:most_features=1=2", "most_features is a whole number, not '1=2'"),
        ("merge-query-key-value:scalar_thresholds=1", "scalar_thresholds is true or false, not '1'"),
        ("merge-query-key-value:scalar_thresholds", "scalar_thresholds is true or false, not ''"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_passes(["prove-ranges", text])


def test_ids_of_the_shipped_tokenizer_rise() -> None:
    (each,) = make_passes({"remove-unreachable-tokens": {}}, CONTEXT)
    assert isinstance(each, RemoveUnreachableTokens) and (np.diff(each.reachable) > 0).all()
