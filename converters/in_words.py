"""The rules of a network for a person, as the model card and the report say them."""

from __future__ import annotations

from converters.graph import DECAY_BITS, LIF, Coincidence, Readout, Source


def rule_in_words(node: LIF | Source | Coincidence) -> str:
    """What its neurons do with a current, for a person."""
    if isinstance(node, Coincidence):
        return "sends 1 where two spikes meet"
    if isinstance(node, Source) and node.kind == "sign":
        return "sends 1 where the current is not below 0"
    sends = {"binary": "0 or 1", "graded": f"0 to {node.cap}", "ternary": "-1, 0 or 1"}[node.spike]
    often = " as often" if node.cap > 1 else ""
    after = {"zero": "is set to 0", "subtract": f"loses the threshold{often}"}[node.reset]
    return f"keeps {1 - node.dv / 2**DECAY_BITS:.4g} of its membrane, sends {sends}, then {after}"


def readout_in_words(node: Readout) -> str:
    """What its logits are, for a person."""
    if node.kind == "sum":
        return "the sum of the currents over timesteps and tokens"
    return f"a membrane that keeps {1 - node.dv / 2**DECAY_BITS:.4g} from one timestep to the next"
