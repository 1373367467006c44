"""Stands in for the part of Intel's extension to Lava that carries spikes between host and chip."""

from lava.proc.embedded_io import spike

__all__ = ["spike"]
