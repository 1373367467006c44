"""The loss of a pupil on texts held out, of one process of several: `python held_out_in_processes.py FOLDER TEXTS`.

Two more texts stand before those, which it would learn from. What was told, and how many texts this process ran, go to
`told-P.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from small_training import N_MAX, VOCABULARY, SmallTeacher, make_pupil
from torch import Tensor

from spikebert.data import UNLABELLED, TokenisedTexts
from spikebert.distillation import LossWeights
from spikebert.evaluation import held_out
from spikebert.teacher_outputs import TeacherOutputs

LEARNT, WEIGHTS = 2, LossWeights(hidden=0.3, embedding=0.2)


def tell(folder: Path, count: int) -> None:
    me = Accelerator(cpu=True).process_index
    rng, teacher, ran = np.random.default_rng(3), SmallTeacher(), [0]
    ids = [rng.integers(VOCABULARY, size=rng.integers(2, N_MAX + 1)).tolist() for _ in range(LEARNT + count)]
    texts = TokenisedTexts(ids, [UNLABELLED] * len(ids))

    def taught(batch: dict[str, Tensor]) -> TeacherOutputs:
        ran[0] += len(batch["input_ids"])
        return TeacherOutputs(*teacher(batch["input_ids"], batch["attention_mask"]))

    loss = held_out(make_pupil("float", {}), taught, texts, LEARNT, 0, torch.device("cpu"), WEIGHTS)().figures
    (folder / f"told-{me}.json").write_text(json.dumps({"loss": loss["held_out_loss"], "texts": ran[0]}))


if __name__ == "__main__":
    tell(Path(sys.argv[1]), int(sys.argv[2]))
