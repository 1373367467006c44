"""Two weights share a byte and come back, and what no export wrote is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from converters.nibbles import pack, unpack

SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)


@given(arrays.arrays(np.int8, SHAPES, elements=st.integers(-7, 7)))
def test_round_trip(weight):
    packed = pack(weight)
    assert packed.dtype == np.uint8
    assert packed.shape == (weight.shape[0], (weight.shape[1] + 1) // 2)
    again = unpack(packed, weight.shape[1])
    assert again.dtype == np.int8
    assert np.array_equal(again, weight)


@given(arrays.arrays(np.uint8, SHAPES), st.booleans())
def test_any_bytes_are_refused_or_mean_exactly_one_matrix(packed, odd):
    columns = 2 * packed.shape[1] - odd
    try:
        weight = unpack(packed, columns)
    except ValueError:
        halves = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
        assert (halves == 8).any() or halves[:, columns:].any()
    else:
        assert np.array_equal(pack(weight), packed)


def test_the_layout_of_the_documentation():
    assert pack(np.array([[1, -2, 7]], np.int8)).tobytes() == b"\xe1\x07"
    bits = {0b0000: 0, 0b0001: 1, 0b0111: 7, 0b1001: -7, 0b1010: -6, 0b1111: -1}
    for half, weight in bits.items():
        assert unpack(np.array([[half]], np.uint8), 1).tolist() == [[weight]]
        assert unpack(np.array([[half << 4]], np.uint8), 2).tolist() == [[0, weight]]


def test_a_weight_that_is_not_contiguous():
    weight = np.arange(-6, 6, dtype=np.int8).reshape(4, 3)
    assert np.array_equal(unpack(pack(weight.T), 4), weight.T)


@pytest.mark.parametrize("weight", [-8, 8, 127, -128])
def test_a_weight_of_more_than_four_bits_is_not_packed(weight):
    with pytest.raises(ValueError, match="4 bits hold"):
        pack(np.array([[0, weight]], np.int8))


@pytest.mark.parametrize("half", [0x08, 0x80])
def test_minus_eight_is_refused_with_its_place(half):
    packed = np.array([[0x11, 0x11], [0x11, half]], np.uint8)
    with pytest.raises(ValueError, match=f"row 1, column {2 if half == 0x08 else 3} is -8"):
        unpack(packed, 4)


@pytest.mark.parametrize("columns", [0, 1, 2, 5, 6])
def test_rows_of_another_length_are_refused(columns):
    with pytest.raises(ValueError, match=r"has shape \(3, 2\)"):
        unpack(np.zeros((3, 2), np.uint8), columns)


def test_another_rank_is_refused():
    with pytest.raises(ValueError, match="has shape"):
        unpack(np.zeros(2, np.uint8), 4)


def test_a_half_that_belongs_to_no_weight_is_zero():
    with pytest.raises(ValueError, match="last half of row 1"):
        unpack(np.array([[0x01], [0x11], [0x21]], np.uint8), 1)
