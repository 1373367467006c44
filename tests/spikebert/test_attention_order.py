"""(q k^T) v and q (k^T v): the same integers, spikes and gradients; and texts in groups of like length."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from attention_helpers import attend, draw_spikes, gradients, lengths_to_mask
from small_models import small_batch, small_model

from spikebert import layers
from spikebert import packing as packing_module
from spikebert.config import SIMILARITIES
from spikebert.exact_product import Capabilities, exact_matmul
from spikebert.layers import SpikingAttention, matches
from spikebert.packing import GROUP_TEXTS, GROUPS, Packing
from spikebert.positions import PositionBias
from spikebert.quantisation import quantise
from spikebert.spikes import Spikes

SHAPES = {  # tokens n and features of a head d
    "n < d": (5, 8), "n = d": (8, 8), "n > d": (13, 4), "one token": (1, 8), "one feature": (6, 1), "both one": (1, 1),
    "n beyond bf16": (300, 4), "d beyond bf16": (6, 300), "both beyond bf16": (270, 260),
}  # fmt: skip


def scores_first(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, product=None, v_max: int = 1) -> torch.Tensor:
    product = product or (lambda a, b, a_max, b_max: a @ b)
    return product(product(q, k.transpose(1, 2), 1, 1), v, q.shape[2], v_max)


def counts_first(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, product=None, v_max: int = 1) -> torch.Tensor:
    product = product or (lambda a, b, a_max, b_max: a @ b)
    return product(q, product(k.transpose(1, 2), v, 1, v_max), 1, q.shape[1] * v_max)


ORDERS = {"scores first": scores_first, "counts first": counts_first, "the cheaper": matches}


def definition(values: list[torch.Tensor], packing: Packing, heads: int) -> torch.Tensor:
    """int64 [T, B, N, D]: the graph's own equation, text by text and padded."""
    q, k, v = (packing.unpack(x.detach()).long().unflatten(-1, (heads, -1)) for x in values)
    scores = torch.einsum("tbihd,tbjhd->tbhij", q, k)
    return torch.einsum("tbhij,tbjhd->tbihd", scores, v).flatten(-2)


@pytest.mark.parametrize(("steps", "cap"), [(1, 1), (3, 1), (1, 15)])
@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_both_orders_are_one(monkeypatch, shape: str, mixed: bool, integer: bool, steps: int, cap: int) -> None:
    tokens, features = SHAPES[shape]
    attention = SpikingAttention(heads=2, threshold=min(200, tokens * features // 4))
    attention.integer = attention.lif.integer = integer
    mask = lengths_to_mask([tokens, max(1, tokens // 2), 1])
    values, packing = draw_spikes(mask, 2 * features, steps, rate=0.6, cap=cap)
    exact = definition(values, packing, heads=2)
    expected = attention.lif(packing.pack(exact).double(), attention.threshold).float()
    found = {}
    for order, function in ORDERS.items():
        monkeypatch.setattr(layers, "matches", function)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            spikes = attend(attention, values, packing, cap)
        assert torch.equal(spikes.values, expected), order
        if integer or not mixed:
            assert torch.equal(spikes.current.long(), packing.pack(exact)), order
        found[order] = gradients(spikes, values)
    for order in ("counts first", "the cheaper"):
        for ours, its in zip(found[order], found["scores first"]):
            error = 0.03 if mixed else 1e-5
            torch.testing.assert_close(ours, its, rtol=error, atol=error * float(its.abs().max()))


def test_the_shapes_fire_and_are_silent() -> None:
    """The test above would be empty if every neuron fired, or none; and in bf16 currents do round."""
    rounds = set()
    for shape, (tokens, features) in SHAPES.items():
        attention = SpikingAttention(heads=2, threshold=min(200, tokens * features // 4))
        values, packing = draw_spikes(lengths_to_mask([tokens, max(1, tokens // 2), 1]), 2 * features, 3, rate=0.6)
        with torch.autocast("cpu", torch.bfloat16):
            spikes = attend(attention, values, packing)
        assert 0 < spikes.values.mean() < 1, shape
        if not torch.equal(spikes.current.long(), packing.pack(definition(values, packing, heads=2))):
            rounds.add(shape)
    assert rounds == {"n beyond bf16", "d beyond bf16", "both beyond bf16"}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("tokens", "features"), [(257, 1), (1, 257)])
def test_a_threshold_of_256_is_not_for_bf16(monkeypatch, order: str, tokens: int, features: int) -> None:
    """257 matches are 256 in bf16, which is not above 256: there the products are not in bf16."""
    q, k, v = (torch.ones(1, tokens, features) for _ in range(3))
    assert ORDERS[order](q.bfloat16(), k.bfloat16(), v.bfloat16()).unique().item() == 256
    monkeypatch.setattr(layers, "matches", ORDERS[order])
    with torch.autocast("cpu", torch.bfloat16):
        spikes = attend(SpikingAttention(heads=1, threshold=256), [q, k, v], Packing(torch.ones(1, tokens)))
    assert spikes.current.unique().item() == 257 and spikes.values.unique().item() == 1


def test_float16_is_used_only_where_it_cannot_overflow() -> None:
    attention = SpikingAttention(heads=1, threshold=16)
    for tokens, expected in [(8, torch.float16), (257, torch.float32)]:
        packing = Packing(torch.ones(1, tokens))
        x = Spikes(torch.ones(1, tokens, 256), packing)
        with torch.autocast("cpu", torch.float16):
            assert attention._type_of_products(x, 1) == expected
    assert torch.finfo(torch.float16).max < 257 * 256


@pytest.mark.parametrize("tokens", [3, 4, 5])
def test_the_cheaper_order_is_made(tokens: int) -> None:
    q = torch.ones(2, tokens, 4)
    made = []

    def product(a: torch.Tensor, b: torch.Tensor, a_max: int, b_max: int) -> torch.Tensor:
        assert (a.max(), b.max()) == (a_max, b_max)  # all ones: the bounds are met
        made.append(a.shape[1] * a.shape[2] * b.shape[2])
        return a @ b

    assert matches(q, q, q, product).unique().item() == 4 * tokens
    assert sum(made) == 2 * min(tokens**2 * 4, tokens * 4**2)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("tokens", "features", "expected"),
    [
        (6, 4, {"bf16"}),
        (300, 4, {"bf16", "tf32"}),
        (4, 300, {"bf16", "tf32"}),
        (2100, 1, {"bf16", "float32"}),
    ],
)
def test_integer_attention_of_a_gpu(
    monkeypatch, order: str, tokens: int, features: int, expected: set[str], mixed: bool
) -> None:
    """Its types are chosen by what each product holds, between the two up to n or d; they are emulated here."""
    chosen = []

    def emulated(a: torch.Tensor, b: torch.Tensor, kind: str, gradients: torch.dtype | None) -> torch.Tensor:
        chosen.append(kind)
        assert gradients == (torch.bfloat16 if mixed else None)
        limit = {"bf16": 256, "tf32": 2048, "float32": 2**24}[kind]
        assert max(a.max(), b.max()) <= limit
        return exact_matmul(a, b, "float32", gradients)

    monkeypatch.setattr(layers, "capabilities", lambda device, batched: Capabilities(bf16=True, tf32=True))
    monkeypatch.setattr(layers, "exact_matmul", emulated)
    monkeypatch.setattr(layers, "matches", ORDERS[order])
    attention = SpikingAttention(heads=1, threshold=16)
    attention.use_integers(8)
    values, packing = draw_spikes(torch.ones(1, tokens), features, steps=1, rate=1.1)  # all fire
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        spikes = attend(attention, values, packing)
    assert spikes.current.unique().tolist() == [tokens * features]
    between = {"scores first": features, "counts first": tokens, "the cheaper": max(tokens, features)}[order]
    assert set(chosen) == ({"bf16"} if between <= 256 else expected)


LENGTHS = {
    "one text": [3],
    "one token each": [1] * 20,
    "fewer than a group": [4, 1, 3],
    "equal": [5] * 40,
    "mixed": [int(3 + 20 * abs(math.sin(3 * i))) for i in range(45)],
    "one long": [2] * 31 + [40],
}


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("integer", [False, True])
def test_groups_of_texts_change_nothing(monkeypatch, lengths: str, heads: int, integer: bool) -> None:
    mask = lengths_to_mask(LENGTHS[lengths])
    attention = SpikingAttention(heads, threshold=2)
    attention.integer = attention.lif.integer = integer
    found = []
    for groups in (1, GROUPS):
        monkeypatch.setattr(packing_module, "GROUPS", groups)
        values, packing = draw_spikes(mask, 8, steps=2, rate=0.4)
        spikes = attend(attention, values, packing)
        assert len(packing.groups(heads)) == max(1, min(groups, len(mask) // GROUP_TEXTS))
        assert torch.equal(spikes.current.long(), packing.pack(definition(values, packing, heads)))
        found.append((spikes.values, *gradients(spikes, values)))
    for one, several in zip(*found):
        torch.testing.assert_close(several, one)
    assert torch.equal(found[0][0], found[1][0])


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_groups_padded_further_for_a_gpu_change_nothing(monkeypatch, lengths: str, similarity: str) -> None:
    mask = lengths_to_mask(LENGTHS[lengths])
    attention = SpikingAttention(2, threshold=2, similarity=similarity)
    found = []
    for multiple_of in (1, 8):
        monkeypatch.setattr(layers, "side_on", lambda device, of=multiple_of: of)
        values, packing = draw_spikes(mask, 8, steps=2, rate=0.4)
        spikes = attend(attention, values, packing)
        assert list(packing._groups) == [(2, multiple_of)]
        assert all(group.tokens % multiple_of == 0 for group in packing.groups(2, multiple_of))
        found.append((spikes.current, spikes.values, *gradients(spikes, values)))
    for one, other in zip(*found):
        torch.testing.assert_close(other, one)  # sums of a gradient may be made in the other order
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_a_position_bias_ends_where_its_places_do(monkeypatch) -> None:
    monkeypatch.setattr(layers, "side_on", lambda device: 8)
    attention = SpikingAttention(2, threshold=2, position_bias=PositionBias("log", 5, 2, 4))
    values, packing = draw_spikes(lengths_to_mask([5, 3]), 8, steps=2, rate=0.4)
    assert attend(attention, values, packing).values.shape == values[0].shape


def test_groups_leave_out_padding() -> None:
    packing = Packing(lengths_to_mask(LENGTHS["one long"]))
    assert [(group.texts, group.tokens, group.rows) for group in packing.groups(2)] == [
        (8, 40, 54), (8, 2, 16), (8, 2, 16), (8, 2, 16),
    ]  # fmt: skip


@pytest.mark.parametrize("heads", [1, 3])
def test_a_group_unpacks_into_heads_and_back(heads: int) -> None:
    mask = lengths_to_mask(LENGTHS["mixed"])
    packing = Packing(mask)
    x = torch.randn(2, len(packing.index), 6, generator=torch.Generator().manual_seed(0))
    padded = packing.unpack(x).unflatten(-1, (heads, -1))  # [T, B, N, H, d]
    groups = packing.groups(heads)
    assert sum(group.rows for group in groups) == x.shape[1]
    first = 0
    for group, rows in zip(groups, x.split([group.rows for group in groups], 1)):
        texts = packing.order[first : first + group.texts]
        expected = padded[:, texts, : group.tokens].transpose(2, 3).flatten(0, 2)
        assert torch.equal(group.unpack(rows), expected)
        assert torch.equal(group.pack(expected, steps=2), rows)
        first += group.texts
    assert first == len(mask)


def test_packing_sorts_texts_and_keeps_tokens_in_order() -> None:
    mask = torch.tensor([[0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 1], [1, 0, 1, 0]])
    packing = Packing(mask)
    assert packing.order.tolist() == [1, 0, 3, 2]
    assert packing.index.tolist() == [4, 5, 6, 7, 1, 3, 12, 14, 11]
    assert packing.places.tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 0]


def test_a_batch_of_no_texts() -> None:
    values, packing = draw_spikes(torch.ones(0, 1), 8, steps=2, rate=0.5)
    assert attend(SpikingAttention(heads=2), values, packing).values.shape == (2, 0, 8)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_text_is_computed_alike_in_every_batch(side: str) -> None:
    """Alone, and among 40 texts that stand in groups; an integer model, so equal in every bit."""
    model = quantise(small_model())
    batch = small_batch(texts=40)
    if side == "left":
        batch = {name: value.flip(1) for name, value in batch.items()}
    with torch.no_grad():
        together = model(**batch, output_trace=["blocks.1.attention", "blocks.1.add_mlp"])
        for text in range(0, 40, 7):
            alone = model(**{name: value[text : text + 1] for name, value in batch.items()})
            assert torch.equal(alone.integer_logits[0], together.integer_logits[text])
    for value in together.trace.values():
        assert value.any() and not value[:, batch["attention_mask"] == 0].any()


def test_every_step_of_training_is_alike_in_both_orders(monkeypatch) -> None:
    """An integer model under mixed precision: logits equal, gradients to the rounding of bf16."""
    found = []
    for order, mixed in itertools.product(("scores first", "counts first"), (False, True)):
        monkeypatch.setattr(layers, "matches", ORDERS[order])
        model = quantise(small_model()).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            output = model(**small_batch(), labels=torch.tensor([0, 1, 2, 0, 1]))
        output.loss.backward()
        found.append((output.integer_logits, model.blocks[0].query.linear.weight.grad))
    logits, gradient = found[0]
    assert gradient.any()
    for others, its in found[1:]:
        assert torch.equal(others, logits)
        torch.testing.assert_close(its, gradient, rtol=0.05, atol=0.05 * float(gradient.abs().max()))
