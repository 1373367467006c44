"""Eight weights share a byte and come back, and what no export wrote is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from converters.sign_bits import pack_signs, unpack_signs

SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=19)


@given(arrays.arrays(np.int8, SHAPES, elements=st.sampled_from([-1, 1])))
def test_round_trip(weight):
    packed = pack_signs(weight)
    assert packed.dtype == np.uint8 and packed.shape == (weight.shape[0], (weight.shape[1] + 7) // 8)
    again = unpack_signs(packed, weight.shape[1])
    assert again.dtype == np.int8 and np.array_equal(again, weight)


@given(arrays.arrays(np.uint8, SHAPES), st.integers(0, 7))
def test_any_bytes_are_refused_or_mean_exactly_one_matrix(packed, unused):
    columns = 8 * packed.shape[1] - unused
    try:
        weight = unpack_signs(packed, columns)
    except ValueError:
        assert (packed[:, -1] >> (8 - unused)).any()
    else:
        assert np.array_equal(pack_signs(weight), packed)


def test_the_layout_of_the_documentation():
    assert pack_signs(np.array([[1, -1, -1, 1, 1, -1, -1, -1, 1]], np.int8)).tobytes() == b"\x19\x01"


@pytest.mark.parametrize("weight", [0, 2, -2])
def test_another_weight_is_not_packed(weight):
    with pytest.raises(ValueError, match="one of 1 bit is -1 or 1"):
        pack_signs(np.array([[1, weight]], np.int8))


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match="rows of 9 weights take 2 bytes"):
        unpack_signs(np.zeros((2, 1), np.uint8), 9)
