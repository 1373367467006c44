"""What would make a network fit that does not, each tried out."""

from __future__ import annotations

from dataclasses import dataclass

from targets.loihi2.mapping.boxes import Counter
from targets.loihi2.mapping.chips import Board
from targets.loihi2.mapping.core_model import CoreModel
from targets.loihi2.mapping.network import ChipNetwork, order_of
from targets.loihi2.mapping.packing import pack_amounts
from targets.loihi2.mapping.tiling import tile

NARROW_BITS = (4, 2)


@dataclass(frozen=True)
class Remedy:
    """A change and what it comes to.

    cores, chips that the network then takes; fits: whether the board has these
    cost         what it takes in return, for a person
    """

    change: str
    cores: int
    chips: int
    fits: bool
    cost: str


def remedies(network: ChipNetwork, model: CoreModel, board: Board) -> list[Remedy]:
    """Fewer tokens, fewer bits, attention elsewhere, and one token after the other."""
    found = [fewer_tokens(network, model, board)] if not _fits(network, model, board) else []
    found += [
        _remedy(f"weights of {bits} bits", network.with_weight_bits(bits), model, board, "to be trained so")
        for bits in NARROW_BITS
        if bits < max((one.weight_bits for one in network.connections), default=0)
    ]
    if network.attentions:
        found.append(
            _remedy(
                "attention not on cores",
                network.without_attention(),
                model,
                board,
                "embedded processors or the host compute q k^T v at every step; no public library does that",
            )
        )
    found.append(token_serial(network, model, board))
    return found


def fewer_tokens(network: ChipNetwork, model: CoreModel, board: Board) -> Remedy:
    """The most tokens that fit, found by halving."""
    low, high = 1, network.tokens  # `low` is taken to fit
    while high - low > 1:
        middle = (low + high) // 2
        if _fits(network.with_tokens(middle), model, board):
            low = middle
        else:
            high = middle
    return _remedy(f"{low} tokens", network.with_tokens(low), model, board, "longer texts are cut")


def token_serial(network: ChipNetwork, model: CoreModel, board: Board) -> Remedy:
    """One token after another on the same neurons, with all keys of an attention side by side.

    A token takes its T steps, neurons are reset, the next one follows: no membrane is kept. But an attention needs k
    and v of all tokens at the same t, so it starts when the last token has passed the layers before it, and the spikes
    of q, k and v wait outside the cores, and the residuals that pass it by. Sentences that follow each other fill all
    attentions at once.
    """
    tokens, steps = network.tokens, network.timesteps
    waiting = sum(network[one.source].features for name in _queries(network) for one in network.into[name])
    waiting += sum(
        network[one.source].features for each in network.populations if each.kind == "product"
        for one in network.into[each.name] if one.reads == "key"
    )  # fmt: skip
    alone = (network.attentions + 1) * tokens * steps + network.depth_steps
    cost = (
        f"{tokens * steps:,} steps a sentence in a stream ({tokens} times as many), {alone:,} alone; "
        f"{-(-tokens * steps * waiting // 8):,} bytes of q, k, v, and the residuals, wait outside the cores"
    )
    return _remedy("token after token", network.with_tokens(1, keys=tokens), model, board, cost)


def _fits(network: ChipNetwork, model: CoreModel, board: Board) -> bool:
    return count_chips(network, model)[1] <= board.chips


def _queries(network: ChipNetwork) -> list[str]:
    """The coincidences of q and k."""
    return [each.name for each in network.populations if each.keyed and each.kind == "lif"]


def count_chips(network: ChipNetwork, model: CoreModel) -> tuple[int, int]:
    """Cores and chips that a network takes, without dealing them out."""
    counter = Counter(network, model)
    tilings = tile(network, model, counter)
    amounts = [use.amounts for name in order_of(network) for use, _ in counter.uses(tilings[name], tilings)]
    cores = int(pack_amounts(amounts, model.capacity).max()) + 1
    return cores, -(-cores // model.cores)


def _remedy(change: str, network: ChipNetwork, model: CoreModel, board: Board, cost: str) -> Remedy:
    cores, chips = count_chips(network, model)
    return Remedy(change, cores, chips, chips <= board.chips, cost)
