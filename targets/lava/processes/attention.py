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


class SpikingAttention(AbstractProcess):
    """`a_out = 2 (q k^T) v` of the spikes one step before, for each head; the lanes of q through `lane_weight`.

    Doubled, as every current on Lava here is. Sent one step late, as every connection process of Lava does.

    tokens         N
    features, heads D and H; head h is features h*d .. (h+1)*d - 1, d = D / H
    input_channels  of q, k, v: features and then lanes
    lane_weight     int32 [lanes out, lanes of q]
    """

    def __init__(
        self,
        *,
        tokens: int,
        features: int,
        heads: int,
        input_channels: tuple[int, int, int],
        lane_weight: np.ndarray,
        name: str,
    ) -> None:
        super().__init__(features=features, heads=heads, lane_weight=lane_weight, name=name)
        shape_out = (tokens, 1, features + lane_weight.shape[0])
        self.q_in = InPort(shape=(tokens, 1, input_channels[0]))
        self.k_in = InPort(shape=(tokens, 1, input_channels[1]))
        self.v_in = InPort(shape=(tokens, 1, input_channels[2]))
        self.a_out = OutPort(shape=shape_out)
        self.a_buff = Var(shape=shape_out, init=0)


@implements(proc=SpikingAttention, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PySpikingAttentionModel(PyLoihiProcessModel):
    """numpy, in float32: scores reach d, sums `d * N`, which a graph proves to be at most 65535."""

    q_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=1)
    k_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=1)
    v_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=1)
    a_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    a_buff: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=24)

    def run_spk(self) -> None:
        """One time_step: send what the last one gave, then take in this one's spikes."""
        self.a_out.send(self.a_buff)
        q, k, v = self.q_in.recv(), self.k_in.recv(), self.v_in.recv()
        features, lane_weight = self.proc_params["features"], self.proc_params["lane_weight"]
        scores = self._split(q) @ self._split(k).swapaxes(1, 2)  # [H, N, N]
        mixed = scores @ self._split(v)  # [H, N, d]
        current = mixed.swapaxes(0, 1).reshape(q.shape[0], features).astype(np.int32)
        lanes = q[:, 0, features:] @ lane_weight.T
        self.a_buff = np.concatenate([2 * current, lanes], axis=1).astype(np.int32)[:, None, :]

    def _split(self, spikes: np.ndarray) -> np.ndarray:
        """[N, 1, channels] -> float32 [H, N, d], without the lanes."""
        features, heads = self.proc_params["features"], self.proc_params["heads"]
        split = spikes[:, 0, :features].reshape(spikes.shape[0], heads, features // heads)
        return split.swapaxes(0, 1).astype(np.float32)
