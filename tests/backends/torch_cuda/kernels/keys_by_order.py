"""Load the kernels and ask for Triton's key of each, first to last or `backwards`; the keys as JSON."""

from __future__ import annotations

import json
import sys

from triton.runtime.jit import JITFunction

from vitesse.backends.torch_cuda.candidates import KERNELS, kernels


def loaded() -> dict[str, JITFunction]:
    """Return every function for the device, by its full name."""
    modules = [
        one for one in sys.modules.values() if one.__name__.startswith("vitesse.backends.torch_cuda.kernels.")
    ]
    functions = (one for module in modules for one in vars(module).values() if isinstance(one, JITFunction))
    return {f"{one.__module__}.{one.__qualname__}": one for one in functions}


if __name__ == "__main__":
    backwards = sys.argv[1:] == ["backwards"]
    keys: dict[str, str] = {}
    for name in sorted(KERNELS, reverse=backwards):
        kernels({name: KERNELS[name]})
        functions = loaded()
        keys |= {each: functions[each].cache_key for each in sorted(functions, reverse=backwards)}
    json.dump(keys, sys.stdout)
