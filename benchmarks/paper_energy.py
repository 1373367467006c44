"""The energy figures that SpikeBERT's paper gives for SST-2, derived again, and what they stand for.

    python -m benchmarks.paper_energy

The paper (Lv et al. 2023, arXiv 2308.15122) prints for BERT 22.23 G operations and 102.24 mJ, for its SpikeBERT
28.54 mJ, at 4.6 pJ for a multiplication with an addition and 0.9 pJ for an addition (45 nm). Nothing here is measured.
"""

from __future__ import annotations

from benchmarks.timing import table
from sim.energy import read_cost_table

BERT_OPERATIONS, BERT_JOULES, SPIKEBERT_JOULES = 22.23e9, 102.24e-3, 28.54e-3  # as printed, SST-2
BLOCKS, WIDTH, INNER, TOKENS, TIMESTEPS = 12, 768, 3072, 128, 4  # BERT-base, and the paper's student


def transformer_operations(blocks: int, width: int, inner: int, tokens: int) -> int:
    """Multiplications, each with an addition, of a transformer's blocks on one text: `sim.energy.dense_operations`."""
    return blocks * ((4 * width**2 + 2 * width * inner) * tokens + 2 * tokens**2 * width)


def rows() -> list[list[str]]:
    """What it is, operations, pJ each, mJ, what is printed, and SpikeBERT's share of it."""
    prices = read_cost_table("45nm")
    assert prices.dense is not None  # the papers' rule prices a dense network
    multiply, add = prices.dense.picojoules, prices.prices["weighted_operations"].picojoules
    counted = transformer_operations(BLOCKS, WIDTH, INNER, TOKENS)

    def line(name: str, operations: float, picojoules: float, printed: float | None = None) -> list[str]:
        joules = operations * picojoules * 1e-12
        share = "" if name.startswith("SpikeBERT") else f"{SPIKEBERT_JOULES / joules:.1%}"
        as_printed = "" if printed is None else f"{1e3 * printed:.2f}"
        return [name, f"{operations / 1e9:.2f} G", f"{picojoules}", f"{1e3 * joules:.2f}", as_printed, share]

    return [
        line("BERT, the operations as printed", BERT_OPERATIONS, multiply, BERT_JOULES),
        line("BERT, multiplications counted", counted, multiply),
        line("SpikeBERT, additions that its energy makes", SPIKEBERT_JOULES / (add * 1e-12), add, SPIKEBERT_JOULES),
    ]


def main() -> None:
    additions = SPIKEBERT_JOULES / (read_cost_table("45nm").prices["weighted_operations"].picojoules * 1e-12)
    counted = transformer_operations(BLOCKS, WIDTH, INNER, TOKENS)
    print(table(("SST-2", "operations", "pJ", "mJ", "printed, mJ", "SpikeBERT takes"), rows()))
    possible = TIMESTEPS * counted
    share, as_bert = additions / possible, additions / (2 * possible)
    print(
        f"\n{BLOCKS} x {WIDTH} at {TOKENS} tokens: {counted / 1e9:.2f} G multiplications, {2 * counted / 1e9:.2f} G "
        f"operations if additions count too.\nSo the printed {BERT_OPERATIONS / 1e9:.2f} G look like the second, each "
        f"charged as the first. With a spike wherever one can be\n{TIMESTEPS} timesteps make {possible / 1e9:.1f} G "
        f"additions; SpikeBERT's are {share:.0%} of them, or {as_bert:.0%} where they were counted as BERT's."
    )


if __name__ == "__main__":
    main()
