"""Norms for tests: the definition in Python's own integers, tokens that go to extremes, and a small graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from converters.execution import TokenBatch
from converters.graph import LIF, Add, Graph, Norm, Readout, Source, Synapses, normed_max

EXTREME = 65535


def naive_norm(a: list[int], gamma: list[int], beta: list[int], eps: int, kind: str, m: int = 1) -> list[int]:
    """One token, line by line as the docstring of `Norm` says; Python's integers have no width."""
    width = len(a)
    total = sum(a) if kind == "layer" else 0
    spread = width * sum(value * value for value in a) - total * total + eps
    (h,) = (h for h in range(31) if 2**60 <= spread * 4**h < 2**62)
    r = math.isqrt(spread * 4**h)
    i = 2**54 // r
    z = [((width * value - total) * 2**h * i) // 2**30 for value in a]
    return [(g * each + 2**31) // 2**32 + b * m for g, each, b in zip(gamma, z, beta)]


@dataclass(frozen=True, eq=False)
class Case:
    """Some tokens and a norm over them. a int64 [N, D], gamma and beta int32 [D]"""

    a: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray
    eps: int
    kind: str

    @property
    def node(self) -> Norm:
        return Norm("norm", ("a",), self.gamma, self.beta, self.eps, self.kind)

    def expected(self, m: int = 1) -> np.ndarray:
        """int64 [N, D]"""
        gamma, beta = self.gamma.tolist(), self.beta.tolist()
        return np.array([naive_norm(row, gamma, beta, self.eps, self.kind, m) for row in self.a.tolist()])


@st.composite
def cases(draw: Callable) -> Case:
    """All features alike, one unlike the others, both ends of the accumulator, small and large numbers; D from 1."""
    width = draw(st.sampled_from([1, 2, 3, 7, 64, 65, 200]))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    reach = draw(st.sampled_from([1, 20, 3000, EXTREME]))
    rows = [
        rng.integers(-reach, reach + 1, width),
        np.zeros(width, int),
        np.full(width, rng.choice([-reach, reach])),
        np.where(np.arange(width) == rng.integers(width), reach, -reach),
        np.where(np.arange(width) == rng.integers(width), reach, 0),
        rng.choice([-reach, reach], width),
    ]
    kind = draw(st.sampled_from(["layer", "rms"]))
    beta = rng.integers(-500, 501, width)
    most = min(((EXTREME - 500) << 32) // max(normed_max(kind, width), 1), 2**24)
    gamma = rng.choice([-most, -1, 0, 1, 300, most], width)
    eps = draw(st.sampled_from([1, 17, width**2 * 40, 2**60]))
    return Case(np.array(rows), gamma, beta, eps, kind)


def norm_graph(kind: str = "layer", timesteps: int = 2, width: int = 5, seed: int = 0, biased: bool = True) -> Graph:
    """Two layers with norms, a residual around the second, and a beta that alone makes some neurons fire."""
    rng = np.random.default_rng(seed)
    bias = 20 * biased

    def layer(name: str, source: str, rows: int, columns: int) -> tuple[Synapses, Norm, LIF]:
        weight = rng.integers(-60, 61, (rows, columns))
        gamma, beta = rng.integers(100, 300, rows) * 256, rng.integers(-90, 160, rows) * biased
        return (
            Synapses(f"{name}", (source,), weight, rng.integers(-bias, bias + 1, rows)),
            Norm(f"{name}.norm", (name,), gamma, beta, rows**2 * 9, kind),
            LIF(f"{name}.lif", (f"{name}.norm",), 150, int(rng.choice([0, 410, 2048]))),
        )

    nodes = (
        Source("source", rng.integers(-60, 60, (9, width)), threshold=20, dv=2048),
        *layer("up", "source", 2 * width, width),
        *layer("down", "up.lif", width, 2 * width),
        Add("sum", ("source", "down.lif")),
        Readout("readout", ("sum",), rng.integers(-9, 10, (2, width)), [0, int(biased)]),
    )
    return Graph(timesteps, 4, nodes)


BATCH = TokenBatch([[1, 2, 3, 4], [5, 6, 0, 0], [8, 0, 0, 0]], [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
