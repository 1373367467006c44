"""BatchNorms that expect what their weights give now, not what they gave in the last batches of training.

In training BatchNorm takes mean and variance of the batch, in evaluation running means of the last ten or so. They lag
behind weights that still move, and of few texts they are rough. In a deep student whose spikes rest in the middle of
their range a few hundredths of a deviation in each layer add up to logits of other classes. So they are measured again
with the weights held still ("precise BN", Wu and Johnson 2021, arXiv 2105.07576).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def settle_norms(student: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Give each BatchNorm the mean over these batches, ids and mask [B, N] each, of the means and variances that it
    takes in training. Nothing else of the student changes; one without BatchNorm is left alone."""
    norms = [module for module in student.modules() if isinstance(module, nn.BatchNorm1d)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    was_training = student.training
    student.train()
    try:
        for number, (ids, mask) in enumerate(batches):
            for norm in norms:
                norm.momentum = 1 / (number + 1)  # so the running mean is that of all batches so far
            student(ids, mask)
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        student.train(was_training)
