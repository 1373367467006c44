"""What a stage trains on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_teachers import recipe_arguments, text_of_lines
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, T5Config

from converters.from_torch import graph_from_model
from spikebert import stages, teaching
from spikebert.data import TokenisedTexts
from spikebert.distillation import Alignment
from spikebert.model import SpikeBertForSequenceClassification
from spikebert.stage_record import read_record
from spikebert.train_command import main


def test_a_stage_tells_what_it_took(trained) -> None:
    for stage in stages.STAGES:
        figures = json.loads((trained / "run" / stage / "stage.json").read_text())["figures"]
        assert figures["seconds"] > 0 and figures["sentences_per_second"] > 0
        assert len(figures["peak_memory_bytes"]) == 1


def classifier(trained: Path, folder: Path, classes: int) -> Path:
    """A teacher with a head of so many classes."""
    shutil.copytree(trained / "teacher", folder)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=classes).save_pretrained(folder)
    return folder


def test_a_teacher_of_other_classes_learns_these(trained, tmp_path, capfd) -> None:
    teacher = classifier(trained, tmp_path / "teacher", 5)
    arguments = [*recipe_arguments(trained), f"--out={tmp_path / 'run'}", f"--teacher.model={teacher}"]
    assert main([*arguments, "--teacher.epochs=0"]) == 2
    said = "tells 5 classes apart, the texts have 2, and teacher.epochs is 0: fine-tune it"
    assert said in capfd.readouterr().err and not (tmp_path / "run").exists()
    assert main([*arguments, "--teacher.epochs=1", "--until=teacher"]) == 0
    assert "teacher: its head for 5 classes is left, a new one begins" in capfd.readouterr().err
    taught = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "teacher")
    assert taught.num_labels == len(taught.classifier.weight) == 2


@pytest.mark.parametrize(("flag", "said"), [("--stage2.logits_weight=1", True), ("--stage2.logits_weight=0", False)])
def test_logits_of_a_teacher_that_learnt_no_classes(trained, tmp_path, capfd, flag: str, said: bool) -> None:
    arguments = [*recipe_arguments(trained), f"--out={tmp_path / 'run'}", "--teacher.epochs=0", "--until=teacher"]
    assert main([*arguments, flag]) == 0
    assert ("it has learnt no classes and teacher.epochs is 0" in capfd.readouterr().err) is said
    fine_tuned = f"--teacher.model={classifier(trained, tmp_path / 'teacher', 2)}"
    assert main([*arguments, flag, f"--out={tmp_path / 'other'}", fine_tuned]) == 0
    assert "it has learnt no classes" not in capfd.readouterr().err


def test_logits_of_the_integer_stage_alone(trained, tmp_path, capfd) -> None:
    arguments = [*recipe_arguments(trained), f"--out={tmp_path / 'run'}", "--teacher.epochs=0", "--until=teacher"]
    assert main([*arguments, "--stage2.epochs=0", "--quantise.epochs=2"]) == 0
    assert "it has learnt no classes" in capfd.readouterr().err
    assert main([*arguments, f"--out={tmp_path / 'other'}", "--stage2.epochs=0", "--quantise.epochs=0"]) == 0
    assert "it has learnt no classes" not in capfd.readouterr().err


def test_a_stage_1_that_an_earlier_version_began_is_taught_on_as_it_was(trained, tmp_path, monkeypatch) -> None:
    """Its checkpoint does not tell which states the maps are of."""
    shutil.copytree(trained / "run" / "teacher", tmp_path / "teacher")
    arguments = [*recipe_arguments(trained), f"--out={tmp_path}", "--until=stage1", "--checkpoint_seconds=0"]
    arguments += ["--student.layers=4", "--stage1.epochs=2"]  # of 2 layers: states 0, 1, 1, 2, 2 or once 0, 0, 1, 2, 2
    forward, steps, taught = Alignment.forward, [], []

    def stopped(self, *inputs):
        steps.append(self.teacher_state)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return forward(self, *inputs)

    monkeypatch.setattr(Alignment, "forward", stopped)
    assert main(arguments) == 130
    assert steps == [[0, 1, 1, 2, 2]] * 4
    path = tmp_path / "stage1.unfinished" / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    del content["model"]["alignment.aligned_with"]
    torch.save(content, path)

    def watched(*inputs, **options):
        taught.append(options["wanted"] if "wanted" in options else inputs[3])
        return ask(*inputs, **options)

    ask = teaching.ask_teacher
    monkeypatch.setattr(teaching, "ask_teacher", watched)
    steps.clear()
    monkeypatch.setattr(
        Alignment, "forward", lambda self, *inputs: steps.append(self.teacher_state) or forward(self, *inputs)
    )
    assert main([*arguments, "--teacher_cache_gb=0"]) == 0
    assert steps and all(state == [0, 0, 1, 2, 2] for state in steps)
    assert taught and all(wanted == [0, 1, 2] for wanted in taught)
    assert load_file(tmp_path / "stage1" / "alignment.safetensors")["aligned_with"].tolist() == [0, 0, 1, 2, 2]


@pytest.mark.parametrize("layers", [1, 4])
def test_a_stage_1_goes_on_with_a_teacher_of_another_depth(trained, tmp_path, layers: int) -> None:
    """Of the same width and tokens; the states that it is aligned with are spread over the new one's."""
    teacher = tmp_path / "teacher"
    shutil.copytree(trained / "teacher", teacher)
    config = AutoConfig.from_pretrained(teacher, num_hidden_layers=layers)
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(teacher)
    arguments = [*recipe_arguments(trained), f"--out={tmp_path / 'run'}", f"--teacher.model={teacher}"]
    arguments += [f"--stage1.reuse={trained / 'run' / 'stage1'}", "--teacher.epochs=1"]
    assert main(arguments) == 0
    for stage in ("stage1", "stage2"):
        maps = load_file(tmp_path / "run" / stage / "alignment.safetensors")
        assert maps["aligned_with"].tolist() == [0, layers]


def test_a_teacher_with_a_decoder_is_refused(trained, tmp_path, capfd) -> None:
    shutil.copytree(trained / "teacher", tmp_path / "t5")
    T5Config(vocab_size=16, d_model=8, num_layers=1, num_heads=1).save_pretrained(tmp_path / "t5")
    assert main([*recipe_arguments(trained), f"--out={tmp_path / 'run'}", f"--teacher.model={tmp_path / 't5'}"]) == 2
    assert "(t5) has a decoder: give an encoder alone" in capfd.readouterr().err


def test_the_teacher_and_the_integer_stage_end_early_too(trained, tmp_path) -> None:
    """Both learn nothing at this rate, so no epoch is better than the first."""
    flags = ["--teacher.epochs=9", "--teacher.patience=2", "--teacher.learning_rate=1e-12", "--quantise.epochs=9"]
    flags += ["--quantise.patience=1", "--quantise.learning_rate=1e-12", "--stage2.epochs=1"]
    assert main([*recipe_arguments(trained), *flags, f"--out={tmp_path}"]) == 0
    figures = {stage: read_record(tmp_path / stage / "stage.json")["figures"] for stage in stages.STAGES}
    sentences = {name: figures[name]["sentences_per_second"] * figures[name]["seconds"] for name in figures}
    assert sentences["teacher"] == pytest.approx(3 * 200), "the best was the first of them"
    assert sentences["integer"] == pytest.approx(1 * 200), "the best was the start"


def test_stage_1_keeps_the_epoch_that_is_nearest_to_the_teacher_on_texts_held_out(
    trained, tmp_path, capfd, monkeypatch
) -> None:
    """They are not learnt from; what is kept of the teacher's outputs is of the others alone."""
    shutil.copytree(trained / "run" / "teacher", tmp_path / "teacher")
    seen: list[list[int]] = []
    batch = TokenisedTexts.batch

    def watched(self, indices: np.ndarray, pad_id: int):
        seen.append(indices.tolist())
        return batch(self, indices, pad_id)

    monkeypatch.setattr(TokenisedTexts, "batch", watched)
    fit, scores = stages.fit, []

    def scored(*rest, evaluate, **options):
        def measure():
            scores.append((evaluate(), {name: value.clone() for name, value in rest[0].state_dict().items()}))
            return scores[-1][0]

        seen.clear()
        outcome = fit(*rest, evaluate=measure, **options)
        learnt = {index for batch in seen for index in batch if max(batch) < 140}
        told = {index for batch in seen for index in batch if max(batch) >= 140}
        assert learnt == set(range(140)) and told == set(range(140, 200))
        return outcome

    monkeypatch.setattr(stages, "fit", scored)
    arguments = [*recipe_arguments(trained), f"--out={tmp_path}", "--until=stage1", "--stage1.held_out=60"]
    arguments += ["--stage1.epochs=3", "--stage1.batch_size=20", "--stage1.learning_rate=0.03"]
    assert main(arguments) == 0
    losses = [score.figures["held_out_loss"] for score, _ in scores]
    assert (
        len(losses) == 3
        and len(set(losses)) == 3
        and all(score.value == -loss for (score, _), loss in zip(scores, losses))
    )
    figures = read_record(tmp_path / "stage1" / "stage.json")["figures"]
    assert figures["texts"] == 140 and figures["held_out_loss"] == min(losses)
    best = scores[losses.index(min(losses))][1]
    kept = load_file(tmp_path / "stage1" / "alignment.safetensors")
    assert torch.equal(kept["maps.1.weight"], best["alignment.maps.1.weight"])
    assert f"{losses[0]:.4f} on texts held out" in capfd.readouterr().err


def test_of_texts_held_out_operations_beyond_the_budget_count(trained, tmp_path, monkeypatch) -> None:
    """As in the loss; and the pupil is measured in float32, not as it was prepared for mixed precision."""
    shutil.copytree(trained / "run" / "teacher", tmp_path / "teacher")
    fit, scores = stages.fit, []

    def prepared(*inputs):
        raise AssertionError("the forward pass that accelerate put there")

    def scored(pupil, *rest, evaluate, **options):
        def measure():
            with monkeypatch.context() as patched:
                patched.setattr(pupil, "forward", prepared)
                scores.append(evaluate())
            return scores[-1]

        return fit(pupil, *rest, evaluate=measure, **options)

    monkeypatch.setattr(stages, "fit", scored)
    flags = ["--stage1.held_out=60", "--stage1.operations_per_token=10", "--stage1.operations_weight=2"]
    assert main([*recipe_arguments(trained), f"--out={tmp_path}", "--until=stage1", *flags]) == 0
    figures = scores[0].figures
    excess = 2 * (figures["operations_per_token"] / 10 - 1.1)
    assert excess > 0 and scores[0].value == pytest.approx(-figures["held_out_loss"] - excess)


def test_models_of_stages_that_are_done_are_let_go(trained, tmp_path, monkeypatch) -> None:
    held: list[int] = []
    train = stages.Training._train_integer

    def watched(self, work: Path):
        held.append(len(self.accelerator._models) + len(self.accelerator._optimizers))
        return train(self, work)

    monkeypatch.setattr(stages.Training, "_train_integer", watched)
    assert main([*recipe_arguments(trained), f"--out={tmp_path / 'run'}"]) == 0
    assert held == [0]


def test_rounding_with_texts_is_part_of_the_recipe(trained, tmp_path) -> None:
    """What was rounded is what is measured and, without epochs, what is kept; with none it is the nearest."""
    stages_before = ("teacher", "stage1", "stage2")
    integers = {}
    for texts in (0, 8):
        out = tmp_path / str(texts)
        for stage in stages_before:
            shutil.copytree(trained / "run" / stage, out / stage)
        flags = [f"--quantise.calibration_texts={texts}", "--quantise.weight_bits=3", "--quantise.epochs=0"]
        assert main([*recipe_arguments(trained), f"--out={out}", *flags]) == 0
        results = json.loads((out / "results.json").read_text())
        assert results["accuracy"]["quantised student"] == results["accuracy"]["integer student"]
        assert results["recipe"]["quantise"]["calibration_texts"] == texts
        integers[texts] = load_file(out / "integer" / "model.safetensors")
    differing = [name for name, value in integers[0].items() if not value.equal(integers[8][name])]
    assert differing and all("linear" in name for name in differing), "units and table do not depend on texts"


def test_a_run_rounds_once(trained, tmp_path, monkeypatch) -> None:
    """With texts that may take many minutes: not for each split that is measured, and not for the stage and the end."""
    calls, original = [], stages.quantise
    monkeypatch.setattr(stages, "quantise", lambda *inputs: calls.append(1) or original(*inputs))
    out = tmp_path / "run"
    for stage in ("teacher", "stage1", "stage2"):
        shutil.copytree(trained / "run" / stage, out / stage)
    assert main([*recipe_arguments(trained), f"--out={out}"]) == 0 and len(calls) == 1
    results = json.loads((out / "results.json").read_text())
    assert results["accuracy"] == json.loads((trained / "run" / "results.json").read_text())["accuracy"]
    assert main([*recipe_arguments(trained), f"--out={out}"]) == 0 and len(calls) == 2, "another run"
    assert json.loads((out / "results.json").read_text())["accuracy"] == results["accuracy"]


def test_a_token_table_of_few_bits_is_part_of_the_recipe(trained, tmp_path) -> None:
    out = tmp_path / "run"
    for stage in ("teacher", "stage1", "stage2"):
        shutil.copytree(trained / "run" / stage, out / stage)
    assert main([*recipe_arguments(trained), f"--out={out}", "--quantise.token_bits=4"]) == 0
    graph = graph_from_model(SpikeBertForSequenceClassification.from_pretrained(out / "integer"))
    assert graph.source.table.any() and not (graph.source.table % 16).any()


@pytest.mark.parametrize(("lost", "texts", "said"), [(0, 0, False), (4, 0, True), (4, 8, False)])
def test_much_lost_by_rounding_is_said_with_what_mends_it(
    trained, tmp_path, capfd, monkeypatch, lost: int, texts: int, said: bool
) -> None:
    """`lost`: so many of the 20 validation texts the rounded student classifies wrongly, and the float one rightly."""

    def predicted(model: SpikeBertForSequenceClassification, texts: TokenisedTexts, *rest: object) -> np.ndarray:
        wrong = lost if getattr(model.config, "mode", "") == "integer" else 0  # a teacher has none
        return np.where(np.arange(len(texts)) < wrong, 1 - texts.labels, texts.labels)

    for stage in ("teacher", "stage1", "stage2"):
        shutil.copytree(trained / "run" / stage, tmp_path / stage)
    monkeypatch.setattr(stages, "predict_together", predicted)
    flags = [f"--quantise.calibration_texts={texts}", "--quantise.epochs=0"]
    assert main([*recipe_arguments(trained), *flags, f"--out={tmp_path}"]) == 0
    found = "integer: rounding to the nearest cost 20.0 points of accuracy; with --quantise.calibration_texts 512"
    assert (found in capfd.readouterr().err) is said


def test_a_teacher_of_texts_of_another_length_is_another(trained, tmp_path, capfd) -> None:
    out = tmp_path / "run"
    shutil.copytree(trained / "run" / "teacher", out / "teacher")
    arguments = [*recipe_arguments(trained), f"--out={out}", "--until=teacher", "--student.n_max=5"]
    assert main(arguments) == 2
    assert "was made with another recipe (student.n_max 10 -> 5)" in capfd.readouterr().err
    path = out / "teacher" / "stage.json"
    record = json.loads(path.read_text())
    del record["made_from"]["student.n_max"]  # as earlier versions left it
    path.write_text(json.dumps(record))
    assert main(arguments) == 0


def test_what_a_finished_stage_has_read_may_go(trained, tmp_path, capfd) -> None:
    """Text of stage 1, and the folder of a student that it took over."""
    shutil.copytree(trained / "run" / "teacher", tmp_path / "run" / "teacher")
    text = text_of_lines(tmp_path)
    arguments = [
        *recipe_arguments(trained),
        f"--out={tmp_path / 'run'}",
        f"--stage1.text=[{text}]",
        "--stage2.epochs=1",
    ]
    assert main([*arguments, "--until=stage1"]) == 0
    other = [*recipe_arguments(trained), f"--out={tmp_path / 'other'}", f"--stage1.reuse={tmp_path / 'run' / 'stage1'}"]
    other += [f"--teacher.model={trained / 'teacher'}", "--stage2.epochs=1"]
    shutil.copytree(trained / "run" / "teacher", tmp_path / "other" / "teacher")
    assert main([*other, "--until=stage1"]) == 0
    text.unlink()
    assert main([*arguments, "--until=stage2"]) == 0
    shutil.rmtree(tmp_path / "run")
    assert main([*other, "--until=stage2"]) == 0
    capfd.readouterr()
    shutil.rmtree(tmp_path / "other" / "stage1")
    assert main([*other, "--until=stage2"]) == 2
    assert "stage1.reuse: " in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--stage1.hidden_weight=0", "--stage1.embedding_weight=0"), "stage1 has 1 epochs and nothing to learn from"),
        (
            ("--stage2.label_weight=0", "--stage2.logits_weight=0", "--stage2.hidden_weight=0",
             "--stage2.embedding_weight=0"),
            "stage2 has 4 epochs and nothing to learn from: label_weight, logits_weight, hidden_weight, embedding",
        ),
    ],
)  # fmt: skip
def test_a_stage_without_a_loss_is_refused(trained, tmp_path, capfd, flags: tuple[str, ...], said: str) -> None:
    assert main([*recipe_arguments(trained), f"--out={tmp_path / 'run'}", *flags]) == 2
    assert said in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_other_neurons_of_a_student_taken_over_are_said(trained, tmp_path, capfd) -> None:
    out = tmp_path / "run"
    shutil.copytree(trained / "run" / "teacher", out / "teacher")
    arguments = [*recipe_arguments(trained), f"--out={out}", f"--stage1.reuse={trained / 'run' / 'stage1'}"]
    assert main([*arguments, "--student.heads=4", "--student.reset=subtract", "--until=teacher"]) == 0
    said = "had num_attention_heads 2 (this one 4), reset zero (this one subtract): its weights are taken"
    assert said in capfd.readouterr().err
    assert main([*arguments, "--student.attention_position=log", "--until=teacher"]) == 0
    assert "attention_position none (this one log)" in capfd.readouterr().err
    assert main([*arguments, "--student.timesteps=2", "--until=teacher"]) == 0
    assert "this one" not in capfd.readouterr().err
    for path in (trained / "run" / "stage1").iterdir():
        if not path.name.startswith("tokenizer"):
            shutil.copy(path, tmp_path) if path.is_file() else None
    assert main([*arguments, f"--stage1.reuse={tmp_path}", "--until=teacher"]) == 2
    assert f"stage1.reuse: {tmp_path} cannot be read: " in capfd.readouterr().err


def test_a_teacher_that_learns_nothing_here_is_measured_first(trained, tmp_path, capfd) -> None:
    fine_tuned, out = trained / "run" / "teacher", tmp_path / "run"
    arguments = [*recipe_arguments(trained), f"--out={out}", f"--teacher.model={fine_tuned}", "--teacher.epochs=0"]
    assert main([*arguments, "--until=teacher"]) == 0
    figures = read_record(out / "teacher" / "stage.json")["figures"]
    assert figures["validation_accuracy"] == read_record(fine_tuned / "stage.json")["figures"]["validation_accuracy"]
    assert f"teacher: validation accuracy {figures['validation_accuracy']:.2%}" in capfd.readouterr().err


def test_a_teacher_that_numbers_its_classes_otherwise_is_refused(trained, tmp_path, capfd) -> None:
    other = tmp_path / "teacher"
    shutil.copytree(trained / "run" / "teacher", other)
    config = json.loads((other / "config.json").read_text())
    config |= {"id2label": {"0": "GOOD", "1": "BAD"}, "label2id": {"GOOD": 0, "BAD": 1}}
    (other / "config.json").write_text(json.dumps(config))
    arguments = [*recipe_arguments(trained), f"--out={tmp_path / 'run'}", f"--teacher.model={other}"]
    assert main([*arguments, "--teacher.epochs=0", "--until=teacher"]) == 2
    assert "calls its classes ['good', 'bad'] in this order, data.labels ['bad', 'good']" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*arguments, "--teacher.epochs=1", "--until=teacher"]) == 0, "it learns these"


def test_a_head_that_is_to_teach_is_not_made_up(trained, tmp_path, capfd) -> None:
    """One that is to be trained may be; and a finished teacher has one."""
    folder = classifier(trained, tmp_path / "teacher", 2)
    weights = load_file(folder / "model.safetensors")
    lacking = {name: value for name, value in weights.items() if not name.startswith("classifier")}
    save_file(lacking, folder / "model.safetensors", {"format": "pt"})
    arguments = [
        *recipe_arguments(trained),
        f"--out={tmp_path / 'run'}",
        f"--teacher.model={folder}",
        "--until=teacher",
    ]
    assert main([*arguments, "--teacher.epochs=0"]) == 2
    said = "lacks weights of its encoder or head, 2 in all, the first classifier.bias: are its files whole"
    assert said in capfd.readouterr().err
    assert main([*arguments, "--teacher.epochs=1"]) == 0
