"""The JSON Schema of graph.json, as a function that raises where a document does not keep to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources

import fastjsonschema


def json_schema() -> Callable[[object], object]:
    text = (resources.files("converters") / "graph.schema.json").read_text(encoding="utf-8")
    return fastjsonschema.compile(json.loads(text))
