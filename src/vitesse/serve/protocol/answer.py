"""The answer to an inference request: a JSON header, and behind it the tensors asked for in binary."""

from __future__ import annotations

import json
from typing import Any

from vitesse.serve.protocol.request import HEADER_LENGTH, InferRequest, WantedOutput
from vitesse.serve.protocol.tensors import datatype_of, to_binary, to_json
from vitesse.serve.refusals import Refusal
from vitesse.serve.work import Arrays


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
    entries: list[dict[str, Any]] = []
    parts: list[memoryview | bytes] = []
    for output in wanted:
        entry, content = _written(output, outputs, model)
        entries.append(entry)
        parts += [content] if content is not None else []
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": entries}
    if request.id:
        document["id"] = request.id
    header = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    if not parts:
        return header, {"Content-Type": "application/json"}
    return b"".join([header, *parts]), {
        "Content-Type": "application/octet-stream",
        HEADER_LENGTH: str(len(header)),
    }


def _written(
    output: WantedOutput, outputs: Arrays, model: str
) -> tuple[dict[str, Any], memoryview | bytes | None]:
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
        return entry | {"data": to_json(array, output.name)}, None
    content = to_binary(array)
    return entry | {"parameters": {"binary_data_size": len(content)}}, content
