"""A student goes on to another teacher: its tokens mean what they did, and training goes on from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from command_output import one_error
from safetensors.torch import load_file, save_file
from small_teachers import BAD, FILLER, GOOD, recipe_arguments
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from converters.change_teacher import main, same_tokens
from converters.export_command import main as export
from spikebert.distillation import Alignment
from spikebert.model import SpikeBertForSequenceClassification
from spikebert.teacher_outputs import ask_teacher
from spikebert.train_command import main as train

ORDER = ["<s>", "[CLS]", "new", *reversed([*GOOD, *BAD, *FILLER]), "<pad>", "</s>", "<unk>"]  # "[CLS]" is a mere word


def make_other_teacher(folder: Path, order: list[str] = ORDER, longest: int = 32) -> Path:
    """Wider and deeper than that of `small_teachers`, with the same words in another order and one more."""
    torch.manual_seed(1)
    ids = {word: number for number, word in enumerate(order)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    ends = [("<s>", ids["<s>"]), ("</s>", ids["</s>"])]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", None, ends)
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(order) + 3, hidden_size=40, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=longest, pad_token_id=ids["<pad>"],
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    return make_other_teacher(tmp_path_factory.mktemp("other_teacher"))


def change(trained: Path, teacher: Path, out: Path, stage: Path | None = None, texts: Path | None = None) -> int:
    texts = texts or trained / "data" / "train.tsv"
    flags = ["--teacher", str(teacher), "--texts", str(texts), "--count", "30", "--out", str(out)]
    return main([str(stage or trained / "run" / "stage2"), *flags])


def logits_of(folder: Path, text: str) -> torch.Tensor:
    model, tokenizer = SpikeBertForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    batch = tokenizer([text, "bad"], return_tensors="pt", padding=True)
    with torch.no_grad():
        return model.eval()(batch["input_ids"], batch["attention_mask"]).logits


def test_special_tokens_are_matched_by_their_use(trained: Path, other: Path) -> None:
    own, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (trained / "teacher", other))
    meant = dict(zip(*(ids.tolist() for ids in same_tokens(own, theirs)), strict=True))
    assert {own.convert_ids_to_tokens(a): theirs.convert_ids_to_tokens(b) for a, b in meant.items()} == {
        "[PAD]": "<pad>", "[UNK]": "<unk>", "[CLS]": "<s>", "[SEP]": "</s>",
        **{word: word for word in [*GOOD, *BAD, *FILLER]},
    }  # fmt: skip


def test_a_word_that_looks_like_a_special_token_is_not_taken_for_it(trained: Path, other: Path) -> None:
    """The other way round: the student's own tokens hold a mere word "[CLS]", and no two of them may mean one."""
    own, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (other, trained / "teacher"))
    ids, meant = (each.tolist() for each in same_tokens(own, theirs))
    assert len(set(meant)) == len(meant) == len(own) - 2, "all but 'new' and that word"
    assert meant[ids.index(own.cls_token_id)] == theirs.cls_token_id
    assert own.convert_tokens_to_ids("[CLS]") not in ids


def test_the_student_stays_what_it_was(trained: Path, other: Path, tmp_path: Path, capfd) -> None:
    assert change(trained, other, tmp_path / "start") == 0
    assert "20 of the student's 20, 2 by the teacher's embedding" in capfd.readouterr().err
    before = trained / "run" / "stage2"
    for text in ("the film was good", "bad soup", "an unheard of film"):
        wanted, found = logits_of(before, text), logits_of(tmp_path / "start", text)
        assert torch.equal(found, wanted) and wanted.any()
    weights = load_file(tmp_path / "start" / "model.safetensors")
    assert len(weights["encoder.token.weight"]) == len(ORDER)
    weights["encoder.token.weight"] = weights["encoder.token.weight"].roll(1, 0)  # a control: tokens of other meanings
    save_file(weights, tmp_path / "start" / "model.safetensors", {"format": "pt"})
    assert not torch.equal(logits_of(tmp_path / "start", "the film was good"), logits_of(before, "the film was good"))


def test_training_goes_on_with_the_other_teacher(trained: Path, other: Path, tmp_path: Path, capfd) -> None:
    shutil.copytree(other, tmp_path / "teacher")
    shutil.copytree(trained / "data", tmp_path / "data")
    arguments = recipe_arguments(tmp_path)
    refused = [*arguments, f"--stage1.reuse={trained / 'run' / 'stage2'}"]
    capfd.readouterr()
    assert train([*refused, "--until=stage1"]) == 2
    said = one_error(capfd)
    assert "converters.change_teacher" in said, "who is refused is told what mends it"
    assert change(trained, other, tmp_path / "start") == 0
    arguments += [f"--stage1.reuse={tmp_path / 'start'}", "--stage1.reuse_readout=true"]
    assert train(arguments) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["accuracy"]["integer student"]["validation"]["value"] > 0.9
    maps = load_file(tmp_path / "run" / "stage2" / "alignment.safetensors")
    assert maps["maps.0.weight"].shape == (40, 32)
    capfd.readouterr()
    assert export(["--model", str(tmp_path / "run"), "--out", str(tmp_path / "bundle")]) == 0
    terms = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["config"]["licences"]
    assert terms["Teachers that it had before"] == str(trained / "teacher")
    assert change(trained, trained / "teacher", tmp_path / "back", tmp_path / "run" / "stage2") == 0
    figures = json.loads((tmp_path / "back" / "stage.json").read_text())["figures"]
    before = f"{trained / 'teacher'}, {tmp_path / 'teacher'}"
    assert figures["licences"]["Teachers that it had before"] == before, "none is forgotten"


def test_the_maps_fit_the_new_teacher(trained: Path, other: Path, tmp_path: Path) -> None:
    """They begin nearer to it than maps of chance."""
    assert change(trained, other, tmp_path / "start") == 0
    student = SpikeBertForSequenceClassification.from_pretrained(tmp_path / "start").eval()
    tokenizer, teacher = AutoTokenizer.from_pretrained(other), BertModel.from_pretrained(other).eval()
    batch = tokenizer(["the film was good", "a very dull soup"], return_tensors="pt", padding=True)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    fitted, chance = (Alignment(32, 1, 40, 3) for _ in range(2))
    fitted.load_state_dict(load_file(tmp_path / "start" / "alignment.safetensors"))
    with torch.no_grad():
        own = student(ids, mask, output_hidden_states=True).hidden_states
        states = ask_teacher(teacher, ids, mask, fitted.wanted).states
        near, far = (sum(maps(own, states, mask)) for maps in (fitted, chance))
    assert near < 0.7 * far


def test_a_student_of_fewer_tokens_gets_all_of_them(trained: Path, tmp_path: Path, capfd) -> None:
    """Its own teacher's, too: training with `data.vocabulary` had taken rows away."""
    shutil.copytree(trained / "teacher", tmp_path / "teacher")
    shutil.copytree(trained / "data", tmp_path / "data")
    (tmp_path / "data" / "train.tsv").write_text("text\tlabel\n" + "the film was good\t1\nthe film was bad\t0\n" * 20)
    flags = ["--data.vocabulary=10", "--teacher.epochs=0", "--stage2.epochs=1", "--until=stage2"]
    assert train([*recipe_arguments(tmp_path), *flags]) == 0
    capfd.readouterr()
    assert change(trained, trained / "teacher", tmp_path / "start", tmp_path / "run" / "stage2") == 0
    assert "10 of the student's 10, 10 by the teacher's embedding" in capfd.readouterr().err
    text = "the film was good"
    assert torch.equal(logits_of(tmp_path / "start", text), logits_of(tmp_path / "run" / "stage2", text))


def test_what_will_not_do_is_refused(trained: Path, other: Path, tmp_path: Path, capfd) -> None:
    def refused(stage: Path | None, teacher: Path = other, texts: Path | None = None) -> str:
        capfd.readouterr()
        assert change(trained, teacher, tmp_path / "out", stage, texts) == 2
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
        return capfd.readouterr().err.splitlines()[-1]

    assert "no finished stage 1 or 2 of a run" in refused(trained / "data")
    assert "no finished stage 1 or 2 of a run" in refused(trained / "run" / "teacher")
    damaged = shutil.copytree(trained / "run" / "stage2", tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"none")
    assert "damaged cannot be read" in refused(damaged)
    assert "an integer model: give the stage1 or stage2 folder" in refused(trained / "run" / "integer")
    assert "it takes 8 tokens at most" in refused(None, make_other_teacher(tmp_path / "narrow", longest=8))
    assert "cannot load" in refused(None, trained / "data")
    new_words = tmp_path / "new.tsv"
    new_words.write_text("text\tlabel\nthe new film\t1\n")
    assert "none is of tokens that the student knows" in refused(None, texts=new_words)
    short = make_other_teacher(tmp_path / "short")
    config = BertConfig.from_pretrained(short)
    config.vocab_size = len(ORDER) - 1
    BertModel(config).save_pretrained(short)
    assert f"has {len(ORDER) - 1} tokens, its tokenizer {len(ORDER)}" in refused(None, short)
    capitals = tmp_path / "capitals.tsv"
    capitals.write_text("text\tlabel\nThe FILM\t0\n")
    upper = make_other_teacher(tmp_path / "upper")
    tokenizer = json.loads((upper / "tokenizer.json").read_text())
    tokenizer["normalizer"] = None
    (upper / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "takes 'The FILM' apart otherwise" in refused(None, upper, capitals)
    assert change(trained, upper, tmp_path / "same") == 0, "texts without capitals"
    capfd.readouterr()
    assert change(trained, other, tmp_path / "same") == 2
    assert "same exists" in one_error(capfd)
