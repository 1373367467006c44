"""Several processes give what one gives: BatchNorm, losses, gradients, spikes, and runs that were killed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from several_processes import ROOT, SECONDS, environment, free_port, run_to_the_end, started, wait_until
from small_teachers import recipe_arguments
from small_training import BATCH, train
from torch import nn

from spikebert.data import TokenisedTexts, read_tsv
from spikebert.loop import own_share
from spikebert.synchronised_norm import SynchronisedBatchNorm

NORM, TRAINING = ROOT / "tests" / "norm_in_processes.py", ROOT / "tests" / "small_training.py"
HELD_OUT = ROOT / "tests" / "held_out_in_processes.py"


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def norm_with_a_past(features: int, dtype: torch.dtype, kind: type[nn.BatchNorm1d]) -> nn.BatchNorm1d:
    torch.manual_seed(0)
    norm = kind(features).to(dtype)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


# BatchNorm


def test_in_one_process_it_is_torchs_to_the_bit() -> None:
    ours, torchs = (norm_with_a_past(7, torch.float32, kind) for kind in (SynchronisedBatchNorm, nn.BatchNorm1d))
    ours.load_state_dict(torchs.state_dict())
    inputs = [torch.randn(50, 7, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    for training in (True, False):
        outputs = [norm.train(training)(x) for norm, x in zip((ours, torchs), inputs)]
        assert torch.equal(*outputs)
        for output in outputs:
            output.square().sum().backward()
        assert torch.equal(inputs[0].grad, inputs[1].grad)
        assert torch.equal(ours.weight.grad, torchs.weight.grad) and torch.equal(ours.bias.grad, torchs.bias.grad)
    assert ours.state_dict().keys() == torchs.state_dict().keys()
    assert all(torch.equal(value, torchs.state_dict()[name]) for name, value in ours.state_dict().items())


def norm_case(rows: tuple[int, ...], offset: float, dtype: torch.dtype) -> dict:
    """A batch of which each process has so many rows, around a mean of `offset`."""
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(sum(rows), 5, generator=generator, dtype=torch.float64) for _ in range(2))
    state = norm_with_a_past(5, dtype, nn.BatchNorm1d).state_dict()
    own = torch.arange(sum(rows)).split(rows)
    return {"x": (x + offset).to(dtype), "grad": grad.to(dtype), "state": state, "own": own}


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_rows_of_all_processes_are_one_batch(tmp_path: Path, processes: int) -> None:
    rest = (7,) * (processes - 2)
    double, single = torch.float64, torch.float32
    cases = [norm_case((9, 40, *rest), 0.0, double), norm_case((1, 23, *rest), 5.0, double)]
    cases.append(norm_case((100, 1, *rest), 1000.0, single))  # a mean far above the deviations
    torch.save(cases, tmp_path / "cases.pt")
    run_to_the_end(processes, NORM, tmp_path)
    given = [load(tmp_path / f"out-{process}.pt") for process in range(processes)]
    for case, *outs in zip(cases, *given):
        tolerance = 1e-12 if case["x"].dtype == double else 1e-3

        def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float = tolerance) -> None:
            torch.testing.assert_close(got.double(), expected.double(), rtol=tolerance, atol=tolerance)

        truth = nn.BatchNorm1d(5).double()  # of all rows, in float64 whatever the processes had
        truth.load_state_dict(case["state"])
        x = case["x"].double().requires_grad_()
        y = truth(x)
        y.backward(case["grad"].double())
        for out, own in zip(outs, case["own"]):
            close(out["y"], y[own].detach())
            close(out["x"], x.grad[own])
            close(out["gradients"][0], truth.weight.grad)
            close(out["gradients"][1], truth.bias.grad)
            for name, value in truth.state_dict().items():
                close(out["state"][name], value)
        close(torch.stack([out["mean"] for out in outs]).mean(), x.detach().mean())
        parts = torch.cat([out["mean_grad"] for out in outs]) / processes  # averaged, as gradients are
        close(parts, torch.full_like(parts, 1 / parts.numel()))


# A batch shared out


def test_a_batch_is_shared_out_by_length_and_nothing_is_lost() -> None:
    texts = TokenisedTexts([[1] * (1 + i * 7 % 20) for i in range(20)])
    batch = np.random.default_rng(0).permutation(20)[:12]
    assert np.array_equal(own_share(texts, batch, 0, 1), batch), "one process keeps the order"
    shares = [own_share(texts, batch, process, 3) for process in range(3)]
    assert sorted(np.concatenate(shares)) == sorted(batch) and [len(share) for share in shares] == [4, 4, 4]
    tokens = [int(texts.lengths[share].sum()) for share in shares]
    assert max(tokens) - min(tokens) <= texts.lengths.max()
    assert [len(own_share(texts, batch[:2], process, 3)) for process in range(3)] == [2, 2, 2], "each runs it whole"


def compare_steps(whole: dict, part: dict) -> None:
    """The step of one process, and of one of several: spikes of the texts it had, and gradients of the whole batch."""
    fired = 0
    for node, spikes in whole["spikes"].items():
        expected = dict(zip(whole["texts"], spikes))
        for text, got in zip(part["texts"], part["spikes"][node]):
            tokens = got.shape[1]  # its batch may be padded to another length
            assert np.array_equal(got.numpy(), expected[text][:, :tokens].numpy()), (node, text)
            fired += int(got.sum())
    assert fired > 50, "silent neurons would prove nothing"
    assert part["gradients"].keys() == whole["gradients"].keys()
    for name, value in whole["gradients"].items():
        torch.testing.assert_close(part["gradients"][name], value, rtol=1e-9, atol=1e-11, msg=name)
    torch.testing.assert_close(part["clipped_norm"], whole["clipped_norm"], rtol=1e-9, atol=0)
    assert float(part["clipped_norm"]) <= 1 + 1e-6


OPTIONS: dict[str, dict[str, object]] = {
    "batch": {},
    "layer": {"norm": "layer"},
    "none": {"norm": "none"},
    "learned positions": {"attention_similarity": "xnor", "attention_position": "learned", "attention_threshold": 30},
    "graded": {"spike": "graded", "spike_cap": 3, "reset": "subtract", "readout": "membrane"},
    "ternary": {"spike": "ternary", "position_spikes": 4, "readout": "spikes"},
}


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("float", "batch"),
        *(
            pytest.param(mode, options, marks=pytest.mark.slow)
            for options in OPTIONS
            for mode in ("float", "integer")
            if (mode, options) != ("float", "batch")
        ),
    ],
)
def test_two_processes_do_the_steps_of_one(tmp_path: Path, mode: str, options: str) -> None:
    """Three batches, of 6, 6 and 1 texts: the last one is too short to be shared out."""
    own = OPTIONS[options]
    run_to_the_end(2, TRAINING, tmp_path / "two", "--mode", mode, "--options", json.dumps(own))
    train(tmp_path / "one", mode, options=own)
    one = load(tmp_path / "one" / "steps-0.pt")
    two = [load(tmp_path / "two" / f"steps-{process}.pt") for process in range(2)]
    assert [len(step["texts"]) for step in one] == [BATCH, BATCH, 1]
    assert [len(step["texts"]) for step in two[0]] == [BATCH // 2, BATCH // 2, 1]
    for whole, *parts in zip(one, *two):
        assert {text for part in parts for text in part["texts"]} == set(whole["texts"])
        for part in parts:
            compare_steps(whole, part)
    weights = [load(tmp_path / "two" / f"weights-{process}.pt") for process in range(2)]
    for name, value in load(tmp_path / "one" / "weights-0.pt").items():
        assert torch.equal(weights[0][name], weights[1][name]), f"{name}: the processes have drifted apart"
        torch.testing.assert_close(weights[0][name], value, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize("texts", [pytest.param(13, id="one batch"), pytest.param(150, id="three batches")])
def test_two_processes_tell_the_same_loss_of_texts_held_out(tmp_path: Path, texts: int) -> None:
    """Shared out by batches of 64: the same bits, and of one batch too, which leaves one of them without any."""
    for processes in (1, 2):
        (tmp_path / str(processes)).mkdir()
        run_to_the_end(processes, HELD_OUT, tmp_path / str(processes), texts)
    (whole,) = (json.loads(path.read_text()) for path in (tmp_path / "1").iterdir())
    parts = [json.loads((tmp_path / "2" / f"told-{process}.json").read_text()) for process in range(2)]
    assert whole["loss"] == parts[0]["loss"] == parts[1]["loss"] > 0
    assert parts[0]["texts"] + parts[1]["texts"] == whole["texts"] == texts


# Runs that were killed


def losses(folder: Path, processes: int) -> list[float]:
    """Of each step that was done in `folder` since the file was begun: the mean over the whole batch."""
    parts = [[float(x) for x in (folder / f"losses-{process}.txt").read_text().split()] for process in range(processes)]
    return [sum(step) / processes for step in zip(*parts)]


def killed_and_resumed(folder: Path, before: int, after: int, stop_at: int, *options: object) -> None:
    """A run of `before` processes, all of them killed at step `stop_at`, that `after` processes finish."""
    with started(before, TRAINING, folder, "--stop-at", stop_at, *options) as running:
        wait_until(lambda: all((folder / f"stopped-{i}").exists() for i in range(before)), running)
    assert [one.process.returncode for one in running] == [-signal.SIGKILL] * before
    assert (folder / "checkpoint.pt").exists()
    for path in folder.glob("losses-*"):
        path.unlink()
    run_to_the_end(after, TRAINING, folder, *options)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_was_killed_goes_on_to_the_bit(tmp_path: Path, processes: int) -> None:
    """With dropout, so that the random state of every process counts."""
    options = ("--epochs", 3, "--dropout", 0.5)
    run_to_the_end(processes, TRAINING, tmp_path / "whole", *options)
    killed_and_resumed(tmp_path / "killed", processes, processes, 4, *options)
    for process in range(processes):
        expected = load(tmp_path / "whole" / f"weights-{process}.pt")
        got = load(tmp_path / "killed" / f"weights-{process}.pt")
        for name, value in expected.items():
            assert np.array_equal(value.numpy(), got[name].numpy()), name
    if processes == 2:
        first, second = (load(tmp_path / "whole" / f"steps-{process}.pt") for process in range(2))
        assert any(one["dropped"] != other["dropped"] for one, other in zip(first, second) if other["dropped"])


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_finishes_a_killed_run(tmp_path: Path, before: int, after: int) -> None:
    train(tmp_path / "whole", "float", epochs=3)
    killed_and_resumed(tmp_path / "killed", before, after, 4, "--epochs", 3)
    expected, got = losses(tmp_path / "whole", 1), losses(tmp_path / "killed", after)
    assert len(expected) == 9 and len(got) == 5
    np.testing.assert_allclose(got, expected[4:], rtol=1e-6)
    weights = load(tmp_path / "killed" / "weights-0.pt")
    for name, value in load(tmp_path / "whole" / "weights-0.pt").items():
        torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.slow
def test_the_command_runs_as_two_processes(trained: Path, tmp_path: Path) -> None:
    """Started by torchrun on a finished teacher: stage 1 is that of the one process of `trained`, to rounding, though
    its texts, the same, come from a file that one of both tokenises."""
    shutil.copytree(trained / "run" / "teacher", tmp_path / "run" / "teacher")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(read_tsv(trained / "data" / "train.tsv").texts), encoding="utf-8")
    arguments = [*recipe_arguments(trained), f"--out={tmp_path / 'run'}", f"--stage1.text=[{text}]", "--json"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    done = subprocess.run(
        [*launcher, "-m", "spikebert.train_command", *arguments],
        cwd=ROOT, env=environment(0, 1, 0), capture_output=True, text=True, timeout=2 * SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results == json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(results["stages"]["stage1"]["peak_memory_bytes"]) == 2
    assert len(results["stages"]["teacher"]["peak_memory_bytes"]) == 1
    assert sum("stage 1: epoch 1" in line for line in done.stderr.splitlines()) == 1, "one process tells of it"
    one, two = (load_file(folder / "run" / "stage1" / "alignment.safetensors") for folder in (trained, tmp_path))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-4, msg=name)  # steps of 2e-3
