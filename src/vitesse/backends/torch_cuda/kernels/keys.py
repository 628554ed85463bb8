"""The keys under which Triton keeps compiled kernels, made the same in every process.

A key covers the constants that a kernel reads, and those of the functions that it calls. Triton overlooks the constants
of a function that has no key of its own yet, so that the key of a kernel would depend on what ran before it: another
process would look for the kernel in vain, in its cache and in what an artifact brought along.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from triton.runtime.jit import JITFunction


def settle_keys() -> None:
    """Make the keys of all device functions that are loaded, each after those of the functions that it calls."""
    loaded = [module for name, module in sys.modules.items() if name.startswith(f"{__package__}.")]
    for module in loaded:
        _settle(vars(module).values())


def _settle(values: Iterable[object]) -> None:
    for value in values:
        if isinstance(value, JITFunction) and value.hash is None:
            _settle(value.fn.__globals__.get(name) for name in value.fn.__code__.co_names)
            _ = value.cache_key  # made when it is asked for
