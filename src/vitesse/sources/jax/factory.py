"""`PACKAGE.MODULE:FACTORY` → what the user's own function returns: a JAX model, its parameters, an example, a spec.

Nothing here is a sandbox: importing the module and calling the function runs the user's code, as `python -m` would.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from vitesse.errors import ModelError, UsageError, VitesseError
from vitesse.spec import ModelSpec

_RETURNS = "(function or flax module, params, inputs), and a ModelSpec as a fourth if there is one"


def call_factory(text: str) -> tuple[Any, Any, Any, ModelSpec | None]:
    """Import the module, call the function, and return (function or flax module, params, inputs, spec or None).

    Raises:
        UsageError: the text is not `PACKAGE.MODULE:FACTORY`.
        ModelError: module or function is missing or fails, or it returns something else.
    """
    module_name, colon, name = text.partition(":")
    if not colon or not name.isidentifier() or not all(map(str.isidentifier, module_name.split("."))):
        raise UsageError(
            f"flax:{text}",
            expected="flax:PACKAGE.MODULE:FACTORY, such as flax:models:vit for the function vit in models.py",
            cause="a path instead of a module name" if "/" in text or text.endswith(".py") else "",
        )
    with _current_folder_importable():
        factory = _function(_imported(module_name), name)
        try:
            returned = factory()
        except VitesseError:
            raise
        except Exception as error:  # the user's code may raise anything
            raise ModelError(
                f"flax:{text}: {name}() raised {type(error).__name__}: {error}",
                expected=f"a function without arguments that returns {_RETURNS}",
            ) from error
    return _checked(text, returned)


def _imported(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            raise ModelError(
                f"flax:{name}: there is no module {missing!r}",
                expected="a module that Python can import, from the current folder or installed",
                cause="a typing error, or another current folder",
            ) from error
        raise ModelError(
            f"flax:{name}: importing it failed: {error}",
            expected="a module that can be imported",
            cause=f"it needs the package {missing!r}, which is not installed",
        ) from error
    except Exception as error:  # the user's code may raise anything
        raise ModelError(
            f"flax:{name}: importing it failed: {type(error).__name__}: {error}",
            expected="a module that can be imported",
        ) from error


def _function(module: ModuleType, name: str) -> Callable[[], Any]:
    found: Any = getattr(module, name, None)
    if callable(found):
        return found  # type: ignore[no-any-return]
    functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    close = get_close_matches(name, functions, n=1)
    raise ModelError(
        f"flax:{module.__name__}:{name}: the module has no function {name!r}",
        expected=f"one of: {', '.join(functions)}" if functions else "a module with functions",
        fix=f"perhaps flax:{module.__name__}:{close[0]}" if close else "",
    )


def _checked(text: str, returned: Any) -> tuple[Any, Any, Any, ModelSpec | None]:
    if not isinstance(returned, tuple) or len(returned) not in (3, 4):
        length = f" of {len(returned)}" if isinstance(returned, tuple) else ""
        raise ModelError(
            f"flax:{text} returned a {type(returned).__name__}{length}",
            expected=_RETURNS,
        )
    fn, params, inputs, *rest = returned
    spec = rest[0] if rest else None
    if spec is not None and not isinstance(spec, ModelSpec):
        raise ModelError(
            f"flax:{text} returned a {type(spec).__name__} as its fourth value",
            expected="a vitesse.spec.ModelSpec, or None",
        )
    return fn, params, inputs, spec


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    """An installed command does not look for modules in the current folder, where `python -m` does."""
    folder = str(Path.cwd())
    added = folder not in sys.path
    if added:
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        if added and folder in sys.path:
            sys.path.remove(folder)
