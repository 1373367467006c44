"""The two files in a bundle's folder `netx/`: the network for lava-dl, and how it must be run.

network.net  HDF5, as `lava.lib.dl.netx.hdf5.Network` reads it
netx.json    what that file has no place for: resets, what each channel is, when each value exists
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from spikebert.commands import UserError
from targets.netx.chain import Chain, Layer

SCHEMA = 1
NETWORK_FILE = "network.net"
DESCRIPTION_FILE = "netx.json"
ROUND_TRIP = "round_trip"  # of netx.json: what the export compared
# netx adds 1 for Lava's clock, which begins at 1, and 1 for each layer before; the first layer's own step is left.
RESET_OFFSET = 1
CURRENT_FORGETS = 4096  # iDecay: netx passes `du = iDecay - 1`, so nothing is left of the current of the step before


def write_network(chain: Chain, path: Path) -> None:
    """Write the HDF5 file. Raises ModuleNotFoundError without h5py."""
    import h5py  # type: ignore[import-untyped]

    with h5py.File(path, "w") as file:
        entry = file.create_group("layer/0")
        entry["type"] = _text("input")
        entry["shape"] = np.array([chain.channels])
        for number, layer in enumerate(chain.layers, start=1):
            entry = file.create_group(f"layer/{number}")
            entry["type"] = _text("dense")
            entry["shape"] = np.array([len(layer.weight)])
            entry["inFeatures"], entry["outFeatures"] = layer.weight.shape[1], layer.weight.shape[0]
            entry["weight"] = layer.weight
            for key, value in _neuron(layer).items():
                entry[f"neuron/{key}"] = value


def _neuron(layer: Layer) -> dict[str, object]:
    """The fields of a neuron, as slayer writes them.

    A LIF is a CUBA neuron, of which netx makes Lava's LIFReset. The readout is a Sigma: it sums up what it gets and
    sends the sum at every step.
    """
    if layer.neuron is None:
        return {"type": _text("SDNN"), "sigma_output": True}
    return {
        "type": _text("CUBA"),
        "iDecay": CURRENT_FORGETS,
        "vDecay": layer.dv,
        "vThMant": layer.vth,
        "refDelay": 1,
        "gradedSpike": False,
    }


def _text(value: str) -> np.ndarray:
    return np.array([value.encode("ascii")])


def describe(chain: Chain) -> dict:
    """The content of netx.json, without what the export compared."""
    return {
        "schema": SCHEMA,
        "network": NETWORK_FILE,
        "timesteps": chain.timesteps,
        "reset_interval": chain.timesteps,
        "reset_offset": RESET_OFFSET,
        "depth_steps": chain.depth_steps,
        "drain_steps": chain.drain_steps,
        "input": {"channels": chain.channels, "valid_lanes": chain.channels - _source_features(chain)},
        "layers": [_describe_layer(layer) for layer in chain.layers],
        "output": "the sum over all steps so far of twice the readout's current",
    }


def _source_features(chain: Chain) -> int:
    return chain.laid.features[chain.laid.source.name]


def _describe_layer(layer: Layer) -> dict:
    return {
        "synapses": layer.synapses,
        "neuron": layer.neuron,
        "channels": len(layer.weight),
        "valid_lanes": len(layer.weight) - layer.features,
        "vth": layer.vth,
        "dv": layer.dv,
        "latency_steps": layer.latency_steps,
    }


def write_description(chain: Chain, round_trip: dict, folder: Path) -> None:
    """Write netx.json. `round_trip` tells what was compared."""
    text = json.dumps(describe(chain) | {ROUND_TRIP: round_trip}, indent=1) + "\n"
    (folder / DESCRIPTION_FILE).write_text(text, encoding="utf-8")


class DescriptionError(UserError):
    """A bundle's netx.json is not that of its graph."""


def require_description(chain: Chain, folder: Path) -> None:
    """Compare `folder/netx.json` with the graph's. Raises DescriptionError where they differ."""
    path = folder / DESCRIPTION_FILE
    stored = json.loads(path.read_text(encoding="utf-8"))
    computed = json.loads(json.dumps(describe(chain)))
    for field, value in computed.items():
        if stored.get(field) != value:
            raise DescriptionError(f"{path}: '{field}' differs from that of the graph; export the bundle again")
