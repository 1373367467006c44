"""The limits of Loihi 2 that a graph must keep to: one table, each number with the place that says so.

`LIMITS` are about one node: what must hold for its neurons to be mapped to any core at all. `CORE_LIMITS` are about one
core or chip: `mapping/` spreads a network by them. Intel publishes few numbers of the chip, so each source says what
kind it is:

(Lava)     in the public code of lava-nc 0.10.0, below `lava/`, which is what a compiler for the chip takes
(Loihi 2)  published by Intel for Loihi 2
(Loihi 1)  published for the first chip only; that of Loihi 2 is not public
(unpublished) no public source was found for it
(ours) an assumption of this project, which says what it stands on

Units are those of Lava, in which weights, currents and thresholds are twice those of the graph. Numbers that Lava's
CPU models share are taken from their table, so that they stand once.
"""

from __future__ import annotations

from targets.lava import limits as lava
from targets.legality import Limit

TIMESTEPS = Limit(
    "timesteps",
    1,
    "odd factor of T",
    "(unpublished) that resets of the chip repeat every power of two of steps stands in no source we found; public "
    "networks that ran there reset every 16 (lava-dl, tutorials/lava/lib/dl/netx/pilotnet_snn/run.py) and every 32 "
    "steps",
)
ATTENTIONS = Limit(
    "attention processes",
    0,
    "processes of ours",
    "(Lava) targets/lava/processes/attention.py: SpikingAttention has a ProcessModel for a CPU only",
)
POSITION_BIASES = Limit(
    "position biases",
    0,
    "attentions with one",
    "(ours) converters/passes/expand_attention.py: a bias of two places has no stock neurons, a layer has one set of "
    "weights for all tokens",
)
NORMS = Limit(
    "norms",
    0,
    "processes of ours",
    "(Lava) targets/lava/processes/norm.py: TokenNorm has a ProcessModel for a CPU only; proc/graded/models.py: "
    "InvSqrt holds 24 bits, fewer than a sum of squares has",
)
NEURON_RULES = Limit(
    "neurons of another rule",
    0,
    "neurons of ours",
    "(Lava) proc/lif/process.py: LIF and LIFReset reset to 0 and send bits; targets/lava/processes/neuron.py: "
    "RuleNeuron has a ProcessModel for a CPU only. The chip runs microcode of a neuron, whose compiler is not public",
)
FAN_IN = Limit(
    "fan-in",
    4096,
    "neurons that one neuron reads",
    "(Loihi 1) nengo-loihi, block.py: MAX_IN_AXONS of a core, on which all synapses of a neuron lie",
)
MESSAGE_BITS = Limit(
    "message bits",
    23,
    "bits beside the sign",
    "(Lava) networks/gradedvecnetwork.py, OutputVec: messages of 24 bits, read as signed by `(x << 8) >> 8`; the "
    "technology brief has up to 32",
)
SYNAPTIC_MEMORY = Limit(
    "synaptic memory",
    192 * 1024,
    "bytes for one neuron",
    "(Loihi 2) Intel, Taking Neuromorphic Computing to the Next Level with Loihi 2, technology brief, 2021: 192 KB a "
    "neuron core, flexible allocation",
)
THRESHOLDS, DELAY, WEIGHT, CURRENT, RELAY_READERS = (
    lava.THRESHOLDS,
    lava.DELAY,
    lava.WEIGHT,
    lava.CURRENT,
    lava.RELAY_READERS,
)
THRESHOLD, DECAY, MEMBRANE = lava.THRESHOLD, lava.DECAY, lava.MEMBRANE

LIMITS = (
    TIMESTEPS,
    ATTENTIONS,
    POSITION_BIASES,
    NORMS,
    NEURON_RULES,
    THRESHOLDS,
    FAN_IN,
    DELAY,
    MESSAGE_BITS,
    WEIGHT,
    CURRENT,
    RELAY_READERS,
    SYNAPTIC_MEMORY,
    THRESHOLD,
    DECAY,
    MEMBRANE,
)

NEURONS = Limit(
    "neurons of a core",
    8192,
    "neurons",
    "(Loihi 2) technology brief, 2021: up to 1 million neurons a chip, 128 cores",
)
MEMORY = Limit(
    "memory of a core",
    192 * 1024,
    "bytes of synapses and of the state of neurons",
    "(Loihi 2) technology brief, 2021: 192 KB a neuron core, flexible allocation; so synapses and state share it",
)
AXONS_IN = Limit(
    "axons into a core",
    4096,
    "axons",
    "(Loihi 1) nengo-loihi, block.py: MAX_IN_AXONS",
)
AXONS_OUT = Limit(
    "axons out of a core",
    4096,
    "slots",
    "(Loihi 1) nengo-loihi, block.py: MAX_OUT_AXONS",
)
CORES = Limit(
    "cores of a chip",
    120,
    "cores",
    "(Lava) magma/compiler/subcompilers/constants.py: NUM_VIRTUAL_CORES_L3; NUM_VIRTUAL_CORES_L2 is 128",
)

# Of one core, then of one chip: what `mapping/` keeps to.
CORE_LIMITS = (NEURONS, MEMORY, AXONS_IN, AXONS_OUT, CORES)
