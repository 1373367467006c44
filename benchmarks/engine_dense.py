"""Events or dense products? One layer of synapses at every firing rate, on one core.

    python -m benchmarks.engine_dense

The same spikes go through the fast engine's kernel (its lists of spikes included, no neurons), a float32 matrix product
of numpy, and PyTorch's int8 product, which uses what the processor has for int8. Spikes come at random, or as those of
neurons with a constant input do: at all steps, or at every second one. The results must be equal in every number.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.timing import Usage, machine, side_by_side, table
from sim.fast import kernels
from sim.fast.vectors import BLOCK, pack_cells, pack_weight

TIMESTEPS = 4
RATES = (1, 3, 10, 20, 35, 50, 75, 100)  # per cent
REGULAR_MAX = 66  # a neuron fires at all steps or at half of them


def draw_spikes(rng: np.random.Generator, tokens: int, width: int, rate: float, regular: bool) -> np.ndarray:
    """0 and 1 [tokens, T, width]; `regular`: a neuron fires at every step, at every second one, or never."""
    if not regular:
        return (rng.random((tokens, TIMESTEPS, width)) < rate).astype(np.uint8)
    kind = rng.random((tokens, width))
    every, second = kind < rate / 2, (kind >= rate / 2) & (kind < 1.5 * rate)
    steps = np.arange(TIMESTEPS)[:, None]
    return (every[:, None] | (second[:, None] & (steps % 2 == 1))).astype(np.uint8)


def events(spikes: np.ndarray, weight: np.ndarray) -> Callable[[np.ndarray], None]:
    """The fast engine's kernel, for weight int8 [in, out]; currents int32 [tokens, T, out] are written out if there is
    room for them (in the engine they stay in the cache, for the neurons)."""
    _, steps, inputs = spikes.shape
    width = weight.shape[1]
    x = np.packbits(spikes, axis=-1, bitorder="little").view("<u8")[None]
    packed, bias = pack_weight(weight, 1), pack_cells(np.zeros(width, np.int32))
    index = np.empty(kernels.CHUNKS * kernels.chunk_entries(inputs, 1, steps), np.uint32)
    lists = np.empty((kernels.CHUNKS * kernels.chunk_lists(inputs, 1, steps), 5), np.int64)
    spans = np.empty((kernels.TILE, 2), np.int64)
    places = np.array([(0, width // BLOCK, block, True) for block in range(width // BLOCK)], np.int64)
    nothing, level = np.zeros(0, np.uint64), np.zeros(0, np.float32)

    def run(currents: np.ndarray) -> None:
        kernels.synapses(
            x, packed, 1, bias, False, False, True, False, level, np.float32(0), places, nothing, currents, index,
            lists, spans, np.zeros(len(packed), np.int64), np.zeros((0, 0), np.float32),
            np.zeros(0, np.int64), True,
        )  # fmt: skip

    return run


def compare(spikes: np.ndarray, weight: np.ndarray, seconds: float) -> dict[str, float]:
    """Milliseconds of each way."""
    rows = spikes.reshape(-1, spikes.shape[-1])
    rows_float, rows_int8 = rows.astype(np.float32), torch.from_numpy(rows.astype(np.int8))
    weight_float, weight_int8 = weight.astype(np.float32), torch.from_numpy(weight)
    run = events(spikes, weight)
    currents, nothing = np.empty((*spikes.shape[:2], weight.shape[1]), np.int32), np.empty((0, 0, 0), np.int32)
    ways: dict[str, Callable[[], object]] = {
        "events": lambda: run(nothing),
        "float32": lambda: rows_float @ weight_float,
        "int8": lambda: torch._int_mm(rows_int8, weight_int8),
    }
    run(currents)
    expected = rows.astype(np.int64) @ weight.astype(np.int64)
    results = {"events": currents.reshape(expected.shape), **{name: ways[name]() for name in ("float32", "int8")}}
    for name, result in results.items():
        if not np.array_equal(result, expected):
            raise SystemExit(f"'{name}' gives other numbers")
    medians = side_by_side({name: [way] for name, way in ways.items()}, seconds)
    return {name: 1000 * taken[0] for name, taken in medians.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--inputs", type=int, default=384)
    parser.add_argument("--outputs", type=int, default=1536, help="a multiple of 64")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="per cent")
    parser.add_argument("--seconds", type=float, default=1, help="for each figure")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    start = Usage.now()
    rng = np.random.default_rng(0)
    weight = rng.integers(-60, 61, (arguments.inputs, arguments.outputs)).astype(np.int8)
    rows = []
    with threadpool_limits(1):
        for kind in ("random", "regular"):
            for rate in arguments.rates:
                if kind == "regular" and rate > REGULAR_MAX:
                    continue
                spikes = draw_spikes(rng, arguments.tokens, arguments.inputs, rate / 100, kind == "regular")
                taken = compare(spikes, weight, arguments.seconds)
                best = min(taken["float32"], taken["int8"])
                numbers = [f"{number:.3f}" for number in taken.values()]
                rows.append([f"{kind}, {rate:g} %", *numbers, f"{best / taken['events']:.1f}x"])
    print(f"{arguments.inputs} -> {arguments.outputs}, {arguments.tokens} tokens, T = {TIMESTEPS}; milliseconds\n")
    print(table(["spikes", "events", "float32", "int8", "faster than both"], rows))
    print(f"\n{machine(start)}; of these one core was used")


if __name__ == "__main__":
    main()
