"""Rows into shards and outcomes out again: every row once, in order, whatever is bad between."""

from collections import deque

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from converters.execution import Activity
from sim.rows import BadRow, Row
from sim.run import BAD_ROWS_KEPT, Summary, run
from sim.shards import ShardResult
from sim.verify import Comparison


class LengthsAsLogits:
    """Stands for workers: the logits of a text are its length and 2. Takes `ahead` shards before it gives one back."""

    several = False

    def __init__(self, ahead: int) -> None:
        self.ahead = ahead
        self.shards = []

    def results(self, shards):
        waiting: deque = deque()
        for shard in shards:
            self.shards.append(shard)
            waiting.append(self._run(shard))
            if len(waiting) > self.ahead:
                yield waiting.popleft()
        yield from waiting

    def _run(self, shard) -> ShardResult:
        lengths = [len(text) for text in shard.samples]
        notes = tuple((i, "empty") for i, length in enumerate(lengths) if length == 0)
        logits = np.array([[length, 2] for length in lengths])
        return ShardResult(logits, np.array(lengths), notes, 0.5, Activity.of(4, {}), Comparison(len(lengths)))


ROWS = st.lists(st.one_of(st.just("bad row"), st.text("ab", max_size=4)), max_size=30)


@given(ROWS, st.integers(1, 5), st.integers(0, 4))
def test_every_row_is_told_once_and_in_order(texts, size, ahead):
    rows = [
        BadRow(number, "why") if text == "bad row" else Row(number, text, number % 2)
        for number, text in enumerate(texts)
    ]
    workers, summary, told = LengthsAsLogits(ahead), Summary("x", np.zeros((2, 2), np.int64)), []
    run(iter(rows), workers, summary, size, told.append)
    assert [outcome.row for outcome in told] == rows
    for outcome in told:
        if isinstance(outcome.row, BadRow):
            assert (outcome.logits, outcome.prediction, outcome.note) == (None, None, None)
        else:
            length = len(outcome.row.text)
            assert outcome.logits.tolist() == [length, 2] and outcome.real_tokens == length
            assert outcome.prediction == int(length < 2)  # the lowest index among equals
            assert outcome.note == (None if length else "empty")
    good = [row for row in rows if isinstance(row, Row)]
    assert (summary.samples, summary.bad) == (len(good), len(rows) - len(good))
    assert summary.first_bad == [row for row in rows if isinstance(row, BadRow)][:BAD_ROWS_KEPT]
    confusion = np.zeros((2, 2), np.int64)
    for row in good:
        confusion[row.label, int(len(row.text) < 2)] += 1
    assert np.array_equal(summary.confusion, confusion)
    for shard in workers.shards:  # samples are numbered as rows are
        assert 1 <= len(shard.samples) <= size
        assert [rows[shard.first + i].text for i in range(len(shard.samples))] == list(shard.samples)
    if good:
        assert summary.comparison == Comparison(len(good)) and summary.seconds == 0.5 * len(workers.shards)


def test_bad_rows_alone_are_told_at_once_and_not_held():
    told = []

    def rows():
        for number in range(1000):
            assert len(told) == number
            yield BadRow(number, "why")

    summary = Summary("x", np.zeros((2, 2), np.int64))
    run(rows(), LengthsAsLogits(3), summary, 4, told.append)
    assert (summary.samples, summary.bad, summary.activity, summary.accuracy) == (0, 1000, None, None)
