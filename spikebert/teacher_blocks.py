"""A student that begins as its teacher: layer by layer it is fitted to what the teacher computes in that place.

A dense block and a spiking one have the same six layers (query, key, value, out, up, down) and two residuals, but
weights cannot be copied: spikes are counts 0 .. cap, no negative numbers, and there is no softmax and no LayerNorm. So
each layer is given, in order, the linear map that fits best by least squares, over some thousand tokens of text, from
the spikes that the student has there, errors of the layers before it included:

    encoder            a token's row: its embedding in the teacher; so with places. In the middle of the spikes' range
    query, key         the teacher's; a neuron fires where it is `FIRES_ABOVE` deviations above its mean
    value              the teacher's, what is above its mean: attention adds values up, weighed by matches
    out, down          what the residual lacks of the teacher's state behind its attention, and behind its layer
    up                 the teacher's; neurons cut off below 0, as GELU nearly does

A block that stands for several of the teacher's layers (`layer_map`) takes attention from the first and the MLP from
the last of them. A student narrower than its teacher has as many of its heads and inner features as it has room for,
and of its states the directions of most variance. That students begin with a part of their teacher's layers is
DistilBERT's way (Sanh et al. 2019, arXiv 1910.01108); what is fitted here, it copies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig

from spikebert.commands import UserError
from spikebert.config import SpikeBertConfig
from spikebert.distillation import Alignment, main_directions
from spikebert.layers import Block, Encoder, SpikingLinear
from spikebert.least_squares import fit_alignment, fit_linear, set_norm, with_ones
from spikebert.model import SpikeBertForSequenceClassification
from spikebert.packing import Packing
from spikebert.spikes import Spikes
from spikebert.teacher_outputs import ask_teacher

FIT_TOKENS = 20_000  # of text, at least, that layers are fitted to
FIT_TEXTS = 4_000  # of a task, at most, that a readout is fitted to
FIRES_ABOVE = 0.5  # deviations that a query or a key is above its mean to fire
ROUNDS = 0.5  # thresholds added to a current: a neuron counts those that it is above, and so rounds to the nearest
LEAST_SCALE = 0.75  # see `what_is_missing`

Batches = Sequence[tuple[Tensor, Tensor]]  # ids and mask [B, N] each


class TeacherLayer(NamedTuple):
    """Where a layer of a teacher computes; out and down are never asked."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    out: nn.Linear
    up: nn.Linear
    down: nn.Linear


class Currents(NamedTuple):
    """What a teacher's layers compute for R tokens: float [R, D] each, inner [R, D_inner].

    attended  the state behind attention, its residual and its norm
    state     the state behind the last layer
    """

    query: Tensor
    key: Tensor
    value: Tensor
    attended: Tensor
    inner: Tensor
    state: Tensor


def teacher_layers(teacher: nn.Module) -> list[TeacherLayer]:
    """Of any encoder whose layers are six `Linear`s each, in this order: BERT, RoBERTa, MPNet, DistilBERT, ...

    Raises UserError for another one.
    """
    config = teacher.config
    width = config.hidden_size
    for stack in teacher.modules():
        if isinstance(stack, nn.ModuleList) and len(stack) == config.num_hidden_layers:
            found = [_linears(layer) for layer in stack]
            if all(_are_six(linears, width) for linears in found):
                return [TeacherLayer(*linears.values()) for linears in found]
    raise UserError(
        f"student.blocks_from_teacher: a '{config.model_type}' does not have layers of query, key, value, out, up and "
        "down: train without it"
    )


def _linears(layer: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}


def _are_six(linears: dict[str, nn.Linear], width: int) -> bool:
    """Whether they may be query, key, value, out, up and down: by shape, and the first three by their names."""
    if len(linears) != len(TeacherLayer._fields):
        return False
    *square, up, down = linears.values()
    begins = [name.rsplit(".", 1)[-1][0] for name in linears]
    return (
        begins[:3] == ["q", "k", "v"]
        and all((x.in_features, x.out_features) == (width, width) for x in square)
        and up.in_features == down.out_features == width
    )


def check_blocks(student: SpikeBertConfig, teacher: PretrainedConfig) -> None:
    """Raises UserError for a student that cannot begin as this teacher."""
    wrong = []
    if student.norm != "batch":
        wrong.append(f"norm is '{student.norm}': only 'batch' can be told what to expect")
    if student.encoder != "lif" or student.position_spikes:
        wrong.append("its encoder must be 'lif', without position_spikes")
    if student.spike == "ternary":
        wrong.append("spike is 'ternary': it must be binary or graded")
    if student.num_hidden_layers > teacher.num_hidden_layers:
        wrong.append(f"{student.num_hidden_layers} layers, the teacher has {teacher.num_hidden_layers}")
    with torch.device("meta"):
        (_, *_, up, _), *_ = teacher_layers(AutoModel.from_config(teacher))
    sizes = {
        "hidden_size": (student.hidden_size, teacher.hidden_size),
        "heads": (student.num_attention_heads, teacher.num_attention_heads),
        "intermediate_size": (student.intermediate_size, up.out_features),
    }
    wrong += [f"{name} is {own}, the teacher's {its}" for name, (own, its) in sizes.items() if own > its]
    own, its = (config.hidden_size // config.num_attention_heads for config in (student, teacher))
    if own != its:
        wrong.append(f"a head has {own} features, of the teacher {its}: choose heads so that they are as many")
    if wrong:
        raise UserError("student.blocks_from_teacher: " + "; ".join(wrong))


@torch.no_grad()
def begin_as_teacher(
    student: SpikeBertForSequenceClassification, alignment: Alignment, teacher: nn.Module, batches: Batches, seed: int
) -> list[float]:
    """Fit a new student and its alignment to the teacher, with these texts. Both are on one device, in float32.

    Returns of the encoder and of each block how much of the variance of the teacher's state a linear map finds in the
    student's, over these tokens.
    """
    was_training = student.training
    student.eval()
    layers, packings = teacher_layers(teacher), [Packing(mask) for _, mask in batches]
    of_state = alignment.teacher_state
    states = states_of(teacher, batches, packings, sorted(set(of_state)))
    width = student.config.hidden_size
    directions = None
    if width < teacher.config.hidden_size:
        directions = main_directions(torch.cat(list(states.values())), width, seed).to(states[0])
    fit_encoder(student.encoder, teacher, states[0], directions, seed)
    spikes = [student.encoder(ids, mask) for ids, mask in batches]
    explained = [share_found(flat(spikes), states[0])]
    for block, first, behind in zip(student.blocks, of_state, of_state[1:]):
        currents = currents_of(teacher, layers[first], layers[behind - 1], behind, batches, packings)
        spikes = fit_block(block, spikes, narrowed(currents, directions, width, block.up.linear.out_features))
        explained.append(share_found(flat(spikes), currents.state))
    fit_alignment(alignment, student, teacher, batches)
    student.train(was_training)
    return explained


@torch.no_grad()
def fit_readout(student: SpikeBertForSequenceClassification, teacher: nn.Module, batches: Batches) -> None:
    """Give a student's readout the linear map of least squares to the logits of a teacher of its task, from the mean of
    its states over timesteps and tokens (of a readout "membrane", which weighs late timesteps, that is about right).

    States whose spikes rest in the middle of their range are large and alike, and a new readout would need many steps
    to learn what of them to leave out.
    """
    was_training = student.training
    student.eval()
    pooled, logits = [], []
    for ids, mask in batches:
        states = student(ids, mask, output_hidden_states=True).hidden_states[-1]  # [B, N, D], 0 at padding
        pooled.append(states.sum(1) / mask.sum(1, keepdim=True))
        logits.append(ask_teacher(teacher, ids, mask, ()).logits)
    x, y = torch.cat(pooled).double(), torch.cat(logits).double()
    weight = fit_linear(x - x.mean(0), y - y.mean(0))[:-1]  # damped as they vary: they are large and alike
    student.readout.linear.weight.copy_(weight.T)
    student.readout.linear.bias.copy_(y.mean(0) - x.mean(0) @ weight)
    student.train(was_training)


def narrowed(currents: Currents, directions: Tensor | None, width: int, inner: int) -> Currents:
    """What a student has room for: the first of the heads, the inner features that vary most above 0, and of states
    the `directions` [D_teacher, D]; None: as they are."""
    chosen = currents.inner.clamp(min=0).var(0).argsort(descending=True)[:inner].sort().values

    def of_state(x: Tensor) -> Tensor:
        return x if directions is None else x @ directions

    return Currents(
        query=currents.query[:, :width],
        key=currents.key[:, :width],
        value=currents.value[:, :width],
        attended=of_state(currents.attended),
        inner=currents.inner[:, chosen],
        state=of_state(currents.state),
    )


def fit_encoder(encoder: Encoder, teacher: nn.Module, embedded: Tensor, directions: Tensor | None, seed: int) -> None:
    """Rows of tokens and places from the teacher's embeddings; currents are to be spread about the middle of the range.

    embedded  float [R, D_teacher], of tokens as they come in texts
    """
    tokens, places = embeddings_of(teacher, encoder.token.num_embeddings, encoder.n_max, seed)
    if directions is not None:
        embedded, tokens, places = (x @ directions for x in (embedded, tokens, places))
    scale = encoder.gain / deviation(embedded)
    encoder.token.weight.copy_((tokens - embedded.mean(0)) * scale + encoder.lif.cap / 2 + ROUNDS)
    if encoder.position is not None:
        encoder.position.weight.copy_(places * scale)


def embeddings_of(teacher: nn.Module, vocabulary: int, n_max: int, seed: int) -> tuple[Tensor, Tensor]:
    """Of each token [V, D], at a place of no account, and of each place [n_max, D], about their mean: the teacher is
    shown all its tokens once, in random order."""
    device = next(teacher.parameters()).device
    order = torch.randperm(vocabulary, generator=torch.Generator().manual_seed(seed))
    count = -(-vocabulary // n_max) * n_max
    texts = order.repeat(-(-count // vocabulary))[:count].view(-1, n_max).to(device)  # [texts, n_max]
    states = torch.cat(
        [
            teacher(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True).hidden_states[0]
            for ids in texts.split(16)
        ]
    ).float()
    places = states.mean(0) - states.mean((0, 1))
    tokens = states.new_zeros(vocabulary, states.shape[-1])
    tokens[texts.flatten()] = (states - places).flatten(0, 1)
    return tokens, places


def fit_block(block: Block, spikes: list[Spikes], wanted: Currents) -> list[Spikes]:
    """Fit its layers, in order, to what the teacher computes; returns the spikes of the batches behind it."""
    inputs = flat(spikes)
    for layer, current in ((block.query, wanted.query), (block.key, wanted.key)):
        fit_layer(layer, inputs, standard(current) + 1 - FIRES_ABOVE)
    fit_layer(block.value, inputs, standard(wanted.value) * block.value.gain + ROUNDS)
    mixed = [block.attention(block.query(x), block.key(x), block.value(x)) for x in spikes]
    fit_layer(block.out, flat(mixed), what_is_missing(inputs, wanted.attended) + resting(block.out))
    attended = [block.add_attention(x, block.out(more)) for x, more in zip(spikes, mixed)]
    inputs = flat(attended)
    fit_layer(block.up, inputs, wanted.inner / deviation(wanted.inner) * block.up.gain + ROUNDS)
    inner = [block.up(x) for x in attended]
    fit_layer(block.down, flat(inner), what_is_missing(inputs, wanted.state) + resting(block.down))
    return [block.add_mlp(x, block.down(more)) for x, more in zip(attended, inner)]


def what_is_missing(state: Tensor, wanted: Tensor) -> Tensor:
    """What must be added to a state [T * R, D] of spikes so that it is the wanted one [R, D] at each timestep, but for
    an offset and a scale of each feature: float [T * R, D], in spikes, mean 0.

    Of all scales the one of least squares needs to be added least. But a feature that the teacher all but replaces has
    a small one, and what is added would be many times what was there: so the state grows at most by 1 / `LEAST_SCALE`.
    To one that never varies nothing is added.
    """
    own = state - state.mean(0)
    theirs = (wanted - wanted.mean(0)).repeat(len(state) // len(wanted), 1)
    scale = (own * theirs).sum(0) / own.square().sum(0).clamp(min=1e-6)
    least = LEAST_SCALE * deviation(theirs) / deviation(own)
    scale = torch.where(scale < 0, -1.0, 1.0) * torch.maximum(scale.abs(), least)
    return theirs / scale - own


def resting(layer: SpikingLinear) -> float:
    """Where the currents of a layer stand that adds to a residual, above and below: low, for each spike costs."""
    return layer.lif.cap / 4 + ROUNDS


def fit_layer(layer: SpikingLinear, inputs: Tensor, current: Tensor) -> None:
    """Give a layer the linear map of least squares from spikes [T * R, in] to a current [T * R, out], or [R, out] where
    it is the same at each of the T timesteps; its norm expects what comes of it."""
    assert isinstance(layer.norm, nn.BatchNorm1d)
    target = current.repeat(len(inputs) // len(current), 1)
    found = fit_linear(inputs.double(), target.double())
    layer.linear.weight.copy_(found[:-1].T)
    layer.linear.bias.zero_()
    made = layer.linear(inputs)
    set_norm(layer.norm, found[-1].float(), made.mean(0), made.var(0, unbiased=False))


def share_found(own: Tensor, theirs: Tensor) -> float:
    """How much of the variance of a state [R, D_teacher] a linear map finds in spikes [T * R, D], their mean over T."""
    own = own.unflatten(0, (-1, len(theirs))).mean(0)
    left = theirs - with_ones(own) @ fit_linear(own.double(), theirs.double()).to(own)
    return 1 - float(left.square().sum() / (theirs - theirs.mean(0)).square().sum())


def flat(spikes: Sequence[Spikes]) -> Tensor:
    """Of all batches [T * R, D], timestep after timestep."""
    return torch.cat([x.values for x in spikes], 1).flatten(0, 1).float()


def standard(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / deviation(x)


def deviation(x: Tensor) -> Tensor:
    """Of each feature; never 0."""
    return x.std(0).clamp(min=1e-6)


def states_of(teacher: nn.Module, batches: Batches, packings: Sequence[Packing], wanted: Sequence[int]) -> dict:
    """State -> float [R, D_teacher], as the teacher has it, of the tokens of all batches in packed order."""
    found: dict[int, list[Tensor]] = {number: [] for number in wanted}
    for (ids, mask), packing in zip(batches, packings):
        hidden = teacher(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        for number in wanted:
            found[number].append(packing.pack(hidden[number]).float())
    return {number: torch.cat(parts) for number, parts in found.items()}


def currents_of(
    teacher: nn.Module, first: TeacherLayer, last: TeacherLayer, behind: int, batches: Batches,
    packings: Sequence[Packing],
) -> Currents:  # fmt: skip
    """What the attention of one layer and the MLP of one compute, and the state `behind`."""
    with listening(first, last) as heard:
        state = states_of(teacher, batches, packings, [behind])[behind]
    packed = {
        name: torch.cat([packing.pack(x).float() for packing, x in zip(packings, found, strict=True)])
        for name, found in heard.items()
    }
    return Currents(state=state, **packed)


@contextmanager
def listening(first: TeacherLayer, last: TeacherLayer) -> Iterator[dict[str, list[Tensor]]]:
    """Collects what the named currents are, [B, N, D] of each batch that the teacher is shown meanwhile."""
    heard: dict[str, list[Tensor]] = {name: [] for name in Currents._fields[:-1]}

    def hear(name: str, layer: nn.Linear) -> torch.utils.hooks.RemovableHandle:
        return layer.register_forward_hook(lambda module, inputs, output: heard[name].append(output))

    def hear_both(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        heard["attended"].append(inputs[0])
        heard["inner"].append(output)

    handles = [hear(name, getattr(first, name)) for name in ("query", "key", "value")]
    handles.append(last.up.register_forward_hook(hear_both))
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()
