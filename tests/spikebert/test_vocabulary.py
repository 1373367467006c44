"""A smaller vocabulary: which tokens stay, what becomes of words, and models that know no others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_teachers import recipe_arguments
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, BertConfig, BertModel, MPNetConfig, MPNetModel, PreTrainedTokenizerFast

from converters.bundle import read_bundle
from converters.export_command import main as export_main
from sim.run_command import main as run_main
from spikebert.commands import UserError
from spikebert.config import SpikeBertConfig
from spikebert.model import SpikeBertForSequenceClassification
from spikebert.train_command import main as train_main
from spikebert.vocabulary import Vocabulary, keep_rows, most_frequent

LETTERS = "abcdef"
WORDS = ("abc", "abcd", "bad", "##cd", "##ef", "fade", "中", "##中")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TOKENS = (*SPECIAL, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS), "!", "é")


def tokenizer_of(tokens: tuple[str, ...] = TOKENS, roberta: bool = False) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cls, sep = (("[CLS]", tokens.index("[CLS]")), ("[SEP]", tokens.index("[SEP]")))
    tokenizer.post_processor = (
        processors.RobertaProcessing(sep, cls)
        if roberta
        else processors.TemplateProcessing("[CLS] $A [SEP]", None, [cls, sep])
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )  # fmt: skip


def tokens_of(vocabulary: Vocabulary) -> list[str]:
    names = {number: token for token, number in vocabulary.tokenizer.get_vocab().items()}
    return [names[number] for number in range(len(names))]


def test_what_the_texts_use_most_stays() -> None:
    texts = ["abcd abcd abcd", "abc abc bad!", "é"]
    everything = most_frequent(tokenizer_of(), texts, 1000)
    assert set(TOKENS) - set(tokens_of(everything)) == {"fade", "中", "##中", "##cd", "##ef"}, "no text uses them"
    fewer = most_frequent(tokenizer_of(), texts, len(everything.kept) - 1)
    assert set(tokens_of(everything)) - set(tokens_of(fewer)) == {"bad"}
    assert tokens_of(fewer) == [token for token in TOKENS if token in tokens_of(fewer)], "in the order they had"
    assert [TOKENS[number] for number in fewer.kept] == tokens_of(fewer)
    assert fewer.tokenizer.tokenize("abcd bad fade!") == ["abcd", "b", "##a", "##d", "f", "##a", "##d", "##e", "!"]
    assert fewer.longer_by(texts) == (3 + 6 + 1 + 6) / (3 + 4 + 1 + 6)


@pytest.mark.parametrize("roberta", [False, True])
def test_the_frame_of_a_text_stays(roberta: bool) -> None:
    before = tokenizer_of(("[MASK]", "fade", *(token for token in TOKENS if token not in ("[MASK]", "fade"))), roberta)
    smaller = most_frequent(before, ["abc"], 1000).tokenizer
    assert smaller.convert_ids_to_tokens(smaller("abc")["input_ids"]) == ["[CLS]", "abc", "[SEP]"]
    for name in ("pad", "unk", "cls", "sep", "mask"):
        assert getattr(smaller, f"{name}_token") == getattr(before, f"{name}_token")
    assert smaller.pad_token_id == before.pad_token_id == 2, "all before it stay too"


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(UserError, match="a vocabulary of 8 tokens: special ones and single characters are 19 already"):
        most_frequent(tokenizer_of(), ["é"], 8)


def test_another_kind_of_tokenizer_is_refused() -> None:
    other = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "a": 2}, unk_token="[UNK]"))
    other.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=other, unk_token="[UNK]", pad_token="[PAD]")
    with pytest.raises(UserError, match=r"its model is WordLevel; .* leave out data\.vocabulary"):
        most_frequent(fast, ["a"], 2)


@settings(max_examples=50)
@given(st.lists(st.text(LETTERS + " !é", max_size=12), min_size=1), st.integers(22, 30), st.text(LETTERS, min_size=1))
def test_no_word_of_the_texts_becomes_unknown(texts: list[str], size: int, other: str) -> None:
    before = tokenizer_of()
    vocabulary = most_frequent(before, texts, size)
    assert len(vocabulary.kept) <= size and (np.diff(vocabulary.kept) > 0).all()
    for text in (*texts, other):
        old, new = (one(text)["input_ids"] for one in (before, vocabulary.tokenizer))
        assert new.count(vocabulary.tokenizer.unk_token_id) == old.count(before.unk_token_id)
        words = "".join(vocabulary.tokenizer.tokenize(text)).replace("##", "")
        assert words == "".join(before.tokenize(text)).replace("##", ""), "what the pieces spell is the same"


def bert() -> BertModel:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return BertModel(BertConfig(vocab_size=len(TOKENS), max_position_embeddings=16, pad_token_id=0, **sizes))


def mpnet() -> MPNetModel:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return MPNetModel(MPNetConfig(vocab_size=len(TOKENS), max_position_embeddings=16, pad_token_id=1, **sizes))


@pytest.mark.parametrize("kind", [bert, mpnet])
def test_a_model_says_of_kept_tokens_what_it_said(kind) -> None:
    first = ("[CLS]", "[PAD]") if kind is mpnet else ()
    before = tokenizer_of((*first, *(token for token in TOKENS if token not in first)), roberta=kind is mpnet)
    torch.manual_seed(0)
    model, texts = kind().eval(), ["abc bad!", "a"]
    vocabulary = most_frequent(before, texts, 20)
    with torch.no_grad():
        old = model(**before(texts, return_tensors="pt", padding=True)).last_hidden_state
        keep_rows(model, vocabulary.kept)
        new = model(**vocabulary.tokenizer(texts, return_tensors="pt", padding=True)).last_hidden_state
    assert torch.equal(old, new)
    assert model.config.vocab_size == len(vocabulary.kept) == model.get_input_embeddings().num_embeddings
    assert model.config.pad_token_id == before.pad_token_id


def test_a_student_keeps_its_rows() -> None:
    student = SpikeBertForSequenceClassification(
        SpikeBertConfig(
            vocab_size=len(TOKENS), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
            max_position_embeddings=8, pad_token_id=0,
        )
    )  # fmt: skip
    rows = student.encoder.token.weight.detach().clone()
    vocabulary = most_frequent(tokenizer_of(), ["abc bad!"], 20)
    keep_rows(student, vocabulary.kept)
    assert torch.equal(student.encoder.token.weight, rows[vocabulary.kept])
    assert student.encoder.token.weight.requires_grad


# All the way


@pytest.fixture(scope="module")
def reduced(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of ten tokens."""
    out = tmp_path_factory.mktemp("reduced") / "run"
    assert train_main([*recipe_arguments(trained), f"--out={out}", "--data.vocabulary=10"]) == 0
    return out


def test_every_stage_but_the_first_knows_the_smaller_vocabulary(reduced: Path, trained: Path) -> None:
    everything = AutoTokenizer.from_pretrained(trained / "teacher").get_vocab()
    for stage in ("teacher", "stage1", "stage2", "integer"):
        vocabulary = AutoTokenizer.from_pretrained(reduced / stage).get_vocab()
        size = json.loads((reduced / stage / "config.json").read_text())["vocab_size"]
        weights = load_file(reduced / stage / "model.safetensors")
        [table] = [name for name in weights if name.endswith(("word_embeddings.weight", "encoder.token.weight"))]
        assert len(vocabulary) == size == len(weights[table]) == (len(everything) if stage == "stage1" else 10)
    assert set(vocabulary) < set(everything)


def test_the_rows_are_those_of_the_same_words(trained: Path, tmp_path: Path) -> None:
    """Nothing is trained, so each token of the end has its row of the beginning."""
    out = tmp_path / "run"
    flags = ["--data.vocabulary=10", "--teacher.epochs=0", "--stage1.epochs=0", "--stage2.epochs=0"]
    assert train_main([*recipe_arguments(trained), f"--out={out}", *flags, "--quantise.epochs=0"]) == 0
    for before, after in ((trained / "teacher", out / "teacher"), (out / "stage1", out / "stage2")):
        tables = []
        for folder in (before, after):
            weights = load_file(folder / "model.safetensors")
            [name] = [name for name in weights if name.endswith(("word_embeddings.weight", "encoder.token.weight"))]
            tables.append((AutoTokenizer.from_pretrained(folder).get_vocab(), weights[name]))
        (old_ids, old), (new_ids, new) = tables
        assert len(new_ids) == 10 and all(torch.equal(new[new_ids[token]], old[old_ids[token]]) for token in new_ids)


def test_a_bundle_predicts_what_training_measured(reduced: Path, trained: Path, tmp_path: Path, capfd) -> None:
    bundle, validation = tmp_path / "bundle", trained / "data" / "validation.tsv"
    assert export_main(["--model", str(reduced), "--out", str(bundle), "--target", "lava"]) == 0
    assert read_bundle(bundle).graph.source.table.shape[0] <= 10
    capfd.readouterr()
    assert run_main([str(bundle), "--file", str(validation), "--json", "--verify"]) == 0
    measured = json.loads((reduced / "results.json").read_text())["accuracy"]["integer student"]["validation"]
    assert json.loads(capfd.readouterr().out)["accuracy"] == measured["correct"] / measured["texts"]


def test_a_stage1_of_other_tokens_is_refused(reduced: Path, trained: Path, tmp_path: Path, capfd) -> None:
    arguments = [*recipe_arguments(trained), f"--out={tmp_path / 'run'}"]
    assert train_main([*arguments, f"--stage1.reuse={reduced / 'stage2'}"]) == 2
    assert "has another shape (vocab_size 10): it has a smaller data.vocabulary" in capfd.readouterr().err
    other = Path(shutil.copytree(reduced / "stage1", tmp_path / "other"))
    document = json.loads((other / "tokenizer.json").read_text())
    words = document["model"]["vocab"]
    words["good"], words["bad"] = words["bad"], words["good"]
    (other / "tokenizer.json").write_text(json.dumps(document))
    assert train_main([*arguments, f"--stage1.reuse={other}"]) == 2
    assert "has tokens of other meanings than the teacher's" in capfd.readouterr().err


def test_a_stage1_serves_runs_of_any_vocabulary(reduced: Path, trained: Path, tmp_path: Path) -> None:
    arguments = [*recipe_arguments(trained), f"--out={tmp_path / 'run'}", f"--stage1.reuse={reduced / 'stage1'}"]
    flags = ["--data.vocabulary=12", "--teacher.epochs=1", "--stage2.epochs=1", "--quantise.epochs=0"]
    assert train_main([*arguments, *flags]) == 0
    assert json.loads((tmp_path / "run" / "integer" / "config.json").read_text())["vocab_size"] == 12
