"""BatchNorms measured again with the weights held still."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from command_output import one_error
from small_models import GRADED, small_batch, small_model
from small_teachers import recipe_arguments
from torch import nn

from spikebert import processes, stages
from spikebert.model import SpikeBertForSequenceClassification
from spikebert.settled_norms import settle_norms
from spikebert.train_command import main


def norms_of(model: nn.Module) -> dict[str, nn.BatchNorm1d]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm1d)}


@pytest.mark.parametrize("training", [True, False])
def test_a_norm_expects_what_it_is_given_in_training(training: bool) -> None:
    model = small_model(**GRADED).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [small_batch(seed) for seed in range(3)]
    settle_norms(model, [(batch["input_ids"], batch["attention_mask"]) for batch in batches])
    assert model.training is training and all(norm.momentum == 0.1 for norm in norms_of(model).values())
    first = norms_of(model)["blocks.0.query.norm"]  # what it is given depends on no other norm
    with torch.no_grad():
        currents = [model.blocks[0].query.linear(model.encoder(**batch).values.flatten(0, 1)) for batch in batches]
    torch.testing.assert_close(first.running_mean, torch.stack([x.mean(0) for x in currents]).mean(0))
    torch.testing.assert_close(first.running_var, torch.stack([x.var(0) for x in currents]).mean(0))
    for name, value in model.state_dict().items():
        moved = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert moved or torch.equal(value, before[name]), name


def test_one_batch_gives_in_evaluation_what_it_gives_in_training() -> None:
    model, batch = small_model(), small_batch(texts=64)
    with torch.no_grad():
        wanted = model.train()(**batch).logits

        def off() -> float:
            return float((model.eval()(**batch).logits - wanted).abs().mean())

        before = off()
        settle_norms(model, [(batch["input_ids"], batch["attention_mask"])])
        assert off() < 0.02 * before  # a spike or two differ: variances that are kept are unbiased


@pytest.mark.parametrize("changes", [{"norm": "rms"}, {"norm": "none"}])
def test_a_student_without_batch_norm_is_left_alone(changes: dict) -> None:
    model = small_model(**changes)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = small_batch()
    settle_norms(model, [(batch["input_ids"], batch["attention_mask"])])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_it_is_put_right_when_a_batch_fails() -> None:
    model, batch = small_model(), small_batch()
    with pytest.raises(ValueError, match="all-zero attention_mask"):
        settle_norms(model, [(batch["input_ids"], torch.zeros_like(batch["attention_mask"]))])
    assert not model.training and all(norm.momentum == 0.1 for norm in norms_of(model).values())


def test_it_is_part_of_a_recipe(tmp_path: Path) -> None:
    """Validation and what is kept are of the settled student, and integers of it."""
    arguments = [*recipe_arguments(tmp_path), "--stage2.epochs=1"]
    assert main([*arguments, "--stage2.norm_texts=150", "--until=stage2"]) == 0
    settled = json.loads((tmp_path / "run" / "stage2" / "stage.json").read_text())
    assert settled["made_from"]["stage2"]["norm_texts"] == 150
    model = SpikeBertForSequenceClassification.from_pretrained(tmp_path / "run" / "stage2")
    other = tmp_path / "other"
    assert main([*arguments, f"--out={other}", "--until=stage2"]) == 0
    plain = SpikeBertForSequenceClassification.from_pretrained(other / "stage2").state_dict()
    for name, value in model.state_dict().items():  # training itself is the same
        assert name.endswith(("running_mean", "running_var", "num_batches_tracked")) or torch.equal(value, plain[name])
    norm = model.blocks[0].query.norm
    assert not torch.equal(norm.running_mean, plain["blocks.0.query.norm.running_mean"])
    assert main([*arguments, "--stage2.norm_texts=150"]) == 0  # to the end, with integers
    assert (tmp_path / "run" / "results.json").exists()


def test_other_norms_have_nothing_to_be_told(tmp_path: Path, capfd) -> None:
    assert main([*recipe_arguments(tmp_path), "--stage2.norm_texts=5", "--student.norm=rms"]) == 2
    assert "stage2.norm_texts is 5, for student.norm 'batch' alone: give 0" in one_error(capfd)


def test_no_batch_is_a_small_rest(tmp_path: Path, monkeypatch) -> None:
    """Each counts alike in the mean, and every process runs all of them."""
    sizes: list[list[int]] = []

    def settle(student: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
        assert processes._each_alone.get()
        sizes.append([len(ids) for ids, _ in batches])

    monkeypatch.setattr(stages, "settle_norms", settle)
    arguments = [*recipe_arguments(tmp_path), "--stage2.epochs=1", "--until=stage2"]  # batches of 16
    for texts, wanted in ((33, [17, 16]), (48, [16, 16, 16]), (5, [5])):
        out = tmp_path / f"run{texts}"
        assert main([*arguments, f"--stage2.norm_texts={texts}", f"--out={out}"]) == 0
        assert sizes.pop() == wanted and not sizes
