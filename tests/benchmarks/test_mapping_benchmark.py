"""The benchmark of mappings prints a row for each size, and what its check finds."""

from __future__ import annotations

from benchmarks.mapping import TITLES, main


def test_a_small_size_is_placed_and_checked(capsys) -> None:
    main(["--size", "1x64", "--tokens", "2", "--tokens", "4", "--check"])
    head, _rule, first, two, second, four = capsys.readouterr().out.splitlines()
    assert head == f"| {' | '.join(TITLES)} |"
    assert first.startswith("0 problems") and second.startswith("0 problems")
    assert two.startswith("| 1x64 | 2 | ") and four.startswith("| 1x64 | 4 | ")
