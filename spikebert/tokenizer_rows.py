"""Which rows of a token table a tokenizer can ask for, and a tokenizer for a table without the others.

BERT's vocabularies hold rows that no text leads to: hundreds of `[unused]` ones, and in Chinese a continuation of
every ideograph, though the tokenizer makes each ideograph a word of its own. What is kept is sound, not tight: a token
goes only where it is proven that no text gives it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from spikebert.commands import UserError

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
UNDERSTOOD = {"normalizer": "BertNormalizer", "pre_tokenizer": "BertPreTokenizer"}
CHUNK = 1000  # characters looked at together
POST_PROCESSORS = ("TemplateProcessing", "BertProcessing", "RobertaProcessing")


def reachable_ids(folder: Path) -> np.ndarray:
    """The ids that some text may lead to, int64, rising: special and added tokens, padding, and every piece of a word
    whose characters can stand in one word.

    What may stand in a word is tried out: each character of Unicode between two letters goes through the normaliser and
    the pre-tokenizer. Both look at one character at a time, so a piece in which another character occurs, or in which
    one occurs beside others that is always a word of its own, is never asked for. Raises UserError for a tokenizer of
    another kind than BERT's.
    """
    document = _read(folder)
    _check_understood(folder, document)
    tokenizer = Tokenizer.from_str(json.dumps(document))
    joined, alone = _characters(tokenizer, set().union(*document["model"]["vocab"]))
    prefix = document["model"]["continuing_subword_prefix"]
    kept = _named_ids(document)
    for token, number in document["model"]["vocab"].items():
        body = token[len(prefix) :] if token.startswith(prefix) else token
        continues = body != token and set(body) <= joined
        starts = set(token) <= joined or token in alone
        if continues or starts:
            kept.add(number)
    return np.array(sorted(kept), np.int64)


def named_ids(folder: Path) -> set[int]:
    """The ids that a tokenizer needs whatever the text: of added tokens, of unknown words, of what is put around a
    text, and of padding. Raises UserError for a tokenizer that is not of word pieces."""
    return _named_ids(_read(folder))


def continuation_of(folder: Path) -> str:
    """What a piece begins with that continues a word, "##" as a rule."""
    prefix: str = _read(folder)["model"]["continuing_subword_prefix"]
    return prefix


def write_with_rows(folder: Path, kept: np.ndarray, destination: Path) -> None:
    """The tokenizer of `folder` without the tokens that are not in `kept` int64, rising: the i-th of them has id i.

    `destination` must be an empty folder. Raises UserError for a tokenizer that is not of word pieces.
    """
    document, new = _read(folder), {int(old): place for place, old in enumerate(kept)}
    vocabulary = document["model"]["vocab"]
    document["model"]["vocab"] = {token: new[old] for token, old in vocabulary.items() if old in new}
    for token in document["added_tokens"]:
        token["id"] = new[token["id"]]
    _renumber_template(document["post_processor"], new)
    if document.get("padding"):
        document["padding"]["pad_id"] = new[document["padding"]["pad_id"]]
    (destination / TOKENIZER).write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    if (folder / CONFIG).is_file():
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if "added_tokens_decoder" in config:
            config["added_tokens_decoder"] = {
                str(new[int(old)]): token for old, token in config["added_tokens_decoder"].items()
            }
        (destination / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")


def _read(folder: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads((folder / TOKENIZER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / TOKENIZER} cannot be read: {error}") from None
    found = (document.get("model") or {}).get("type")
    if found != "WordPiece":
        raise UserError(
            f"{folder / TOKENIZER}: its model is {found}; tokens can be left out of a WordPiece "
            "only: leave out data.vocabulary, --vocabulary, or the pass remove-unreachable-tokens"
        )
    post = document.get("post_processor")
    if post is not None and post["type"] not in POST_PROCESSORS:
        raise UserError(f"{folder / TOKENIZER}: its post_processor is {post['type']}, none of {POST_PROCESSORS}")
    return document


def _check_understood(folder: Path, document: dict[str, Any]) -> None:
    for part, kind in UNDERSTOOD.items():
        found = (document.get(part) or {}).get("type")
        if found != kind:
            raise UserError(
                f"{folder / TOKENIZER}: its {part} is {found}; which tokens a text can lead to is known for {kind} "
                "only. Leave out the pass remove-unreachable-tokens"
            )


def _characters(tokenizer: Tokenizer, wanted: set[str]) -> tuple[set[str], set[str]]:
    """Of the characters `wanted` those that stand beside others in some word, and those that are words by themselves.

    Every character there is may turn into a wanted one (an accent goes, a capital becomes small).
    """
    points = [chr(point) for point in range(sys.maxunicode + 1) if not 0xD800 <= point <= 0xDFFF]
    found: set[str] = set()
    for start in range(0, len(points), CHUNK):
        text = " ".join(f"a{point}a" for point in points[start : start + CHUNK])
        words = tokenizer.normalizer.normalize_str(text).split(" ")
        found.update(word for word in words if not wanted.isdisjoint(word.strip("a")))
    pieces = {word for text in found for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)} | {"aa"}
    return set().union(*(set(word) for word in pieces if len(word) > 1)), {word for word in pieces if len(word) == 1}


def _named_ids(document: dict[str, Any]) -> set[int]:
    """Ids of added tokens, of unknown words, of what is put around a text, and of padding."""
    kept = {token["id"] for token in document["added_tokens"]}
    kept.add(document["model"]["vocab"][document["model"]["unk_token"]])
    post = document["post_processor"] or {}
    for token in post.get("special_tokens", {}).values():
        kept |= set(token["ids"])
    kept |= {post[end][1] for end in ("sep", "cls") if end in post}
    if document.get("padding"):
        kept.add(document["padding"]["pad_id"])
    return kept


def _renumber_template(post: dict[str, Any] | None, new: dict[int, int]) -> None:
    for token in (post or {}).get("special_tokens", {}).values():
        token["ids"] = [new[old] for old in token["ids"]]
    for end in ("sep", "cls"):
        if end in (post or {}):
            post[end][1] = new[post[end][1]]  # type: ignore[index]  # it is there
