"""The limits of Lava that a graph must keep to: one table, each number with the place that says so.

Sources are files of lava-nc 0.10.0, below `lava/`, or what was measured with it. A limit is in units of Lava, where
weights, currents and thresholds are twice those of the graph (`lowering.py`). Those that no rule of `rules.py` checks
follow from what a `Graph` proves when it is made; tests/targets/test_lava_limits.py shows that they do.
"""

from __future__ import annotations

from targets.legality import Limit

THRESHOLDS = Limit(
    "thresholds",
    1,
    "thresholds in one LIF",
    "lava-nc 0.10.0, proc/lif/process.py, LIF: `self.vth = Var(shape=(1,), init=vth)`",
)
DELAY = Limit(
    "delay",
    63,
    "steps",
    "lava-nc 0.10.0, proc/sparse/models.py, PyDelaySparseModelBitAcc: "
    "`Loihi 2 has a maximum of 6 bits for delays`, it refuses more",
)
MESSAGE_BITS = Limit(
    "message bits",
    24,
    "bits",
    "lava-nc 0.10.0, proc/graded/models.py, PyGradedVecModelFixed: `s_out` has precision=24",
)
WEIGHT = Limit(
    "weight",
    255,
    "doubled weight units",
    "lava-nc 0.10.0, utils/weightutils.py, clip_weights: `max_wgt = 2 ** num_bits - 1` for num_bits 8 "
    "(and -256 where signs are mixed)",
)
CURRENT = Limit(
    "current",
    2**17 - 1,
    "doubled accumulator units",
    "lava-nc 0.10.0, proc/lif/models.py, AbstractPyLifModelFixed.subthr_dynamics: `a << 6` wraps above 2^23, and "
    "already at -2^23",
)
RELAY_READERS = Limit(
    "readers of a relay",
    0,
    "nodes that are no products",
    "lowering.py: a relay is a GradedVec of doubled currents, and ProdNeuron's `exp` of 1 halves them",
)
ATTENTION_INPUTS = Limit(
    "inputs of an attention",
    12,
    "processes",
    "processes/attention.py: INPUT_PORTS, for Lava wants the ports of a ProcessModel declared",
)
THRESHOLD = Limit(
    "threshold",
    2**17 - 1,
    "doubled accumulator units",
    "lava-nc 0.10.0, proc/lif/models.py, PyLifResetModelBitAcc: `vth: unsigned 17-bit integer (0 to 131071)`",
)
DECAY = Limit(
    "decay",
    2**12 - 1,
    "of 4096",
    "lava-nc 0.10.0, proc/lif/models.py, PyLifResetModelBitAcc: `dv: unsigned 12-bit integer (0 to 4095)`",
)
MEMBRANE = Limit(
    "membrane",
    2**23 - 1,
    "membrane units",
    "lava-nc 0.10.0, proc/lif/models.py, AbstractPyLifModelFixed: `uv_bitwidth = 24`, v is clipped at +- this",
)

LIMITS = (THRESHOLDS, DELAY, MESSAGE_BITS, WEIGHT, CURRENT, RELAY_READERS, ATTENTION_INPUTS, THRESHOLD, DECAY, MEMBRANE)
