"""A student of which parts are dense: they give what they should, the rest stays, and it learns by the same recipe."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from benchmarks.dense_parts import PARTS, SoftmaxAttention, chosen, main, make_dense
from spikebert.config import SpikeBertConfig
from spikebert.layers import Encoder, SpikingLinear
from spikebert.model import SpikeBertForSequenceClassification
from spikebert.train_command import main as train_main

IDS = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0], [2, 9, 9, 3, 0]])
MASK = (IDS > 0).long()


def student(*parts: str) -> SpikeBertForSequenceClassification:
    torch.manual_seed(0)
    config = SpikeBertConfig(
        vocab_size=12, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=8, timesteps=2, attention_threshold=1,
    )  # fmt: skip
    made = SpikeBertForSequenceClassification(config)
    make_dense(made, parts)
    return made


def states(*parts: str) -> tuple[torch.Tensor, ...]:
    """Mean over T of its states [B, N, D]; two steps, so that whole numbers of spikes are halves."""
    return student(*parts)(IDS, MASK, output_hidden_states=True).hidden_states


def whole_spikes(state: torch.Tensor) -> bool:
    return bool(((2 * state - (2 * state).round()).abs() < 1e-4).all())  # but for rounding


def test_without_a_part_it_is_the_spiking_student() -> None:
    assert all(map(whole_spikes, states()))
    assert not any(isinstance(layer, SoftmaxAttention) for layer in student().modules())


@pytest.mark.parametrize("part", PARTS)
def test_a_part_changes_the_states_and_what_adds_spikes_adds_spikes(part: str) -> None:
    made, plain = states(part), states()
    assert not torch.equal(made[1], plain[1])
    assert whole_spikes(made[0]) == (part != "encoder")
    for before, after in pairwise(made):
        assert whole_spikes(after - before) == (part != "residual"), "of a block's two additions"


def test_the_activation_is_gelu() -> None:
    made = student("activation").blocks[0]
    x = Encoder(12, 8, 8, 2)(IDS, MASK)
    up = made.up(x)
    torch.testing.assert_close(up.values, F.gelu(up.current))


def test_the_encoder_gives_its_current() -> None:
    made = student("encoder")
    token = made.encoder.token.weight[IDS] + made.encoder.position.weight[: IDS.shape[1]]
    state = made(IDS, MASK, output_hidden_states=True).hidden_states[0]
    torch.testing.assert_close(state, token * MASK[..., None])


def test_attention_is_a_softmax_over_real_tokens() -> None:
    torch.manual_seed(1)
    encoder, layers = Encoder(12, 8, 8, 2), [SpikingLinear(8, 8).eval() for _ in "qkv"]
    x = encoder(IDS, MASK)
    q, k, v = (layer(x) for layer in layers)
    found = SoftmaxAttention(2)(q, k, v)
    for text, length in enumerate(MASK.sum(1)):
        for step in range(2):
            a, b, c = (
                x.packing.unpack(y.values)[step, text, :length].view(-1, 2, 4).transpose(0, 1) for y in (q, k, v)
            )
            mixed = F.softmax(a @ b.transpose(1, 2) / 4**0.5, -1) @ c  # [H, n, d]
            own = x.packing.unpack(found.values)[step, text]
            torch.testing.assert_close(own[:length], mixed.transpose(0, 1).flatten(1))
            assert not own[length:].any()


def test_padding_changes_nothing() -> None:
    made = student(*PARTS).eval()
    alone = made(IDS[1:2, :3], MASK[1:2, :3], output_hidden_states=True).hidden_states
    beside = made(IDS, MASK, output_hidden_states=True).hidden_states
    for one, all_of_them in zip(alone, beside):
        torch.testing.assert_close(one[0], all_of_them[1, :3])
        assert not all_of_them[1, 3:].any()


def test_parts_keep_the_parameters_and_all_learn() -> None:
    assert {name: x.shape for name, x in student(*PARTS).state_dict().items()} == {
        name: x.shape for name, x in student().state_dict().items()
    }
    made = student(*PARTS)
    sum(state.square().sum() for state in made(IDS, MASK, output_hidden_states=True).hidden_states).backward()
    silent = {name for name, x in made.named_parameters() if x.grad is None}
    assert silent == {name for name, _ in made.named_parameters() if name.startswith("readout")}


def test_parts_are_named_in_any_order() -> None:
    assert chosen("residual+attention") == chosen("attention+residual") == ("attention", "residual")


def test_the_command_teaches_each_choice_once_and_has_a_row_for_each_state(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a good film\nbad dull film\na dull film\ngood film\n" * 20)
    run = tmp_path / "run"
    flags = f"--data.folder={trained / 'data'} --data.labels=[bad,good] --teacher.model={trained / 'teacher'}".split()
    flags += ["--student.hidden_size=32", "--student.layers=1", "--student.heads=2", "--student.intermediate_size=32"]
    flags += ["--student.n_max=10", "--teacher.epochs=0", f"--stage1.text=[{text}]", "--precision=float32"]
    flags += ["--until=stage1"]
    assert train_main([f"--out={run}", *flags]) == 0
    command = [str(run), "--parts", "residual+attention", "encoder", "--text", str(text), "--count", "80"]
    command += ["--out", str(tmp_path / "parts")]
    capfd.readouterr()
    assert main(command) == 0
    out = capfd.readouterr().out
    for folder in (run, tmp_path / "parts" / "attention+residual", tmp_path / "parts" / "encoder"):
        assert f"{folder / 'stage1'}, embedding" in out and f"{folder / 'stage1'}, block 1" in out
    record = json.loads((tmp_path / "parts" / "attention+residual" / "stage1" / "stage.json").read_text())
    assert record["made_from"]["dense"] == ["attention", "residual"]
    assert main(command) == 0 and capfd.readouterr().err.count("stage1: finished before") == 2, (
        "nothing is taught twice"
    )


def test_wrong_use_is_told(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a good film\n")
    rest = ["--text", str(text), "--out", str(tmp_path / "parts")]
    assert main([str(trained / "run"), "--count", "1", *rest]) == 2, "before anything is taught"
    assert "--count: 1: 8 is the least" in capfd.readouterr().err and not (tmp_path / "parts").exists()
    assert main([str(tmp_path), *rest]) == 2 and "no finished stage 1" in capfd.readouterr().err
    assert main([str(trained / "run"), "--parts", "norm", *rest]) == 2
    assert "'norm' is no part: encoder, attention, residual, activation" in capfd.readouterr().err
    record = json.loads((trained / "run" / "stage1" / "stage.json").read_text())
    for section, name, value, complaint in (
        ("stage1", "reuse", "elsewhere", "took its stage 1 over from elsewhere"),
        ("stage1", "operations_per_token", 1e5, "had a budget of operations"),
        ("student", "attention_similarity", "xnor", "attention_similarity 'xnor'"),
        ("student", "encoder", "sign", "encoder 'sign'"),
    ):
        other = json.loads(json.dumps(record))
        other["made_from"][section][name] = value
        (tmp_path / "stage1").mkdir(exist_ok=True)
        (tmp_path / "stage1" / "stage.json").write_text(json.dumps(other))
        assert main([str(tmp_path), *rest]) == 2
        assert complaint in capfd.readouterr().err
