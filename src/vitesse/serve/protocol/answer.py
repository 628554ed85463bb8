"""The answer to an inference request: a JSON header, and behind it the tensors asked for in binary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from vitesse.serve.protocol.request import HEADER_LENGTH, InferRequest, WantedOutput
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
    known = {"model_name": model, "model_version": version, **({"id": request.id} if request.id else {})}
    header = f'{_json(known)[:-1]},"outputs":[{",".join(entries)}]}}'.encode()
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
    entry: dict[str, Any] = {
        "name": output.name,
        "datatype": datatype_of(array.dtype.name),
        "shape": list(array.shape),
    }
    if not output.binary:
        return f'{_json(entry)[:-1]},"data":[{_values(to_json(array, output.name))}]}}', None
    content = to_binary(array)
    return _json(entry | {"parameters": {"binary_data_size": len(content)}}), content


def _values(values: Sequence[Any]) -> str:
    """Return values as JSON without the brackets."""
    pieces = (values[start : start + _PIECE] for start in range(0, len(values), _PIECE))
    return ",".join([_json(piece)[1:-1] for piece in pieces])


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
