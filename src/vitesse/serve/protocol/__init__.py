"""The Open Inference Protocol, version 2, over REST with binary tensors: bytes in, values out, and back.

body ──▶ encoding.inflate ──▶ request.parse_infer ──▶ InferRequest … outputs ──▶ answer.write_answer ──▶ body
                               json_body: the JSON part   tensors: data types, values
                               signature: what the model takes
metadata: what a client may ask about the server and the model

No web framework here, and nothing that waits. Whatever a client sends ends in a value or in a `Refusal`.
"""

from vitesse.serve.protocol.answer import write_answer
from vitesse.serve.protocol.encoding import inflate
from vitesse.serve.protocol.json_body import parse_json
from vitesse.serve.protocol.layout import HEADER_LENGTH, WantedOutput
from vitesse.serve.protocol.metadata import (
    Counters,
    Spent,
    model_config,
    model_metadata,
    repository_index,
    server_metadata,
    statistics,
)
from vitesse.serve.protocol.request import InferRequest, in_one_piece, parse_infer
from vitesse.serve.protocol.signature import ShapeRange, Signature, safe_name

__all__ = [
    "HEADER_LENGTH",
    "Counters",
    "InferRequest",
    "ShapeRange",
    "Signature",
    "Spent",
    "WantedOutput",
    "in_one_piece",
    "inflate",
    "model_config",
    "model_metadata",
    "parse_infer",
    "parse_json",
    "repository_index",
    "safe_name",
    "server_metadata",
    "statistics",
    "write_answer",
]
