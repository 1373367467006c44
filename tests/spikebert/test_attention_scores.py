"""Attention by equal features, and with a bias for positions: float = integer = the equation = the graph."""

from __future__ import annotations

import pytest
import torch
from attention_helpers import attend, draw_spikes, gradients, lengths_to_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import small_batch, small_config, small_model

from converters.execution import TokenBatch
from converters.from_torch import graph_from_model
from converters.graph import Attention
from converters.torch_engine import TorchEngine
from sim.reference import ReferenceEngine
from sim.verify import compare
from spikebert import layers
from spikebert.config import POSITIONS, SpikeBertConfig, attention_threshold_for
from spikebert.exact_product import Capabilities, exact_matmul
from spikebert.layers import SpikingAttention
from spikebert.model import SpikeBertForSequenceClassification
from spikebert.packing import Packing
from spikebert.positions import KINDS, LEARNED, PositionBias
from spikebert.quantisation import quantise
from spikebert.spikes import SpikeOperationError


def definition(
    values: list[torch.Tensor], packing: Packing, heads: int, xnor: bool, bias: torch.Tensor
) -> torch.Tensor:
    """int64 [T, B, N, D]: the graph's own equation, padded. bias [1 or H, n_max, n_max]"""
    mask = packing.mask.long()
    q, k, v = (packing.unpack(x.detach()).long().unflatten(-1, (heads, -1)) for x in values)
    alike = q[:, :, :, None] == k[:, :, None] if xnor else q[:, :, :, None] * k[:, :, None]  # [T, B, N, N, H, d]
    tokens = mask.shape[1]
    scores = alike.long().sum(-1) + bias.long()[:, :tokens, :tokens].permute(1, 2, 0)
    mixed = torch.einsum("tbijh,tbjhd->tbihd", scores, v).flatten(-2)
    return mixed * mask[..., None]


def make_attention(similarity: str, kind: str, heads: int, size: int, n_max: int) -> SpikingAttention:
    bias = None if kind == "none" else PositionBias(kind, n_max, heads, size)
    if bias is not None and bias.weight is not None:
        torch.nn.init.uniform_(bias.weight, -1.3, 1.3, generator=torch.Generator().manual_seed(1))
    return SpikingAttention(heads, size, similarity=similarity, position_bias=bias)


def bias_of(attention: SpikingAttention, n_max: int) -> torch.Tensor:
    if attention.position_bias is None:
        return torch.zeros(1, n_max, n_max)
    return attention.position_bias(n_max).detach()


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 11), min_size=1, max_size=20),
    heads=st.sampled_from([1, 2, 3]),
    size=st.sampled_from([1, 3, 8, 20]),
    steps=st.integers(1, 3),
    similarity=st.sampled_from(["and", "xnor"]),
    kind=st.sampled_from(POSITIONS),
    integer=st.booleans(),
    mixed=st.booleans(),
    rate=st.sampled_from([0.0, 0.3, 1.1]),
)
def test_it_is_what_the_equation_says(lengths, heads, size, steps, similarity, kind, integer, mixed, rate) -> None:
    attention = make_attention(similarity, kind, heads, size, n_max=11)
    attention.integer = attention.lif.integer = integer
    values, packing = draw_spikes(lengths_to_mask(lengths), heads * size, steps, rate)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        spikes = attend(attention, values, packing)
    expected = packing.pack(definition(values, packing, heads, similarity == "xnor", bias_of(attention, 11)))
    if integer or not mixed or kind != "none":
        assert torch.equal(spikes.current.long(), expected)
    assert torch.equal(spikes.values, attention.lif(expected.double(), attention.threshold).float())


@pytest.mark.parametrize("similarity", ["and", "xnor"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_equation(similarity: str, kind: str) -> None:
    attention = make_attention(similarity, kind, heads=2, size=3, n_max=7)
    values, packing = draw_spikes(lengths_to_mask([7, 2, 5]), 6, steps=2, rate=0.4)
    spikes = attend(attention, values, packing)
    found = gradients(spikes, values)

    q, k, v = (packing.unpack(x).unflatten(-1, (2, -1)).transpose(2, 3) for x in values)  # [T, B, H, N, d]
    scores = q @ k.transpose(-1, -2) + ((1 - q) @ (1 - k).transpose(-1, -2) if similarity == "xnor" else 0)
    current = ((scores + attention.position_bias(7)) @ v).transpose(2, 3).flatten(-2)
    plain = attention.lif(packing.pack(current), attention.threshold)
    assert torch.equal(plain, spikes.values)
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(plain.shape, generator=generator)
    for ours, its in zip(found, torch.autograd.grad((plain * weights).sum(), values)):
        torch.testing.assert_close(ours, its)


@pytest.mark.parametrize("similarity", ["and", "xnor"])
@pytest.mark.parametrize("kind", POSITIONS)
@pytest.mark.parametrize(("tokens", "size"), [(6, 4), (300, 4), (6, 200), (6, 300)])
def test_integer_attention_of_a_gpu(monkeypatch, similarity: str, kind: str, tokens: int, size: int) -> None:
    """The type of each product holds its factors, those of a bias below 0 too; types are emulated here."""
    chosen = []

    def emulated(a: torch.Tensor, b: torch.Tensor, kind: str, gradients: torch.dtype | None) -> torch.Tensor:
        chosen.append(kind)
        limit = {"bf16": 256, "tf32": 2048, "float32": 2**24}[kind]
        assert max(a.abs().max(), b.abs().max()) <= limit
        return exact_matmul(a, b, "float32", gradients)

    monkeypatch.setattr(layers, "capabilities", lambda device, batched: Capabilities(bf16=True, tf32=True))
    monkeypatch.setattr(layers, "exact_matmul", emulated)
    attention = make_attention(similarity, kind, 1, size, n_max=tokens)
    attention.use_integers(8)
    values, packing = draw_spikes(torch.ones(1, tokens), size, steps=1, rate=0.9)
    spikes = attend(attention, values, packing)
    bias = bias_of(attention, tokens)
    assert torch.equal(spikes.current.long(), packing.pack(definition(values, packing, 1, similarity == "xnor", bias)))
    largest = max(tokens, size) if attention.position_bias is None else size + attention.position_bias.most
    assert chosen[0] == "bf16" and ("tf32" in chosen) == (largest > 256)


@pytest.mark.parametrize("kind", POSITIONS)
def test_a_batch_of_no_texts(kind: str) -> None:
    attention = make_attention("xnor", kind, heads=2, size=4, n_max=3)
    values, packing = draw_spikes(torch.ones(0, 1), 8, steps=2, rate=0.5)
    assert attend(attention, values, packing).values.shape == (2, 0, 8)


def test_a_text_longer_than_the_bias_is_refused() -> None:
    attention = make_attention("and", "log", 1, 2, n_max=3)
    values, packing = draw_spikes(torch.ones(1, 4), 2, 1, 0.5)
    with pytest.raises(SpikeOperationError, match="4 tokens, the position bias is for 3"):
        attend(attention, values, packing)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="similarity is 'nand'"):
        SpikingAttention(1, similarity="nand")
    with pytest.raises(ValueError, match="2 heads, the position bias is for 1"):
        SpikingAttention(2, position_bias=PositionBias("log", 4, 1, 2))


OPTIONS = [
    {"attention_similarity": similarity, "attention_position": position}
    for similarity in ("and", "xnor")
    for position in POSITIONS
]


def learned(model: SpikeBertForSequenceClassification) -> SpikeBertForSequenceClassification:
    """With a learned bias that is not 0; "neighbours" has one."""
    for module in model.modules():
        if isinstance(module, PositionBias) and module.kind == "learned" and module.weight is not None:
            torch.nn.init.uniform_(module.weight, -1.3, 1.3)
    return model


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options.values()))
@pytest.mark.parametrize("decay", [410, 2048])
def test_model_and_graph_are_one(options: dict, decay: int) -> None:
    threshold = 16 if options["attention_similarity"] == "xnor" else 0
    model = quantise(learned(small_model(decay=decay, attention_threshold=threshold, **options)))
    graph, inputs = graph_from_model(model), small_batch()
    batch = TokenBatch(inputs["input_ids"].numpy(), inputs["attention_mask"].numpy())
    names = [node.name for node in graph]
    done = TorchEngine(graph, model).run(batch, names)
    comparison = compare(graph, done, ReferenceEngine(graph).run(batch, names))
    assert comparison.mismatches == 0, comparison.first_mismatch
    node = graph["blocks.0.attention"]
    assert isinstance(node, Attention) and node.similarity == options["attention_similarity"]
    assert (node.bias is None) == (options["attention_position"] == "none")
    rates = [done.values[f"blocks.{i}.attention.lif"][:, batch.mask == 1].mean() for i in range(2)]
    assert min(rates) > 0 and max(rates) < 1


def test_a_bias_that_is_left_out_is_found() -> None:
    model = quantise(learned(small_model(attention_position="learned")))
    graph, inputs = graph_from_model(model), small_batch()
    batch = TokenBatch(inputs["input_ids"].numpy(), inputs["attention_mask"].numpy())
    with torch.no_grad():
        model.blocks[1].attention.position_bias.weight.zero_()
    done = TorchEngine(graph, model).run(batch, ["blocks.1.attention"])
    comparison = compare(graph, done, ReferenceEngine(graph).run(batch, ["blocks.1.attention"]))
    assert comparison.first_mismatch is not None and comparison.first_mismatch.node == "blocks.1.attention"


@pytest.mark.parametrize("options", OPTIONS[1:], ids=lambda options: " ".join(options.values()))
def test_padding_changes_nothing(options: dict) -> None:
    """Texts alone, in a batch, and with padding on the left."""
    model = quantise(learned(small_model(**options)))
    batch = small_batch(texts=20)
    left = {name: value.flip(1) for name, value in batch.items()}
    turned = {name: value.clone() for name, value in batch.items()}
    for row, length in enumerate(batch["attention_mask"].sum(1)):
        turned["input_ids"][row, :length] = batch["input_ids"][row, :length].flip(0)
    with torch.no_grad():
        together, flipped = model(**turned), model(**left)
        assert torch.equal(together.integer_logits, flipped.integer_logits)
        for text in range(0, 20, 7):
            length = int(batch["attention_mask"][text].sum())
            alone = model(**{name: value[text : text + 1, :length] for name, value in turned.items()})
            assert torch.equal(alone.integer_logits[0], together.integer_logits[text])


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options.values()))
def test_a_model_is_saved_and_read(options: dict, tmp_path) -> None:
    model = learned(small_model(**options))
    model.save_pretrained(tmp_path)
    again = SpikeBertForSequenceClassification.from_pretrained(tmp_path).eval()
    assert again.config.attention_position == options["attention_position"]
    with torch.no_grad():
        assert torch.equal(again(**small_batch()).logits, model(**small_batch()).logits)


def test_the_default_is_as_it_was() -> None:
    config = SpikeBertConfig()
    assert (config.attention_threshold, config.attention_similarity, config.attention_position) == (16, "and", "none")
    assert not any("position_bias" in name for name in small_model().state_dict())


def test_a_threshold_that_is_not_given_goes_with_the_similarity(tmp_path) -> None:
    config = SpikeBertConfig(hidden_size=96, num_attention_heads=2, attention_similarity="xnor")
    assert config.attention_threshold == attention_threshold_for("xnor", 48, "none", 64) == 6 * 48
    assert SpikeBertConfig(attention_position="gray").attention_threshold == 16 + 6 * 3
    assert SpikeBertConfig(attention_position="learned").attention_threshold == 16
    large = SpikeBertConfig(
        hidden_size=32767, num_attention_heads=1, max_position_embeddings=2, attention_similarity="xnor"
    )
    assert large.attention_threshold == 65535
    assert SpikeBertConfig(attention_threshold=3, attention_similarity="xnor").attention_threshold == 3
    SpikeBertConfig(attention_threshold=16, attention_similarity="xnor").save_pretrained(tmp_path)
    assert SpikeBertConfig.from_pretrained(tmp_path).attention_threshold == 16, "the default of another similarity"
    assert SpikeBertConfig(**config.to_dict()).attention_threshold == config.attention_threshold


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_similarity": "nand"}, "attention_similarity is 'nand', it must be one of"),
        ({"attention_position": "rotary"}, "attention_position is 'rotary', it must be one of"),
        ({"max_position_embeddings": 8191, "attention_position": "learned"}, "attention may count to 73719"),
        ({"max_position_embeddings": 5000, "attention_position": "log"}, "attention may count to 105000"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_config(**changes)
    small_config(max_position_embeddings=8191)  # with scores alone it fits


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options.values()))
def test_a_new_model_can_be_trained(options: dict) -> None:
    """On random texts of 5 .. 32 tokens its attention neither is silent nor fires always, and all of it learns."""
    torch.manual_seed(0)
    config = SpikeBertConfig(
        vocab_size=500,
        hidden_size=96,
        num_attention_heads=2,
        intermediate_size=96,
        max_position_embeddings=32,
        **options,
    )
    model = SpikeBertForSequenceClassification(config).train()
    batch = small_batch(texts=16, tokens=32, vocabulary=500)
    output = model(**batch, labels=torch.arange(16) % 2, output_firing_rates=True)
    rates = [float(output.firing_rates[f"blocks.{i}.attention.lif"]) for i in range(2)]
    assert min(rates) > 0.02 and max(rates) < 0.8
    output.loss.backward()
    attention = model.blocks[0].attention
    parameters = [model.blocks[0].query.linear.weight, model.blocks[0].key.linear.weight, *attention.parameters()]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in parameters)
    assert len(parameters) == 2 + (options["attention_position"] in LEARNED)
