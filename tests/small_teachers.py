"""A teacher small enough for tests: a random two-layer BERT with a word-piece tokenizer made of a few words."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

GOOD = ["good", "fine", "funny", "warm"]
BAD = ["bad", "dull", "cold", "sad"]
FILLER = ["the", "film", "soup", "was", "a", "and", "very", "it"]


def make_tokenizer(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *FILLER]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def make_teacher(folder: Path) -> Path:
    """A folder that `from_pretrained` loads: model and tokenizer."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=4 + len(GOOD + BAD + FILLER), hidden_size=24, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    make_tokenizer(folder)
    return folder


def make_data(folder: Path, texts: int = 200) -> Path:
    """train, validation and test of sentences whose one telling word decides the label."""
    folder.mkdir(parents=True, exist_ok=True)
    choice = random.Random(0)
    for split, count in (("train", texts), ("validation", 20), ("test", 20)):
        lines = ["text\tlabel"]
        for i in range(count):
            words = [*choice.choices(FILLER, k=choice.randint(1, 5)), choice.choice((BAD, GOOD)[i % 2])]
            choice.shuffle(words)
            lines.append(f"{' '.join(words)}\t{i % 2}")
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def recipe_arguments(folder: Path) -> list[str]:
    """Arguments of spikebert-train for a run of a few seconds in `folder/run`; teacher and data are made there."""
    teacher, data = folder / "teacher", folder / "data"
    if not teacher.exists():
        make_teacher(teacher)
        make_data(data)
    return [
        f"--out={folder / 'run'}", f"--data.folder={data}", "--data.labels=[bad,good]", f"--teacher.model={teacher}",
        "--teacher.epochs=6", "--teacher.learning_rate=3e-3", "--teacher.batch_size=16", "--student.hidden_size=32",
        "--student.layers=1", "--student.heads=2", "--student.intermediate_size=32", "--student.n_max=10",
        "--stage1.epochs=1", "--stage2.epochs=3", "--stage2.learning_rate=1e-2", "--stage2.batch_size=16",
        "--quantise.epochs=1", "--precision=float32",
    ]  # fmt: skip


def text_of_lines(folder: Path) -> Path:
    """A text file of 20 lines, four words each."""
    text = folder / "text.txt"
    text.write_text("the film was good\n" * 20)
    return text
