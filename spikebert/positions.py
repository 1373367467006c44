"""What an attention adds to the score of a query and a key for the places at which they stand: whole numbers.

Two kinds, "log" and "gray", are after Lv et al. 2025, "Toward Relative Positional Encoding in Spiking Transformers"
(arXiv 2501.16745), who add them to the attention of spikes; two are learned, from different starts. Places count from 0
with [CLS].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikebert.rounding import ACCUMULATOR_MAX, held_within, round_straight_through

LEARNED = ("learned", "neighbours")
KINDS = ("log", "gray", *LEARNED)
REACH = 32  # tokens; a learned bias tells no greater distances apart
NEAR = 24  # matches that a neighbour has more at the start: above the threshold of similarity "and", which is 16


def place_bits(n_max: int) -> int:
    """Bits that hold the places 0 .. n_max - 1, `ceil(log2(n_max))`."""
    return (n_max - 1).bit_length()


def log_bias(n_max: int, device: torch.device | None = None) -> Tensor:
    """`R[i, j] = ceil(log2(n_max)) - ceil(log2(|i - j| + 1))`, int64 [n_max, n_max].

    Largest on the diagonal, one less whenever the distance has doubled, 0 for the farthest. So it is what the paper
    calls Log-PE: an integer that falls with the logarithm of the distance, added to the map. The formula is ours: its
    ends are those of the authors' published code, which goes from one to the other in a line.
    """
    place = torch.arange(n_max, device=device)
    distance = (place[:, None] - place).abs()
    length = sum((distance >= 2**bit).long() for bit in range(place_bits(n_max)))  # ceil(log2(distance + 1))
    return place_bits(n_max) - length + torch.zeros_like(distance)


def gray_bias(n_max: int, device: torch.device | None = None) -> Tensor:
    """At how many bits the Gray codes of i and j are equal, int64 [n_max, n_max]; the code of i is `i ^ (i >> 1)`.

    With similarity "xnor" that is the paper's Gray-PE, exactly: these bits appended to q and k, as features of every
    head. The paper takes 10 bits, here they are as many as places need, ceil(log2(n_max)). With "and" it is the same
    bias, which is ours: appended bits would count there only where both are 1.
    """
    place = torch.arange(n_max, device=device)
    code = place ^ (place >> 1)
    different = code[:, None] ^ code
    return sum((1 - ((different >> bit) & 1) for bit in range(place_bits(n_max))), torch.zeros_like(different))


FIXED: Mapping[str, Callable[..., Tensor]] = {"log": log_bias, "gray": gray_bias}


class PositionBias(nn.Module):
    """A bias for every two places, one for all heads ("log", "gray") or one for each head ("learned", "neighbours").

    kind   "log": `log_bias`; "gray": `gray_bias`; "learned": for each head and each distance `j - i` from -REACH to
           REACH (what is farther counts as that) `round(most * w)`, w a parameter that starts at 0 and counts as
           -1 .. 1. It is rounded in float mode too, with straight-through gradients, so quantising costs nothing here.
           "neighbours": the same, but half of the heads start with a bias for one token each, the one before, the one
           behind, the second before, and so on: up to `NEAR` matches, with which it counts alone
    n_max  the most tokens of a text
    heads  H
    size   d, features of a head
    value_cap  the largest spike of v that scores weigh

    most   the largest |bias|. Of those that are learned as large as a score, or as the accumulator allows:
           `n_max * (d + most) * value_cap` stays within 65535

    Raises ValueError for an unknown kind, and where the accumulator has no room.
    """

    def __init__(self, kind: str, n_max: int, heads: int, size: int, value_cap: int = 1) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"position bias '{kind}', it must be one of {KINDS}")
        self.kind, self.n_max, self.heads = kind, n_max, heads
        room = ACCUMULATOR_MAX // (n_max * value_cap) - size
        learns = kind in LEARNED
        self.most = min(size, room) if learns else place_bits(n_max)
        if self.most > room or (learns and room < 1):
            raise ValueError(
                f"position bias '{kind}': with {size} features of a head and {n_max} tokens attention could count to "
                f"more than {ACCUMULATOR_MAX}: use more heads"
                + (" or fewer tokens" if value_cap == 1 else f", fewer tokens or a smaller value_cap than {value_cap}")
            )
        self.weight = nn.Parameter(torch.empty(heads, 2 * REACH + 1)) if learns else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Where learning starts."""
        if self.weight is None:
            return
        self.weight.zero_()
        if self.kind == "neighbours":
            for head in range(min(self.heads // 2, 2 * REACH)):
                distance = head // 2 + 1
                self.weight[head, REACH + (distance if head % 2 else -distance)] = min(1, NEAR / self.most)

    def forward(self, tokens: int, device: torch.device | None = None) -> Tensor:
        """The bias of the first so many places: [H or 1, tokens, tokens], integers held in floats."""
        if self.weight is None:
            full = FIXED[self.kind](self.n_max, device)
            return full[None, :tokens, :tokens].float()
        place = torch.arange(tokens, device=self.weight.device)
        distance = (place - place[:, None]).clamp(-REACH, REACH) + REACH  # of a key from its query, [tokens, tokens]
        values = round_straight_through(self.most * held_within(self.weight, -1, 1))
        return F.embedding(distance, values.T).permute(2, 0, 1)  # backward adds up in one order, as indexing does not
