"""The only bridge between torch and the graph: reads the integers out of a model and names the nodes.

Nothing is folded, rounded or chosen here; `spikebert.quantisation` has done that. Node names are the names
under which the model's own trace gives their values.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from converters.graph import LIF, Add, Attention, Graph, GraphError, Node, Norm, Readout, Source, Synapses
from converters.report.contents import Rounding
from spikebert.clipping import count_cut, scaled_weights
from spikebert.commands import UserError
from spikebert.config import SpikeBertConfig
from spikebert.layers import Encoder, SpikingAttention, SpikingLinear
from spikebert.model import SpikeBertForSequenceClassification
from spikebert.neurons import LoihiLIF
from spikebert.recording import Recording, RecordingError, Step, float_layers, record_one_token
from spikebert.spikes import Spikes


def load_integer_model(folder: Path) -> SpikeBertForSequenceClassification:
    """The integer model in `folder`, or in its `integer/` where `folder` is a run of spikebert-train.

    Raises UserError where there is none.
    """
    run = folder / "integer"
    home = run if (run / "config.json").is_file() else folder
    if not (home / "config.json").is_file():
        raise UserError(f"{folder}: no model there (no config.json, no integer/config.json): train one first")
    try:
        kind = json.loads((home / "config.json").read_bytes()).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{home / 'config.json'}: cannot be read: {error}") from None
    if kind != SpikeBertConfig.model_type:
        raise UserError(f"{home}: its config.json is that of a '{kind}', no SpikeBERT: give a run of spikebert-train")
    try:
        model, loading = SpikeBertForSequenceClassification.from_pretrained(home, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{home}: cannot be loaded as a SpikeBERT: {str(error).splitlines()[0]}") from None
    missing = sorted(loading["missing_keys"])
    if missing:  # transformers would fill them with random numbers
        raise UserError(f"{home}: {len(missing)} of the model's weights are not in its file, first '{missing[0]}'")
    if model.config.mode != "integer":
        raise UserError(f"{home}: the model is in float mode; quantise it first (the last stage of spikebert-train)")
    return model.eval()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model. Raises UserError where there is none."""
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder}: no tokenizer.json. Save the tokenizer there with save_pretrained")
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(f"{folder}: the tokenizer cannot be loaded: {str(error).splitlines()[0]}") from None


@torch.no_grad()
def graph_from_model(model: nn.Module) -> Graph:
    """The integer graph of any module of spiking layers in integer mode (`spikebert.record` says which).

    Nodes have the qualified names of the modules: `up` for the current of a SpikingLinear or a SpikingAttention,
    `up.norm` for a norm over features, `up.lif` for its spikes; an Encoder, a Readout and an Add have one node; a plain
    `+` is `add`, `add_2`, ...

    Raises GraphError for a module that is none, names every layer still in float mode, and where it is not legal.
    """
    try:
        recording = record_one_token(model)
    except RecordingError as error:
        raise GraphError(str(error)) from error
    if floats := float_layers(recording):
        raise GraphError(f"the model is in float mode ({_some(floats)}): spikebert.quantise makes its integer twin")
    spikes = {step.output: step.spikes for step in recording.steps}
    nodes = [node for step in recording.steps for node in _nodes(step, spikes)]
    return Graph(recording.encoder.timesteps, recording.encoder.n_max, (*nodes, _readout(recording, spikes)))


def _nodes(step: Step, spikes: dict[str, Spikes]) -> list[Node]:
    """The nodes of one use of a layer. `spikes`: those of every spiking node."""
    layer = step.layer
    if isinstance(layer, Encoder):
        return [_source(step.name, layer)]
    if isinstance(layer, SpikingLinear):
        return _linear(step, layer, spikes[step.inputs[0]])
    if isinstance(layer, SpikingAttention):
        position = layer.position_bias
        bias = None if position is None else _integers(position(position.n_max))
        current = Attention(step.name, step.inputs, layer.heads, layer.similarity, bias)
        return [current, _lif(step.output, step.name, layer.threshold, layer.lif)]
    return [Add(step.name, step.inputs)]


def _source(name: str, encoder: Encoder) -> Source:
    table = _integers(encoder.round_token(encoder.token.weight))
    position = None if encoder.position is None else _integers(encoder.round_position(encoder.position.weight))
    threshold = int(encoder.threshold) if encoder.kind == "lif" else 0
    code = None if encoder.code is None else _integers(encoder.code)
    lif = encoder.lif
    return Source(
        name, table, position, encoder.kind, threshold, lif.decay, code=code, reset=lif.resets_to, spike=lif.spike,
        cap=lif.cap,
    )  # fmt: skip


def _lif(name: str, current: str, threshold: int | np.ndarray, lif: LoihiLIF) -> LIF:
    return LIF(name, (current,), threshold, lif.decay, reset=lif.resets_to, spike=lif.spike, cap=lif.cap)


def _linear(step: Step, layer: SpikingLinear, x: Spikes) -> list[Node]:
    weight, bias = layer.integers(x.maximum, x.signed)
    nodes: list[Node] = [Synapses(step.name, step.inputs, _integers(weight), _integers(bias), layer.weight_bits)]
    if norm := layer.norm_integers():
        gamma, beta = _integers(norm.gamma), _integers(norm.beta)
        nodes.append(Norm(step.norm_name, (step.name,), gamma, beta, norm.eps, norm.kind))
    levels = _integers(layer.thresholds)
    threshold = levels if levels.ndim else int(levels)
    return [*nodes, _lif(step.output, nodes[-1].name, threshold, layer.lif)]


def _readout(recording: Recording, spikes: dict[str, Spikes]) -> Readout:
    layer, x = recording.readout, spikes[recording.readout_input]
    weight, bias = layer.integers(x.maximum, x.signed)
    arrays, scale = (_integers(weight), _integers(bias)), 1.0 / float(layer.steps)
    return Readout(recording.readout_name, (recording.readout_input,), *arrays, scale, layer.kind, layer.decay)


def _some(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def roundings(model: nn.Module, graph: Graph) -> dict[str, Rounding]:
    """What became of the model's weights when they were rounded to those of `graph`: node name -> scale and cuts."""
    found = {}
    for name, weight, units in scaled_weights(model):
        node = next((node for node in graph if node.name == name), None)
        integers = getattr(node, "weight", getattr(node, "table", None))
        if integers is not None and integers.shape == weight.shape:
            cut = count_cut(weight.cpu(), units, torch.tensor(integers), getattr(node, "weight_bits", 8))
            found[name] = Rounding(units, cut.values, cut.clipped, cut.shrunk)
    return found


def _integers(x: Tensor) -> np.ndarray:
    """Floats that hold integers, as integers. Raises GraphError where one does not."""
    values = x.detach().cpu().numpy()
    rounded = values.astype(np.int64)
    if not np.array_equal(rounded, values):
        raise GraphError("a model value that should be an integer is not: this is a bug in spikebert.quantisation")
    return rounded
