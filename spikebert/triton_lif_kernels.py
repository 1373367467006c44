"""Triton's part of `triton_lif.py`. A program computes `BLOCK` neurons over all T steps, membranes in registers.

Numbers have up to three types: that of currents and spikes, and

REAL   float32 or float64, in which membranes are held and computed, as on the plain path
GRAD   in which to compute gradients

Membranes must round as PyTorch's do, so the kernels are launched with `OPTIONS`. Otherwise a compiler may make one
fused multiply-add of `v * keep + a`, which rounds once where PyTorch rounds twice, and a membrane near the threshold
would fire on one path only. LLVM and ptxas both do that; `enable_fp_fusion` is for both (`--fmad=false`). It costs
nothing: the kernels wait for memory. Backward computes membranes again and must get the same ones.

The T steps are `CHUNKS` times `STEPS`, the last chunk perhaps shorter. The steps of a chunk are written out one after
another when compiled, since only so can their membranes be in registers; that takes minutes for many of them, so a
long T has several chunks, and forward stores the membranes at the start of each, `starts` [CHUNKS, neurons] of REAL.
Beyond T there are no neurons: a mask from their number, because the interpreter of Triton 3.9 cannot join a block of
truth values with a single one.

A Python float comes to a kernel as float32 unless it is declared, hence "fp64". Triton wants that evaluated, so this
file must not import `annotations` from `__future__`. Offsets may pass 2^31, hence int64.
"""

# What Triton compiles is no ordinary Python.
# mypy: ignore-errors
# ruff: noqa: F821

import triton
import triton.language as tl

STEPS_MAX = 16  # of a chunk
THREADS = 128  # of a program
OPTIONS = {"num_warps": THREADS // 32, "enable_fp_fusion": False}


@triton.jit
def charge(membrane, a, keep, input_gain, TRUNCATE: tl.constexpr, REAL: tl.constexpr):
    """The membrane after decay and input, before clip and reset."""
    decayed = membrane * keep
    if TRUNCATE:
        decayed = tl.where(decayed < 0, tl.ceil(decayed), tl.floor(decayed))
    return decayed + a * input_gain


@triton.jit
def clip(v, limit):
    v = tl.where(v > limit, limit, v)  # tl.clamp would make a number of a NaN
    return tl.where(v < -limit, -limit, v)


@triton.jit
def fires(v, threshold):
    return v > threshold


@triton.jit
def level(j, threshold, REAL: tl.constexpr):
    """The membrane above which a neuron sends j."""
    return tl.full((), threshold * j, REAL)


@triton.jit
def sends(v, threshold, CAP: tl.constexpr, TERNARY: tl.constexpr, REAL: tl.constexpr):
    """At how many thresholds of 1 .. CAP it fires; -1 below minus the first where TERNARY."""
    sent = tl.zeros_like(v)
    for j in tl.static_range(1, CAP + 1):
        sent += tl.where(fires(v, level(j, threshold, REAL)), 1.0, 0.0).to(REAL)
    if TERNARY:
        sent -= tl.where(fires(-v, tl.full((), threshold, REAL)), 1.0, 0.0).to(REAL)
    return sent


@triton.jit
def rest(v, sent, threshold, SUBTRACT: tl.constexpr, REAL: tl.constexpr):
    """The membrane after the reset."""
    left = tl.zeros_like(v)
    if SUBTRACT:
        left = v - sent * tl.full((), threshold, REAL)
    return tl.where(sent != 0, left, v)


@triton.jit
def surrogate_slope(x, SIGMOID: tl.constexpr):
    """Of steepness 1, with a peak of 1 (atan) or 1/4 (sigmoid)."""
    if SIGMOID:
        tail = tl.exp(-tl.abs(x))  # no difference of numbers that are nearly equal, and no overflow
        slope = tail / ((1 + tail) * (1 + tail))
    else:
        slope = 1 / (1 + x * x)
    return slope


@triton.jit
def forward(
    current, spikes, starts, neurons, current_stride, keep: "fp64", input_gain: "fp64", limit: "fp64",
    threshold: "fp64", TIMESTEPS: tl.constexpr, CHUNKS: tl.constexpr, STEPS: tl.constexpr, TRUNCATE: tl.constexpr,
    SUBTRACT: tl.constexpr, CAP: tl.constexpr, TERNARY: tl.constexpr, REAL: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """current [T, neurons], `current_stride` numbers from step to step; spikes [T, neurons], contiguous."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = place < neurons
    neurons, current_stride = tl.cast(neurons, tl.int64), tl.cast(current_stride, tl.int64)
    keep, input_gain = tl.full((), keep, REAL), tl.full((), input_gain, REAL)
    limit = tl.full((), limit, REAL)
    membrane = tl.zeros((BLOCK,), REAL)
    for chunk in range(CHUNKS):
        if CHUNKS > 1:
            tl.store(starts + chunk * neurons + place, membrane, mask=exists)
        for step in tl.static_range(STEPS):
            t = chunk * STEPS + step
            mask = place < tl.where(t < TIMESTEPS, neurons, 0)
            a = tl.load(current + t * current_stride + place, mask=mask, other=0.0).to(REAL)
            v = clip(charge(membrane, a, keep, input_gain, TRUNCATE, REAL), limit)
            sent = sends(v, threshold, CAP, TERNARY, REAL)
            tl.store(spikes + t * neurons + place, sent, mask=mask)
            membrane = rest(v, sent, threshold, SUBTRACT, REAL)


@triton.jit
def backward(
    current, grad_spikes, grad_current, starts, neurons, current_stride, keep: "fp64", input_gain: "fp64",
    limit: "fp64", threshold: "fp64", unit: "fp64", peak: "fp64", steepness: "fp64", TIMESTEPS: tl.constexpr,
    CHUNKS: tl.constexpr, STEPS: tl.constexpr, TRUNCATE: tl.constexpr, SUBTRACT: tl.constexpr, CAP: tl.constexpr,
    TERNARY: tl.constexpr, SIGMOID: tl.constexpr, REAL: tl.constexpr, GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """As `forward`; grad_spikes and grad_current [T, neurons], contiguous.

    The slope of the surrogate is `peak * surrogate_slope(steepness * (v - level) / unit)`, summed over the levels.
    Steps of the last chunk beyond T have no gradient and give none.
    """
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = place < neurons
    neurons, current_stride = tl.cast(neurons, tl.int64), tl.cast(current_stride, tl.int64)
    keep, input_gain = tl.full((), keep, REAL), tl.full((), input_gain, REAL)
    limit = tl.full((), limit, REAL)
    unit, peak, steepness = tl.full((), unit, GRAD), tl.full((), peak, GRAD), tl.full((), steepness, GRAD)
    grad_membrane = tl.zeros((BLOCK,), GRAD)
    for chunks_after in range(CHUNKS):
        chunk = CHUNKS - 1 - chunks_after
        membrane = tl.zeros((BLOCK,), REAL)
        if CHUNKS > 1:
            membrane = tl.load(starts + chunk * neurons + place, mask=exists, other=0.0)
        history = ()  # of each step the membrane before clip and reset
        for step in tl.static_range(STEPS):
            t = chunk * STEPS + step
            mask = place < tl.where(t < TIMESTEPS, neurons, 0)
            a = tl.load(current + t * current_stride + place, mask=mask, other=0.0).to(REAL)
            charged = charge(membrane, a, keep, input_gain, TRUNCATE, REAL)
            v = clip(charged, limit)
            sent = sends(v, threshold, CAP, TERNARY, REAL)
            membrane = rest(v, sent, threshold, SUBTRACT, REAL)
            history = history + (charged,)  # noqa: RUF005, Triton knows no (*history, charged)
        for steps_after in tl.static_range(STEPS):
            t = chunk * STEPS + STEPS - 1 - steps_after
            mask = place < tl.where(t < TIMESTEPS, neurons, 0)
            charged = history[STEPS - 1 - steps_after]
            v = clip(charged, limit)
            slope = tl.zeros((BLOCK,), GRAD)
            for j in tl.static_range(1, CAP + 1):
                above = (v - level(j, threshold, REAL)).to(GRAD) / unit
                slope += surrogate_slope(steepness * above, SIGMOID)
            if TERNARY:
                above = (-v - tl.full((), threshold, REAL)).to(GRAD) / unit
                slope += surrogate_slope(steepness * above, SIGMOID)
            grad = tl.load(grad_spikes + t * neurons + place, mask=mask, other=0.0).to(GRAD)
            grad = grad * (peak * slope) / unit
            if SUBTRACT:  # the reset is detached
                grad += grad_membrane
            else:
                grad += tl.where(sends(v, threshold, CAP, TERNARY, REAL) != 0, 0.0, grad_membrane)
            grad = tl.where(tl.abs(charged) > limit, 0.0, grad)  # nothing passes a clip
            tl.store(grad_current + t * neurons + place, grad * input_gain.to(GRAD), mask=mask)
            grad_membrane = grad * keep.to(GRAD)
