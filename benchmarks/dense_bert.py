"""The rival: an ordinary BERT, in PyTorch and in ONNX Runtime, in float32 and in dynamic int8.

The ONNX model is put together here from ONNX Runtime's own fused nodes (its whole attention is one), as its optimiser
for transformers would make it of an exported model. That optimiser does not recognise the attention of today's
transformers, so an exported model would be slower, the more so the smaller the batch. Tests compare it with PyTorch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers import BertConfig, BertForSequenceClassification

from converters.execution import TokenBatch
from spikebert.commands import processors

FUSED = "com.microsoft"  # the domain of ONNX Runtime's own nodes
OPSET, IR_VERSION = 17, 8

Classify = Callable[[TokenBatch], np.ndarray]  # logits [B, classes]


def random_bert(
    layers: int, hidden: int, heads: int, intermediate: int, vocabulary: int, n_max: int, classes: int
) -> BertForSequenceClassification:
    """A BERT of this size with random weights, in evaluation."""
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=n_max,
        num_labels=classes,
    )
    return BertForSequenceClassification(config).eval()


def onnx_classifier(model: BertForSequenceClassification, int8: bool) -> Classify:
    """The model in ONNX Runtime on all cores; with `int8` every product with weights is made in integers.

    Weights are signed (with unsigned ones a processor without VNNI takes a slower path), a scale for each column.
    They keep 8 bits: fewer would only help accuracy, which is not measured here.
    """
    proto = to_onnx(model)
    if int8:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "int8.onnx"
            quantize_dynamic(
                proto,
                path,
                op_types_to_quantize=["MatMul", "Attention"],
                per_channel=True,
                weight_type=QuantType.QInt8,
                extra_options={"DefaultTensorType": TensorProto.FLOAT},  # it knows no shapes of fused nodes
            )
            proto = onnx.load(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = processors()
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def classify(batch: TokenBatch) -> np.ndarray:
        feed = {"input_ids": batch.ids.astype(np.int32), "attention_mask": batch.mask.astype(np.int32)}
        logits: np.ndarray = session.run(None, feed)[0]
        return logits

    return classify


def to_onnx(model: BertForSequenceClassification) -> onnx.ModelProto:
    """The classifier as an ONNX model: input_ids and attention_mask int32 [B, N] -> logits [B, classes]."""
    if model.config.model_type != "bert" or model.config.hidden_act != "gelu":
        raise ValueError(f"only a BERT with gelu can be put together, not {model.config.model_type}")
    builder = _Builder(model)
    x = builder.embeddings()
    for index in range(model.config.num_hidden_layers):
        x = builder.block(x, f"bert.encoder.layer.{index}")
    first = builder.node("Gather", [x, builder.constant("first", np.array(0))], axis=1)
    pooled = builder.node("Tanh", [builder.linear(first, "bert.pooler.dense")])
    builder.linear(pooled, "classifier", output="logits")
    return builder.model()


class _Builder:
    """Adds nodes to a list, and the weights they use."""

    def __init__(self, model: BertForSequenceClassification) -> None:
        self.config = model.config
        self.state = {name: tensor.detach().float().numpy() for name, tensor in model.state_dict().items()}
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def embeddings(self) -> str:
        """Token, position and (everywhere the first) segment, added and normed."""
        name = "bert.embeddings"
        places = (
            self.state[f"{name}.position_embeddings.weight"] + self.state[f"{name}.token_type_embeddings.weight"][0]
        )
        tables = [self.weight(f"{name}.word_embeddings.weight"), self.constant("places", places)]
        inputs = ["input_ids", "", *tables, "", *self.norm(f"{name}.LayerNorm")]
        return self.node("EmbedLayerNormalization", inputs, unused=1, domain=FUSED, epsilon=self.config.layer_norm_eps)

    def block(self, x: str, name: str) -> str:
        parts = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
        weight = self.constant(f"{name}.qkv", np.concatenate([self.state[f"{part}.weight"] for part in parts]).T)
        bias = self.constant(f"{name}.qkv_bias", np.concatenate([self.state[f"{part}.bias"] for part in parts]))
        heads = self.config.num_attention_heads
        mixed = self.node("Attention", [x, weight, bias, "attention_mask"], domain=FUSED, num_heads=heads)
        x = self.add_and_norm(x, mixed, f"{name}.attention.output")
        wide = self.product(x, f"{name}.intermediate.dense")
        wide = self.node("BiasGelu", [wide, self.weight(f"{name}.intermediate.dense.bias")], domain=FUSED)
        return self.add_and_norm(x, wide, f"{name}.output")

    def add_and_norm(self, x: str, y: str, name: str) -> str:
        inputs = [
            self.product(y, f"{name}.dense"),
            x,
            *self.norm(f"{name}.LayerNorm"),
            self.weight(f"{name}.dense.bias"),
        ]
        return self.node("SkipLayerNormalization", inputs, domain=FUSED, epsilon=self.config.layer_norm_eps)

    def norm(self, name: str) -> list[str]:
        return [self.weight(f"{name}.weight"), self.weight(f"{name}.bias")]

    def linear(self, x: str, name: str, output: str = "") -> str:
        return self.node("Add", [self.product(x, name), self.weight(f"{name}.bias")], output=output)

    def product(self, x: str, name: str) -> str:
        return self.node("MatMul", [x, self.constant(name, self.state[f"{name}.weight"].T)])

    def weight(self, name: str) -> str:
        return self.constant(name, self.state[name])

    def constant(self, name: str, value: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def node(
        self, kind: str, inputs: list[str], output: str = "", unused: int = 0, domain: str = "", **attributes: object
    ) -> str:
        """Add a node; the name of its first output. `unused` outputs follow that nobody reads."""
        output = output or f"{kind}_{len(self.nodes)}"
        outputs = [output, *(f"{output}_unused_{index}" for index in range(unused))]
        self.nodes.append(helper.make_node(kind, inputs, outputs, domain=domain, **attributes))
        return output

    def model(self) -> onnx.ModelProto:
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", "tokens"])
            for name in ("input_ids", "attention_mask")
        ]
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", self.config.num_labels])
        graph = helper.make_graph(self.nodes, "bert", inputs, [logits], self.weights)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(FUSED, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def torch_classifier(model: torch.nn.Module) -> Classify:
    """A PyTorch model in evaluation, without gradients."""
    model.eval()

    @torch.inference_mode()
    def classify(batch: TokenBatch) -> np.ndarray:
        logits: np.ndarray = model(
            input_ids=torch.from_numpy(batch.ids), attention_mask=torch.from_numpy(batch.mask)
        ).logits.numpy()
        return logits

    return classify
