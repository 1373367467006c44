"""The limits of NIR that a graph must keep to: one table, each number with the place that says so.

Sources are files of nir 1.0.8, below `nir/`, or of ours where the two differ.
"""

from __future__ import annotations

from converters.graph import MEMBRANE_MAX, SHIFT
from targets.legality import Limit

SIGNALS = Limit(
    "signals multiplied",
    1,
    "signals multiplied",
    "nir 1.0.8, ir/linear.py: weights and scales are constants, no node multiplies what it receives",
)
NORMS = Limit(
    "norms",
    0,
    "nodes that normalise",
    "nir 1.0.8, ir/linear.py: weights and scales are constants, no node divides by what it receives",
)
READOUTS = Limit(
    "readouts that decay",
    0,
    "membranes",
    "nir 1.0.8, ir/neuron.py, LI: real numbers, while the readout's membrane rounds to 1/128 at every step",
)
NEURON_RULES = Limit(
    "neurons of another rule",
    0,
    "neurons",
    "nir 1.0.8, ir/neuron.py, IF and LIF: z is 0 or 1, and v is v_reset where z = 1",
)
TOKENS = Limit(
    "tokens read",
    1,
    "tokens",
    "targets/nir/network.py: the file is the network of one token, as `nir.Linear` takes a vector; tokens are a batch",
)
FRACTION = Limit(
    "fraction of a membrane",
    SHIFT,
    "bits",
    "converters/graph.py, LIF: decay rounds to 1/128; nir 1.0.8, ir/neuron.py: real numbers",
)
MEMBRANE = Limit(
    "membrane",
    MEMBRANE_MAX,
    "membrane units",
    "converters/graph.py, LIF: membranes are cut there; nir 1.0.8, ir/neuron.py: they have no bounds",
)
FLOAT32 = Limit(
    "precision",
    2**24,
    "half steps of a membrane",
    "IEEE 754: float32 tells 2^24 whole numbers apart; NIR's consumers compute in it",
)
NAMES = Limit(
    "nodes of a name",
    1,
    "nodes",
    "nirtorch 2.6, utils.py, sanitize_name: `.` in a name becomes `_`, and the later node replaces the earlier",
)

LIMITS: tuple[Limit, ...] = (SIGNALS, NORMS, READOUTS, NEURON_RULES, TOKENS, FRACTION, MEMBRANE, FLOAT32, NAMES)
