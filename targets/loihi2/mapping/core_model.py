"""What a core of Loihi 2 holds, and what is assumed of it where Intel has published nothing."""

from __future__ import annotations

from dataclasses import dataclass

from targets.loihi2 import limits

RESOURCES = ("neurons", "memory", "axons in", "axons out")  # in the order of `Use.amounts`


@dataclass(frozen=True)
class CoreModel:
    """The limits of a core (`targets/loihi2/limits.py`, with their sources), and how its memory is counted.

    neurons, memory_bytes, axons_in, axons_out of a core; cores of a chip
    fan_in, delay of a neuron and of a connection, as a graph's rules have them

    How synapses are stored, that of Loihi 1 as nengo-loihi's block.py tells it (`bits_per_axon`), for that of Loihi 2
    is not public. Weights lie in lists; a list is cut into blocks of `block_weights`, each with a head of
    `block_head_bits`, and rounded up to `word_bits`.

    delay_bits       more for each weight of a connection with delays
    index_bits       more for each weight where zeros are left out: which of the core's neurons it leads to
    channels_an_axon (Loihi 1, atom bits) so many channels of a token share one axon where weights are shared
    shared_slots     (Loihi 1, pop32) slots of axons out that such an axon takes; others take one

    (ours) What a neuron takes beside its synapses. Both values of a LIF have 24 bits, so 4 bytes each:

    membrane_bytes    of a membrane
    accumulator_bytes of the sum of what arrives, once for this step and once more for each step of delay
    """

    neurons: int = limits.NEURONS.value
    memory_bytes: int = limits.MEMORY.value
    axons_in: int = limits.AXONS_IN.value
    axons_out: int = limits.AXONS_OUT.value
    cores: int = limits.CORES.value
    fan_in: int = limits.FAN_IN.value
    delay: int = limits.DELAY.value
    block_weights: int = 64
    block_head_bits: int = 10
    word_bits: int = 64
    delay_bits: int = 6
    index_bits: int = 13
    channels_an_axon: int = 512
    shared_slots: int = 2
    membrane_bytes: int = 4
    accumulator_bytes: int = 4

    @property
    def capacity(self) -> tuple[int, int, int, int]:
        """Of a core, in the order of RESOURCES; memory in bytes."""
        return self.neurons, self.memory_bytes, self.axons_in, self.axons_out

    def neuron_bytes(self, delay_steps: int) -> int:
        """State of a neuron whose inputs may be delayed by `delay_steps`."""
        return self.membrane_bytes + self.accumulator_bytes * (1 + delay_steps)
