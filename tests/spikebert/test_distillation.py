"""The losses against their formulas, the layer map, and embeddings taken from a teacher."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_model, save_file
from torch.nn import functional as F

from spikebert.data import UNLABELLED
from spikebert.distillation import (
    Alignment,
    LossWeights,
    distillation_loss,
    embeddings_from_teacher,
    layer_map,
    loss_parts,
    older_layer_map,
    operations_loss,
    soft_cross_entropy,
)
from spikebert.pupil import aligned_states
from spikebert.teacher_outputs import normalised


def test_layers_are_spread_evenly_whatever_the_depths() -> None:
    assert layer_map(4, 6) == [0, 2, 3, 5, 6]
    assert layer_map(12, 6) == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6], "each twice, and no block stands for none"
    assert layer_map(12, 12) == list(range(13))
    assert layer_map(6, 4) == [0, 1, 1, 2, 3, 3, 4]
    assert layer_map(1, 12) == [0, 12]


def test_an_alignment_keeps_which_states_it_is_of(tmp_path) -> None:
    """That of an older file, which does not tell, stays what it was taught."""
    assert older_layer_map(4, 6) == [0, 2, 3, 4, 6]
    alignment = Alignment(8, 4, 12, 6)
    assert alignment.teacher_state == [0, 2, 3, 5, 6]
    for older, expected in ((False, [0, 2, 3, 5, 6]), (True, [0, 2, 3, 4, 6])):
        kept = {name: value for name, value in alignment.state_dict().items() if not (older and name == "aligned_with")}
        assert len(kept) == 12 - older
        save_file(kept, tmp_path / "alignment.safetensors")
        again = Alignment(8, 4, 12, 6)
        load_model(again, tmp_path / "alignment.safetensors")
        assert again.teacher_state == again.aligned_with.tolist() == expected
        assert again.wanted == sorted(set(expected))
        assert aligned_states(str(tmp_path), 4, 6) == expected
        twice = Alignment(8, 4, 12, 6)
        twice.load_state_dict(again.state_dict())
        assert twice.teacher_state == expected, "as from a checkpoint"
    assert aligned_states(str(tmp_path / "none"), 4, 6) == [0, 2, 3, 5, 6]


@pytest.mark.parametrize(("before", "now"), [(6, 12), (12, 6), (4, 2)])
def test_with_a_teacher_of_another_depth_states_are_spread_anew(tmp_path, before: int, now: int) -> None:
    save_file(Alignment(8, 2, 12, before).state_dict(), tmp_path / "alignment.safetensors")
    again = Alignment(8, 2, 12, now)
    load_model(again, tmp_path / "alignment.safetensors")
    assert again.teacher_state == again.aligned_with.tolist() == layer_map(2, now)
    assert aligned_states(str(tmp_path), 2, now) == layer_map(2, now)
    with pytest.raises(ValueError, match="4 states of the teacher were given, 3 are wanted"):
        again((torch.zeros(1, 1, 8),) * 3, torch.zeros(4, 1, 12), torch.ones(1, 1))


def test_soft_cross_entropy_is_the_kl_divergence() -> None:
    torch.manual_seed(0)
    student, teacher, temperature = torch.randn(4, 3), torch.randn(4, 3), 2.0
    p, q = F.softmax(teacher / temperature, -1), F.softmax(student / temperature, -1)
    expected = (p * (p / q).log()).sum(-1).mean() * temperature**2
    torch.testing.assert_close(soft_cross_entropy(student, teacher, temperature), expected)
    assert soft_cross_entropy(teacher, teacher, temperature).abs() < 1e-6


def test_every_part_can_be_switched_off() -> None:
    student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    labels, one, two = torch.tensor([0]), torch.tensor(1.0), torch.tensor(2.0)
    parts = {
        "label": F.cross_entropy(student, labels),
        "logits": soft_cross_entropy(student, teacher, 1.0),
        "embedding": one,
        "hidden": two,
    }
    for name, expected in parts.items():
        weights = LossWeights(**{name: 3.0})
        told = loss_parts(weights, student, teacher, labels, one, two)
        assert told.keys() == {name}
        torch.testing.assert_close(told[name], expected)
        torch.testing.assert_close(distillation_loss(weights, told, student.device), 3 * expected)
    assert loss_parts(LossWeights(), student, teacher, labels, one, two) == {}
    assert distillation_loss(LossWeights(), {}, student.device) == 0


def test_operations_cost_by_how_far_they_are_from_what_is_free() -> None:
    """And nothing below it."""
    operations = torch.tensor(3000.0, requires_grad=True)
    loss = operations_loss(operations, tokens=10, free=100.0)
    loss.backward()
    assert loss == 2
    torch.testing.assert_close(operations.grad, torch.tensor(1 / 10 / 100))
    few = torch.tensor(999.0, requires_grad=True)
    free = operations_loss(few, tokens=10, free=100.0)
    free.backward()
    assert free == 0 and few.grad == 0


def test_unlabelled_texts_take_no_part_in_the_label_loss() -> None:
    student = torch.tensor([[2.0, 0.0], [0.0, 9.0]])
    labels = torch.tensor([0, UNLABELLED])
    loss = loss_parts(LossWeights(label=1.0), student, None, labels, None, None)["label"]
    torch.testing.assert_close(loss, F.cross_entropy(student[:1], labels[:1]))
    none = torch.full((2,), UNLABELLED)
    assert loss_parts(LossWeights(label=1.0), student, None, none, None, None)["label"] == 0


def test_alignment_ignores_padding_and_is_zero_for_a_perfect_student() -> None:
    torch.manual_seed(0)
    states = tuple(F.layer_norm(torch.randn(2, 5, 8), (8,)) for _ in range(3))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    alignment = Alignment(8, 2, 8, 2)
    for to_teacher in alignment.maps:
        torch.nn.init.eye_(to_teacher.weight)
        torch.nn.init.zeros_(to_teacher.bias)
    noise = (1 - mask)[:, :, None] * 100.0
    teacher = normalised(states, mask)
    embedding, hidden = alignment(tuple(state + noise for state in states), teacher, mask)
    assert embedding < 1e-8 and hidden < 1e-8
    embedding, hidden = alignment(tuple(state + 1 for state in states), teacher, mask)
    torch.testing.assert_close(torch.stack([embedding, hidden]), torch.ones(2), rtol=1e-4, atol=1e-4)


def test_embeddings_keep_the_teachers_notion_of_alike() -> None:
    torch.manual_seed(0)
    table = torch.randn(200, 4) @ torch.randn(4, 32) + 3.0  # rank 4, off centre
    for features in (8, 32, 48):
        taken = embeddings_from_teacher(table, features, seed=1, std=0.5)
        assert taken.shape == (200, features)
        torch.testing.assert_close(taken.std(0), torch.full((features,), 0.5))
    centred = table - table.mean(0)
    distance = torch.cdist(centred, centred).flatten()
    kept = torch.cdist(taken, taken).flatten()
    assert torch.corrcoef(torch.stack([distance, kept]))[0, 1] > 0.9
    assert torch.equal(taken, embeddings_from_teacher(table, 48, seed=1, std=0.5))
