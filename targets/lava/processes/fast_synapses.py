"""Faster CPU models for three stock processes. Lava takes them through `exception_proc_model_map`.

The network itself stays stock, which is what a compiler for a chip knows. Stock `Conv` loops over channels in
Python (a second a step at 384 x 384), stock `DelaySparse` rebuilds its matrix at every step.
"""

from __future__ import annotations

import numpy as np
from lava.proc.conv.models import PyConvModelFixed
from lava.proc.sparse.models import PyDelaySparseModelBitAcc, PySparseModelBitAcc
from scipy.sparse import csr_matrix

from targets.lava.parts import as_hardware_holds, summed, weight_matrix


class FastConvModel(PyConvModelFixed):
    """A 1x1 Conv as one matrix product; stricter than the stock model, which does not round odd weights."""

    a_buf: np.ndarray  # the current to send next; Lava gives it

    def __init__(self, proc_params: object) -> None:
        super().__init__(proc_params)
        self.matrix: np.ndarray | None = None  # float32 [channels in, channels out]

    def run_spk(self) -> None:
        """One time_step: send what the last one gave, then take in this one's spikes."""
        if self.matrix is None:
            self.matrix = self._matrix()
        self.a_out.send(self.a_buf)
        spikes = self.s_in.recv()
        if self.num_message_bits.item() == 0:
            spikes = spikes.astype(bool)
        tokens = spikes.shape[0]
        self.a_buf = summed(spikes.reshape(tokens, -1), self.matrix)[:, None]

    def _matrix(self) -> np.ndarray:
        channels_out, width, height, _ = self.weight.shape
        if (width, height) != (1, 1):
            raise ValueError(f"FastConvModel takes a 1x1 kernel, this one is {width}x{height}")
        return weight_matrix(self.weight.reshape(channels_out, -1))


class FastSparseModel(PySparseModelBitAcc):
    """A Sparse as one sparse product, for binary messages too."""

    weights: csr_matrix
    weights_set: bool  # whether `weights` are as the hardware holds them
    a_buff: np.ndarray

    def run_spk(self) -> None:
        """One time_step: send what the last one gave, then take in this one's spikes."""
        if not self.weights_set:
            self.weights = as_hardware_holds(self.weights)
            self.weights_set = True
        self.a_out.send(self.a_buff)
        self.a_buff = self.weights.dot(messages(self))


class FastDelaySparseModel(PyDelaySparseModelBitAcc):
    """A DelaySparse with one delay for all its synapses: a queue of currents."""

    weights: csr_matrix
    weights_set: bool
    a_buff: np.ndarray

    def run_spk(self) -> None:
        """One time_step: send the current that is due, then queue this one's."""
        if not self.weights_set:
            delays = np.unique(self.delays.data)
            if delays.size != 1 or self.delays.nnz != self.weights.nnz:
                raise ValueError(f"FastDelaySparseModel takes one delay for all synapses, these have {delays}")
            self.weights = as_hardware_holds(self.weights)
            self.weights_set = True
        self.a_out.send(self.a_buff[:, 0])
        self.a_buff[:, :-1] = self.a_buff[:, 1:]
        self.a_buff[:, -1] = self.weights.dot(messages(self))


def messages(model: PySparseModelBitAcc | PyDelaySparseModelBitAcc) -> np.ndarray:
    """This step's input as the synapses see it: int32, cut to 0 and 1 where messages have no payload."""
    spikes = model.s_in.recv()
    return spikes if model.num_message_bits.item() > 0 else spikes.astype(bool).astype(np.int32)
