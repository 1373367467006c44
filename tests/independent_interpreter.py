"""A second interpreter, written from docs/bundle.md alone: it imports nothing of this project.

It reads the files of a bundle directly and is as plain as can be, one timestep after another, so that it shares no
shortcut with `sim.reference`.
"""

import json
import math
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

LIMIT = 2**23 - 1


def interpret(folder: Path, ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """ids, mask int64 [B, N] -> logits int64 [B, classes], and the values [T, B, N, D] of every node."""
    graph = json.loads((folder / "graph.json").read_text(encoding="utf-8"))
    assert graph["schema"] in (1, 2, 3, 4, 5, 6, 7)
    weights = load_file(folder / "weights.safetensors")
    if graph["schema"] >= 2:
        features = {node["name"]: node["features"] for node in graph["nodes"]}
        for node in graph["nodes"]:
            if node["op"] == "synapses" and node["weight_bits"] <= 4:
                packed, inputs = weights[f"{node['name']}.weight"], features[node["inputs"][0]]
                apart = eight_to_a_byte if node["weight_bits"] == 1 else two_to_a_byte
                weights[f"{node['name']}.weight"] = apart(packed, inputs)
    encoder = load_file(folder / "encoder.safetensors")
    membranes: dict[str, np.ndarray] = {}
    steps: list[dict[str, np.ndarray]] = []
    for t in range(graph["T"]):
        now: dict[str, np.ndarray] = {}
        for node in graph["nodes"]:
            inputs = [now[name] for name in node["inputs"]]
            now[node["name"]] = one_step(node, inputs, mask, ids, weights, encoder, membranes, graph["n_max"], t)
        steps.append(now)
    readout = next(node for node in graph["nodes"] if node["name"] == graph["output"])
    logits = np.zeros((len(ids), readout["classes"]), np.int64)
    for now in steps:
        arrived = now[graph["output"]].sum(axis=1)
        if readout.get("kind", "sum") == "membrane":
            kept = (np.abs(logits) * (4096 - readout["dv"])) >> 12
            logits, arrived = np.where(logits < 0, -kept, kept), 128 * arrived
        logits = logits + arrived
    return logits, {node["name"]: np.stack([now[node["name"]] for now in steps]) for node in graph["nodes"]}


def golden(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """The recorded ids, mask, logits, and spikes [T, B, N, D] of each node that has some."""
    graph = json.loads((folder / "graph.json").read_text(encoding="utf-8"))
    recorded = load_file(folder / "golden.safetensors")
    ids, mask = recorded["ids"], recorded["mask"]
    spikes = {}
    for node in graph["nodes"]:
        if node["op"] not in ("source", "lif"):
            continue
        if node.get("spike", "binary") != "binary":
            values = np.zeros((graph["T"], *ids.shape, node["features"]), np.int64)
            values[:, mask == 1] = recorded[f"spikes.{node['name']}"].reshape(graph["T"], -1, node["features"])
            spikes[node["name"]] = values
            continue
        bits = iter("".join(f"{byte:08b}" for byte in recorded[f"spikes.{node['name']}"]))
        values = np.zeros((graph["T"], *ids.shape, node["features"]), np.int64)
        for t, sample, token in np.ndindex(values.shape[:3]):
            if graph["schema"] == 1 or mask[sample, token] == 1:
                values[t, sample, token] = [int(next(bits)) for _ in range(node["features"])]
        assert set(bits) <= {"0"}
        spikes[node["name"]] = values
    return ids, mask, recorded["logits"], spikes


def eight_to_a_byte(packed: np.ndarray, inputs: int) -> np.ndarray:
    """uint8 [out, ceil(in / 8)] -> int64 [out, in] of -1 and 1"""
    assert packed.dtype == np.uint8 and packed.shape[1] == (inputs + 7) // 8
    weight = np.zeros((packed.shape[0], 8 * packed.shape[1]), np.int64)
    for row, place in np.ndindex(weight.shape):
        bit = int(packed[row, place // 8]) >> place % 8 & 1
        assert bit == 0 or place < inputs
        weight[row, place] = 1 if bit else -1
    return weight[:, :inputs]


def two_to_a_byte(packed: np.ndarray, inputs: int) -> np.ndarray:
    """uint8 [out, ceil(in / 2)] -> int64 [out, in]"""
    assert packed.dtype == np.uint8 and packed.shape[1] == (inputs + 1) // 2
    weight = np.zeros((packed.shape[0], inputs), np.int64)
    for row, j in np.ndindex(packed.shape):
        low, high = int(packed[row, j]) % 16, int(packed[row, j]) // 16
        for place, half in ((2 * j, low), (2 * j + 1, high)):
            if place == inputs:
                assert half == 0
                continue
            assert half != 8
            weight[row, place] = half if half < 8 else half - 16
    return weight


def one_step(node, inputs, mask, ids, weights, encoder, membranes, n_max, t) -> np.ndarray:
    """The value [B, N, D] of one node at timestep t."""
    name, op = node["name"], node["op"]
    valid = mask[:, :, None]
    if op == "source":
        current = encoder["table"].astype(np.int64)[ids]
        if "position" in encoder:
            current = current + encoder["position"].astype(np.int64)[None, : ids.shape[1]]
        if node["kind"] == "sign":
            spikes = valid * np.where(current >= 0, 1, 0)
        else:
            spikes = neuron(name, valid * current, node["threshold"], node, membranes)
        if "code" not in encoder:
            return spikes
        code = encoder["code"].astype(np.int64)[t, : ids.shape[1]]  # [N, P]
        return np.concatenate([spikes, valid * code], axis=2)
    if op == "lif":
        threshold = node["threshold"]
        if threshold is None:
            threshold = weights[f"{name}.threshold"].astype(np.int64)
        return neuron(name, inputs[0], threshold, node, membranes)
    if op == "norm":
        gamma, beta = (weights[f"{name}.{field}"].astype(np.int64) for field in ("gamma", "beta"))
        lane = inputs[1][:, :, :1] if len(inputs) > 1 else valid
        return norm(node, inputs[0], gamma, beta, lane)
    if op == "add":
        return sum(inputs[1:], inputs[0])
    if op == "attention":
        lane = inputs[3] if len(inputs) == 4 else valid
        bias = (
            weights[f"{name}.bias"].astype(np.int64) if node.get("bias_maps", 0) else np.zeros((1, n_max, n_max), int)
        )
        return lane * attention(*inputs[:3], node["heads"], node.get("similarity", "and"), bias)
    if op == "slice":
        return inputs[0][..., node["start"] : node["stop"]]
    if op == "concat":
        return np.concatenate(inputs, axis=-1)
    if op == "valid_lane":
        return valid * np.ones(node["lanes"], np.int64)
    if op == "relay":
        return inputs[0]
    if op in ("coincidence", "product"):
        return pairs(*inputs, n_max, node.get("heads"))
    weight, bias = weights[f"{name}.weight"].astype(np.int64), weights[f"{name}.bias"].astype(np.int64)
    return np.einsum("oi,bni->bno", weight, inputs[0]) + bias * valid


def pairs(first, second, n_max, heads) -> np.ndarray:
    """Coincidence (heads is None) and product: [B, N, n_max * D]; keys that are not in the batch give 0."""
    samples, tokens, width = second.shape
    out = np.zeros((samples, tokens, n_max * width), np.int64)
    for n, m, j in np.ndindex(tokens, tokens, width):
        left = first[:, n, j if heads is None else m * heads + j // (width // heads)]
        out[:, n, m * width + j] = left * second[:, m, j]
    return out


def neuron(name, a, threshold, node, membranes) -> np.ndarray:
    """Spikes [B, N, D]; the membrane of the node is kept in `membranes`."""
    v = membranes.get(name, np.zeros_like(a))
    kept = (np.abs(v) * (4096 - node["dv"])) >> 12
    v = np.where(v < 0, -kept, kept) + a * 2 ** node["shift"]
    v = np.minimum(np.maximum(v, -LIMIT), LIMIT)
    level = threshold * 2 ** node["shift"]
    spikes = sum(np.where(v > j * level, 1, 0) for j in range(1, node.get("cap", 1) + 1))
    if node.get("spike") == "ternary":
        spikes = spikes - np.where(v < -level, 1, 0)
    soft = node.get("reset") == "subtract"
    membranes[name] = v - spikes * level if soft else v * (spikes == 0)
    return spikes


def norm(node, a, gamma, beta, lane) -> np.ndarray:
    """[B, N, D], token by token in Python's integers."""
    out = np.zeros_like(a)
    for sample, token in np.ndindex(a.shape[:2]):
        values = [int(value) for value in a[sample, token]]
        width, total = len(values), sum(values) if node["kind"] == "layer" else 0
        spread = width * sum(value**2 for value in values) - total**2 + node["eps"]
        doublings = next(h for h in range(31) if 2**60 <= spread * 4**h < 2**62)
        reciprocal = 2**54 // math.isqrt(spread * 4**doublings)
        for j, value in enumerate(values):
            z = (width * value - total) * 2**doublings * reciprocal // 2**30
            y = (int(gamma[j]) * z + 2**31) // 2**32
            out[sample, token, j] = y + int(beta[j]) * int(lane[sample, token, 0])
    return out


def attention(q, k, v, heads, similarity, bias) -> np.ndarray:
    """[B, N, D] three times -> [B, N, D], padding not yet left out."""
    out = np.zeros_like(q)
    width = q.shape[-1] // heads
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        both = q[:, :, None, part], k[:, None, :, part]
        alike = both[0] == both[1] if similarity == "xnor" else both[0] * both[1]
        scores = alike.sum(axis=-1) + bias[head % len(bias), : q.shape[1], : q.shape[1]]
        out[..., part] = np.einsum("bnp,bpj->bnj", scores, v[..., part])
    return out
