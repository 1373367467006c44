"""Triton's neuron against the plain one: spikes in every bit, gradients to rounding.

Without a GPU Triton's interpreter runs the kernels, in a process of its own, since it has to be chosen before Triton
is imported. What it cannot show is what a compiler makes of them: that is read from the compiled code.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spikebert import triton_lif, triton_lif_kernels
from spikebert.commands import UserError
from spikebert.neurons import LoihiLIF

triton = pytest.importorskip("triton")
from triton_cases import Case, Result, both  # noqa: E402, it needs Triton

Run = Callable[[Case], tuple[Result, Result]]
EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


@pytest.fixture(scope="module", params=["interpreter", "gpu"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs a case on the plain path and on Triton's."""
    if request.param == "gpu":
        if not torch.cuda.is_available():
            pytest.skip("there is no GPU")
        yield lambda case: both(case, "cuda")
        return
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            assert process.submit(os.getenv, "TRITON_INTERPRET").result() == "1"
        yield lambda case: process.submit(both, case, "cpu").result()


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape) + 0.3


def integers(*shape: int, seed: int = 0) -> np.ndarray:
    return (200 * floats(*shape, seed=seed) + 50).round()


def assert_same(case: Case, results: tuple[Result, Result]) -> None:
    """Gradients may be some roundings apart: of their own size, and of the steepest slope, from which PyTorch's sigmoid
    is subtracted."""
    plain, compiled = results
    assert compiled.dtype == plain.dtype
    np.testing.assert_array_equal(compiled.spikes, plain.spikes)
    steepest = max(case.alpha / max(case.threshold, 1), np.abs(plain.gradient).max(initial=0))
    one = EPSILON[plain.dtype]
    np.testing.assert_allclose(compiled.gradient, plain.gradient, rtol=16 * one, atol=2 * one * steepest)


def check(run: Run, case: Case) -> tuple[Result, Result]:
    """Runs it, asserts that both paths gave the same, and returns what they gave."""
    results = run(case)
    assert_same(case, results)
    return results


@pytest.mark.parametrize("surrogate", ["atan", "sigmoid"])
@pytest.mark.parametrize("dv", [0, 410, 2048, 4095])
@pytest.mark.parametrize("integer", [False, True])
def test_modes_decays_and_surrogates(run: Run, integer: bool, dv: int, surrogate: str) -> None:
    current, threshold = (integers(4, 3, 33), 150.0) if integer else (floats(4, 3, 33), 1.0)
    case = Case(current, threshold, dv, integer, surrogate=surrogate, alpha=3.0)
    plain, compiled = check(run, case)
    assert 0.05 < plain.spikes.mean() < 0.95
    exact, _ = check(run, replace(case, current=np.float32(current).astype(np.float64), dtype="float64"))
    assert_same(case, (exact._replace(dtype="float32"), compiled))  # its own rounding is all that is between


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 16, 17, 33])
def test_timesteps(run: Run, steps: int) -> None:
    """More than 16 go in chunks, the last of which is not full here."""
    check(run, Case(floats(steps, 7), decay=410, surrogate="sigmoid"))
    check(run, Case(integers(steps, 7), 150, 410, integer=True))


@pytest.mark.parametrize("dv", [0, 410])
@pytest.mark.parametrize("steps", [1, 4, 17])
def test_a_soft_reset(run: Run, steps: int, dv: int) -> None:
    for surrogate in ("atan", "sigmoid"):
        check(run, Case(floats(steps, 33), 1.0, dv, surrogate=surrogate, reset="subtract"))
        check(run, Case(integers(steps, 33), 50, dv, integer=True, surrogate=surrogate, reset="subtract"))
    check(run, Case(floats(steps, 33), 0.3, dv, dtype="bfloat16", reset="subtract"))


@pytest.mark.parametrize("reset", ["zero", "subtract"])
@pytest.mark.parametrize(("spike", "cap"), [("graded", 2), ("graded", 5), ("ternary", 1)])
def test_more_than_bits(run: Run, spike: str, cap: int, reset: str) -> None:
    kind = {"spike": spike, "cap": cap, "reset": reset}
    for dv, surrogate in ((410, "atan"), (2048, "sigmoid")):
        for steps in (1, 4, 17):
            plain, _ = check(run, Case(4 * floats(steps, 33), 0.7, dv, surrogate=surrogate, **kind))
            assert plain.spikes.max() == cap and plain.spikes.min() == (-1 if spike == "ternary" else 0)
            check(run, Case(integers(steps, 33), 90, dv, integer=True, surrogate=surrogate, **kind))
        for dtype in ("bfloat16", "float16"):
            check(run, Case(floats(4, 1000), 0.3, dv, dtype=dtype, surrogate=surrogate, **kind))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("dv", "surrogate"), [(410, "atan"), (2048, "sigmoid")])
def test_half_precision(run: Run, dtype: str, dv: int, surrogate: str) -> None:
    """Currents and spikes; membranes are in float32."""
    for threshold in (1.0, 0.3):  # 0.3 is none of their numbers
        check(run, Case(floats(4, 1000), threshold, dv, dtype=dtype, surrogate=surrogate))


def test_integers_that_came_in_half_precision(run: Run) -> None:
    for dtype in ("bfloat16", "float16"):
        check(run, Case(integers(4, 33), 1001, 410, integer=True, dtype=dtype))
        check(run, Case(integers(4, 33), 150, 2048, integer=True, dtype=dtype))


@pytest.mark.parametrize("threshold", [0, 1, 150, 65535])
def test_a_threshold_met_exactly_does_not_fire(run: Run, threshold: int) -> None:
    current = np.array([[threshold] * 4, [0, 1, -threshold, -1], [threshold, threshold, threshold, 1]])
    for dv in (0, 410):
        _, compiled = check(run, Case(current.astype(float), threshold, dv, integer=True))
        assert not compiled.spikes[0].any()
    current = np.array([[1.0], [0.5], [0.25], [1.0], [1.0]])  # membrane 1.0, 1.0, 0.75, 1.375 -> spike, 1.0
    _, compiled = check(run, Case(current))
    assert compiled.spikes[:, 0].tolist() == [0, 0, 0, 1, 0]


def test_a_membrane_that_saturates_and_one_that_is_negative(run: Run) -> None:
    """Where the membrane was clipped no gradient passes."""
    current = [[-65535.0, 65535.0, 65535.0, -3], [-65535.0, 65535.0, -3.0, -3], [65535.0, 1.0, 65535.0, -3]]
    for dv in (0, 1):
        _, compiled = check(run, Case(np.array(current), 65535, dv, integer=True))
        assert compiled.gradient[1, 0] == 0


@pytest.mark.parametrize(
    ("currents", "threshold", "dv"),
    [([9141, 57309], 65535, 410), ([8161, 57376], 65535, 1), ([10271, 60397], 65535, 2047)],
)
def test_a_decay_that_float32_would_round_up(run: Run, currents: list[int], threshold: int, dv: int) -> None:
    _, compiled = check(run, Case(np.array(currents, float)[:, None], threshold, dv, integer=True))
    assert not compiled.spikes.any()


@pytest.mark.parametrize("shape", [(), (0,), (1,), (127,), (512,), (513,), (3, 1, 43)])
def test_shapes(run: Run, shape: tuple[int, ...]) -> None:
    check(run, Case(floats(3, *shape)))


@pytest.mark.parametrize("layout", ["permuted", "sliced", "expanded"])
def test_currents_that_are_not_contiguous(run: Run, layout: str) -> None:
    check(run, Case(floats(4, 5, 7), layout=layout))


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_currents(run: Run, data: st.DataObject) -> None:
    integer = data.draw(st.booleans())
    steps, neurons = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 20))
    element = st.integers(-65535, 65535) if integer else st.floats(-8, 8, width=32)
    current = data.draw(st.lists(element, min_size=steps * neurons, max_size=steps * neurons))
    threshold = data.draw(st.integers(0, 65535) if integer else st.floats(0, 4, width=32))
    dv, surrogate = data.draw(st.integers(0, 4095)), data.draw(st.sampled_from(["atan", "sigmoid"]))
    case = Case(np.array(current, float).reshape(steps, neurons), threshold, dv, integer, surrogate=surrogate)
    check(run, case)


def test_a_current_that_is_no_number_shows_in_the_gradient(run: Run) -> None:
    current = floats(3, 2)
    current[1, 0] = np.nan
    plain, compiled = run(Case(current))
    assert np.isnan(compiled.gradient[1:, 0]).all()
    np.testing.assert_array_equal(np.isnan(compiled.gradient), np.isnan(plain.gradient))


def one_rounding_too_few() -> Case:
    """Neurons that fire at the second step where `v * keep + a` is rounded but once.

    Rounded, v * keep is below itself, and with a it lies half between 1 and the next float32: it becomes 1, the
    threshold. Not rounded it lies above the half.
    """
    keep = (4096 - 410) / 4096
    first = np.random.default_rng(0).uniform(0.6, 1, 400).astype(np.float32).astype(float)
    decayed = np.float32(first * keep).astype(float)
    first, decayed = first[first * keep > decayed], decayed[first * keep > decayed]
    return Case(np.stack((first, 1 + 2.0**-24 - decayed)), 1.0, 410)


def test_a_membrane_is_rounded_twice(run: Run) -> None:
    _, compiled = check(run, one_rounding_too_few())
    assert compiled.spikes.shape[1] > 100 and not compiled.spikes.any()


@pytest.mark.parametrize(
    ("wrong", "case"),
    [
        ("fires", Case(np.array([[1.0], [0.5]]))),  # >= in place of >
        ("charge", one_rounding_too_few()),
        ("rest", Case(np.array([[2.5], [1.0]]), reset="subtract")),
        ("sends", Case(np.array([[2.5], [1.0]]), spike="graded", cap=2)),
        ("sends", Case(np.array([[-2.5], [1.0]]), spike="ternary")),
        ("clip", Case(np.array([[-65535.0], [-65535.0], [65535.0], [2.0]]), 0, 0, integer=True)),
    ],
)
def test_a_wrong_kernel_is_noticed(run: Run, request: pytest.FixtureRequest, wrong: str, case: Case) -> None:
    if "gpu" in request.node.callspec.id:
        pytest.skip("a compiled kernel keeps its functions")
    check(run, case)
    with pytest.raises(AssertionError, match="not equal"):
        check(run, replace(case, wrong=wrong))


def test_a_long_current_on_a_gpu(run: Run, request: pytest.FixtureRequest) -> None:
    """Many programs at once, the last of them not full."""
    if "gpu" not in request.node.callspec.id:
        pytest.skip("too long for the interpreter")
    check(run, Case(floats(4, 1001, 767), decay=410))
    check(run, Case(integers(4, 1001, 767), 150, 410, integer=True))
    assert triton_lif.serves(torch.ones(1, device="cuda"))


@pytest.fixture
def compile_only(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Kernels are compiled for an H100 as they would be launched there, and not launched. Name -> PTX."""
    from triton.backends.compiler import GPUTarget

    if torch.cuda.is_available():
        pytest.skip("here the kernels run themselves")
    if triton_lif._interpreted():
        pytest.skip("Triton interprets everything in this process")
    target = GPUTarget("cuda", 90, 32)
    h100 = SimpleNamespace(
        get_current_target=lambda: target, get_current_device=lambda: 0, get_current_stream=lambda device: 0
    )
    monkeypatch.setattr(triton.runtime.driver, "_active", h100)
    code: dict[str, str] = {}

    class Compile:
        def __init__(self, kernel: triton.JITFunction) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def launch(*arguments: object, **options: object) -> None:
                compiled = self.kernel.warmup(*arguments, grid=grid, **options)
                code[self.kernel.__name__] = compiled.asm["ptx"]

            return launch

    for name in ("forward", "backward"):
        monkeypatch.setattr(triton_lif_kernels, name, Compile(getattr(triton_lif_kernels, name)))
    monkeypatch.setattr(triton_lif, "_interpreted", lambda: True)
    return code


def pass_through(current: torch.Tensor, integer: bool = False) -> None:
    lif = LoihiLIF(410, integer)
    lif.path = "triton"
    lif(current.requires_grad_(), 1.0).sum().backward()


def test_no_multiply_add_is_fused(compile_only: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    pass_through(torch.ones(4, 512))
    assert all("mul.rn.f32" in ptx and "fma" not in ptx for ptx in compile_only.values())
    monkeypatch.setitem(triton_lif_kernels.OPTIONS, "enable_fp_fusion", True)
    pass_through(torch.ones(4, 512))
    assert all("fma.rn.f32" in ptx for ptx in compile_only.values())


def test_each_number_is_read_and_written_once(compile_only: dict[str, str]) -> None:
    """16 bytes at a time, whatever the type; no other memory is used."""
    for current in (torch.ones(4, 2, 512), torch.ones(4, 1024, dtype=torch.bfloat16)):
        pass_through(current)
        memory = re.compile(r"\b(ld|st)\.(global\.v4|local|shared)")
        accesses = {name: memory.findall(ptx) for name, ptx in compile_only.items()}
        assert sorted(accesses["forward"]) == [("ld", "global.v4")] * 4 + [("st", "global.v4")] * 4
        assert sorted(accesses["backward"]) == [("ld", "global.v4")] * 8 + [("st", "global.v4")] * 4


def test_numbers_of_the_rule_come_as_float64(compile_only: dict[str, str]) -> None:
    pass_through(torch.ones(2, 8, dtype=torch.float64))
    declared = {name: len(re.findall(r"\.param \.f64", ptx)) for name, ptx in compile_only.items()}
    assert declared == {"forward": 4, "backward": 7}


def test_half_precision_is_rounded_to_nearest(compile_only: dict[str, str]) -> None:
    pass_through(torch.ones(2, 8, dtype=torch.bfloat16))
    conversions = set(re.findall(r"cvt\.\w+\.bf16x?2?\.f32", "".join(compile_only.values())))
    assert conversions and all(".rn." in conversion for conversion in conversions)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (20, 5)])
def test_odd_shapes_compile(compile_only: dict[str, str], shape: tuple[int, ...]) -> None:
    """Of an integer that is 1 Triton makes a constant."""
    pass_through(torch.ones(shape), integer=True)
    assert set(compile_only) == {"forward", "backward"}


def test_a_thread_holds_only_so_many_membranes() -> None:
    def a_thread(steps: int, dtype: torch.dtype, real: torch.dtype) -> float:
        return triton_lif.block_size(steps, dtype, real, threads=128) / 128

    assert a_thread(4, torch.float32, torch.float32) == 4
    assert a_thread(4, torch.bfloat16, torch.float32) == 8
    assert a_thread(16, torch.float32, torch.float32) == 2
    assert a_thread(16, torch.float32, torch.float64) == 1


def test_the_path_must_be_one_that_there_is() -> None:
    lif = LoihiLIF(2048, False)
    lif.path = "cuda"
    with pytest.raises(ValueError, match="must be one of"):
        lif(torch.ones(1, 1), 1.0)


def test_triton_where_it_cannot_run_says_why() -> None:
    lif = LoihiLIF(2048, False)
    lif.path = "triton"
    with pytest.raises(UserError, match=r"current is torch\.int32"):
        lif(torch.ones(1, 1, dtype=torch.int32), 1.0)
    if not triton_lif._interpreted():
        with pytest.raises(UserError, match=r"on the device 'cpu'.*'auto'"):
            lif(torch.ones(1, 1), 1.0)


def test_a_gpu_without_triton_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    assert triton_lif.serves(on_a_gpu)
    assert not triton_lif.serves(torch.ones(1))
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setitem(sys.modules, "triton.language", None)
    triton_lif._triton_is_there.cache_clear()
    try:
        with pytest.warns(UserWarning, match="Triton is not installed") as warnings:
            assert not triton_lif.serves(on_a_gpu)
            assert not triton_lif.serves(on_a_gpu)
        assert len(warnings) == 1
    finally:
        triton_lif._triton_is_there.cache_clear()


def test_an_old_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("triton.language.tuple")
    lif = LoihiLIF(2048, False)
    lif.path = "triton"
    with pytest.raises(UserError, match=r"too old, 3\.3"):
        lif(torch.ones(1, 1), 1.0)


def test_training_needs_no_triton() -> None:
    program = """
import sys
sys.modules["triton"] = None
import torch
from spikebert.commands import UserError
from spikebert.neurons import LoihiLIF
lif = LoihiLIF(2048, False)
print(lif(torch.full((1, 1), 2.0), 1.0).item())
lif.path = "triton"
try:
    lif(torch.ones(1, 1), 1.0)
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    *_, spike, error = done.stdout.splitlines()
    assert float(spike) == 1
    assert "Triton is not installed" in error
