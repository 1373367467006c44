"""What an export report says, as plain data. `to_json` of it is report.json; report.schema.json describes that."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

REPORT_SCHEMA = 1


@dataclass(frozen=True)
class Interval:
    """The least and the most that something is."""

    low: int
    high: int


@dataclass(frozen=True)
class Measured:
    """An accuracy: `correct` of `texts`, their ratio `value`, and its 95 % interval."""

    correct: int
    texts: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class StageAccuracy:
    """How good the model was at one stage: split -> accuracy, None where it was not measured."""

    stage: str
    meaning: str
    splits: dict[str, Measured | None]


@dataclass(frozen=True)
class Rounding:
    """What became of a layer's weights, or of the token table, when they became integers.

    scale   integer units for 1.0 of the float model: accumulator units of a layer, units of the table of the encoder
    values  how many weights
    clipped how many were beyond the largest weight that the bits hold, and were cut to it
    shrunk  how many others lie nearer to 0 than their rounding, because their row could have passed the accumulator
    """

    scale: float
    values: int
    clipped: int
    shrunk: int

    @property
    def cut_fraction(self) -> float:
        """The share of weights that were cut, in either way."""
        return (self.clipped + self.shrunk) / self.values

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "cut_fraction": self.cut_fraction}


@dataclass(frozen=True)
class Weights:
    """The integers of one layer, or of the token table.

    shape    [out, in], or [vocabulary, D]
    bits     what one takes in memory
    bytes    what all take on disk, packed as they are there
    first, counts  counts[i] of the weights are first + i
    zeros    how many are 0
    bias     the range of the biases, accumulator units; None where there are none
    rounding None where the model that it was made from is not known
    """

    shape: tuple[int, int]
    bits: int
    bytes: int
    first: int
    counts: tuple[int, ...]
    zeros: int
    bias: Interval | None
    rounding: Rounding | None

    @property
    def count(self) -> int:
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class Values:
    """What a node's values can be for any text (`proven`) and were on the golden inputs (`observed`).

    bits     the fewest that hold every value
    of_limit the largest |value| as a share of the accumulator's limit; None for spikes
    """

    proven: Interval
    observed: Interval
    bits: int
    of_limit: float | None


@dataclass(frozen=True)
class Membrane:
    """What a membrane can be when it was charged, for any text; in membrane units. It is cut at +-(2^23 - 1)."""

    proven: Interval
    bits: int
    may_saturate: bool


@dataclass(frozen=True)
class Neurons:
    """The neurons of a node, `count` for each token.

    rule           what they do with a current, in words
    threshold      accumulator units; None where the rule of the node has none
    rate           spikes / (T x real tokens x neurons) on the golden inputs
    silent_proven  how many can never fire, whatever the text
    silent_observed how many did not fire on the golden inputs; those that cannot are among them
    always_proven  how many fire at every timestep of every real token, whatever the text
    always_observed how many did so on the golden inputs
    """

    count: int
    rule: str
    threshold: Interval | None
    rate: float
    silent_proven: int
    silent_observed: int
    always_proven: int
    always_observed: int


@dataclass(frozen=True)
class NodeReport:
    """One node of the graph.

    features      D: its value has the shape [T, B, N, D]
    spiking       whether its values are spikes or sums of spikes, else currents
    latency_steps by how many steps of the target's machine its value lags behind the source; None without a target
    weights       of a node that has some, the source's token table included
    membrane      of a neuron with memory
    neurons       of a node that fires itself
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    features: int
    spiking: bool
    latency_steps: int | None
    values: Values
    membrane: Membrane | None
    neurons: Neurons | None
    weights: Weights | None


@dataclass(frozen=True)
class PassReport:
    """A pass that was run over the graph, and what it did."""

    name: str
    summary: str


@dataclass(frozen=True)
class Report:
    """All that a report says.

    labels      names of the classes
    samples, tokens, of the golden inputs: what every observation was made on
    replaced    layer of the trained model -> what rounding did to it, where a pass left no node of that name
    logits      the integer logits: proven for 1 .. n_max tokens, and observed
    accuracy    every stage in order
    sizes       what -> how many, in words for a person
    files       bytes of each file of the bundle but the report's own and the manifest
    """

    name: str
    target: str | None
    timesteps: int
    n_max: int
    labels: tuple[str, ...]
    samples: int
    tokens: int
    nodes: tuple[NodeReport, ...]
    replaced: dict[str, Rounding]
    logits: Values
    accuracy: tuple[StageAccuracy, ...]
    passes: tuple[PassReport, ...]
    sizes: dict[str, int]
    files: dict[str, int]

    @property
    def depth_steps(self) -> int | None:
        """Steps by which the slowest node lags behind the source; None where the target tells none."""
        return max((node.latency_steps for node in self.nodes if node.latency_steps is not None), default=None)

    def to_json(self) -> dict[str, Any]:
        """The JSON object of report.json."""
        document = asdict(self)
        for entry, node in zip(document["nodes"], self.nodes):
            if node.weights is not None and node.weights.rounding is not None:
                entry["weights"]["rounding"] = node.weights.rounding.to_json()
        document["replaced"] = {name: rounding.to_json() for name, rounding in self.replaced.items()}
        return {"schema": REPORT_SCHEMA, **document}
