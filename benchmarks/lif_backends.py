"""The neuron of training on each of its paths, beside SpikingJelly's: forward and backward, and how near to the floor.

    python -m benchmarks.lif_backends

A neuron computes little and moves much: forward must read the current and write spikes, backward must read the current
and the gradient of the spikes and write that of the current. So five tensors of T x tokens x features move, however
clever the code, and a copy of one, which moves two, tells how long that takes at least: the floor.

All rows of a device take turns in one process. SpikingJelly's neuron is its own (it fires at `>=`); ours must have the
plain path's spikes in every bit. Without a GPU the rows of the CPU run alone.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec

import torch
from spikingjelly.activation_based import neuron, surrogate
from torch import Tensor

from benchmarks.spikingjelly_model import missing_backend
from benchmarks.timing import Usage, machine, side_by_side, table
from spikebert import fused_lif, triton_lif
from spikebert.neurons import LoihiLIF

DECAY = 2048  # of 4096: a membrane keeps half of itself
MUST_MOVE, COPY_MOVES = 5, 2  # tensors
COPY = "copy of the current"
PLAIN = "ours, plain"
ON_GPU = ("cupy", "triton")  # backends of SpikingJelly's

Neuron = Callable[[Tensor], Tensor]


def ours(path: str) -> Neuron:
    lif = LoihiLIF(DECAY, integer=False)
    lif.path = path
    return partial(lif, threshold=1.0)


def spikingjelly(backend: str) -> Neuron:
    """As ours but for the threshold: v = v / 2 + a, hard reset to 0, which is detached."""
    lif = neuron.LIFNode(tau=2.0, decay_input=False, surrogate_function=surrogate.ATan(), detach_reset=True)
    lif.step_mode, lif.backend = "m", backend

    def run(current: Tensor) -> Tensor:
        lif.reset()
        return lif(current)

    return run


def rivals(current: Tensor) -> dict[str, Neuron]:
    """All that can take this current, where it is."""
    found = {PLAIN: ours("plain"), "SpikingJelly, torch": spikingjelly("torch")}
    if current.is_cuda:
        present = [backend for backend in ON_GPU if not missing_backend(backend)]
        found |= {f"SpikingJelly, {backend}": spikingjelly(backend) for backend in present}
    if fused_lif.serves(current):
        found["ours, fused (numba)"] = ours("fused")
    if triton_lif.serves(current):
        found["ours, Triton"] = ours("triton")
    return found


def one_pass(lif: Neuron, current: Tensor, grad_spikes: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes and the gradient of the current, done when this returns."""
    spikes = lif(current)
    (gradient,) = torch.autograd.grad(spikes, current, grad_spikes)
    finish(current)
    return spikes.detach(), gradient


def copy(current: Tensor, to: Tensor) -> None:
    to.copy_(current.detach())
    finish(current)


def finish(current: Tensor) -> None:
    if current.is_cuda:
        torch.cuda.synchronize(current.device)


def check(lifs: Mapping[str, Neuron], current: Tensor, grad_spikes: Tensor) -> None:
    """Ends the program where a path of ours gives other spikes than the plain one, or another gradient."""
    spikes, gradient = one_pass(lifs[PLAIN], current, grad_spikes)
    allowed = 16 * torch.finfo(current.dtype).eps * float(gradient.abs().max())  # some roundings
    for name, lif in lifs.items():
        if not name.startswith("ours"):
            continue
        own_spikes, own_gradient = one_pass(lif, current, grad_spikes)
        if not torch.equal(own_spikes, spikes):
            raise SystemExit(f"'{name}' gives {int((own_spikes != spikes).sum())} other spikes than '{PLAIN}'")
        if (distance := float((own_gradient - gradient).abs().max())) > allowed:
            raise SystemExit(f"'{name}' gives a gradient that is {distance:.2g} from that of '{PLAIN}'")


def measure(current: Tensor, seconds: float) -> dict[str, float]:
    """Milliseconds of each rival, and of a copy."""
    lifs = rivals(current)
    grad_spikes = torch.randn_like(current)
    check(lifs, current, grad_spikes)
    works = {name: [partial(one_pass, lif, current, grad_spikes)] for name, lif in lifs.items()}
    medians = side_by_side({COPY: [partial(copy, current, torch.empty_like(current))], **works}, seconds)
    return {name: 1000 * taken[0] for name, taken in medians.items()}


def report(taken: Mapping[str, float], current: Tensor) -> str:
    steps, tokens, features = current.shape
    size = current.numel() * current.element_size()
    floor = taken[COPY] * MUST_MOVE / COPY_MOVES
    rate = COPY_MOVES * size / taken[COPY] / 1e6
    rows = [
        [name, f"{time:,.2f}", f"{taken[PLAIN] / time:.2f}", f"{time / floor:.2f}"]
        for name, time in sorted(taken.items(), key=lambda row: -row[1])
        if name != COPY
    ]
    dtype = str(current.dtype).removeprefix("torch.")
    return (
        f"T = {steps}, {tokens:,} tokens, D = {features:,}, {dtype}, on {current.device.type}: "
        f"{MUST_MOVE} tensors of {size / 1e6:,.0f} MB must move\n"
        f"floor: {floor:,.2f} ms, at {rate:,.0f} GB/s, as a copy moves them\n\n"
        + table(["forward and backward", "ms", "times as fast as plain", "times the floor"], rows)
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=4)
    parser.add_argument("--features", type=int, nargs="+", default=[768, 3072])
    parser.add_argument("--gpu-tokens", type=int, default=32768)
    parser.add_argument(
        "--cpu-tokens", type=int, default=4096, help="the plain path keeps about 10 tensors for backward"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--seconds", type=float, default=3, help="for each row")
    arguments = parser.parse_args(argv)
    warnings.filterwarnings("ignore", category=FutureWarning)  # SpikingJelly's, of torch.jit
    start = Usage.now()
    sizes = {"cpu": arguments.cpu_tokens}
    if torch.cuda.is_available():
        sizes = {"cuda": arguments.gpu_tokens, **sizes}
    else:
        print("There is no GPU here: its rows, Triton's among them, are left out.\n")
    for device, tokens in sizes.items():
        for features in arguments.features:
            shape = (arguments.timesteps, tokens, features)
            generator = torch.Generator(device).manual_seed(0)
            dtype = getattr(torch, arguments.dtype)
            current = torch.randn(shape, generator=generator, device=device, dtype=dtype).requires_grad_()
            print(report(measure(current, arguments.seconds), current), end="\n\n", flush=True)
            del current
    print(machine(start))
    if torch.cuda.is_available():
        for backend in ON_GPU:
            if why := missing_backend(backend):
                print(f"not run: SpikingJelly, {backend}, {why}")
        triton = f", Triton {version('triton')}" if find_spec("triton") else ""
        print(f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}{triton}")


if __name__ == "__main__":
    main()
