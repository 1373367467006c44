"""Writes a NIR file, and is done only when what it reads back is what it wrote."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import nir
import numpy as np

from spikebert.commands import CheckFailed

TYPES = ("input_type", "output_type")


def write(network: nir.NIRGraph, path: Path) -> None:
    """Write `network` to `path`. Raises CheckFailed where the file, read back, is another network."""
    nir.write(path, network)
    difference = first_difference(network, nir.read(path))
    if difference is not None:
        raise CheckFailed(f"{path}: what nir reads back is not what was written: {difference}")


def first_difference(written: nir.NIRGraph, read: nir.NIRGraph) -> str | None:
    """Where two NIR graphs differ, in words; None where they have the same nodes, arrays, edges and metadata."""
    if set(written.nodes) != set(read.nodes):
        return f"the nodes {sorted(set(written.nodes) ^ set(read.nodes))} are in one of them only"
    if sorted(written.edges) != sorted(read.edges):
        return f"the edges {sorted(set(written.edges) ^ set(read.edges))}, or how often they are there"
    if written.metadata != read.metadata:
        return f"the metadata {written.metadata} and {read.metadata}"
    for name, node in written.nodes.items():
        field = _different_field(node, read.nodes[name])
        if field is not None:
            return f"'{field}' of node '{name}'"
    return None


def _different_field(node: nir.NIRNode, other: nir.NIRNode) -> str | None:
    """The first field of a node in which another differs: bit for bit, type of number and shape too."""
    if type(node) is not type(other):
        return "type"
    names = [field.name for field in fields(node) if field.name not in TYPES]
    for name in names:
        if not _same(getattr(node, name), getattr(other, name)):
            return name
    for name in TYPES:
        mine, theirs = getattr(node, name), getattr(other, name)
        if mine.keys() != theirs.keys() or not all(np.array_equal(mine[key], theirs[key]) for key in mine):
            return name
    return None


def _same(mine: object, theirs: object) -> bool:
    if isinstance(mine, np.ndarray) and isinstance(theirs, np.ndarray):
        return mine.dtype == theirs.dtype and np.array_equal(mine, theirs)
    return type(mine) is type(theirs) and bool(mine == theirs)
