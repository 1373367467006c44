"""numba's functions are kept on disk where that is possible, and work where it is not."""

from __future__ import annotations

import pytest
from numba.core import caching

from spikebert.compiled import compiled


def double(x: int) -> int:
    return 2 * x


@pytest.mark.parametrize("writable", [True, False])
def test_a_function_is_compiled_with_and_without_a_place_to_keep_it(monkeypatch, writable: bool) -> None:
    if not writable:
        monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    function = compiled(nogil=True)(double)
    assert function(21) == 42
    assert bool(function.stats.cache_path) == writable
