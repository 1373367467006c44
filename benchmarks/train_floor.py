"""The floor of a step of training: its matrix products alone, at the rate at which this machine makes them.

An *operation* is a multiplication or an addition of floats: a product [n, k] x [k, m] has 2 n k m.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from spikebert.config import SpikeBertConfig

STEP = 3  # forward, the gradient of the inputs, the gradient of the weights: as many operations each
REPEATS = 5
SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}  # of the square matrices that are timed


def operations(config: SpikeBertConfig, lengths: Sequence[int]) -> int:
    """Of all matrix products of a step with texts of so many real tokens; nothing is padded.

    Attention is counted in the cheaper of its two orders, text by text.
    """
    width, inner, steps = config.hidden_size, config.intermediate_size, config.timesteps
    a_token = config.num_hidden_layers * 2 * (4 * width * width + 2 * width * inner) + 2 * width * config.num_labels
    return STEP * steps * (a_token * sum(lengths) + attention_operations(config, lengths))


def attention_operations(config: SpikeBertConfig, lengths: Sequence[int]) -> int:
    """Of the products of all blocks, forward, at one timestep: two of n x n x d or two of n x d x d for each head."""
    head = config.hidden_size // config.num_attention_heads
    a_block = sum(2 * 2 * n * min(n, head) * head for n in lengths) * config.num_attention_heads
    return config.num_hidden_layers * a_block


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of large square products, the best of several. In float32 without TF32."""
    return max(2 * size**3 / _product_seconds(size, dtype, device) for size in SIZES[device.type])


def _product_seconds(size: int, dtype: torch.dtype, device: torch.device) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for repeat in range(REPEATS + 1):
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if repeat:  # the first also prepares kernels
            best = min(best, time.perf_counter() - start)
    return best
