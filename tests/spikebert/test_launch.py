"""Which processes may train a recipe together."""

from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType

from spikebert.commands import UserError
from spikebert.launch import check_processes
from spikebert.recipe import Recipe


def accelerator(processes: int, kind: DistributedType = DistributedType.MULTI_CPU) -> SimpleNamespace:
    return SimpleNamespace(num_processes=processes, distributed_type=kind)


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    recipe = Recipe(out="run")
    recipe.teacher.batch_size = 33
    check_processes(recipe, accelerator(1, DistributedType.NO), {})
    with pytest.raises(UserError, match=r"teacher.batch_size is 33: a batch is shared out among all 2 processes, give"):
        check_processes(recipe, accelerator(2), {})
    check_processes(Recipe(out="run"), accelerator(4), {})
    with pytest.raises(UserError, match="accelerate is set to FSDP; every process must hold the whole model"):
        check_processes(recipe, accelerator(2, DistributedType.FSDP), {})


def test_processes_that_a_launcher_did_not_start_are_missed() -> None:
    """`accelerate launch --cpu --num_processes 2` starts one process and sets these."""
    environment = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}
    with pytest.raises(UserError, match=r"started one.* Use torchrun --nproc_per_node"):
        check_processes(Recipe(out="run"), accelerator(1, DistributedType.NO), environment)
    check_processes(Recipe(out="run"), accelerator(2), environment)
