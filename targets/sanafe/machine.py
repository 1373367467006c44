"""Loihi 1 as SANA-FE 2.2.9 is calibrated for it, and its description as SANA-FE reads it.

Every number is one of `sanafe/examples/loihi.yaml` of that package (a test holds them against it), but for what a core
holds, which stands in `CORE`. Cores, tiles and units have its names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from targets.loihi2.mapping.core_model import CoreModel

VERSION = "2.2.9"  # of sanafe
SOURCE = f"sanafe {VERSION}, examples/loihi.yaml"

# What a core of Loihi 1 holds. Neurons: nengo-loihi, block.py, MAX_COMPARTMENTS, and max_neurons_supported of
# loihi.yaml. Memory, of synapses alone: MAX_SYNAPSE_BITS, 2^20. Axons: MAX_IN_AXONS, MAX_OUT_AXONS. Cores of a chip:
# loihi.yaml. How synapses are stored is as `CoreModel` has it, which is Loihi 1's way.
CORE = CoreModel(
    neurons=1024,
    memory_bytes=2**20 // 8,
    axons_in=4096,
    axons_out=4096,
    cores=128,
    membrane_bytes=0,
    accumulator_bytes=0,
)
SOMA = "loihi_lif"
DENDRITE = "loihi_dendrites"
DENSE = "loihi_dense_synapse"
SPARSE = "loihi_sparse_synapse"
SYNC_NANOSECONDS: Mapping[int, float] = MappingProxyType({1: 600.0, 2: 1000.0, 4: 1400.0, 29: 1800.0})


@dataclass(frozen=True)
class Price:
    """Of one event: picojoules, and nanoseconds."""

    picojoules: float
    nanoseconds: float


@dataclass(frozen=True)
class Machine:
    """Prices of a core's events, and the mesh.

    access      a neuron is looked at, at every step
    update      its state changes
    spike       it fires
    dense       a message at a synapse of a layer
    sparse      a message at any other synapse
    message_out a message leaves a core
    message_in  a message arrives
    hop_x       from a tile to the next one, along a row of the mesh
    hop_y       along a column
    sync        tiles in use -> nanoseconds of the barrier that ends a step; the largest key that is not more counts

    cores_a_tile, tiles_wide, tiles_high of a chip; several chips stand side by side, as one mesh
    link_buffer                          messages that a link holds
    """

    access: Price = Price(51.2, 6.0)
    update: Price = Price(21.6, 3.7)
    spike: Price = Price(69.3, 30.0)
    dense: Price = Price(35.5, 3.8)
    sparse: Price = Price(33.6, 4.7)
    message_out: Price = Price(111.0, 5.1)
    message_in: Price = Price(0.0, 16.0)
    hop_x: Price = Price(3.0, 4.1)
    hop_y: Price = Price(4.2, 6.5)
    sync: Mapping[int, float] = field(default_factory=lambda: SYNC_NANOSECONDS)
    cores_a_tile: int = 4
    tiles_wide: int = 8
    tiles_high: int = 4
    link_buffer: int = 16

    @property
    def cores_a_chip(self) -> int:
        return self.cores_a_tile * self.tiles_wide * self.tiles_high

    def place(self, core: int) -> tuple[int, int]:
        """(column, row) of a core's tile. SANA-FE numbers tiles down each column (arch.cpp)."""
        return divmod(core // self.cores_a_tile, self.tiles_high)


def core_name(core: int, machine: Machine) -> str:
    """What SANA-FE calls a core in its traces."""
    tile, offset = divmod(core, machine.cores_a_tile)
    return f"loihi_tile[{tile}].loihi_core[{offset}]"


def architecture(chips: int, machine: Machine) -> str:
    """The description of so many chips, as SANA-FE's `load_arch` reads it: YAML, with the source of its numbers.

    Left out of loihi.yaml are neurons of input, which nothing here uses, dendrites with delays, and the unit
    loihi_conv_synapse.
    """

    def priced(names: str, price: Price) -> str:
        energy, latency = (f"{unit}_{names}" for unit in ("energy", "latency"))
        return f"{energy}: {price.picojoules}e-12, {latency}: {price.nanoseconds}e-9"

    hops = ", ".join(
        f"energy_{way}_hop: {price.picojoules}e-12, latency_{way}_hop: {price.nanoseconds}e-9"
        for way, price in (
            ("north", machine.hop_y),
            ("east", machine.hop_x),
            ("south", machine.hop_y),
            ("west", machine.hop_x),
        )
    )
    sync = ", ".join(f"{tiles}: {nanoseconds}e-9" for tiles, nanoseconds in machine.sync.items())
    soma = ", ".join(
        priced(name, price)
        for name, price in (
            ("access_neuron", machine.access),
            ("update_neuron", machine.update),
            ("spike_out", machine.spike),
        )
    )
    return f"""\
# Loihi (14 nm, 2018), {chips} chip{"" if chips == 1 else "s side by side as one mesh"}.
# Energies and latencies: {SOURCE}. Neurons of a core: the same.
architecture:
  name: loihi_chip
  attributes: {{topology: mesh, width: {machine.tiles_wide * chips}, height: {machine.tiles_high}, \
link_buffer_size: {machine.link_buffer}, sync_model: table, latency_sync: {{{sync}}}}}
  tile:
    - name: loihi_tile[0..{machine.tiles_wide * machine.tiles_high * chips - 1}]
      attributes: {{{hops}}}
      core:
        - name: loihi_core[0..{machine.cores_a_tile - 1}]
          attributes: {{buffer_position: soma, buffer_inside_unit: false, max_neurons_supported: {CORE.neurons}, \
log_energy: true}}
          axon_in:
            - name: loihi_in
              attributes: {{{priced("message_in", machine.message_in)}}}
          soma:
            - name: {SOMA}
              attributes: {{model: leaky_integrate_fire, {soma}}}
          dendrite:
            - name: {DENDRITE}
              attributes: {{model: accumulator, energy_update: 0.0, latency_update: 0.0}}
          synapse:
            - name: {DENSE}
              attributes: {{model: current_based, {priced("process_spike", machine.dense)}}}
            - name: {SPARSE}
              attributes: {{model: current_based, {priced("process_spike", machine.sparse)}}}
          axon_out:
            - name: loihi_out
              attributes: {{{priced("message_out", machine.message_out)}}}
"""
