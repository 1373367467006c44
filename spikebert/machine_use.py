"""What training takes of the machine: memory, and how busy the GPU is."""

from __future__ import annotations

import importlib.util
import resource
import sys

import torch


class MachineUse:
    """Of this process and its device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_gpu = device.type == "cuda"
        self.tells_utilisation = self.on_gpu and importlib.util.find_spec("pynvml") is not None  # torch asks it
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(device)

    def peak_memory_bytes(self) -> int:
        """The most main memory this process has ever held."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB

    def gpu_peak_bytes(self) -> int | None:
        """The most GPU memory that torch has held for this process since this object was made; None without a GPU."""
        return torch.cuda.max_memory_allocated(self.device) if self.on_gpu else None

    def figures(self) -> dict[str, float]:
        """By the names TensorBoard shows; nothing of what this machine does not tell."""
        figures: dict[str, float] = {"peak_memory_bytes": self.peak_memory_bytes()}
        if self.on_gpu:
            figures["gpu_peak_memory_bytes"] = torch.cuda.max_memory_allocated(self.device)
        if self.tells_utilisation:
            figures["gpu_utilisation_percent"] = torch.cuda.utilization(self.device)
        return figures

    def describe(self) -> str:
        """For a line of progress, beginning with a comma; empty without a GPU."""
        figures = self.figures()
        busy = f", GPU {figures['gpu_utilisation_percent']:.0f} % busy" if self.tells_utilisation else ""
        return busy + (f", GPU memory {figures['gpu_peak_memory_bytes'] / 2**30:.1f} GiB" if self.on_gpu else "")
