"""A recipe: everything an experiment is made of. The YAML file, the flags and these dataclasses are one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter

from spikebert.commands import UserError

PRECISIONS = ("auto", "bf16", "float32")
STAGES = ("teacher", "stage1", "stage2", "integer")  # of training, in order; see `stages.py`
LANGUAGES = ("en", "zh")  # whose parts of speech are known


@dataclass
class Data:
    """Labelled texts, of a folder or of the hub."""

    folder: str = ""
    """holds train.tsv, validation.tsv and perhaps test.tsv: a header text<TAB>label, then a text a line; `package:NAME`
    is one that is installed with spikebert"""
    hub: str = ""
    """in place of a folder the name of a Hugging Face dataset with such splits"""
    hub_subset: str = ""
    """which part of that, where it has several"""
    text_column: str = "text"
    """whose texts are read"""
    label_column: str = "label"
    """whose labels are read: numbers from 0, in files names out of `labels` too"""
    labels: list[str] = field(default_factory=list)
    """names of the classes, 0 first; "0", "1", ... where empty"""
    limit: int = 0
    """use only so many training texts; 0 for all"""
    vocabulary: int = 0
    """teacher and student know only so many of the teacher's tokens, those that the training texts use most; other
    words fall apart into pieces. Stage 1 still has all. 0: all"""


@dataclass
class Teacher:
    """The BERT that teaches, and how it is fine-tuned on the task."""

    model: str = "registry:all-MiniLM-L6-v2"
    """a folder, a hub name, or one that the package registry has: `registry:all-MiniLM-L6-v2` (6 x 384),
    `registry:all-mpnet-base-v2` (12 x 768), `registry:m3e-small` (Chinese, 4 x 512, for research only)"""
    epochs: int = 3
    """over the training texts; 0: it teaches as it comes"""
    batch_size: int = 32
    """texts of a step, of all processes together"""
    learning_rate: float = 5e-5
    """the largest of the schedule: it rises in the first tenth, then falls to 0"""
    weight_decay: float = 0.01
    """of AdamW"""
    patience: int = 0
    """stop after so many epochs in which validation was not better than in one before; 0: all epochs are trained"""


@dataclass
class Student:
    """The spiking BERT; see `SpikeBertConfig`."""

    hidden_size: int = 384
    """features of a token"""
    layers: int = 2
    """blocks of attention and MLP"""
    heads: int = 6
    """of attention: each has hidden_size / heads features"""
    intermediate_size: int = 1536
    """features of the MLP"""
    n_max: int = 64
    """tokens of a text at most, special ones too: longer texts are cut"""
    timesteps: int = 4
    """T: how often the whole text is seen"""
    decay: int | list[int] = 2048
    """of membranes: one number for all neurons, or a list: of the encoder, then of each layer (block)"""
    reset: str = "zero"
    """of a membrane that fires: "zero", or "subtract": it loses its threshold and goes on with the rest"""
    spike: str = "binary"
    """what neurons send: "binary", "graded" (0 .. spike_cap) or "ternary" (-1, 0, 1); see `SpikeBertConfig`"""
    spike_cap: int = 1
    """the largest graded spike, 2 .. 255; 1 of others"""
    encoder_cap: int = 1
    """the largest spike of the encoder, 1 .. 255: above 1 it sends graded ones, whatever `spike` is"""
    value_cap: int = 1
    """the same of what attention brings from token to token"""
    graded_gain: float = 1.0
    """currents of neurons that send graded spikes begin so many times larger, so that their levels are used: a quarter
    of the cap does well"""
    encoder: str = "lif"
    """of tokens on the host: "lif" neurons, or "sign", whose spikes are the same at every timestep"""
    positions: bool = True
    """whether a token's place adds to its current"""
    position_spikes: int = 0
    """so many spikes of a fixed code beside the token's tell its place; see `spikebert.position_code`"""
    attention_threshold: int | None = None
    """matches that a neuron behind an attention must exceed; null: 16, with similarity xnor 6 times the features of a
    head, and with positions log or gray more (18 for 64 tokens)"""
    attention_similarity: str = "and"
    """of a query and a key. and: features that are 1 in both; xnor: features that are equal"""
    attention_position: str = "none"
    """what a score has more for the places of query and key: none, log, gray, learned or neighbours; see
    `spikebert.positions`"""
    surrogate: str = "atan"
    """gradient of a spike in training: "atan" or "sigmoid" """
    surrogate_alpha: float = 2.0
    """how narrow that is around the threshold"""
    norm: str = "batch"
    """between a layer and its neurons: "batch", "layer" (the paper's), "rms" or "none": features learn thresholds"""
    scalar_thresholds: bool = False
    """with norm "none": quantised, a layer has one threshold, as Lava and Loihi 2 want it"""
    readout: str = "sum"
    """what logits are made of: "sum", "membrane" (it leaks: late timesteps count more) or "spikes" of the classes"""
    embeddings_from_teacher: bool = True
    """start from the teacher's word embeddings (rotated to hidden_size) instead of noise"""
    blocks_from_teacher: bool = False
    """start from all of the teacher: each layer is fitted to what the teacher computes there, with some text of stage
    1; see `spikebert.teacher_blocks`. Heads must have as many features as the teacher's"""


@dataclass
class Alteration:
    """How copies of training texts are altered, by chances of 0 .. 1; see `augmentation.py`. Tang et al. 2019 have join
    0, run 0.25, longest_run 5, mask 0.1 and replace 0.1, with parts of speech, and 20 copies."""

    join: float = 0.3
    """of a text: it is joined with another"""
    run: float = 0.3
    """of a text: only a run of it is taken"""
    longest_run: int = 0
    """tokens of it at most, with parts of speech words; 0: any length that the text has"""
    mask: float = 0.1
    """of a token, with parts of speech of a word"""
    replace: float = 0.1
    """the same"""


@dataclass
class Stage1:
    """Distillation on unlabelled text: align embeddings and hidden states with the teacher as it came."""

    reuse: str = ""
    """the stage1 folder of another run with such a student and teacher: taken as it is, nothing is trained. Its stage2
    will do as well, but for one of a smaller `data.vocabulary`: the student then starts from what it learnt of another
    task"""
    reuse_readout: bool = False
    """take its readout too, to go on with a task that it has learnt (in stage 2: stage 1 teaches no readout); without
    this the readout begins anew"""
    text: list[str] = field(default_factory=list)
    """text files, one sentence a line, plain, .gz or .xz, or `hub:NAME:SUBSET:COLUMN`, a dataset of the hub; streamed,
    never all in memory. The training texts of the task where empty"""
    lines: int = 0
    """read so many lines of `text`, evenly from the files; 0 for all"""
    longest_words: int = 0
    """leave out lines of more words than this (a Chinese character is one): short ones teach more in a minute; 0 for
    none"""
    epochs: int = 1
    """over the texts"""
    batch_size: int = 64
    """as of the teacher"""
    learning_rate: float = 2e-3
    """as of the teacher"""
    weight_decay: float = 0.01
    """as of the teacher"""
    token_rate: float = 5.0
    """the token table learns so many times faster: a batch holds few of its rows"""
    embedding_weight: float = 1.0
    """of the distance of embeddings in the loss"""
    hidden_weight: float = 1.0
    """of the distance of hidden states in the loss"""
    operations_per_token: float = 0.0
    """as in stage 2: a student that is to fire seldom may learn so from the start. 0: all are free"""
    operations_weight: float = 1.0
    """as in stage 2"""
    held_out: int = 0
    """so many texts, the last that are read, are not learnt from: after each epoch the loss on them is told, and the
    epoch is kept where it is least. 0: none, and the last epoch is kept"""
    patience: int = 0
    """stop after so many epochs in which that loss was not less than in one before; 0: all epochs are trained"""


@dataclass
class Stage2:
    """Distillation on the task: logits, hidden states, embeddings and labels of the fine-tuned teacher."""

    epochs: int = 6
    """over the training texts and what is added to them; the one that is best on validation is kept"""
    batch_size: int = 32
    """as of the teacher"""
    learning_rate: float = 2e-3
    """as of the teacher"""
    weight_decay: float = 0.01
    """as of the teacher"""
    token_rate: float = 5.0
    """the token table learns so many times faster, as in stage 1"""
    label_weight: float = 1.0
    """of the cross entropy with labels in the loss"""
    logits_weight: float = 1.0
    """of the distance of logits (Kullback-Leibler, at `temperature`) in the loss"""
    temperature: float = 2.0
    """by which logits are divided there"""
    hidden_weight: float = 0.1
    """of the distance of hidden states in the loss"""
    embedding_weight: float = 0.1
    """of the distance of embeddings in the loss"""
    altered_copies: int = 0
    """so many altered copies of each training text in each epoch, labelled by the teacher; see `augmentation.py`"""
    alteration: Alteration = field(default_factory=Alteration)
    parts_of_speech: str = ""
    """in altered copies a word is replaced by one of its part of speech: "en" or "zh", the language of the texts;
    empty: a token by any token"""
    extra_text: list[str] = field(default_factory=list)
    """unlabelled text as in `stage1.text` that the teacher labels, each epoch beside the task's own texts"""
    extra_lines: int = 0
    """so many lines of `extra_text` in each epoch, other lines in every epoch while there are more; 0 for none"""
    longest_words: int = 0
    """leave out lines of `extra_text` of more words than this; 0 for none"""
    operations_per_token: float = 0.0
    """so many synaptic operations a token are free, over all timesteps; the loss of a student that needs more has
    `operations_weight` * (operations / free - 1) added. In the choice of the best epoch a tenth more is free, and what
    is beyond that costs as much. 0: all are free"""
    operations_weight: float = 1.0
    """see there"""
    norm_texts: int = 0
    """before each validation BatchNorms are told mean and variance of the currents of so many training texts, the
    weights held still; see `settled_norms.py`. 0: they keep the running means of training"""
    patience: int = 0
    """stop after so many epochs in which validation was not better than in one before; 0: all epochs are trained"""


@dataclass
class Quantise:
    """Fold what can be folded, round, and train on with the integers in the forward pass (losses as in stage 2)."""

    weight_bits: int = 8
    """of layers: 8 .. 3, 2 (-1, 0, 1) or 1 (-1, 1); the readout keeps 8"""
    token_bits: int = 8
    """of the token table, which is most of a small student"""
    calibration_texts: int = 0
    """training texts with which rounding is made up for before training goes on; see `calibration.py`. 0: weights are
    rounded to the nearest"""
    epochs: int = 2
    """with integers in the forward pass, over the texts of stage 2; 0: they are rounded alone"""
    batch_size: int = 32
    """as of the teacher"""
    learning_rate: float = 1e-4
    """as of the teacher"""
    weight_decay: float = 0.0
    """as of the teacher"""
    patience: int = 0
    """as in stage 2"""


@dataclass
class Recipe:
    """One experiment: teacher -> stage 1 -> stage 2 -> quantise."""

    out: str
    """the folder that it is written to"""
    data: Data = field(default_factory=Data)
    teacher: Teacher = field(default_factory=Teacher)
    student: Student = field(default_factory=Student)
    stage1: Stage1 = field(default_factory=Stage1)
    stage2: Stage2 = field(default_factory=Stage2)
    quantise: Quantise = field(default_factory=Quantise)
    licence: str = ""
    """what a bundle may be used for, by the licences of texts and teacher; its model card says so"""
    seed: int = 42
    """of all that is drawn: weights, the order of texts, altered copies"""
    precision: str = "auto"
    """of the float stages: "bf16", "float32", or "auto": bf16 where the processor has it; integers are always exact"""
    checkpoint_seconds: int = 120
    """how often a running stage saves what it needs to go on after being killed"""
    text_cache_gb: float = 16.0
    """the tokens of `stage1.text` may take so much of the disk, below `out`, until stage 1 is done (4 bytes each, a
    sentence has about 100 bytes); more text is refused"""
    teacher_cache_gb: float = 4.0
    """the teacher's outputs of texts that are trained on in more than one epoch may take so much of the disk, below
    `out`, until the stage is done; where they would take more, or with 0, the teacher is asked in each step
    (first about `stage2.extra_text`, then about all)"""
    gradient_checkpointing: bool = False
    """the student's blocks are computed again in backward instead of kept in memory: less memory, more time, and the
    same result in every bit"""


# What a value must be, the test of it, and the fields this holds for. The student's are `SpikeBertConfig`'s to check.
RULES: tuple[tuple[str, Callable[[float], bool], tuple[str, ...]], ...] = (
    ("0 or more", lambda value: value >= 0, (
        "data.limit", "data.vocabulary", "teacher.epochs", "stage1.epochs", "stage1.lines", "stage1.embedding_weight",
        "stage1.hidden_weight", "stage2.epochs", "stage2.label_weight", "stage2.logits_weight",
        "stage2.hidden_weight", "stage2.embedding_weight", "stage2.extra_lines", "stage2.altered_copies",
        "stage1.longest_words", "stage2.longest_words", "stage2.patience", "stage2.norm_texts", "quantise.epochs",
        "quantise.calibration_texts",
        "checkpoint_seconds", "text_cache_gb", "teacher_cache_gb",
        "stage1.operations_per_token", "stage1.operations_weight",
        "stage2.operations_per_token", "stage2.operations_weight", "teacher.patience", "quantise.patience",
        "stage1.held_out", "stage1.patience",
        "teacher.weight_decay", "stage1.weight_decay", "stage2.weight_decay", "quantise.weight_decay",
        "stage2.alteration.longest_run",
    )),
    ("1 or more", lambda value: value >= 1, (
        "teacher.batch_size", "stage1.batch_size", "stage2.batch_size", "quantise.batch_size",
    )),
    ("above 0", lambda value: value > 0, (
        "teacher.learning_rate", "stage1.learning_rate", "stage2.learning_rate", "quantise.learning_rate",
        "stage2.temperature", "student.surrogate_alpha", "stage1.token_rate", "stage2.token_rate",
    )),
    ("0 .. 1", lambda value: 0 <= value <= 1, (
        "stage2.alteration.join", "stage2.alteration.run", "stage2.alteration.mask", "stage2.alteration.replace",
    )),
    ("1 .. 8", lambda value: 1 <= value <= 8, ("quantise.weight_bits",)),
    ("2 .. 8", lambda value: 2 <= value <= 8, ("quantise.token_bits",)),
    ("0 .. 4294967295", lambda value: 0 <= value < 2**32, ("seed",)),
)  # fmt: skip


def _losses(recipe: Recipe) -> tuple[tuple[str, int, tuple[str, ...]], ...]:
    """Of each stage that has losses: its epochs, and the weights of which one must be above 0. (The integer stage has
    the losses of stage 2.)"""
    task = ("label_weight", "logits_weight", "hidden_weight", "embedding_weight")
    return (
        ("stage1", 0 if recipe.stage1.reuse else recipe.stage1.epochs, ("hidden_weight", "embedding_weight")),
        ("stage2", recipe.stage2.epochs + recipe.quantise.epochs, task),
    )


def check_recipe(recipe: Recipe) -> None:
    """Raises UserError that names every value outside its range."""
    wrong = []
    for wanted, holds, names in RULES:
        for name in names:
            value = attrgetter(name)(recipe)
            if not (math.isfinite(value) and holds(value)):
                wrong.append(f"{name} is {value}, it must be {wanted}")
    altered = recipe.stage2.alteration
    if altered.mask + altered.replace > 1:
        wrong.append(f"stage2.alteration: mask {altered.mask} and replace {altered.replace} are more than 1 together")
    if recipe.precision not in PRECISIONS:
        wrong.append(f"precision is '{recipe.precision}', it must be one of {', '.join(PRECISIONS)}")
    if recipe.stage2.parts_of_speech not in ("", *LANGUAGES):
        found = recipe.stage2.parts_of_speech
        wrong.append(f"stage2.parts_of_speech is '{found}', it must be one of {', '.join(LANGUAGES)}, or empty")
    twice = [name for name, count in Counter(recipe.data.labels).items() if count > 1]
    if twice:
        wrong.append(f"data.labels names '{twice[0]}' twice")
    if recipe.stage2.norm_texts and recipe.student.norm != "batch":
        wrong.append(f"stage2.norm_texts is {recipe.stage2.norm_texts}, for student.norm 'batch' alone: give 0")
    if recipe.stage1.patience and not recipe.stage1.held_out:
        wrong.append(f"stage1.patience is {recipe.stage1.patience} and stage1.held_out 0: give texts to tell by")
    wrong += [
        f"{name} has {epochs} epochs and nothing to learn from: {', '.join(weights)} are all 0"
        for name, epochs, weights in _losses(recipe)
        if epochs and not any(getattr(getattr(recipe, name), weight) for weight in weights)
    ]
    if recipe.stage1.reuse_readout and not recipe.stage1.reuse:
        wrong.append("stage1.reuse_readout is true and stage1.reuse is empty: there is no readout to take")
    if not recipe.out:
        wrong.append("out is empty, it must name a folder")
    if wrong:
        raise UserError("recipe: " + "; ".join(wrong))
