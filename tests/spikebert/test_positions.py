"""Biases for positions: their formulas, their bounds, and that a learned one learns."""

from __future__ import annotations

import math

import pytest
import torch

from spikebert.config import AND_THRESHOLD
from spikebert.layers import biased_matches
from spikebert.positions import NEAR, REACH, PositionBias, gray_bias, log_bias
from spikebert.rounding import ACCUMULATOR_MAX

SIZES = [1, 2, 3, 4, 5, 8, 9, 64, 100]


@pytest.mark.parametrize("n_max", SIZES)
def test_log_falls_with_the_logarithm_of_the_distance(n_max: int) -> None:
    bias = log_bias(n_max)
    assert bias.dtype == torch.int64 and bias.shape == (n_max, n_max)
    for i in range(n_max):
        for j in range(n_max):
            expected = math.ceil(math.log2(n_max)) - math.ceil(math.log2(abs(i - j) + 1))
            assert bias[i, j] == expected
    assert bias.min() == 0 and torch.equal(bias, bias.T)


@pytest.mark.parametrize("n_max", SIZES)
def test_gray_counts_equal_bits(n_max: int) -> None:
    bits = (n_max - 1).bit_length()
    codes = [format(i ^ (i >> 1), f"0{bits}b")[-bits:] if bits else "" for i in range(n_max)]
    assert gray_bias(n_max).tolist() == [[sum(a == b for a, b in zip(x, y)) for y in codes] for x in codes]


def test_gray_tells_distances_of_a_power_of_two_by_one_or_two_bits() -> None:
    """What the paper proves: neighbours differ in one bit, places 2, 4, 8, .. apart in two."""
    different = 6 - gray_bias(64)
    for power in range(6):
        assert set(different.diagonal(2**power).tolist()) == ({1} if power == 0 else {2})


def test_gray_is_that_of_appended_bits() -> None:
    """With "xnor", bits of the code beside q and k, as features of the head, give scores with this bias."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.rand(2, 5, 4, generator=generator) < 0.5 for _ in range(2))
    place = torch.arange(5)
    bits = (((place ^ (place >> 1))[:, None] >> torch.arange(3)) & 1).bool().expand(2, 5, 3)
    scores = (q[:, :, None] == k[:, None]).sum(-1)
    appended = (torch.cat([q, bits], 2)[:, :, None] == torch.cat([k, bits], 2)[:, None]).sum(-1)
    assert torch.equal(appended, scores + gray_bias(5))


@pytest.mark.parametrize("kind", ["log", "gray"])
def test_shorter_texts_have_the_first_places(kind: str) -> None:
    bias = PositionBias(kind, 9, 2, 4)
    assert bias.most == 4 and bias(9).max() == 4 and not list(bias.parameters()) and not bias.state_dict()
    assert torch.equal(bias(3), bias(9)[:, :3, :3])


def test_a_learned_bias_begins_at_nothing_and_is_whole() -> None:
    bias = PositionBias("learned", 80, 2, 8)
    assert not bias(80).any()
    with torch.no_grad():
        bias.weight.uniform_(-2, 2)
    values = bias(80)
    assert values.shape == (2, 80, 80) and torch.equal(values, values.round())
    assert values.abs().max() == bias.most == 8
    for i, j in ((0, 0), (3, 5), (5, 3), (0, 79), (79, 0)):
        distance = min(max(j - i, -REACH), REACH) + REACH
        expected = (8 * bias.weight[:, distance].clamp(-1, 1)).round()
        assert torch.equal(values[:, i, j], expected)


def test_half_of_the_heads_begin_with_one_neighbour_each() -> None:
    """Alone it is above the threshold of similarity "and", so such a head sends what one token's v is."""
    bias = PositionBias("neighbours", 9, 6, 64)
    values = bias(9)
    for head, distance in enumerate((-1, 1, -2)):
        expected = torch.zeros(9, 9)
        for i in range(9):
            if 0 <= i + distance < 9:
                expected[i, i + distance] = NEAR
        assert torch.equal(values[head], expected)
    assert NEAR > AND_THRESHOLD and not values[3:].any()
    v = (torch.rand(1, 9, 64, generator=torch.Generator().manual_seed(0)) < 0.1).float()
    none = torch.zeros_like(v)
    counts = biased_matches(none, none, v, values[:1], bias.most, 1)
    assert torch.equal((counts > AND_THRESHOLD).float()[0, 1:], v[0, :-1]), "that of the token before"


@pytest.mark.parametrize("heads, size, most", [(1, 64, 0), (2, 8, 8), (3, 64, NEAR)])
def test_few_heads_and_small_ones_begin_with_what_they_have(heads: int, size: int, most: int) -> None:
    bias = PositionBias("neighbours", 4, heads, size)
    assert bias(4).abs().max() == most and bias(4).flatten(1).any(1).sum() == heads // 2


def test_a_learned_bias_learns() -> None:
    bias = PositionBias("learned", 4, 1, 8)
    bias(4)[0, 0, 1].backward()  # of a key right behind its query
    gradient = bias.weight.grad.squeeze()
    assert gradient[REACH + 1] == 8 and gradient.count_nonzero() == 1


def test_what_is_learned_keeps_to_the_accumulator() -> None:
    bias = PositionBias("learned", 512, 1, 100)
    assert bias.most == ACCUMULATOR_MAX // 512 - 100 == 27
    for kind, n_max, size in (("learned", 1024, 63), ("log", 1024, 60), ("gray", 1024, 60)):
        with pytest.raises(ValueError, match=f"position bias '{kind}': with {size} features of a head and 1024 tokens"):
            PositionBias(kind, n_max, 1, size)


def test_what_is_learned_leaves_room_for_graded_values() -> None:
    bias = PositionBias("learned", 64, 1, 8, value_cap=100)
    assert bias.most == ACCUMULATOR_MAX // 6400 - 8 == 2
    with pytest.raises(ValueError, match="use more heads, fewer tokens or a smaller value_cap than 128"):
        PositionBias("learned", 64, 1, 8, value_cap=128)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="position bias 'rotary', it must be one of"):
        PositionBias("rotary", 4, 1, 1)
