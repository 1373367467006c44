"""ProcessModels for Conv that fail in their third step, each in another way; for tests of the supervisor."""

from __future__ import annotations

import os
import signal
import time

from targets.lava.processes.fast_synapses import FastConvModel

FAULTY_STEP = 3


class RaisesBeforeSending(FastConvModel):
    def run_spk(self) -> None:
        if self.time_step == FAULTY_STEP:
            raise ArithmeticError("a fault put here by a test, before sending")
        super().run_spk()


class RaisesAfterSending(FastConvModel):
    def run_spk(self) -> None:
        super().run_spk()
        if self.time_step == FAULTY_STEP:
            raise ArithmeticError("a fault put here by a test, after sending")


class RaisesWhenMade(FastConvModel):
    def __init__(self, proc_params: object) -> None:
        raise ArithmeticError("a fault put here by a test, while building")


class HangsWhenMade(FastConvModel):
    def __init__(self, proc_params: object) -> None:
        time.sleep(600)


class Hangs(FastConvModel):
    def run_spk(self) -> None:
        if self.time_step == FAULTY_STEP:
            time.sleep(600)
        super().run_spk()


class KillsItself(FastConvModel):
    def run_spk(self) -> None:
        if self.time_step == FAULTY_STEP:
            os.kill(os.getpid(), signal.SIGKILL)
        super().run_spk()


class IsSlow(FastConvModel):
    def run_spk(self) -> None:
        time.sleep(0.1)
        super().run_spk()
