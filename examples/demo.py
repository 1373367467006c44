"""`make demo`: from labelled sentences and a BERT to a spiking BERT on Lava, with the three commands a user has.

Each step prints its command, so that it can be repeated by hand. A second run trains nothing that is there.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

RUN = Path("runs/demo")
BUNDLE = Path("build/demo")
HELD_BACK = RUN / "held_back.tsv"
SENTENCES = 20


def command(*words: str) -> str:
    """Run one of our commands, show it and its progress; returns its standard output. Ends the demo if it fails."""
    print(f"\n$ {shlex.join(words)}", file=sys.stderr, flush=True)
    module = {
        "spikebert-train": "spikebert.train_command",
        "spikebert-export": "converters.export_command",
        "spikebert-run": "sim.run_command",
    }[words[0]]
    done = subprocess.run([sys.executable, "-m", module, *words[1:]], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def hold_back(sentences: int) -> None:
    """The first sentences of the test split, which no stage has seen, as a file of their own."""
    test = resources.files("recipes") / "data" / "reviews" / "test.tsv"
    lines = test.read_text(encoding="utf-8").splitlines(keepends=True)
    HELD_BACK.write_text("".join(lines[: sentences + 1]), encoding="utf-8")


def row(name: str, measured: dict) -> str:
    interval = f"{measured['low']:.1%} .. {measured['high']:.1%}"
    return f"  {name:<38}{measured['value']:>8.2%}   95 % interval {interval}"


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    started = time.monotonic()
    try:
        results = json.loads(command("spikebert-train", "--recipe", "reviews", "--out", str(RUN), "--json"))
        command("spikebert-export", "--target", "lava", "--model", str(RUN), "--out", str(BUNDLE), "--overwrite")
        hold_back(SENTENCES)
        on_lava = ("--engine", "lava", "--verify", "--file", str(HELD_BACK), "--json")
        report = json.loads(command("spikebert-run", str(BUNDLE), *on_lava))
    except KeyboardInterrupt:
        print("\ninterrupted; 'make demo' goes on from here", file=sys.stderr)
        return 130
    accuracy, verify = results["accuracy"], report["verify"]
    texts = accuracy["teacher"]["test"]["texts"]
    print(f"\nReviews, {texts} test sentences that no stage has seen")
    print(row("teacher (all-MiniLM-L6-v2, fine-tuned)", accuracy["teacher"]["test"]))
    print(row("spiking student, float", accuracy["float student"]["test"]))
    print(row("spiking student, integer", accuracy["integer student"]["test"]))
    print(f"  {'firing rate of a neuron':<38}{results['mean_firing_rate']:>8.2%}   of timesteps, on validation")
    print(f"\nLava runtime, {report['samples']} of these sentences against the reference, every node")
    print(f"  {'values compared':<38}{verify['values_compared']:>14,}")
    print(f"  {'mismatches':<38}{verify['mismatches']:>14,}")
    minutes = (time.monotonic() - started) / 60
    print(f"\nDone in {minutes:.1f} minutes. The bundle is {BUNDLE}; try a sentence of your own:")
    print(f'  .venv/bin/spikebert-run {BUNDLE} --text "the soup was cold and the waiter rude"')
    return 0


if __name__ == "__main__":
    sys.exit(main())
