"""Students that begin as their teacher: what is asked of teachers, what each layer is fitted to, and a whole one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_output import one_error
from safetensors.torch import load_file
from small_models import small_config
from small_teachers import FILLER, recipe_arguments
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    GPT2Config,
    MPNetConfig,
    OPTConfig,
    RobertaConfig,
)
from transformers.utils import ModelOutput

from spikebert.commands import UserError
from spikebert.distillation import Alignment
from spikebert.layers import Neuron, SpikingLinear
from spikebert.least_squares import fit_alignment
from spikebert.model import SpikeBertForSequenceClassification
from spikebert.packing import Packing
from spikebert.teacher_blocks import (
    Currents,
    begin_as_teacher,
    check_blocks,
    currents_of,
    deviation,
    embeddings_of,
    fit_layer,
    fit_readout,
    flat,
    narrowed,
    states_of,
    teacher_layers,
    what_is_missing,
)
from spikebert.teacher_outputs import ask_teacher
from spikebert.train_command import main

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
GRADED = {"timesteps": 1, "spike": "graded", "spike_cap": 15, "encoder_cap": 15, "value_cap": 15, "graded_gain": 3.0}


def teacher(**changes) -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(**(SIZES | {"max_position_embeddings": 20, "initializer_range": 0.3} | changes))
    return BertModel(config).eval()


def texts(count: int = 60, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Batches of ragged ones of 2 to 9 tokens, in no order of their lengths."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 50, (count, 9), generator=generator)
    mask = (torch.arange(9) < torch.randint(2, 10, (count, 1), generator=generator)).long()
    return list(zip(ids.split(8), mask.split(8)))


@pytest.mark.parametrize(
    ("config", "query", "value", "out"),
    [
        (BertConfig(**SIZES), "self.query", "self.value", "attention.output.dense"),
        (RobertaConfig(**SIZES), "self.query", "self.value", "attention.output.dense"),
        (MPNetConfig(**SIZES), "attn.q", "attn.v", "attn.o"),
        (DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=32), "q_lin", "v_lin", "out_lin"),
    ],
    ids=["bert", "roberta", "mpnet", "distilbert"],
)
def test_layers_of_bert_and_its_like_are_found(config, query: str, value: str, out: str) -> None:
    model = AutoModel.from_config(config)
    names = {module: name for name, module in model.named_modules()}
    found = teacher_layers(model)
    assert len(found) == 2
    for number, layer in enumerate(found):
        assert all(f".{number}." in names[linear] for linear in layer)
        for linear, wanted in ((layer.query, query), (layer.value, value), (layer.out, out)):
            assert names[linear].endswith(wanted)
        assert layer.up.out_features == layer.down.in_features == 32


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(n_layer=2, n_embd=16, n_head=2),
        AlbertConfig(**SIZES),  # one layer, many times
        OPTConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=32,
            word_embed_proj_dim=16,
            max_position_embeddings=20,
        ),  # its six begin with key
    ],
    ids=lambda config: config.model_type,
)
def test_other_teachers_are_refused(config) -> None:
    with pytest.raises(UserError, match=f"a '{config.model_type}' does not have layers of query, key"):
        teacher_layers(AutoModel.from_config(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 24, "num_attention_heads": 3}, "hidden_size is 24, the teacher's 16; heads is 3"),
        ({"intermediate_size": 40}, "intermediate_size is 40, the teacher's 32"),
        ({"num_hidden_layers": 3}, "3 layers, the teacher has 2"),
        ({"num_attention_heads": 1}, "a head has 16 features, of the teacher 8"),
        ({"norm": "rms"}, "norm is 'rms'"),
        ({"encoder": "sign"}, "its encoder must be 'lif'"),
        ({"position_spikes": 4}, "without position_spikes"),
        ({"spike": "ternary"}, "spike is 'ternary'"),
    ],
)
def test_students_that_cannot_begin_so_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_blocks(small_config(**changes), BertConfig(**SIZES))
    check_blocks(small_config(), BertConfig(**SIZES))


def test_embeddings_are_told_apart_from_places() -> None:
    bert = teacher()
    bert.embeddings.LayerNorm = nn.Identity()  # then they are a plain sum
    with torch.no_grad():
        tokens, places = embeddings_of(bert, 50, 9, seed=0)
        word = bert.embeddings.word_embeddings.weight
        place = bert.embeddings.position_embeddings.weight[:9]
    torch.testing.assert_close(places, place - place.mean(0), rtol=0, atol=0.4)  # words differ from place to place
    with torch.no_grad():
        tokens, _ = embeddings_of(bert, 50, 1, seed=0)  # one place alone: exact
    torch.testing.assert_close(tokens - tokens.mean(0), word - word.mean(0))


def test_a_layer_is_fitted_to_a_current() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 5, (400, 6), generator=generator).float()
    wanted = inputs[:200] @ torch.randn(6, 3, generator=generator) + 2
    layer = SpikingLinear(6, 3, Neuron()).eval()
    inputs = inputs[:200].repeat(2, 1)  # two timesteps
    with torch.no_grad():
        fit_layer(layer, inputs, wanted)
        made = layer.norm(layer.linear(inputs))
        trained = layer.train().norm(layer.linear(inputs))
    torch.testing.assert_close(made, wanted.repeat(2, 1), rtol=0, atol=0.05)
    torch.testing.assert_close(trained, made, rtol=0, atol=0.01)  # what a batch in training gives


def test_what_is_missing_makes_a_state_the_wanted_one() -> None:
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(500, 4, generator=generator) * 3 + 8
    wanted = state * torch.tensor([2.0, 0.5, -1.0, 1.0]) + torch.randn(500, 4, generator=generator) * 0.3 - 5
    whole = state + what_is_missing(state, wanted)
    for feature in range(4):
        assert abs(torch.corrcoef(torch.stack([whole[:, feature], wanted[:, feature]]))[0, 1]) > 0.9999
    assert bool((deviation(what_is_missing(state, wanted)) < 0.5 * deviation(state)).all())
    replaced = torch.randn(500, 4, generator=generator)
    grown = deviation(state + what_is_missing(state, replaced)) / deviation(state)
    torch.testing.assert_close(grown, torch.full((4,), 4 / 3), rtol=0.01, atol=0)  # and no more
    assert bool(what_is_missing(torch.ones(9, 4), torch.ones(9, 4)).isfinite().all())  # a feature that never varies


def test_a_narrower_student_has_what_it_has_room_for() -> None:
    generator = torch.Generator().manual_seed(0)
    wide = [torch.randn(30, 16, generator=generator) for _ in range(4)]
    inner = torch.randn(30, 6, generator=generator) * torch.tensor([1.0, 9.0, 1.0, 5.0, 1.0, 7.0])
    currents = Currents(wide[0], wide[1], wide[2], wide[3], inner, wide[3])
    directions = torch.linalg.qr(torch.randn(16, 8, generator=generator)).Q
    found = narrowed(currents, directions, 8, 3)
    assert torch.equal(found.query, wide[0][:, :8]) and torch.equal(found.inner, inner[:, [1, 3, 5]])
    torch.testing.assert_close(found.state, wide[3] @ directions)
    same = narrowed(currents, None, 16, 6)
    assert all(torch.equal(a, b) for a, b in zip(same, currents))


def test_currents_come_in_the_order_of_the_spikes() -> None:
    """Of ragged texts: what the teacher says of a token stands where the student's spikes of it stand."""
    bert, batches = teacher(), texts()
    packings = [Packing(mask) for _, mask in batches]
    layers = teacher_layers(bert)
    with torch.no_grad():
        found = currents_of(bert, layers[0], layers[1], 2, batches, packings)
        states = states_of(bert, batches, packings, [0, 2])
        expected = layers[0].query(states[0])
    torch.testing.assert_close(found.query, expected)
    torch.testing.assert_close(found.state, states[2])
    assert found.inner.shape == (len(expected), 32) and found.attended.shape == expected.shape
    ids = torch.cat([packing.pack(ids[..., None].float()) for packing, (ids, _) in zip(packings, batches)])
    assert len(ids) == sum(int(mask.sum()) for _, mask in batches) == len(expected)
    assert not layers[0].query._forward_hooks and not layers[1].up._forward_hooks  # nobody listens any more


def aligned(config) -> Alignment:
    return Alignment(config.hidden_size, config.num_hidden_layers, 16, 2, config.residual_cap)


def losses(student: nn.Module, alignment: Alignment, bert: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Of embedding and blocks, [2]."""
    found = []
    with torch.no_grad():
        for ids, mask in batches:
            own = student.eval()(ids, mask, output_hidden_states=True).hidden_states
            found.append(torch.stack(alignment(own, ask_teacher(bert, ids, mask, alignment.wanted).states, mask)))
    return torch.stack(found).mean(0)


@pytest.mark.parametrize(
    "changes",
    [
        GRADED,
        GRADED | {"attention_similarity": "xnor", "attention_threshold": 24},
        GRADED | {"positions": False},
        GRADED | {"num_hidden_layers": 1},
        GRADED | {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 16},
        {"timesteps": 2},
    ],
    ids=str,
)
def test_a_student_begins_nearer_to_its_teacher_than_a_new_one(changes: dict) -> None:
    bert, batches, others = teacher(), texts(200), texts(40, seed=1)  # others than it is fitted to
    config = small_config(**changes)
    torch.manual_seed(0)
    student, alignment = SpikeBertForSequenceClassification(config).eval(), aligned(config)
    fit_alignment(alignment, student, bert, batches)
    before = losses(student, alignment, bert, others)
    explained = begin_as_teacher(student.train(), alignment, bert, batches, seed=0)
    assert student.training and len(explained) == config.num_hidden_layers + 1
    after = losses(student, alignment, bert, others)
    assert bool((after < 0.9 * before).all()), (before, after)
    torch.manual_seed(1)
    again = SpikeBertForSequenceClassification(config)
    assert begin_as_teacher(again, aligned(config), bert, batches, seed=0) == explained  # nothing is left of its start
    for (name, value), other in zip(student.state_dict().items(), again.state_dict().values()):
        if not name.startswith("readout."):
            assert torch.equal(value, other), name


@pytest.mark.parametrize(
    ("changes", "most"), [({}, 0.01), ({"timesteps": 2}, 0.01), ({"timesteps": 2, "readout": "membrane"}, 0.2)]
)
def test_a_readout_begins_with_what_the_teacher_says(changes: dict, most: float) -> None:
    student = SpikeBertForSequenceClassification(small_config(**(GRADED | changes)))
    begin_as_teacher(student, aligned(student.config), teacher(), texts(200), seed=0)
    classes = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))

    class Task(nn.Module):
        """Classes by the mean of the student's own states: a linear map can have all of it."""

        config = BertConfig(**SIZES)

        def forward(self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool) -> ModelOutput:
            states = student(input_ids, attention_mask, output_hidden_states=True).hidden_states[-1]
            return ModelOutput(logits=states.sum(1) / attention_mask.sum(1, keepdim=True) @ classes + 5)

    def left() -> float:
        """Of the variance of the teacher's logits, in the student's."""
        with torch.no_grad():
            own = torch.cat([student.eval()(ids, mask).logits for ids, mask in texts(40, seed=1)])
            theirs = torch.cat([ask_teacher(Task(), ids, mask, ()).logits for ids, mask in texts(40, seed=1)])
        return float((own - theirs).square().sum() / (theirs - theirs.mean(0)).square().sum())

    assert left() > 1
    fit_readout(student.train(), Task(), texts(200))
    assert student.training and left() < most


def test_spikes_of_all_batches_lie_timestep_after_timestep() -> None:
    student = SpikeBertForSequenceClassification(small_config(timesteps=3)).eval()
    with torch.no_grad():
        spikes = [student.encoder(ids, mask) for ids, mask in texts(20)]
    count = sum(x.values.shape[1] for x in spikes)
    assert flat(spikes).shape == (3 * count, 16)
    assert torch.equal(flat(spikes)[:count], torch.cat([x.values[0] for x in spikes]))


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    flags = [f"--student.{name}={value}" for name, value in GRADED.items()]
    sizes = ["--student.hidden_size=24", "--student.layers=2", "--student.intermediate_size=48"]
    return [*recipe_arguments(tmp_path), *sizes, *flags, "--student.blocks_from_teacher=true"]


def test_it_is_part_of_a_recipe(arguments: list[str], tmp_path: Path, capfd) -> None:
    """With a budget of no training in stage 1 too."""
    assert main([*arguments, "--stage1.epochs=0"]) == 0
    said = capfd.readouterr().err
    figures = json.loads((tmp_path / "run" / "stage1" / "stage.json").read_text())["figures"]
    explained = figures["blocks_from_teacher"]["explained"]
    assert figures["blocks_from_teacher"]["texts"] == 200 and len(explained) == 3 and explained[0] > 0.8
    assert f"stage 1: blocks from the teacher, {explained[0]:.0%}" in said
    assert json.loads((tmp_path / "run" / "results.json").read_text())["accuracy"]["integer student"]


def test_a_student_that_does_not_fit_is_refused_before_anything_is_made(
    arguments: list[str], tmp_path: Path, capfd
) -> None:
    assert main([*arguments, "--student.heads=4"]) == 2
    assert "student.blocks_from_teacher: heads is 4, the teacher's 2" in one_error(capfd)
    assert not (tmp_path / "run").exists()


def test_the_readout_begins_fitted_to_the_task(arguments: list[str], tmp_path: Path) -> None:
    """Also after a stage 1 that is taken over, but not where its readout is taken over too."""

    def readout(run: str, stage: str) -> Tensor:
        return load_file(tmp_path / run / stage / "model.safetensors")["readout.linear.weight"]

    ends = ["--stage1.epochs=0", "--stage2.epochs=0", "--until=stage2"]
    assert main([*arguments, *ends]) == 0
    fitted = readout("run", "stage2")
    assert not torch.equal(fitted, readout("run", "stage1"))
    taken = [*arguments, *ends, f"--stage1.reuse={tmp_path / 'run' / 'stage1'}"]
    assert main([*taken, f"--out={tmp_path / 'again'}"]) == 0
    torch.testing.assert_close(readout("again", "stage2"), fitted)
    plain = ["--student.blocks_from_teacher=false", f"--out={tmp_path / 'plain'}"]
    assert main([*taken, *plain]) == 0
    assert not torch.allclose(readout("plain", "stage2"), fitted)
    on = [*arguments, *ends, f"--stage1.reuse={tmp_path / 'run' / 'stage2'}", "--stage1.reuse_readout=true"]
    assert main([*on, f"--out={tmp_path / 'on'}"]) == 0
    assert torch.equal(readout("on", "stage2"), fitted)


def test_of_a_stage_that_is_taken_over_nothing_is_asked(arguments: list[str], tmp_path: Path) -> None:
    """Its teacher may have other heads than that which it began as."""
    assert main([*arguments, "--stage1.epochs=0", "--until=stage1"]) == 0
    config = json.loads((tmp_path / "teacher" / "config.json").read_text())
    (tmp_path / "teacher" / "config.json").write_text(json.dumps(config | {"num_attention_heads": 4}))
    reuse = [f"--stage1.reuse={tmp_path / 'run' / 'stage1'}", f"--out={tmp_path / 'other'}", "--until=stage1"]
    assert main([*arguments, *reuse]) == 0
    assert main([*arguments, f"--out={tmp_path / 'new'}", "--until=stage1"]) == 2


def test_one_text_is_enough_to_begin(arguments: list[str], tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text(" ".join(FILLER[:3]) + "\n", encoding="utf-8")
    assert main([*arguments, f"--stage1.text=[{lines}]", "--stage1.epochs=0", "--until=stage1"]) == 0
