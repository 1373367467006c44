"""The benchmark of training trains as spikebert-train does, and counts what it says. No test is of how fast it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from accelerate import Accelerator  # noqa: E402, it needs torch
from torch.profiler import ProfilerActivity, profile, record_function  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from benchmarks import train, train_profile, train_worker  # noqa: E402
from benchmarks.spikingjelly_model import SpikingJellyBert, lif, with_weights_of  # noqa: E402
from benchmarks.train_batches import REVIEWS, TOKENIZER, Sentences, describe, read_sentences  # noqa: E402
from benchmarks.train_floor import matrix_rate, operations  # noqa: E402
from benchmarks.train_ways import LEARNING_RATE, OURS, PLAIN, WAYS, Shape, Trainer, make_model  # noqa: E402
from benchmarks.train_worker import DRAWN, EQUAL, Rates, Result, Task  # noqa: E402
from spikebert import SpikeBertForSequenceClassification  # noqa: E402
from spikebert.commands import WRONG_USE, UserError, run_command  # noqa: E402
from spikebert.data import TokenisedTexts  # noqa: E402
from spikebert.loop import Schedule, fit  # noqa: E402
from spikebert.pupil import Classifier  # noqa: E402

CPU = torch.device("cpu")
SHAPE = Shape(depth=2, width=16, timesteps=2, n_max=12)
VOCABULARY, CLASSES = 30, 2
CONFIG = SHAPE.config(VOCABULARY, CLASSES)


@pytest.fixture(autouse=True)
def same_seed():
    torch.manual_seed(0)


def some_sentences() -> Sentences:
    rng = np.random.default_rng(0)
    ids = [rng.integers(1, VOCABULARY, length).tolist() for length in rng.integers(2, SHAPE.n_max + 1, 24)]
    return Sentences(TokenisedTexts(ids, rng.integers(0, CLASSES, 24)), 0, VOCABULARY, CLASSES)


def test_a_step_is_that_of_the_training_loop(tmp_path):
    texts = some_sentences().texts
    ours, loops = (make_model(WAYS["ours, float32"], CONFIG) for _ in range(2))
    batches = some_sentences().drawn(8, 3, seed=5)
    trainer = Trainer(ours, False, CPU, steps=3)
    for batch in batches:
        trainer.step(batch)
    schedule = Schedule(1, 8, LEARNING_RATE)
    fit(Classifier(loops), lambda model, batch: {"loss": model(batch)}, lambda epoch: texts, schedule, tmp_path,
        Accelerator(cpu=True), 0, 5)  # fmt: skip
    for name, value in loops.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name]), name


@pytest.mark.parametrize("name", [name for name, way in WAYS.items() if not way.missing()])
def test_every_way_learns(name):
    trainer = Trainer(make_model(WAYS[name], CONFIG), WAYS[name].mixed(), CPU, steps=15)
    [batch] = some_sentences().drawn(8, 1)
    losses = [trainer.step(batch) for _ in range(15)]
    assert losses[-1] < losses[0]


def test_ways_are_what_they_are_called():
    assert make_model(WAYS["ours, integer"], CONFIG).config.mode == "integer"
    norms = {
        name: {type(module) for module in make_model(WAYS[name], CONFIG).modules() if "Norm" in type(module).__name__}
        for name in (PLAIN, "paper's layer")
    }
    assert norms == {PLAIN: {torch.nn.BatchNorm1d}, "paper's layer": {torch.nn.LayerNorm}}
    assert not WAYS["ours, float32"].mixed() and WAYS["SpikingJelly, bf16"].mixed()


def test_a_way_that_cannot_run_says_why(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert WAYS["SpikingJelly, cupy"].missing() == WAYS["SpikingJelly, triton"].missing() == "needs a GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "no such backend" in replace(WAYS[PLAIN], backend="abacus").missing()
    assert WAYS[PLAIN].missing() == ""
    monkeypatch.setattr("benchmarks.spikingjelly_model.find_spec", lambda name: object())
    assert "asks for np.int" in WAYS["SpikingJelly, cupy"].missing()


IDS, MASK = torch.arange(45).view(5, 9) % (VOCABULARY - 1) + 1, torch.ones(5, 9, dtype=torch.long)


def ours_and_theirs() -> tuple[SpikeBertForSequenceClassification, SpikingJellyBert]:
    """Networks whose attention counts to its threshold, and often to no more."""
    config = SHAPE.config(VOCABULARY, CLASSES)
    config.attention_threshold = 3
    ours = SpikeBertForSequenceClassification(config)
    for value in ours.state_dict().values():  # norms and biases begin as 0 and 1, which would hide a confusion
        if value.is_floating_point() and value.dim() == 1:
            value += 0.1 * torch.rand_like(value)
    return ours, with_weights_of(ours)


@pytest.mark.parametrize("training", [False, True])
def test_the_network_with_spikingjelly_is_ours(training):
    ours, theirs = ours_and_theirs()
    output = ours.train(training)(IDS, MASK, output_trace=["blocks.0.attention", "blocks.0.attention.lif"])
    counts, spikes = output.trace.values()
    assert not training or ((counts == 3).any() and spikes.any()), (
        "else a neuron that fires at the threshold would not be noticed"
    )
    assert output.logits.std() > 0.01
    torch.testing.assert_close(theirs.train(training)(IDS, MASK).logits, output.logits)
    theirs.blocks[1].up.norm.bias.data += 0.5
    assert not torch.allclose(theirs(IDS, MASK).logits, output.logits)


def test_the_gradients_of_the_network_with_spikingjelly_are_ours():
    models = ours_and_theirs()
    for model in models:
        model.train()(IDS, MASK, labels=torch.tensor([0, 1, 0, 1, 1])).loss.backward()
    ours, theirs = models
    for name in ("blocks.0.query.linear.weight", "blocks.0.value.linear.weight", "blocks.1.down.norm.weight"):
        expected = ours.get_parameter(name).grad
        assert expected.abs().max() > 0, name
        torch.testing.assert_close(theirs.get_parameter(name).grad, expected, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(theirs.token.weight.grad, ours.encoder.token.weight.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("tokens", [5, 12])
def test_the_floor_counts_the_products_of_a_step(tokens):
    config = replace(SHAPE, width=128).config(VOCABULARY, CLASSES)  # 2 heads
    config.num_attention_heads = 16  # of 8 features: attention takes one order with 5 tokens, the other with 12
    model = Classifier(SpikeBertForSequenceClassification(config))
    [batch] = some_sentences().of_length(tokens, 3, 1)
    with FlopCounterMode(display=False) as counter:
        model(batch).backward()
    assert operations(config, [tokens] * 3) == counter.get_total_flops()
    assert operations(config, [tokens] * 2) < counter.get_total_flops()


def test_a_matrix_rate_is_operations_a_second(monkeypatch):
    from benchmarks import train_floor

    monkeypatch.setattr(train_floor, "_product_seconds", lambda size, dtype, device: size / 1000)
    assert matrix_rate(torch.float32, CPU) == 2 * 2048**2 * 1000


def test_batches_are_drawn_as_in_training_and_of_one_length():
    sentences = some_sentences()
    drawn = sentences.drawn(10, 4)
    assert [len(batch["labels"]) for batch in drawn] == [10] * 4, "without the smaller batch at the end of an epoch"
    assert not torch.equal(drawn[0]["input_ids"], drawn[2]["input_ids"])
    assert torch.equal(drawn[3]["input_ids"], sentences.drawn(10, 4)[3]["input_ids"])
    unpadded = sentences.unpadded(2, 9, seed=1)
    assert all(batch["attention_mask"].all() and len(batch["labels"]) == 2 for batch in unpadded)
    assert len({batch["input_ids"].shape for batch in unpadded}) > 2
    with pytest.raises(UserError, match="no 20 sentences of one length"):
        sentences.unpadded(20, 1)
    equal = sentences.of_length(7, 4, 2)
    assert all(batch["input_ids"].shape == (4, 7) and batch["attention_mask"].all() for batch in equal)
    assert equal[0]["input_ids"].flatten().tolist() == sentences.texts.ids[:28].tolist()
    assert describe(equal) == "batches of 4, 7.0 tokens a sentence, 0% of places padding"
    half = {"input_ids": torch.ones(2, 4), "attention_mask": torch.tensor([[1] * 4, [0] * 4]), "labels": [0, 1]}
    assert describe([half]) == "batches of 2, 2.0 tokens a sentence, 50% of places padding"


def test_the_shipped_reviews_are_read():
    sentences = read_sentences(REVIEWS, TOKENIZER, 64)
    assert (len(sentences.texts), sentences.classes, sentences.vocabulary) == (2383, 2, 4856)
    assert 10 < sentences.texts.lengths.mean() < 30


def test_wrong_use_is_told(tmp_path, capsys):
    (tmp_path / "train.tsv").write_text("text\tlabel\ngood\t0\nfine\t0\n")
    assert run_command(train.body, ["--shapes", "6-384"]) == WRONG_USE
    assert run_command(train.body, ["--tokens", "65"]) == WRONG_USE
    assert run_command(train.body, ["--rounds", "0"]) == WRONG_USE
    err = capsys.readouterr().err
    assert "shape '6-384': give blocks x features, such as 6x384" in err and "--tokens is 65" in err
    with pytest.raises(UserError, match="one label"):
        read_sentences(str(tmp_path), TOKENIZER, 8)
    with pytest.raises(UserError, match="--tokenizer: cannot load"):
        read_sentences(REVIEWS, str(tmp_path), 8)


def rounds() -> list[train.Round]:
    """Ours takes 1, 2 and 3 s a step, plain SpikingJelly 4 s on the first batch, which alone it was timed with."""
    return [
        train.Round(
            Rates(float32=1e6, bf16=2e6),
            {OURS: {DRAWN: Result([seconds, 9.0], 8_000_000, None)}, PLAIN: {DRAWN: Result([4.0], None, None)}},
        )
        for seconds in (1.0, 2.0, 3.0)
    ]


def test_figures_are_medians_of_rounds_on_the_batches_of_both():
    batches = some_sentences().of_length(5, 4, 2)
    work = operations(CONFIG, [5] * 4)
    ours, plain = (train.figures(rounds(), name, DRAWN, batches, CONFIG) for name in (OURS, PLAIN))
    assert (ours.rate, ours.times, ours.seconds, ours.memory) == (8 / 11, 2.0, 5.5, 8_000_000)
    assert (plain.rate, plain.times, plain.seconds, plain.memory) == (1.0, 1.0, 4.0, None)
    assert plain.share == pytest.approx(work / 1e6 / 4)
    assert ours.share == pytest.approx(2 * work / (2e6 if WAYS[OURS].mixed() else 1e6) / 11)
    text = train.report("title", {OURS: ours, PLAIN: plain}, {"SpikingJelly, cupy": "needs a GPU"})
    assert [line.split("|")[4].strip() for line in text.splitlines() if line.startswith("| ours")] == ["2.00"]
    assert "not run: SpikingJelly, cupy, needs a GPU" in text and "GPU memory" not in text


@pytest.mark.parametrize(("times", "share", "met"), [(3.1, 0.41, True), (2.9, 0.41, False), (3.1, 0.39, False)])
def test_goals_are_met_or_missed(times, share, met):
    ours = train.Figures(1.0, times, 1.0, share, None, None)
    verdict = train.judge(Shape(6, 384), "cpu", ours)
    assert verdict is not None and ("met:" in verdict) == met and ("missed:" in verdict) != met
    assert train.judge(Shape(2, 128), "cpu", ours) is None


def test_one_way_is_measured(monkeypatch):
    monkeypatch.setattr(train_worker, "read_sentences", lambda *_: some_sentences())
    monkeypatch.setattr(train_worker, "prepare_torch", lambda: CPU)
    task = Task(SHAPE, 4, 6, 0.01, "", "")
    for results in (train_worker.measure_way(task, name) for name in (OURS, PLAIN)):
        assert list(results) == [DRAWN, EQUAL]
        for result in results.values():
            assert 1 <= len(result.seconds) <= train_worker.BATCHES and min(result.seconds) > 0
            assert result.gpu_bytes is None


@pytest.mark.skipif(not train_worker.PROCESS.exists(), reason="this system does not tell")
def test_a_peak_of_memory_is_that_since_it_was_reset():
    block = np.ones(1 << 26)  # 512 MB
    before = train_worker.peak_memory_bytes()
    del block
    train_worker.reset_peak_memory(CPU)
    assert train_worker.peak_memory_bytes() < before - (1 << 28)


@pytest.mark.parametrize("name", [OURS, "ours, integer", PLAIN, "paper's layer"])
def test_a_profile_tells_all_of_a_step(name):
    trainer = Trainer(make_model(WAYS[name], CONFIG), WAYS[name].mixed(), CPU)
    found = train_profile.profile_steps(trainer, some_sentences().drawn(8, 2))
    assert tuple(found) == train_profile.KINDS
    assert (found[train_profile.NORMS] == 0) == (name == "ours, integer")
    assert all(seconds > 0 for kind, seconds in found.items() if kind != train_profile.NORMS)
    table = train_profile.report({name: found})
    assert table.count("\n") == len(train_profile.KINDS) + 2 and "100%" in table


def test_the_backward_pass_of_a_neuron_counts_as_neurons():
    node, other = lif(), torch.nn.Identity()
    hooks = train_profile._mark(node) + train_profile._mark(other)
    assert len(hooks) == 2
    current = torch.randn(4, 1000, requires_grad=True)
    node(current).backward(torch.ones(4, 1000))  # unprofiled
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        (current * 2).sum()  # not within a step
        with record_function(train_profile.STEP):
            node.reset()
            node(current).backward(torch.ones(4, 1000))
    events = list(profiler.events())
    [step] = [event for event in events if event.name == train_profile.STEP]
    found = train_profile.by_kind(events, on_gpu=False)
    assert sum(found.values()) == pytest.approx(step.cpu_time_total / 1e6)
    backward = [event for event in events if "evaluate_function" in event.name and "Accumulate" not in event.name]
    assert len(backward) > 4
    makers = train_profile.Makers.of(events)
    assert {train_profile.kind_of(event, makers) for event in backward} == {train_profile.NEURONS}


@pytest.mark.slow
def test_all_of_it_runs(capsys, monkeypatch):
    monkeypatch.setattr(train, "PROFILED", (OURS,))
    small = "--shapes 1x16 --batch 4 --tokens 6 --seconds 0.01 --rounds 1 --ways ours --profile 1x16"
    assert run_command(train.body, small.split()) == 0
    out = capsys.readouterr().out
    assert out.count("\n| ours ") == out.count("\n| SpikingJelly ") == 2  # rows, in two sets of batches
    assert "6.0 tokens a sentence, 0% of places padding" in out and "where the time goes, 1 x 16" in out
    assert "10^9 operations a second in float32" in out


def test_the_cost_of_a_step_is_drawn(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from benchmarks import train_scaling

    monkeypatch.setattr(train_scaling, "prepare_torch", lambda: CPU)
    monkeypatch.setattr(train_scaling, "AXES", {"timesteps": ("T", (1, 2)), "tokens": ("N", (3, 5))})
    base = train_scaling.Base(timesteps=2, tokens=4, width=8, depth=1)
    panels = train_scaling.measure_all(some_sentences(), 0.001, base)
    assert all(len(values) == 2 and min(values) > 0 for panel in panels.values() for values in panel.values())
    assert train_scaling.report(panels).count("SpikingJelly / ours") == 2
    train_scaling.draw(panels, tmp_path / "new" / "scaling.png", base)
    assert (tmp_path / "new" / "scaling.png").stat().st_size > 1000
