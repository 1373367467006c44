"""What is asked of a teacher: the states that are wanted, of real tokens alone, in the order of the texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_teachers import make_teacher
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForSequenceClassification

from spikebert import teacher_outputs
from spikebert.data import TokenisedTexts
from spikebert.pupil import Classifier
from spikebert.teacher_outputs import TeacherOutputs, ask_teacher, merged, short_to_long, texts_at_once


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> torch.nn.Module:
    folder = make_teacher(tmp_path_factory.mktemp("teacher"))
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()


def batch_of(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and mask of texts of such lengths."""
    rng = np.random.default_rng(0)
    texts = TokenisedTexts([rng.integers(4, 16, size=length).tolist() for length in lengths])
    batch = texts.batch(np.arange(len(lengths)), pad_id=0)
    return batch["input_ids"], batch["attention_mask"]


def test_outputs_are_those_of_each_text_alone(teacher: torch.nn.Module) -> None:
    ids, mask = batch_of(5, 2, 9, 3, 7)
    got = ask_teacher(teacher, ids, mask, wanted=[0, 2], chunk=2)
    logits, states = [], []
    for text, length in zip(ids, mask.sum(1)):
        with torch.no_grad():
            alone = teacher(input_ids=text[None, :length], output_hidden_states=True)
        logits.append(alone.logits[0])
        states.append(torch.stack([F.layer_norm(alone.hidden_states[i][0], (24,)) for i in (0, 2)]))
    assert got.logits.dtype == got.states.dtype == torch.float32
    torch.testing.assert_close(got.logits, torch.stack(logits), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.states, torch.cat(states, 1), rtol=1e-5, atol=1e-5)


def test_parts_padded_further_for_a_gpu_say_the_same(teacher: torch.nn.Module, monkeypatch) -> None:
    ids, mask = batch_of(5, 2, 9, 3, 7)
    plain = ask_teacher(teacher, ids, mask, [0, 2], chunk=2)
    monkeypatch.setattr(teacher_outputs, "side_on", lambda device: 4)
    order, parts = short_to_long(mask, 2)
    assert order.tolist() == [1, 3, 0, 4, 2]
    assert [(rows.tolist(), width) for rows, width in parts] == [([1, 3], 4), ([0, 4], 8), ([2], 9)]
    further = ask_teacher(teacher, ids, mask, [0, 2], chunk=2)
    torch.testing.assert_close(further.logits, plain.logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(further.states, plain.states, rtol=1e-5, atol=1e-5)


def test_all_texts_at_once_say_what_few_say(teacher: torch.nn.Module) -> None:
    """A GPU is asked about many texts, a CPU about a few of like length."""
    assert texts_at_once(torch.device("cpu")) == 8 and texts_at_once(torch.device("cpu"), trained=True) == 16
    assert texts_at_once(torch.device("cuda"), trained=True) == 512 and texts_at_once(torch.device("cuda")) == 512
    ids, mask = batch_of(*range(2, 22))
    few, all_of_them = ask_teacher(teacher, ids, mask, [0, 2]), ask_teacher(teacher, ids, mask, [0, 2], chunk=20)
    torch.testing.assert_close(few.logits, all_of_them.logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(few.states, all_of_them.states, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 5, 8])
def test_a_teacher_is_trained_with_parts_of_a_batch_as_with_all_of_it(teacher: torch.nn.Module, chunk: int) -> None:
    ids, mask = batch_of(5, 2, 9, 3, 7)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 2, 2, 0])}
    gradients = []
    for model in (Classifier(teacher), Classifier(teacher, chunk)):
        model.zero_grad()
        loss = model(batch)
        loss.backward()
        gradients.append([loss.detach(), *(parameter.grad.clone() for parameter in teacher.parameters())])
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)
    reference = teacher(input_ids=ids, attention_mask=mask, labels=batch["labels"]).loss
    torch.testing.assert_close(gradients[1][0], reference.detach(), rtol=1e-5, atol=1e-6)


def test_what_is_not_wanted_or_not_there_is_none(teacher: torch.nn.Module, tmp_path: Path) -> None:
    assert ask_teacher(teacher, *batch_of(3, 4), wanted=[]).states is None
    headless = AutoModel.from_pretrained(make_teacher(tmp_path)).eval()
    assert ask_teacher(headless, *batch_of(3, 4), wanted=[1]).logits is None


def test_outputs_are_float32_where_the_teacher_is_run_in_bf16(teacher: torch.nn.Module) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ask_teacher(teacher, *batch_of(3, 4), wanted=[1])
    assert got.logits.dtype == got.states.dtype == torch.float32


def test_two_halves_of_a_batch_are_put_together_in_its_order(teacher: torch.nn.Module) -> None:
    ids, mask = batch_of(5, 2, 9, 3, 7)
    lengths = mask.sum(1)
    whole = ask_teacher(teacher, ids, mask, [1, 2])
    for chosen in ([True, False, False, True, True], [False, True, True, True, True]):
        is_first = torch.tensor(chosen)
        tokens = is_first.repeat_interleave(lengths)
        first = TeacherOutputs(whole.logits[is_first], whole.states[:, tokens])
        second = TeacherOutputs(whole.logits[~is_first], whole.states[:, ~tokens])
        got = merged(first, second, is_first, lengths)
        assert torch.equal(got.logits, whole.logits) and torch.equal(got.states, whole.states)
        swapped = merged(second, first, ~is_first, lengths)
        assert torch.equal(swapped.states, whole.states)
    assert merged(TeacherOutputs(None, None), second, is_first, lengths) == (None, None)
