"""What becomes of a weight matrix between a network file and the sums that Lava makes with it. Needs no Lava.

Two steps, each with its own idea of what signs a matrix has, and of how far 8 bits reach:

netx  `optimize_weight_bits`  shifts weights left as far as 8 bits allow, and says by how much (an exponent)
Lava  `Dense`                 clips them to 8 bits, floors the bits below its precision, sums, and shifts back

tests/targets/test_netx_weights.py holds this against both libraries.
"""

from __future__ import annotations

import numpy as np

HIGHEST, LOWEST = 255, -256  # that 8 bits and a sign mode hold; of only negative weights the lowest is -255


def held_weights(weight: np.ndarray) -> np.ndarray:
    """The weights with which Lava computes, int64 [out, in], when a file holds `weight`, integers [out, in].

    `weight` must be even, within -256 .. 254, and not all 0: netx clips what is beyond, and cannot load zeros alone.
    """
    weight = weight.astype(np.int64)
    shift, bits = _netx_format(weight)
    shifted = weight << shift
    sign = -1 if shifted.min() < 0 and shifted.max() <= 0 else 1  # Lava holds only negative weights as their opposites
    mixed = shifted.min() < 0 < shifted.max()
    clipped = np.clip(sign * shifted, LOWEST if mixed else 0, HIGHEST)
    dropped = 8 - bits + mixed
    return (sign * ((clipped >> dropped) << dropped)) >> shift


def _netx_format(weight: np.ndarray) -> tuple[int, int]:
    """By how many bits netx shifts a matrix to the left, and how many bits it gives a weight then."""
    most, least = int(weight.max()), int(weight.min())
    if most < 0:
        scale, signed = 256 / -least, 0
    elif least >= 0:
        scale, signed = 255 / most, 0
    else:  # not what Lava calls mixed: it takes a matrix without positive weights as negative, zeros or not
        scale, signed = min(127 / most if most else np.inf, 128 / -least), 1
    shift = int(np.floor(np.log2(scale))) + signed
    even = next(bits for bits in range(8, -1, -1) if not (weight % 2**bits).any())
    return shift, 8 - shift - (even - signed)
