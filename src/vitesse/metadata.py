"""The spec inside an ONNX file: read from and written to its metadata, so that the file is complete by itself."""

from __future__ import annotations

import json

import onnx

from vitesse.errors import ModelError, SpecError
from vitesse.spec import METADATA_KEY, ModelSpec, spec_from_mapping

# A protobuf message ends at 2 GiB; the rest is room for the spec.
_LARGEST_FILE = 2**31 - 2**20


def read_spec(model: onnx.ModelProto) -> ModelSpec | None:
    """Return the spec in the model's metadata, None when there is none; raises SpecError on a damaged one."""
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            try:
                return spec_from_mapping(json.loads(entry.value))
            except json.JSONDecodeError as error:
                raise SpecError(
                    f"the model's metadata {METADATA_KEY!r} is not JSON: {error}",
                    expected="the spec as Vitesse writes it",
                    cause="another tool changed the metadata",
                    fix="give the spec with --spec spec.toml",
                ) from error
    return None


def write_spec(model: onnx.ModelProto, spec: ModelSpec) -> onnx.ModelProto:
    """Return a copy of the model that carries `spec`; other metadata stays."""
    written = onnx.ModelProto()
    written.CopyFrom(model)
    kept = [entry for entry in model.metadata_props if entry.key != METADATA_KEY]
    del written.metadata_props[:]
    written.metadata_props.extend(kept)
    written.metadata_props.add(key=METADATA_KEY, value=spec.to_json())
    return written


def serialise(model: onnx.ModelProto, spec: ModelSpec) -> bytes:
    """Return the bytes of one ONNX file that carries `spec`.

    Raises:
        ModelError: larger than 2 GB, which a single protobuf message cannot hold.
    """
    size = model.ByteSize()
    if size > _LARGEST_FILE:
        raise ModelError(
            f"the model has {size / 1e9:.1f} GB",
            expected="at most 2.1 GB: Vitesse keeps every artifact in one file, and protobuf ends there",
            fix="optimise a smaller variant, or one with FP16 weights",
        )
    content: bytes = write_spec(model, spec).SerializeToString()
    return content
