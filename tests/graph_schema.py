"""The JSON Schema of graph.json, as a function that checks."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from typing import Any

import fastjsonschema


def json_schema() -> Callable[[Any], Any]:
    text = (resources.files("converters") / "graph.schema.json").read_text(encoding="utf-8")
    return fastjsonschema.compile(json.loads(text))
