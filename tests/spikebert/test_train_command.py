"""`spikebert-train` used wrongly, stopped in every stage, and short of disk: a clear line, nothing half written."""

from __future__ import annotations

import gzip
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import torch
from command_output import one_error
from safetensors.torch import load_file
from small_teachers import recipe_arguments

from spikebert.positions import LEARNED
from spikebert.recipe import Recipe
from spikebert.train_command import main, make_parser, parse, recipe_path

ROOT = Path(__file__).parents[2]
STAGES = ("teacher", "stage1", "stage2", "integer")
# The section of the recipe that belongs to a stage.
SECTION = {"teacher": "teacher", "stage1": "stage1", "stage2": "stage2", "integer": "quantise"}


@pytest.fixture
def arguments(trained: Path, tmp_path: Path) -> list[str]:
    """The arguments of the finished run, but for a folder of its own; a later flag overrides an earlier one."""
    return [*recipe_arguments(trained), f"--out={tmp_path / 'run'}"]


# Recipes and flags


@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_flag_counts_wherever_it_stands(before: int, tmp_path: Path) -> None:
    (tmp_path / "later.yaml").write_text("seed: 7\nstage2: {epochs: 9}\n")
    flags = ["--out=mine", "--stage2.epochs=3"]
    recipes = ["--recipe", "reviews", f"--recipe={tmp_path / 'later.yaml'}"]
    found = parse(make_parser(), [*flags[:before], *recipes, *flags[before:]])
    assert (found.out, found.stage2.epochs, found.seed) == ("mine", 3, 7), "of two recipes the later counts"
    assert found.data.folder == "package:reviews"


def test_a_folder_named_like_a_recipe_does_not_hide_it(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "reviews").mkdir()
    monkeypatch.chdir(tmp_path)
    assert recipe_path("reviews").name == "reviews.yaml"


@pytest.mark.parametrize(("flag", "decay"), [("410", 410), ("[0, 410, 2048]", [0, 410, 2048])])
def test_a_decay_is_one_number_or_a_list(flag: str, decay: int | list[int]) -> None:
    assert parse(make_parser(), ["--recipe=reviews", "--out=x", f"--student.decay={flag}"]).student.decay == decay


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"out: [unclosed\n", "not YAML: while parsing a flow sequence"),
        (b"\x7fELF\x80\xff\x00", "not YAML"),
        (b"", "holds no fields"),
        (b"- 1\n", "holds no fields"),
        (b"out: x\nstage9: 3\n", "'stage9' is not accepted"),
        (b"out: x\nstage1:\n  epoch: 3\n", "'stage1' does not accept option 'epoch'"),
        (b"out: x\nstage1:\n  epochs: many\n", "\"stage1.epochs\": Expected a <class 'int'>. Got value: many"),
        (b"data:\n  folder: x\n", "required: out"),
        (b"out: x\nstage2: 3\n", "stage2 is 3, it is a section: fields below it"),
        (b"out: x\nstage2:\n", "stage2 is None, it is a section"),
        (b"out: x\nstudent: [1]\n", "student is [1], it is a section"),
    ],
)
def test_a_bad_recipe_is_named(tmp_path: Path, capfd, content: bytes, message: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(content)
    assert main(["--recipe", str(recipe)]) == 2
    line = one_error(capfd)
    assert message in line and str(recipe) in line


def test_an_unknown_recipe_lists_the_installed_ones(tmp_path: Path, capfd) -> None:
    assert main(["--recipe", "no-such-recipe"]) == 2
    assert "--recipe no-such-recipe: no such file; installed recipes: " in (line := one_error(capfd))
    assert "reviews" in line
    assert main([f"--recipe={tmp_path}"]) == 2
    assert "Is a directory" in one_error(capfd)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--stage7.epochs=3"], "unrecognized arguments: --stage7.epochs=3"),
        (["--teacher.epochs=many"], "\"teacher.epochs\": Expected a <class 'int'>"),
        (["--teacher.epochs=-1", "--stage2.batch_size=0"], "teacher.epochs is -1, it must be 0 or more; stage2.batch"),
        (["--stage1.learning_rate=0"], "stage1.learning_rate is 0.0, it must be above 0"),
        (["--stage1.token_rate=0"], "stage1.token_rate is 0.0, it must be above 0"),
        (["--stage2.learning_rate=.nan"], "stage2.learning_rate is nan"),
        (["--stage2.temperature=0"], "stage2.temperature is 0.0, it must be above 0"),
        (
            [
                "--quantise.weight_bits=1",
                "--student.spike=graded",
                "--student.spike_cap=255",
                "--student.hidden_size=256",
            ],
            "quantise.weight_bits is 1: 'blocks.0.out': weights of 1 bit cannot be 0",
        ),
        (["--quantise.weight_bits=9"], "quantise.weight_bits is 9, it must be 1 .. 8"),
        (["--quantise.token_bits=1"], "quantise.token_bits is 1, it must be 2 .. 8"),
        (["--precision=float16"], "precision is 'float16', it must be one of auto, bf16, float32"),
        (["--seed=-1"], "seed is -1"),
        (["--data.labels=[same,same]"], "data.labels names 'same' twice"),
        (["--data.labels=[one]"], "data.labels names 1 classes, the texts have labels 0 .. 1"),
        (["--data.folder="], "give either data.folder"),
        (["--student.heads=5"], "student.hidden_size 32 does not divide into 5 heads"),
        (["--student.layers=0"], "student.layers is 0"),
        (["--student.encoder=poisson"], "student.encoder is 'poisson'"),
        (["--student.attention_similarity=nand"], "student.attention_similarity is 'nand', it must be one of"),
        (["--student.attention_position=rotary"], "student.attention_position is 'rotary', it must be one of"),
        (["--student.attention_threshold=-1"], "student.attention_threshold is -1, it must be 0 .. 65535"),
        (["--student.n_max=2"], "student.n_max is 2, the special tokens alone are 2"),
        (["--student.n_max=33"], "student.n_max is 33, the teacher takes texts of 32 tokens"),
        (["--teacher.model=registry:none"], "'none' is not known in the registry"),
    ],
)
def test_a_bad_value_is_said_before_anything_is_made(
    arguments: list[str], tmp_path: Path, capfd, flags: list[str], message: str
) -> None:
    assert main([*arguments, *flags]) == 2
    assert message in one_error(capfd)
    assert not (tmp_path / "run").exists()


# Files


def train_tsv(content: bytes):
    def write(folder: Path) -> None:
        (folder / "train.tsv").write_bytes(content)

    return write


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "train.tsv: no such file"),
        (lambda folder: (folder / "validation.tsv").unlink(), "validation.tsv: no such file"),
        (train_tsv(b"\x7fELF\x80\xff\x00"), "train.tsv: not UTF-8 text"),
        (train_tsv(b"\x7fELF\x00\x00\x01"), "train.tsv: holds a zero byte, so this is a binary file"),
        (train_tsv(b""), "line 1: no column 'text'"),
        (train_tsv(b"sentence\tlabel\na\t1\n"), "train.tsv: line 1: no column 'text'"),
        (train_tsv(b"text\tlabel\na\t1\nb\n"), "train.tsv: line 3: 1 columns, the header has 2"),
        (train_tsv("text\tlabel\na\t²\n".encode()), "line 2: label '²' is no integer"),
    ],
)
def test_bad_data_is_refused(arguments: list[str], trained: Path, tmp_path: Path, capfd, spoil, message: str) -> None:
    data = Path(shutil.copytree(trained / "data", tmp_path / "data"))
    spoil(data)
    assert main([*arguments, f"--data.folder={data}"]) == 2
    assert message in one_error(capfd)
    assert not (tmp_path / "run").exists()


def test_a_data_folder_that_is_a_file_is_refused(arguments: list[str], trained: Path, capfd) -> None:
    assert main([*arguments, f"--data.folder={trained / 'data' / 'train.tsv'}"]) == 2
    assert "Not a directory" in one_error(capfd)


@pytest.mark.parametrize("option", ["stage1.text", "stage2.extra_text"])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "no such text file"),
        ("binary.txt", b"\x80\xff", "not a text file"),
        ("empty.txt", b"\n\n", "holds no text"),
        ("plain.gz", b"not packed", "not a text file"),
        ("cut.gz", gzip.compress(b"a line\n" * 100, mtime=0)[:-12], "not a text file"),
        ("plain.xz", b"not packed", "not a text file"),
    ],
)
def test_a_bad_text_file_is_refused_before_the_teacher_is_trained(
    arguments: list[str], tmp_path: Path, capfd, option: str, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert main([*arguments, f"--{option}=[{path}]", "--stage2.extra_lines=5"]) == 2
    line = one_error(capfd)
    assert f"{path}: " in line and message in line
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_cannot_be_loaded_is_refused(arguments: list[str], trained: Path, tmp_path: Path, capfd) -> None:
    assert main([*arguments, f"--teacher.model={tmp_path / 'none'}"]) == 2
    assert "teacher.model: cannot load" in one_error(capfd)
    cut = Path(shutil.copytree(trained / "teacher", tmp_path / "cut"))
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert main([*arguments, f"--teacher.model={cut}"]) == 2
    assert f"teacher.model: cannot load '{cut}'" in one_error(capfd)


@pytest.mark.parametrize("change", ["--student.hidden_size=16", "--student.layers=2", "--student.n_max=12"])
def test_a_stage1_of_another_shape_is_refused_at_once(
    arguments: list[str], trained: Path, tmp_path: Path, capfd, change: str
) -> None:
    assert main([*arguments, f"--stage1.reuse={trained / 'run' / 'stage1'}", change]) == 2
    assert "has another shape" in one_error(capfd)
    assert main([*arguments, f"--stage1.reuse={tmp_path}"]) == 2
    assert "is no finished stage" in one_error(capfd)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", LEARNED)
def test_a_stage1_with_learned_positions_is_for_students_that_have_them(
    arguments: list[str], trained: Path, tmp_path: Path, capfd, kind: str
) -> None:
    earlier = Path(shutil.copytree(trained / "run" / "stage1", tmp_path / "earlier"))
    config = json.loads((earlier / "config.json").read_text())
    (earlier / "config.json").write_text(json.dumps(config | {"attention_position": kind}))
    assert main([*arguments, f"--stage1.reuse={earlier}"]) == 2
    assert "has learned positions in its attention: this student has no place for them" in one_error(capfd)
    other = ["--student.attention_position=learned", f"--student.heads={config['num_attention_heads'] // 2}"]
    assert main([*arguments, *other, f"--stage1.reuse={earlier}"]) == 2
    assert f"has learned positions of {config['num_attention_heads']} heads" in one_error(capfd)


def test_an_integer_model_is_no_start(arguments: list[str], trained: Path, capfd) -> None:
    assert main([*arguments, f"--stage1.reuse={trained / 'run' / 'integer'}"]) == 2
    assert "holds an integer model" in one_error(capfd)


def test_a_student_of_another_task_is_a_start(arguments: list[str], trained: Path, tmp_path: Path) -> None:
    """Its body is taken, its readout is not."""
    earlier = trained / "run" / "stage2"
    assert main([*arguments, f"--stage1.reuse={earlier}", "--stage2.epochs=0", "--quantise.epochs=0"]) == 0
    weights = [load_file(folder / "model.safetensors") for folder in (earlier, tmp_path / "run" / "stage1")]
    same = {name for name in weights[0] if torch.equal(weights[0][name], weights[1][name])}
    assert {name for name in weights[0] if not name.startswith("readout.")} <= same
    assert "readout.linear.weight" not in same


def test_a_student_goes_on_with_its_task(arguments: list[str], trained: Path, tmp_path: Path, capfd) -> None:
    """Its readout is taken too, by a student with a new bias in its attention as well."""
    more = ["--stage1.reuse_readout=true", "--student.attention_position=neighbours"]
    assert main([*arguments, *more]) == 2
    assert "stage1.reuse_readout is true and stage1.reuse is empty" in one_error(capfd)
    earlier = trained / "run" / "stage2"
    assert main([*arguments, *more, f"--stage1.reuse={earlier}", "--until=stage1"]) == 0
    before, taken = (load_file(folder / "model.safetensors") for folder in (earlier, tmp_path / "run" / "stage1"))
    assert all(torch.equal(taken[name], before[name]) for name in before)
    new = taken.keys() - before.keys()
    assert {name.rsplit(".", 2)[1] for name in new} == {"position_bias"}
    assert all(taken[name].count_nonzero() == 1 for name in new), "one of its two heads begins at a neighbour"


def test_another_student_in_the_same_place_is_noticed(
    arguments: list[str], trained: Path, tmp_path: Path, capfd
) -> None:
    earlier = Path(shutil.copytree(trained / "run" / "stage1", tmp_path / "earlier"))
    arguments = [*arguments, f"--stage1.reuse={earlier}", "--stage2.epochs=0", "--quantise.epochs=0"]
    assert main(arguments) == 0
    capfd.readouterr()
    shutil.copy(trained / "run" / "stage2" / "model.safetensors", earlier)
    assert main(arguments) == 2
    assert "sha256.stage1.reuse" in one_error(capfd)
    (earlier / "model.safetensors").unlink()
    assert main(arguments) == 0, "stage 1 has taken it over: it is not needed any more"
    capfd.readouterr()
    assert main([*arguments, f"--out={tmp_path / 'new'}"]) == 2
    assert "is no finished stage (no model.safetensors)" in one_error(capfd)
    (earlier / "model.safetensors").write_bytes(b"cut")
    assert main([*arguments, f"--out={tmp_path / 'new'}"]) == 2
    error = capfd.readouterr().err
    assert f"{earlier}: its weights are damaged" in error and "copy it again, or give another stage1.reuse" in error


def test_a_damaged_stage_is_named(arguments: list[str], tmp_path: Path, capfd) -> None:
    (tmp_path / "run" / "teacher").mkdir(parents=True)
    (tmp_path / "run" / "teacher" / "stage.json").write_text('{"made_from"')
    assert main(arguments) == 2
    assert "stage.json is damaged: delete the folder" in one_error(capfd)


@pytest.mark.parametrize(("stage", "file"), [("stage1", "alignment"), ("stage2", "model"), ("integer", "model")])
def test_damaged_weights_of_a_finished_stage_are_named(
    arguments: list[str], trained: Path, tmp_path: Path, capfd, stage: str, file: str
) -> None:
    run = Path(shutil.copytree(trained / "run", tmp_path / "run"))
    weights = run / stage / f"{file}.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    if stage == "stage1":  # it is read where the next one is not finished
        shutil.rmtree(run / "stage2")
    assert main(arguments) == 2
    error = capfd.readouterr().err
    assert f"{run / stage}: its weights are damaged" in error and "and those of the later stages" in error
    assert weights.exists(), "nothing was taken away"


def test_unusual_texts_are_counted_and_trained_on(arguments: list[str], trained: Path, tmp_path: Path, capfd) -> None:
    data = Path(shutil.copytree(trained / "data", tmp_path / "data"))
    with open(data / "train.tsv", "a", encoding="utf-8") as file:
        file.write("\t0\nxyzzy 服务\t1\n" + "good " * 10_000 + "\t1\n")
    quick = ["--teacher.epochs=0", "--stage1.epochs=0", "--stage2.epochs=0", "--quantise.epochs=0"]
    assert main([*arguments, f"--data.folder={data}", *quick]) == 0
    errors = capfd.readouterr().err
    assert "train: 1 of 203 texts have 10 tokens or more: what is beyond is cut" in errors
    assert "train: 1 of 203 texts are empty" in errors
    assert "train: 1 of 203 texts hold no word that the tokenizer knows" in errors


# Output


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_an_out_that_cannot_be_a_folder_is_refused(arguments: list[str], tmp_path: Path, capfd, place: str) -> None:
    (tmp_path / "file").write_text("here already")
    assert main([*arguments, f"--out={tmp_path / place}"]) == 2
    line = one_error(capfd)
    assert str(tmp_path / "file") in line and "Check the path, the rights and the space" in line


def test_an_out_without_write_permission_is_refused(arguments: list[str], tmp_path: Path, capfd, monkeypatch) -> None:
    """Permission is refused by hand: tests may run as root, who may write everywhere."""
    import spikebert.run_folder

    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(spikebert.run_folder.tempfile, "TemporaryFile", refuse)
    assert main(arguments) == 2
    assert f"{tmp_path / 'run'}: Permission denied" in one_error(capfd)


@pytest.mark.parametrize("checkpoint_seconds", [0, 600])
def test_a_full_disk_is_said_and_leaves_no_half_stage(
    arguments: list[str], tmp_path: Path, capfd, checkpoint_seconds: int
) -> None:
    """A limit on the size of a file stands for the disk: the first checkpoint or the finished weights pass it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        code = main([*arguments, "--teacher.epochs=1", f"--checkpoint_seconds={checkpoint_seconds}"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    captured = capfd.readouterr()
    assert code == 2
    assert "File too large" in captured.err.splitlines()[-1] and str(tmp_path / "run") in captured.err
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["teacher.unfinished"]


def test_json_is_exactly_one_object(trained: Path, capfd) -> None:
    assert main([*recipe_arguments(trained), "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == json.loads((trained / "run" / "results.json").read_text())


@pytest.mark.parametrize("module", ["jsonargparse", "torch", "transformers"])
def test_a_missing_library_names_the_extra(module: str, tmp_path: Path) -> None:
    program = f"import sys; sys.modules['{module}'] = None; from spikebert.train_command import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "--recipe", "reviews", f"--out={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: '{module}' is not installed. Install it with: pip install 'spikebert[train]'\n"
    assert not (tmp_path / "run").exists()


# Interruption


def start_long(stage: str, arguments: list[str], run: Path) -> subprocess.Popen:
    """spikebert-train as a process of its own, which has trained `stage` for a step or more and goes on for hours."""
    long = [f"--{SECTION[stage]}.epochs=1000000", "--checkpoint_seconds=0"]
    command = [sys.executable, "-m", "spikebert.train_command", *arguments, *long]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    checkpoint = run / f"{stage}.unfinished" / "checkpoint.pt"
    before = step_of(checkpoint)
    deadline = time.monotonic() + 240
    while step_of(checkpoint) == before:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(process.communicate()[1])
        time.sleep(0.05)
    return process


def step_of(checkpoint: Path) -> int:
    """How many steps had been done when it was written; 0 where there is none."""
    return torch.load(checkpoint, weights_only=True)["position"]["step"] if checkpoint.exists() else 0


def stop(process: subprocess.Popen, number: signal.Signals) -> None:
    process.send_signal(number)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert out == ""
    assert "Traceback" not in errors and errors.splitlines()[-1] == "interrupted"


def prepare(stage: str, trained: Path, run: Path) -> list[str]:
    """A run whose stages before `stage` are finished. Returns the names of its folders."""
    finished = list(STAGES[: STAGES.index(stage)])
    for name in finished:
        shutil.copytree(trained / "run" / name, run / name)
    return finished


def contents(folder: Path, names: list[str]) -> dict[Path, bytes]:
    return {path: path.read_bytes() for name in names for path in (folder / name).rglob("*") if path.is_file()}


def test_ctrl_c_while_the_teacher_is_trained(arguments: list[str], tmp_path: Path) -> None:
    stop(start_long("teacher", arguments, tmp_path / "run"), signal.SIGINT)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["teacher.unfinished"]


def test_it_may_end_after_a_stage_and_go_on_later(arguments: list[str], trained: Path, tmp_path: Path, capfd) -> None:
    run = tmp_path / "run"
    assert main([*arguments, "--until", "stage1", "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert list(shown) == ["stages"] and list(shown["stages"]) == ["teacher", "stage1"]
    assert {path.name for path in run.iterdir()} == {"teacher", "stage1"}
    assert main(arguments) == 0
    for stage in STAGES:
        own, whole = (load_file(folder / stage / "model.safetensors") for folder in (run, trained / "run"))
        assert own.keys() == whole.keys() and all(torch.equal(own[name], whole[name]) for name in own)
    capfd.readouterr()
    assert main([*arguments, "--until", "stage3"]) == 2
    assert "--until" in one_error(capfd)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_stopped_stage_goes_on_where_it_was(arguments: list[str], trained: Path, tmp_path: Path, stage: str) -> None:
    run = tmp_path / "run"
    finished = prepare(stage, trained, run)
    before = contents(run, finished)
    checkpoint = run / f"{stage}.unfinished" / "checkpoint.pt"
    stop(start_long(stage, arguments, run), signal.SIGINT)
    first = step_of(checkpoint)
    assert first > 0
    stop(start_long(stage, arguments, run), signal.SIGTERM)  # the same command again
    assert step_of(checkpoint) > first
    assert contents(run, finished) == before
    kept = ["teacher_outputs"] if stage in ("stage2", "integer") else []
    assert sorted(path.name for path in run.iterdir()) == sorted([*finished, *kept, f"{stage}.unfinished"])


def test_help_tells_what_every_field_is_and_its_default(capsys) -> None:
    with pytest.raises(SystemExit):
        make_parser().parse_args(["--help"])
    flags = "\n" + capsys.readouterr().out.partition("examples:")[0]

    def check(section: str, of: type) -> None:
        for field in fields(of):
            if isinstance(field.default_factory, type) and is_dataclass(field.default_factory):
                check(f"{section}{field.name}.", field.default_factory)
                continue
            told = flags.partition(f"\n  --{section}{field.name} ")[2].partition("\n  --")[0]
            words, _, kind = " ".join(told.split()).partition("type: ")
            assert re.search(r"[a-z]{2,} .*\($|\(required, $", words), f"{section}{field.name}: {told}"
            assert "default: " in kind or words.endswith("(required, "), told

    check("", Recipe)
