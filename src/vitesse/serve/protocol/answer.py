"""The answer to an inference request: a JSON header, and behind it the tensors asked for in binary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from vitesse.backends.feeds import dtype_name
from vitesse.serve.protocol.layout import HEADER_LENGTH, WantedOutput
from vitesse.serve.protocol.request import InferRequest
from vitesse.serve.protocol.tensors import datatype_of, to_binary, to_json
from vitesse.serve.refusals import Refusal
from vitesse.serve.work import Arrays

# The encoder holds the interpreter's lock from its first value to its last, 0.6 µs each: written in one piece, an
# output of 150,000 values would stop every other request for 90 ms.
_PIECE = 4096


def write_answer(
    request: InferRequest, outputs: Arrays, model: str, version: str
) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers that say how to read it.

    Args:
        request: which outputs it wants, in which form and order; all, in the order of `outputs`, where it named none.
        outputs: by name, with the batch on the first axis.
        model, version: that answered.

    Raises:
        Refusal: 500 "backend" where an output asked for is not there, or its values cannot be told in JSON.
    """
    wanted = request.outputs
    if wanted is None:
        wanted = tuple(WantedOutput(name, request.binary_by_default) for name in outputs)
    entries: list[str] = []
    parts: list[memoryview | bytes] = []
    for output in wanted:
        entry, content = _written(output, outputs, model)
        entries.append(entry)
        parts += [content] if content is not None else []
    opening = _opening(model, version)
    if request.id:
        opening += f',"id":{_json(request.id)}'
    header = f'{opening},"outputs":[{",".join(entries)}]}}'.encode()
    if not parts:
        return header, {"Content-Type": "application/json"}
    return b"".join([header, *parts]), {
        "Content-Type": "application/octet-stream",
        HEADER_LENGTH: str(len(header)),
    }


def _written(output: WantedOutput, outputs: Arrays, model: str) -> tuple[str, memoryview | bytes | None]:
    """Return an output's entry in the JSON header, and its bytes where they come behind it."""
    if output.name not in outputs:
        raise Refusal(
            500, "backend", f"model '{model}' gave no output '{output.name}', only {sorted(outputs)}"
        )
    array = outputs[output.name]
    name, shape = dtype_name(array.dtype), array.shape
    if not output.binary:
        return f'{_entry(output.name, name, shape)},"data":[{_values(to_json(array, output.name))}]}}', None
    content = to_binary(array)
    size = f'"parameters":{{"binary_data_size":{len(content)}}}'
    return f"{_entry(output.name, name, shape)},{size}}}", content


# A server writes the same model and outputs again and again.
@lru_cache(maxsize=16)
def _opening(model: str, version: str) -> str:
    """Return the beginning of the JSON, as far as it is the same for all requests."""
    return _json({"model_name": model, "model_version": version})[:-1]


@lru_cache(maxsize=256)
def _entry(name: str, dtype: str, shape: tuple[int, ...]) -> str:
    """Return the beginning of an output's entry in the JSON."""
    return _json({"name": name, "datatype": datatype_of(dtype), "shape": list(shape)})[:-1]


def _values(values: Sequence[Any]) -> str:
    """Return values as JSON without the brackets."""
    pieces = (values[start : start + _PIECE] for start in range(0, len(values), _PIECE))
    return ",".join([_json(piece)[1:-1] for piece in pieces])


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
