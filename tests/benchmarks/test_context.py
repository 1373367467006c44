"""What a student has of the context: nothing in a table of tokens, all in the teacher's own states."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_teachers import make_teacher

from benchmarks.context import main, share

TOKENS, FITTED = 4000, 3000


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids [R], what a table says of them and what stands around them, [R, 4] each."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(20, (TOKENS,), generator=random)
    return ids, torch.randn(20, 4, generator=random)[ids], torch.randn(TOKENS, 4, generator=random)


def test_a_table_of_tokens_has_nothing_of_the_context_and_comes_near_all_the_same() -> None:
    ids, of_token, around = drawn()
    found = share(ids, of_token, of_token + 0.5 * around, FITTED)
    assert abs(found.of_context) < 0.02
    assert found.student == pytest.approx(found.token_table, rel=0.02) and found.token_table < 0.3 * found.variance


def test_who_knows_the_context_alone_has_all_of_it_and_is_far_away_all_the_same() -> None:
    ids, of_token, around = drawn()
    found = share(ids, around, of_token + 0.5 * around, FITTED)
    assert found.of_context > 0.99
    assert found.student > 2 * found.token_table


def test_a_half_is_a_half() -> None:
    ids, of_token, around = drawn()
    found = share(ids, torch.cat([of_token, around[:, :2]], 1), of_token + around, FITTED)
    assert found.of_context == pytest.approx(0.5, abs=0.05)


def test_maps_are_measured_on_tokens_that_they_have_not_seen() -> None:
    ids, of_token, around = drawn()
    noise = torch.randn(TOKENS, 2000, generator=torch.Generator().manual_seed(1))
    assert share(ids, noise, of_token + around, FITTED).of_context < 0, "2,000 features of noise fit 3,000 tokens"


def test_seldom_tokens_are_left_out_and_without_others_that_is_said() -> None:
    ids, of_token, around = drawn()
    ids[:9], of_token[:9] = 99, 50.0
    ids[FITTED:FITTED + 9], of_token[FITTED:FITTED + 9] = 99, 50.0  # fmt: skip
    assert share(ids, around, of_token + around, FITTED).variance < 10
    with pytest.raises(ValueError, match="no token comes 10 times"):
        share(torch.arange(TOKENS), around, around, FITTED)


def test_the_command_has_a_row_for_each_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher, text = make_teacher(tmp_path / "teacher"), tmp_path / "text.txt"
    text.write_text("a good film\nbad dull film\na dull film\ngood film\n" * 20)
    assert main([str(teacher), "--teacher", str(teacher), "--text", str(text), "--count", "80"]) == 0
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == [f"{teacher}, {state}" for state in ("embedding", "block 1", "block 2")]
    assert [row[1] for row in rows] == ["0", "1", "2"]
    assert all(float(row[4]) < 0.01 for row in rows), "a teacher's states are its own"
    assert rows[-1][5] == "100%"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere", "--teacher", "t", "--text", "f"], "no folder of a model"),
        (["nowhere", "--teacher", "t", "--text", "f", "--count", "3"], "8 is the least"),
    ],
)
def test_wrong_use_is_told(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_other_tokens_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher, other = make_teacher(tmp_path / "teacher"), make_teacher(tmp_path / "other")
    tokenizer = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(tokenizer.replace('"film"', '"movie"'))
    (tmp_path / "text.txt").write_text("a good film\n" * 9)
    assert main([str(other), "--teacher", str(teacher), "--text", str(tmp_path / "text.txt")]) == 2
    assert "its tokens are not those of the teacher" in capsys.readouterr().err
