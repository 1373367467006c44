"""The arithmetic of our own process: attention with every kind of score, of inputs from several processes."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("lava.magma")

from converters.graph import Attention
from sim.reference import attention
from targets.lava.parts import attended
from targets.lava.plan import Piece

# q and the lane come from one process, the lane in its last channel; k from two others, v from the second of these
PIECES = (Piece(0, 0, 0, 4), Piece(1, 1, 0, 1), Piece(1, 2, 0, 3), Piece(2, 2, 3, 4))
LANE = Piece(3, 0, 4, 1)


def draw(seed: int, tokens: int, real: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """q, k, v [tokens, 4] and the lane, silent from `real` on; and the three processes that send them."""
    rng = np.random.default_rng(seed)
    valid = (np.arange(tokens) < real)[:, None]
    q, k, v = (rng.integers(0, 2, (3, tokens, 4)) * valid).astype(np.int32)
    lane = valid.astype(np.int32)
    return [q, k, v, lane], [np.hstack([q, lane]), k[:, :1], np.hstack([k[:, 1:], v])]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("similarity", ["and", "xnor"])
@pytest.mark.parametrize("maps", [0, 1, 2])
def test_it_is_twice_the_reference(seed: int, similarity: str, maps: int) -> None:
    tokens, real = 5, seed % 6
    (q, k, v, lane), sent = draw(seed, tokens, real)
    bias = np.random.default_rng(seed).integers(-9, 10, (maps, tokens, tokens)) if maps else None
    node = Attention("a", ("q", "k", "v"), 2, similarity, bias)
    expected = attention(node, *(x[None, None].astype(np.int64) for x in (q, k, v)), lane[None, None, :, 0])[0, 0]
    pieces = (*PIECES, LANE) if node.needs_lane else PIECES
    assert np.array_equal(attended(sent, pieces, 2, similarity, node.bias), 2 * expected)


def test_a_token_whose_lane_is_closed_gets_nothing() -> None:
    """Between two that are open: only the lane tells, for what lies behind the last spike is left out anyhow."""
    _, sent = draw(1, 5, 5)
    sent[0][2] = 0  # q and lane of token 2
    closed = attended(sent, (*PIECES, LANE), 2, "xnor")
    unmasked = attended(sent, PIECES, 2, "xnor")
    assert not closed[2].any() and unmasked[2].any()
    assert np.array_equal(np.delete(closed, 2, 0), np.delete(unmasked, 2, 0))
