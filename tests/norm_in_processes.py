"""Steps of BatchNorm on some rows of a batch, one process of several: `python norm_in_processes.py FOLDER`.

FOLDER/cases.pt is a list, of each case `x` and `grad` [rows, D], `state` of the norm, and `own`, for each process its
rows. What came out goes to `out-P.pt`, a list too.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from spikebert.processes import mean_over_processes
from spikebert.synchronised_norm import SynchronisedBatchNorm


def step(case: dict) -> dict:
    own = case["own"][dist.get_rank()]
    x = case["x"][own].requires_grad_()
    norm = SynchronisedBatchNorm(x.shape[1]).to(x.dtype)
    norm.load_state_dict(case["state"])
    y = norm(x)
    y.backward(case["grad"][own])
    gradients = [norm.weight.grad, norm.bias.grad]
    for gradient in gradients:
        dist.all_reduce(gradient)
    return {"y": y.detach(), "x": x.grad, "gradients": gradients, "state": norm.state_dict()} | mean(x.detach().clone())


def mean(values: torch.Tensor) -> dict:
    values.requires_grad_()
    share = mean_over_processes(values.mean(), values.numel())
    share.backward()
    return {"mean": share.detach(), "mean_grad": values.grad}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    outs = [step(case) for case in torch.load(folder / "cases.pt", weights_only=True)]
    torch.save(outs, folder / f"out-{dist.get_rank()}.pt")
    dist.destroy_process_group()
