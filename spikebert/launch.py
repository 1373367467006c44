"""How a training starts on one or several processes, CPU or GPU: the Accelerator of a recipe."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs

from spikebert.commands import UserError
from spikebert.loop import choose_precision
from spikebert.recipe import Recipe

PLAIN_PROCESSES = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Of the processes that a launcher started, or of this one. Raises UserError where they cannot train the recipe."""
    accelerator = Accelerator(
        cpu=several_started(os.environ) and not torch.cuda.is_available(),  # else each would train for itself
        mixed_precision=choose_precision(recipe.precision),
        # stage 1 leaves the readout without a gradient; buffers (BatchNorm's) are the same everywhere
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False),
            # others wait while the main process tokenises, perhaps a whole Wikipedia; a launcher ends those left
            # behind by one that died
            InitProcessGroupKwargs(timeout=timedelta(days=1)),
        ],
    )
    check_processes(recipe, accelerator, os.environ)
    return accelerator


def several_started(environment: Mapping[str, str]) -> bool:
    """Whether a launcher (torchrun, accelerate) started this process as one of several."""
    return int(environment.get("WORLD_SIZE", "1")) > 1


def check_processes(recipe: Recipe, accelerator: Accelerator, environment: Mapping[str, str]) -> None:
    """Raises UserError where these processes cannot train the recipe together."""
    if accelerator.num_processes == 1 and "ACCELERATE_USE_CPU" in environment and "MASTER_ADDR" in environment:
        raise UserError(
            "accelerate launch was asked for several processes and started one: on the CPU it needs MPI for more. "
            "Use torchrun --nproc_per_node NUMBER -m spikebert.train_command ..."
        )
    if accelerator.distributed_type not in PLAIN_PROCESSES:
        raise UserError(
            f"accelerate is set to {accelerator.distributed_type.value}; every process must hold the whole model: "
            "choose plain multi-CPU or multi-GPU (accelerate config)"
        )
    processes = accelerator.num_processes
    sizes = {name: getattr(recipe, name).batch_size for name in ("teacher", "stage1", "stage2", "quantise")}
    wrong = [f"{name}.batch_size is {size}" for name, size in sizes.items() if size % processes]
    if wrong:
        raise UserError(
            f"recipe: {', '.join(wrong)}: a batch is shared out among all {processes} processes, "
            f"give a multiple of {processes}, or start another number of processes"
        )
