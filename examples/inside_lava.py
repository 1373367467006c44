"""A trained network as one process in a Lava program of your own.

    python examples/inside_lava.py --text "a gripping , funny film" --text "the soup was cold"

The program below is plain Lava: a RingBuffer sends the encoded texts, the network is one process among others, and
what it says is read by stock processes: a Dense takes the difference between the two classes, a GradedVec sends it on,
and a RingBuffer keeps it. So the margin of `positive` over `negative` can be watched timestep by timestep. At the end
it is compared with what the reference interpreter says. It takes about ten seconds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.proc.dense.process import Dense
from lava.proc.graded.process import GradedVec
from lava.proc.io.sink import RingBuffer as Sink
from lava.proc.io.source import RingBuffer as Feed

from converters.bundle import read_bundle
from converters.execution import TokenBatch
from sim.find_bundle import find_bundle
from sim.reference import ReferenceEngine
from targets.lava.process import GraphProcess, as_process

TEXTS = ("a gripping , funny film", "the soup was cold and the waiter rude")
WEIGHT = 2  # Lava holds 8-bit weights of both signs as even numbers


def margins(network: GraphProcess, batch: TokenBatch, stock: bool) -> np.ndarray:
    """By how much class 1 leads at each timestep, in units of the integer logits: int64 [B, T].

    stock  take the network apart into stock Lava processes, each an operating system process, instead of one
    """
    steps = network.steps(len(batch))
    feed = Feed(data=np.moveaxis(network.spikes(batch), 0, -1))  # RingBuffer wants time last
    feed.s_out.connect(network.spikes_in)

    [currents] = network.currents_out  # (N, 1, classes)
    tokens, _, classes = currents.shape
    lead = np.tile([-WEIGHT, WEIGHT], tokens)[None]  # [1, N * classes]
    difference = Dense(weights=lead, num_message_bits=24)
    currents.reshape((tokens * classes,)).connect(difference.s_in)
    margin = GradedVec(shape=(1,), vth=0)
    difference.a_out.connect(margin.a_in)
    sink = Sink(shape=(1,), buffer=steps + 1)  # a Dense answers one step later
    margin.s_out.connect(sink.a_in)

    sink.run(
        condition=RunSteps(num_steps=steps + 1),
        run_cfg=Loihi2SimCfg(select_tag="fixed_pt", select_sub_proc_model=stock),
    )
    sent = sink.data.get().astype(np.int64)[0]
    sink.stop()
    own = sent[network.latency_steps + 1 :].reshape(len(batch), -1)
    return own // (2 * WEIGHT)  # currents are doubled


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--bundle",
        default="reviews",
        help="a bundle of two classes whose readout is a sum (default: the shipped reviews)",
    )
    parser.add_argument("--text", action="append", help="may be repeated")
    parser.add_argument("--stock", action="store_true", help="of stock Lava processes and models: for small networks")
    arguments = parser.parse_args(argv)
    texts = arguments.text or TEXTS

    bundle = read_bundle(find_bundle(arguments.bundle))
    batch = bundle.batch([bundle.tokenise(text) for text in texts])
    lead = margins(as_process(bundle.graph), batch, arguments.stock)
    for text, by_timestep in zip(texts, lead):
        label = bundle.labels[int(by_timestep.sum() > 0)]
        print(f"{label:<10} {' '.join(f'{each:>+8,}' for each in by_timestep)}   {text}")

    logits = ReferenceEngine(bundle.graph).run(batch).logits
    if not np.array_equal(lead.sum(axis=1), logits[:, 1] - logits[:, 0]):
        print(f"the reference says {logits[:, 1] - logits[:, 0]}", file=sys.stderr)
        return 1
    print("the same as the reference, to the last bit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
