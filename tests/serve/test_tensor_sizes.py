"""A served canary that is fed with smaller images than the live release: images reach it, tensors of v2 do not."""

import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

pytest.importorskip("uvicorn", reason="needs the server: pip install 'vitesse[serve]'")

from serve.catalogue import INFER
from serve.serving import PICTURES, binary_body, make_run, running, tensor
from vitesse.run import open_run
from vitesse.serve.releases.of_run import initial_state, name_of
from vitesse.serve.releases.state import StateFile
from vitesse.serve.served import open_served
from vitesse.serve.variants import ServeOptions

HALF = 28


def enlarging(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph that takes 28×28 in place of 56×56 and doubles the sides itself."""
    graph = model.graph
    [images] = graph.input
    for side in images.type.tensor_type.shape.dim[2:]:
        side.dim_value = HALF
    for node in graph.node:
        node.input[:] = ["doubled" if name == images.name else name for name in node.input]
    graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "by"))
    graph.node.insert(0, helper.make_node("Resize", [images.name, "", "by"], ["doubled"], mode="nearest"))
    return model


@pytest.fixture
def halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A run and its candidate, which takes smaller images; what its answers are worth is not looked at."""
    folder = make_run(tmp_path / "run", stages=("source", "fuse", "size"))
    path, ledger = folder / "artifacts" / "size.onnx", json.loads((folder / "ledger.json").read_text())
    onnx.save(enlarging(onnx.load(path)), path)
    content, row = path.read_bytes(), ledger["rows"][2]
    row["input_size"] = [HALF, HALF]
    row["artifact"] |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "ledger.json").write_text(json.dumps(ledger))
    run = open_run(folder)
    name = name_of(run.ledger.rows[2])
    StateFile(folder).update(
        lambda state: state.with_candidate(name, row["artifact"]["sha256"], 1.0, "made later"),
        lambda: initial_state(run, 0.0),
    )
    monkeypatch.setattr("vitesse.serve.variants.check", lambda *_: ())
    return folder, name


def test_images_reach_a_canary_of_another_size_and_tensors_are_answered_by_the_live_release(
    halved: tuple[Path, str], caplog: pytest.LogCaptureFixture
) -> None:
    folder, name = halved
    with open_served(open_run(folder), ServeOptions(workers=1)) as served, running(served.service) as live:
        served.start()
        assert served.wait(60)
        operator = served.service.releases
        assert operator is not None
        operator.promote(name, share=1.0)
        body, length = binary_body(tensor())
        with caplog.at_level(logging.INFO, "vitesse.serve"):
            for _ in range(3):
                came = live.ask("POST", INFER, body, Inference_Header_Content_Length=length)
                assert came.status == 200, came.body
                assert came.headers["x-served-by"].startswith("fuse-")
        picture = live.ask("POST", "/v1/classify", PICTURES[0].read_bytes())
        assert (picture.status, picture.headers["x-served-by"]) == (200, name)
    said = [record.getMessage() for record in caplog.records if "passed over" in record.getMessage()]
    assert said == [
        f"{name}: passed over: it takes batch×3×28×28 as 'images' and not 1×3×56×56; such requests are answered by "
        "another"
    ]
