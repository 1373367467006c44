"""Which rows a tokenizer can ask for: sound for any text, and the same tokenizer after the others are gone."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from spikebert.commands import UserError
from spikebert.tokenizer_rows import reachable_ids, write_with_rows

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "recipes" / "bundles" / "reviews" / "tokenizer"
CHINESE = [ROOT.parent / "shared" / "data" / name for name in ("chnsenti", "waimai")]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# what a text leads to, and behind it what none does, with the reason
REACHED = (
    "a", "film", "##s", "##ny", "fun", "naive", "##9", "9", "!", "##", "#", "[", "中", "国", "ß", "##ß", "か", "##ん",
    "ʼ", "²", "¥", "i", "##i", "ᄒ", "##ᅡ", "ﬁ", "अ", "##अ",
)  # fmt: skip
UNREACHED = (
    "[unused0]",  # punctuation stands alone
    "Film",  # capitals become small
    "é", "##é",  # accents go
    "##中", "中国",  # an ideograph is a word by itself
    "##!", "!!", "don't", "a b",  # so is punctuation; and a space parts words
    "한",  # it is taken apart
    "\u0000", "##\t",  # control characters and white space go
)  # fmt: skip


def make(folder: Path, words: tuple[str, ...] = (*SPECIAL, *REACHED, *UNREACHED), **options: object) -> Path:
    """A folder with a WordPiece tokenizer of these words, normalised as BERT does it."""
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(**options)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(word, words.index(word)) for word in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ends)
    tokenizer.add_special_tokens([word for word in SPECIAL if word in words])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def opened(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def tokens_of(folder: Path) -> set[str]:
    names = {number: token for token, number in opened(folder).get_vocab().items()}
    return {names[number] for number in reachable_ids(folder).tolist()}


def document(folder: Path) -> dict:
    return json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))


def write(folder: Path, changed: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(changed), encoding="utf-8")
    return folder


# Which rows


def test_what_is_kept_and_what_goes(tmp_path: Path) -> None:
    kept = tokens_of(make(tmp_path))
    assert kept == {*SPECIAL, *REACHED}


def test_each_word_that_is_kept_is_given_by_a_text(tmp_path: Path) -> None:
    """So that the rest of this file is not about a proof that keeps everything."""
    tokenizer = opened(make(tmp_path))
    given: set[str] = set()
    for word in (*REACHED, *SPECIAL):
        given |= set(tokenizer.encode(f"{word} a{word.removeprefix('##')} 9{word.removeprefix('##')}").tokens)
    assert {*REACHED, *SPECIAL} - given <= {"##", "[PAD]"}  # kept all the same: sound, not tight


def test_a_vocabulary_of_one_letter(tmp_path: Path) -> None:
    folder = make(tmp_path, (*SPECIAL, "a", "##a", "b", "##c"))
    assert {"a", "##a"} <= tokens_of(folder)
    assert opened(folder).encode("aá").tokens == ["[CLS]", "a", "##a", "[SEP]"]
    assert "##a" in tokens_of(make(tmp_path / "alone", (*SPECIAL, "a", "##a")))


def test_capitals_accents_and_ideographs_where_they_stay(tmp_path: Path) -> None:
    folder = make(tmp_path, lowercase=False, strip_accents=False, handle_chinese_chars=False)
    assert tokens_of(folder) >= {"Film", "é", "##é", "中国", "##中", "한"}
    assert not tokens_of(folder) & {"[unused0]", "##!", "!!", "a b"}


def test_white_space_and_control_characters_where_they_stay(tmp_path: Path) -> None:
    assert "\u0000" in tokens_of(make(tmp_path, clean_text=False))
    assert "##\t" not in tokens_of(make(tmp_path, clean_text=False))


def test_ids_rise_and_lie_in_the_vocabulary() -> None:
    kept, vocabulary = reachable_ids(SHIPPED), opened(SHIPPED).get_vocab()
    assert kept.dtype == np.int64 and (np.diff(kept) > 0).all() and kept.max() < len(vocabulary)
    reached = set(kept.tolist())
    gone = {token for token, number in vocabulary.items() if number not in reached}
    assert {"the", "##ing", "!"} & gone == set() and len(gone) == len(vocabulary) - len(kept)
    # the texts that its tokens were chosen by use all but those that stay whatever texts use: single characters
    assert gone == {f"##{mark}" for mark in string.punctuation}


# Sound, for any text whatever


@cache
def shipped() -> tuple[Tokenizer, frozenset[int]]:
    return opened(SHIPPED), frozenset(reachable_ids(SHIPPED).tolist())


CHARACTERS = st.characters(exclude_categories=["Cs"])
ODD = "aéÉİßσςΣ中国한글かガﬁ²½①Ⅷʼ’'-_#[]!¿。,\u0301\u0300\u0345\u093f\u00ad\u200d\ufffd\u0000\t\n "
PIECES = st.one_of(
    st.text(CHARACTERS, max_size=6),
    st.text(st.sampled_from(ODD), max_size=6),
    st.sampled_from([*SPECIAL, *REACHED, *UNREACHED, "##ing", "[unused7]", "Ⅻ", "x" * 101]),
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=8).map("".join)


@settings(deadline=None, max_examples=400)
@given(TEXTS)
@example("[MASK] [unused0] ##ing [CLS]x[SEP]")
def test_no_text_gives_a_removed_row_of_the_shipped_tokenizer(text: str) -> None:
    tokenizer, kept = shipped()
    given = tokenizer.encode(text)
    assert set(given.ids) <= kept, [token for token, number in zip(given.tokens, given.ids) if number not in kept]


OPTIONS = st.fixed_dictionaries(
    {"lowercase": st.booleans(), "strip_accents": st.sampled_from([None, True, False]),
     "handle_chinese_chars": st.booleans(), "clean_text": st.booleans()}
)  # fmt: skip


@settings(deadline=None, max_examples=8)
@given(words=st.lists(TEXTS.filter(bool), max_size=20), texts=st.lists(TEXTS, max_size=30), options=OPTIONS)
def test_no_text_gives_a_removed_row_of_any_vocabulary(tmp_path_factory, words, texts, options) -> None:
    """Words of any characters, and each of them as a text, in the middle of a word, and behind an accent."""
    vocabulary = tuple(dict.fromkeys([*SPECIAL, *REACHED, *UNREACHED, *words, *(f"##{word}" for word in words)]))
    folder = make(tmp_path_factory.mktemp("any"), vocabulary, **options)
    tokenizer, kept = opened(folder), set(reachable_ids(folder).tolist())
    tried = [*texts, *(text for word in vocabulary for text in (word, f"a{word}", f"a{word[2:]}a", f"{word}\u0301x"))]
    for text in tried:
        given = tokenizer.encode(text)
        assert set(given.ids) <= kept, (text, given.tokens)


def texts_of(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.tsv")):
        for line in path.read_text(encoding="utf-8").splitlines()[1:]:
            yield line.rsplit("\t", 1)[0]


@pytest.mark.parametrize("folder", CHINESE, ids=lambda folder: folder.name)
def test_chinese_continuations_go_and_no_review_asks_for_one(folder: Path, tmp_path: Path) -> None:
    """A vocabulary with every ideograph of the reviews, alone and as a continuation, as Chinese BERTs have them."""
    texts = list(texts_of(folder))[:3000]
    if not texts:
        pytest.skip(f"{folder} is not there")
    found = sorted(set("".join(texts)))
    ideographs = [char for char in found if "\u4e00" <= char <= "\u9fff"]
    words = (*SPECIAL, *(char for char in found if not char.isspace()), *(f"##{char}" for char in found))
    made = make(tmp_path, tuple(dict.fromkeys(words)))
    kept = tokens_of(made)
    assert len(ideographs) > 1000
    assert kept >= set(ideographs) and not kept & {f"##{char}" for char in ideographs}
    ids = set(reachable_ids(made).tolist())
    given = [encoding.ids for encoding in opened(made).encode_batch(texts)]
    assert all(set(each) <= ids for each in given)
    assert sum(map(len, given)) > 50_000


# Named tokens


def test_tokens_by_name_are_kept_whatever_they_look_like(tmp_path: Path) -> None:
    """Added ones inside and behind the vocabulary, padding, what is put around a text, and unknown words."""
    tokenizer = opened(make(tmp_path))
    tokenizer.add_tokens(["[unused0]", AddedToken("<Eñe>", normalized=False), "two words"])
    tokenizer.add_special_tokens(["<EXTRA>"])
    padding = tokenizer.token_to_id("[MASK]")
    tokenizer.enable_padding(pad_id=padding, pad_token="[MASK]")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert tokens_of(tmp_path) == {*SPECIAL, *REACHED, "[unused0]", "<Eñe>", "two words", "<EXTRA>"}
    assert {"[unused0]", "<Eñe>", "two words", "<EXTRA>"} <= set(
        tokenizer.encode("[unused0]<Eñe> two words<EXTRA>").tokens
    )


def test_padding_and_ends_need_not_be_added_tokens(tmp_path: Path) -> None:
    changed = document(make(tmp_path / "made"))
    vocabulary = changed["model"]["vocab"]
    changed["added_tokens"] = []
    changed["padding"] = {
        "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_type_id": 0,
        "pad_id": vocabulary["[PAD]"], "pad_token": "[PAD]",
    }  # fmt: skip
    assert tokens_of(write(tmp_path / "bare", changed)) >= {"[PAD]", "[UNK]", "[CLS]", "[SEP]"}
    changed["post_processor"] = {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}
    changed["padding"] = None
    kept = tokens_of(write(tmp_path / "older", changed))
    assert kept >= {"[UNK]", "[CLS]", "[SEP]"} and not kept & {"[PAD]", "[MASK]"}
    changed["post_processor"] = None
    assert tokens_of(write(tmp_path / "none", changed)) & set(SPECIAL) == {"[UNK]"}


# The tokenizer without the others


def smaller(folder: Path, out: Path) -> tuple[Tokenizer, dict[int, int]]:
    """The tokenizer without the rows that no text leads to, and its ids by those of before."""
    kept = reachable_ids(folder)
    out.mkdir()
    write_with_rows(folder, kept, out)
    return opened(out), {int(old): new for new, old in enumerate(kept)}


@pytest.fixture(scope="module")
def renumbered(tmp_path_factory) -> tuple[Tokenizer, Tokenizer, dict[int, int]]:
    """Before, after, and the new ids; the rows in the middle of the vocabulary go as well as those at its end."""
    folder = tmp_path_factory.mktemp("renumbered")
    words = (*UNREACHED[:4], *SPECIAL, *REACHED[:9], *UNREACHED[4:], *REACHED[9:])
    tokenizer = opened(make(folder / "made", words))
    tokenizer.add_tokens(["<Eñe>"])
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id("[PAD]"))
    tokenizer.save(str(folder / "made" / "tokenizer.json"))
    return tokenizer, *smaller(folder / "made", folder / "smaller")


@settings(deadline=None, max_examples=150)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3))
def test_a_renumbered_tokenizer_gives_the_new_ids(renumbered, texts: list[str]) -> None:
    """Padding, ends and added tokens too."""
    before, after, new = renumbered
    assert after.get_vocab_size() == len(new) < before.get_vocab_size()
    for old, now in zip(before.encode_batch([*texts, "a <Eñe>"]), after.encode_batch([*texts, "a <Eñe>"])):
        assert now.ids == [new[number] for number in old.ids]
        assert (now.tokens, now.attention_mask, now.offsets) == (old.tokens, old.attention_mask, old.offsets)


def test_pairs_of_texts_too(renumbered) -> None:
    before, after, new = renumbered
    old, now = (tokenizer.encode("a film", "fun [MASK]") for tokenizer in (before, after))
    assert now.ids == [new[number] for number in old.ids] and now.type_ids == old.type_ids


def test_an_older_post_processor_is_renumbered(tmp_path: Path) -> None:
    changed = document(make(tmp_path / "made", (*UNREACHED, *SPECIAL, *REACHED)))
    ends = {word: changed["model"]["vocab"][word] for word in ("[SEP]", "[CLS]")}
    changed["post_processor"] = {
        "type": "BertProcessing",
        "sep": ["[SEP]", ends["[SEP]"]],
        "cls": ["[CLS]", ends["[CLS]"]],
    }
    after, new = smaller(write(tmp_path / "older", changed), tmp_path / "smaller")
    assert after.encode("a").ids == [new[ends["[CLS]"]], after.token_to_id("a"), new[ends["[SEP]"]]]


def test_transformers_reads_the_shipped_tokenizer_without_its_rows(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    _, new = smaller(SHIPPED, tmp_path / "smaller")
    before, after = (transformers.AutoTokenizer.from_pretrained(folder) for folder in (SHIPPED, tmp_path / "smaller"))
    texts = ["A gripping , funny film!", "naïve 中国 [MASK] xyzzy ☃", "", "the soup was cold . " * 9]
    for text in texts:
        assert after(text)["input_ids"] == [new[number] for number in before(text)["input_ids"]]
    assert after.pad_token_id == new[before.pad_token_id] and after.mask_token_id == new[before.mask_token_id]
    assert len(after) == len(new)


def test_added_tokens_of_the_config_are_renumbered(tmp_path: Path) -> None:
    folder = make(tmp_path / "made", (*UNREACHED, *SPECIAL, *REACHED))
    numbers = opened(folder).get_vocab()
    config = {"tokenizer_class": "BertTokenizer", "added_tokens_decoder": {str(numbers["[PAD]"]): {"content": "[PAD]"}}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    _, new = smaller(folder, tmp_path / "smaller")
    told = json.loads((tmp_path / "smaller" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert told == config | {"added_tokens_decoder": {str(new[numbers["[PAD]"]]): {"content": "[PAD]"}}}


def test_nothing_removed_is_the_same_tokenizer(tmp_path: Path) -> None:
    folder = make(tmp_path / "made", (*SPECIAL, *REACHED))
    smaller(folder, tmp_path / "smaller")
    assert document(tmp_path / "smaller") == document(folder)


# Other tokenizers


def other(**parts: object):
    return lambda whole: whole | {name: part and {"type": part} for name, part in parts.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            other(normalizer="Lowercase"),
            "its normalizer is Lowercase; .* known for BertNormalizer only. Leave out the pass",
        ),
        (other(normalizer=None), "its normalizer is None; .* known for BertNormalizer only"),
        (other(pre_tokenizer="Whitespace"), "its pre_tokenizer is Whitespace; .* known for BertPreTokenizer only"),
        (other(model="BPE"), "its model is BPE; .* of a WordPiece only: .* the pass"),
        (other(post_processor="ByteLevel"), r"its post_processor is ByteLevel, none of \('Template"),
    ],
)
def test_tokenizers_of_another_kind_are_refused(change, message: str, tmp_path: Path) -> None:
    folder = write(tmp_path, change(document(make(tmp_path / "made"))))
    with pytest.raises(UserError, match=message):
        reachable_ids(folder)
    if "known for" not in message:  # tokens can be left out whatever comes before the word pieces
        with pytest.raises(UserError, match=message):
            write_with_rows(folder, np.arange(5), tmp_path)


@pytest.mark.parametrize("content", [None, "no json"])
def test_a_tokenizer_that_cannot_be_read_is_named(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read: "):
        reachable_ids(tmp_path)
