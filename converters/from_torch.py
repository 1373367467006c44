"""The only bridge between torch and the graph: reads the integers out of a model and names the nodes.

Nothing is folded, rounded or chosen here; `spikebert.quantisation` has done that. Node names are the names
under which the model's own trace gives their values.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from converters.graph import LIF, Add, Attention, Graph, GraphError, Node, Readout, Source, Synapses
from spikebert.commands import UserError
from spikebert.model import Block, SpikeBertForSequenceClassification, SpikingLinear


def load_integer_model(folder: Path) -> SpikeBertForSequenceClassification:
    """The integer model in `folder`, or in its `integer/` where `folder` is a run of spikebert-train.

    Raises UserError where there is none.
    """
    run = folder / "integer"
    home = run if (run / "config.json").is_file() else folder
    if not (home / "config.json").is_file():
        raise UserError(f"{folder}: no model there (no config.json, no integer/config.json): train one first")
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
def graph_from_model(model: SpikeBertForSequenceClassification) -> Graph:
    """The integer graph of a model in integer mode. Raises GraphError where it is not legal."""
    config = model.config
    if config.mode != "integer":
        raise GraphError("the model is in float mode: spikebert.quantise makes its integer twin")
    nodes: list[Node] = [_source(model)]
    x = "encoder"
    for block in model.blocks:
        block_nodes, x = _block(block, x, config.decay)
        nodes += block_nodes
    weight, bias = model.readout.integers()
    scale = 1.0 / float(model.readout.steps)
    nodes.append(Readout("readout", (x,), _integers(weight), _integers(bias), scale))
    return Graph(config.timesteps, config.max_position_embeddings, tuple(nodes))


def _source(model: SpikeBertForSequenceClassification) -> Source:
    config, encoder = model.config, model.encoder
    table = _integers(encoder.round_token(encoder.token.weight))
    position = None if encoder.position is None else _integers(encoder.round_position(encoder.position.weight))
    threshold = int(encoder.threshold) if config.encoder == "lif" else 0
    return Source("encoder", table, position, config.encoder, threshold, config.decay)


def _linear(layer: SpikingLinear, x: str, decay: int) -> list[Node]:
    weight, bias = layer.integers()
    return [
        Synapses(layer.name, (x,), _integers(weight), _integers(bias), layer.config.weight_bits),
        LIF(f"{layer.name}.lif", (layer.name,), int(layer.threshold), decay),
    ]


def _block(block: Block, x: str, decay: int) -> tuple[list[Node], str]:
    nodes: list[Node] = []
    for layer in (block.query, block.key, block.value):
        nodes += _linear(layer, x, decay)
    attention = block.attention
    qkv = tuple(f"{layer.name}.lif" for layer in (block.query, block.key, block.value))
    nodes.append(Attention(attention.name, qkv, attention.heads))
    nodes.append(LIF(f"{attention.name}.lif", (attention.name,), int(attention.threshold), decay))
    nodes += _linear(block.out, f"{attention.name}.lif", decay)
    attended = f"{block.name}.add_attention"
    nodes.append(Add(attended, (x, f"{block.out.name}.lif")))
    nodes += _linear(block.up, attended, decay)
    nodes += _linear(block.down, f"{block.up.name}.lif", decay)
    result = f"{block.name}.add_mlp"
    nodes.append(Add(result, (attended, f"{block.down.name}.lif")))
    return nodes, result


def _integers(x: Tensor) -> np.ndarray:
    """Floats that hold integers, as integers. Raises GraphError where one does not."""
    values = x.detach().cpu().numpy()
    rounded = values.astype(np.int64)
    if not np.array_equal(rounded, values):
        raise GraphError("a model value that should be an integer is not: this is a bug in spikebert.quantisation")
    return rounded
