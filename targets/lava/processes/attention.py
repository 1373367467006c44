"""Spiking self-attention as one process. From stock processes it would take millions of neurons a block."""

from __future__ import annotations

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol

from targets.lava.parts import attended
from targets.lava.plan import Piece

INPUT_PORTS = 12  # four for each of q, k and v


class SpikingAttention(AbstractProcess):
    """`a_out = 2 (q k^T) v` of the spikes one step before, for each head; scores may be others, and v graded.

    Doubled, as every current on Lava here is. Sent one step late, as every connection process of Lava does.

    tokens         N
    features, heads D and H; head h is features h*d .. (h+1)*d - 1, d = D / H
    input_channels  of the processes that q, k and v come from, at most INPUT_PORTS, each at a port of its own
    pieces          put q, k and v together from those, and the valid lane where there is one
    similarity      "and" or "xnor", as of `converters.graph.Attention`
    bias            int32 [1 or heads, n_max, n_max], or None
    """

    def __init__(
        self,
        *,
        tokens: int,
        features: int,
        heads: int,
        input_channels: tuple[int, ...],
        pieces: tuple[Piece, ...],
        similarity: str = "and",
        bias: np.ndarray | None = None,
        name: str,
    ) -> None:
        scoring = {"heads": heads, "pieces": pieces, "similarity": similarity, "bias": bias}  # for `attended`
        super().__init__(features=features, scoring=scoring, inputs=len(input_channels), name=name)
        shape_out = (tokens, 1, features)
        unused = [1] * (INPUT_PORTS - len(input_channels))
        for index, channels in enumerate([*input_channels, *unused]):
            setattr(self, attention_port(index), InPort(shape=(tokens, 1, channels)))
        self.a_out = OutPort(shape=shape_out)
        self.a_buff = Var(shape=shape_out, init=0)


def attention_port(index: int) -> str:
    """The name of the port of an input."""
    return f"in_{index}"


@implements(proc=SpikingAttention, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PySpikingAttentionModel(PyLoihiProcessModel):
    """Its input ports are declared below the class, all alike."""

    a_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    a_buff: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=24)

    def run_spk(self) -> None:
        """One time_step: send what the last one gave, then take in this one's spikes."""
        self.a_out.send(self.a_buff)
        received = [getattr(self, attention_port(index)).recv()[:, 0] for index in range(self.proc_params["inputs"])]
        self.a_buff = attended(received, **self.proc_params["scoring"])[:, None]


for _index in range(INPUT_PORTS):
    setattr(PySpikingAttentionModel, attention_port(_index), LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24))
