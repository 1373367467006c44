"""What a network file of lava-dl cannot hold: one table, each number with the place that says so.

Sources are files of lava-dl 0.6.0, below `lava/lib/dl/`. The limits of Lava itself (thresholds, currents) are those of
`targets/lava/limits.py`.
"""

from __future__ import annotations

from converters.graph import ACCUMULATOR_MAX
from targets.legality import Limit

PRODUCTS = Limit(
    "attention",
    0,
    "nodes that multiply spikes",
    "lava-dl 0.6.0, netx/hdf5.py, Network._create: layers are input, conv, dense, dense_rec and dense_comp",
)
NORMS = Limit(
    "norms",
    0,
    "nodes that normalise",
    "lava-dl 0.6.0, netx/hdf5.py, Network._create: layers are input, conv, dense, dense_rec and dense_comp",
)
READOUTS = Limit(
    "readouts that decay",
    0,
    "membranes",
    "lava-dl 0.6.0, netx/hdf5.py, Network.get_neuron_params: with `sigma_output` `neuron_process = Sigma`, the sum of "
    "all steps",
)
NEURON_RULES = Limit(
    "neurons of another rule",
    0,
    "neurons",
    "lava-dl 0.6.0, netx/hdf5.py, Network.get_neuron_params: a neuron is Lava's LIF or LIFReset, which reset to 0 and "
    "send bits",
)
ADDS = Limit(
    "residuals",
    0,
    "adds",
    "lava-dl 0.6.0, netx/hdf5.py, Network._create: `layers[-2].out.connect(layers[-1].inp)`, each layer reads the one "
    "before it and no other",
)
CONCATS = Limit(
    "rearranged features",
    0,
    "slices or concats",
    "lava-dl 0.6.0, netx/hdf5.py, Network.create_concat: `raise NotImplementedError`",
)
READERS = Limit(
    "readers",
    1,
    "nodes that read it",
    "lava-dl 0.6.0, netx/hdf5.py, Network._create: `layers[-2].out.connect(layers[-1].inp)`, each layer is read by the "
    "one after it and no other",
)
DEAD_ENDS = Limit(
    "dead ends",
    0,
    "nodes that nobody reads",
    "lava-dl 0.6.0, netx/hdf5.py, Network: `self.out_layer = self.layers[-1]`, one layer is the last",
)
LANE_THRESHOLD = Limit(
    "threshold before a bias",
    ACCUMULATOR_MAX - 1,
    "accumulator units",
    "converters/passes/lay_out_bias_lanes.py: a lane neuron passes its threshold by a proven current, 65535 at most",
)
EMPTY_MATRICES = Limit(
    "empty layers",
    0,
    "matrices of zeros",
    "lava-dl 0.6.0, netx/utils.py, optimize_weight_bits: `scale = 255 / max_weight`, an OverflowError where that is 0",
)
LOST_WEIGHTS = Limit(
    "lost weights",
    0,
    "weights that change",
    "lava-dl 0.6.0, netx/utils.py, optimize_weight_bits: scales the least of only negative weights to -256, which "
    "lava-nc 0.10.0, utils/weightutils.py, clip_weights cuts to -255",
)

LIMITS = (
    PRODUCTS,
    NORMS,
    NEURON_RULES,
    ADDS,
    CONCATS,
    READERS,
    DEAD_ENDS,
    READOUTS,
    LANE_THRESHOLD,
    EMPTY_MATRICES,
    LOST_WEIGHTS,
)
