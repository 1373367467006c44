"""What a spiking BERT looks like: `SpikeBertConfig`, saved beside its weights as `config.json`."""

from __future__ import annotations

import math
from typing import Any

from transformers import PretrainedConfig

ENCODERS = ("lif", "sign")
MODES = ("float", "integer")
SURROGATES = ("atan", "sigmoid")
RESETS = ("zero", "subtract")
SPIKES = ("binary", "graded", "ternary")
CAP_MAX = 255  # of a graded spike; the graph's own constant (tests compare them)
NORM_FEATURES_MAX = 2**14  # of norms "layer" and "rms"; the graph's own constant (tests compare them)
NORMS = ("batch", "layer", "rms", "none")
READOUT_KINDS = ("sum", "membrane")  # of a `Readout`; the graph's own (tests compare them)
READOUTS = (*READOUT_KINDS, "spikes")
SIMILARITIES = ("and", "xnor")
FIXED_POSITIONS = ("log", "gray")
POSITIONS = ("none", *FIXED_POSITIONS, "learned", "neighbours")  # of attention
AND_THRESHOLD = 16  # matches
KEYS = 6  # spikes of v that are waited for, where each of them brings about the same
THRESHOLD_MAX = 65535  # accumulator units


def attention_threshold_for(similarity: str, size: int, position: str, n_max: int) -> int:
    """The threshold of an attention that is given none, in accumulator units, for heads of `size` features.

    With "and" few features match, whatever the size. With "xnor" most do, those that are silent in both: a key brings
    nearly `size` to each spike of its v, and the threshold counts such keys. So it does what "log" and "gray" bring,
    about half of what they bring at most; a learned bias starts at 0, or above the threshold of "and". Firing rates at
    the start: docs/training.md.
    """
    matches = AND_THRESHOLD if similarity == "and" else KEYS * size
    brought = (n_max - 1).bit_length() // 2 if position in FIXED_POSITIONS else 0
    return min(matches + KEYS * brought, THRESHOLD_MAX)


class SpikeBertConfig(PretrainedConfig):
    """Hugging Face configuration of `SpikeBertForSequenceClassification`.

    hidden_size              D, features of a token
    num_hidden_layers        blocks
    num_attention_heads      H, must divide D
    intermediate_size        features between the two layers of the MLP
    max_position_embeddings  n_max, the most tokens of a text, [CLS] and [SEP] included
    timesteps                T
    decay                    dv, 0 .. 4095: a membrane keeps (4096 - dv) / 4096 of itself each step. One number for all
                             neurons, or a list: of the encoder (and of the layer that mixes spike-coded positions in),
                             then of each block
    reset                    of a membrane that fires: "zero", or "subtract": it loses its threshold and goes on with
                             the rest
    spike                    what neurons send: "binary" (0 or 1), "graded" (0 .. spike_cap, how many thresholds the
                             membrane is above) or "ternary" (-1, 0, 1). The encoder and those of value send what
                             `encoder_cap` and `value_cap` say; those of query and key, of which attention counts
                             matches, send bits
    spike_cap                the largest graded spike, 2 .. 255; 1 of others
    encoder_cap              the largest spike of the encoder, 1 .. 255: graded ones where it is above 1, else bits
    value_cap                the same of value's neurons; times n_max and the features of a head it is 65535 at most
    graded_gain              how many thresholds a deviation of the current is at first where graded spikes are sent
                             (but by the classes), so that their levels are used: norms begin with it, and token
                             currents so much larger
    encoder                  "lif": a neuron turns (token + position) current into spikes over T steps;
                             "sign": constant spikes where the current is >= 0 (the paper's)
    positions                learned positions in the encoder's current
    position_spikes          P, features of spike-coded positions (CPG-PE, `position_code.py`) beside the encoder's, and
                             a layer that mixes both into D; 0 for neither
    attention_threshold      accumulator units: matches `(q k^T) v` must exceed for a spike; None: as
                             `attention_threshold_for` has it, 16 for "and" without positions
    attention_similarity     "and": features match that are 1 in query and key; "xnor": also those that are 0 in both
    attention_position       what a score has more for the places of query and key: "none", "log", "gray" (after
                             arXiv 2501.16745), "learned" or "neighbours"; see `spikebert.positions`
    surrogate                whose gradient stands in for that of the step: "atan" or "sigmoid" (SpikingJelly's)
    surrogate_alpha          its steepness
    mode                     "float": trained; "integer": folded and quantised, computes what a chip does
    weight_bits              1 .. 8, in integer mode
    token_bits               2 .. 8, those of the token table in integer mode
    norm                     behind each linear layer: "batch", folded into the weights in integer mode; "layer" (the
                             paper's) or "rms", over the features of a token, computed in integers too; "none": each
                             feature learns a threshold of its own
    scalar_thresholds        with norm "none": in integer mode thresholds are folded into the weights, so that a layer
                             has one, as Lava and Loihi 2 want it; else each feature keeps its own
    readout                  "sum": the classifier's currents, every timestep alike; "membrane": they charge a membrane
                             of each class that leaks as the last block's, never fires, and is read at the end;
                             "spikes": neurons of the classes fire, and their spikes are weighed and summed

    Raises ValueError for a value outside its range.
    """

    model_type = "spikebert"

    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 384,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 6,
        intermediate_size: int = 1536,
        max_position_embeddings: int = 64,
        timesteps: int = 4,
        decay: int | list[int] = 2048,
        encoder: str = "lif",
        positions: bool = True,
        position_spikes: int = 0,
        attention_threshold: int | None = None,
        surrogate: str = "atan",
        surrogate_alpha: float = 2.0,
        mode: str = "float",
        weight_bits: int = 8,
        token_bits: int = 8,
        attention_similarity: str = "and",
        attention_position: str = "none",
        norm: str = "batch",
        scalar_thresholds: bool = False,
        readout: str = "sum",
        reset: str = "zero",
        spike: str = "binary",
        spike_cap: int = 1,
        encoder_cap: int = 1,
        value_cap: int = 1,
        graded_gain: float = 1.0,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.timesteps = timesteps
        self.decay = decay
        self.reset = reset
        self.spike = spike
        self.spike_cap = spike_cap
        self.encoder_cap = encoder_cap
        self.value_cap = value_cap
        self.graded_gain = graded_gain
        self.encoder = encoder
        self.positions = positions
        self.position_spikes = position_spikes
        self.attention_similarity = attention_similarity
        self.attention_position = attention_position
        if attention_threshold is None:
            size = hidden_size // max(num_attention_heads, 1)  # what is no number of heads is refused below
            attention_threshold = attention_threshold_for(
                attention_similarity, size, attention_position, max_position_embeddings
            )
        self.attention_threshold = attention_threshold
        self.surrogate = surrogate
        self.surrogate_alpha = surrogate_alpha
        self.mode = mode
        self.weight_bits = weight_bits
        self.token_bits = token_bits
        self.norm = norm
        self.scalar_thresholds = scalar_thresholds
        self.readout = readout
        super().__init__(**kwargs)
        self._check()

    @property
    def residual_cap(self) -> int:
        """The largest spike that is added up from block to block. The encoder's are not where a layer mixes spike-coded
        positions in."""
        return self.spike_cap if self.position_spikes else max(self.encoder_cap, self.spike_cap)

    @property
    def decays(self) -> list[int]:
        """dv of the encoder, then of each block."""
        return self.decay if isinstance(self.decay, list) else [self.decay] * (1 + self.num_hidden_layers)

    def _check(self) -> None:
        choices = {
            "reset": RESETS,
            "spike": SPIKES,
            "encoder": ENCODERS,
            "mode": MODES,
            "surrogate": SURROGATES,
            "attention_similarity": SIMILARITIES,
            "attention_position": POSITIONS,
            "norm": NORMS,
            "readout": READOUTS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is '{getattr(self, name)}', it must be one of {allowed}")
        ranges = {
            "vocab_size": (1, None),
            "hidden_size": (1, None),
            "num_hidden_layers": (1, None),
            "num_attention_heads": (1, None),
            "intermediate_size": (1, None),
            "max_position_embeddings": (2, None),
            "timesteps": (1, None),
            "position_spikes": (0, None),
            "attention_threshold": (0, 65535),
            "weight_bits": (1, 8),
            "token_bits": (2, 8),
            "encoder_cap": (1, CAP_MAX),
            "value_cap": (1, CAP_MAX),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value < low or (high is not None and value > high):
                raise ValueError(f"{name} is {value}, it must be {low} .. {'' if high is None else high}")
        least, most = (2, CAP_MAX) if self.spike == "graded" else (1, 1)
        if not least <= self.spike_cap <= most:
            raise ValueError(f"spike_cap is {self.spike_cap}, of {self.spike} spikes it must be {least} .. {most}")
        if self.encoder == "sign" and self.encoder_cap > 1:
            raise ValueError(f"encoder_cap is {self.encoder_cap}, an encoder of signs sends bits: it must be 1")
        if not (self.graded_gain > 0 and math.isfinite(self.graded_gain)):
            raise ValueError(f"graded_gain is {self.graded_gain}, it must be above 0, and finite")
        for decay in self.decays:
            if not 0 <= decay <= 4095:
                raise ValueError(f"decay is {self.decay}, it must be 0 .. 4095")
        if len(self.decays) != 1 + self.num_hidden_layers:
            raise ValueError(
                f"decay is {self.decay}, it must be one number, or {1 + self.num_hidden_layers}: "
                f"of the encoder and of {self.num_hidden_layers} blocks"
            )
        if self.scalar_thresholds and self.norm != "none":
            raise ValueError(f"scalar_thresholds with norm '{self.norm}': only norm 'none' learns thresholds")
        widest = max(self.hidden_size, self.intermediate_size)
        if self.norm in ("layer", "rms") and widest > NORM_FEATURES_MAX:
            raise ValueError(f"norm '{self.norm}' over {widest} features, an integer norm takes {NORM_FEATURES_MAX}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} does not divide into {self.num_attention_heads} heads")
        size, tokens = self.hidden_size // self.num_attention_heads, self.max_position_embeddings
        fixed = self.attention_position in FIXED_POSITIONS
        most = (tokens - 1).bit_length() if fixed else int(self.attention_position != "none")  # beside a score
        reach = (size + most) * tokens * self.value_cap
        if reach > 65535:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads}: attention may count to {reach}, more than 65535"
                + (f" (value_cap is {self.value_cap})" if self.value_cap > 1 else "")
            )
