"""Golden images: made once, compared on this machine; what is wrong there is said and not served."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tiny_onnx import SPEC
from vitesse.errors import RunFolderError
from vitesse.ledger import Ledger, Parity, Row, Verdict
from vitesse.serve.releases import golden as module
from vitesse.serve.releases.golden import Golden, Tolerances, compare, load_golden, made_images, tolerances_of

OUTPUTS = tuple({"logits": np.array([[3.0, float(number), 0.5]], np.float32)} for number in range(4))
GOLDEN = Golden(made_images(SPEC)[:4], OUTPUTS, SPEC, "a" * 64, "made")
EXACT = Tolerances(0.05, 0.999, 0.95)


def changed(factor: float, shift: float = 0.0) -> list[dict[str, np.ndarray]]:
    return [{"logits": factor * one["logits"] + np.float32(shift)} for one in OUTPUTS]


def test_equal_and_nearly_equal_outputs_fit() -> None:
    assert compare(OUTPUTS, GOLDEN, EXACT) == ()
    assert compare(changed(1.01), GOLDEN, EXACT) == ()


def test_other_numbers_are_refused_with_how_far_they_are_off() -> None:
    (reason, *_) = compare(changed(1.3), GOLDEN, EXACT)
    assert "`logits` differs from the original's by up to 30 % on 4 golden images (allowed 5 %)" in reason


def test_eight_bits_may_give_other_numbers_but_no_other_answers() -> None:
    loose = Tolerances(None, None, 0.85)
    assert compare(changed(1.1), GOLDEN, loose) == ()
    turned = [{"logits": one["logits"][:, ::-1].copy()} for one in OUTPUTS]
    (reason,) = compare(turned, GOLDEN, loose)
    assert "agree with the original's by 0." in reason and "(at least 0.85)" in reason


@pytest.mark.parametrize(("value", "said"), [(np.nan, "holds NaN"), (0.0, "all zeros")])
def test_broken_outputs_are_named(value: float, said: str) -> None:
    broken = [{"logits": np.full((1, 3), value, np.float32)} for _ in OUTPUTS]
    assert said in compare(broken, GOLDEN, Tolerances(None, None, 0.0))[0]


def test_another_shape_is_a_reason_and_not_a_crash() -> None:
    other = [{"logits": np.pad(one["logits"], ((0, 0), (0, 1)))} for one in OUTPUTS]
    assert "has shape (1, 4)" in compare(other, GOLDEN, EXACT)[0]


def row(stage: str, **more: object) -> Row:
    return replace(Row(stage, Verdict.PASS, ""), **more)  # type: ignore[arg-type]


def test_tolerances_follow_the_precision_and_what_verification_measured() -> None:
    def of(one: Row, *before: Row) -> Tolerances:
        return tolerances_of(one, Ledger("m", "cpu", (*before, one)))

    assert of(row("fuse")) == Tolerances(0.05, 0.999, 0.95)
    assert of(row("fp16")).max_rel == 0.25
    assert of(row("build:onnxruntime", parity=Parity(0.1, 0.9999, 0.04))).max_rel == 0.08
    assert of(row("int8:openvino")).max_rel is None
    assert of(row("build:openvino"), row("size:64x64")).max_rel is None
    assert of(row("build:openvino"), replace(row("size:64x64"), verdict=Verdict.REJECTED)).max_rel == 0.05


def test_made_images_are_the_same_every_time_and_unlike_one_another() -> None:
    one, again = made_images(SPEC), made_images(SPEC)
    assert all(np.array_equal(*pair) for pair in zip(one, again, strict=True))
    assert len({image.tobytes() for image in one}) == len(one) == module.COUNT


def test_golden_images_survive_the_disk_and_damage_is_named(tmp_path: Path) -> None:
    from engine_runs import FP32, a_run

    run = a_run(tmp_path, {"source": FP32})
    assert load_golden(run.folder) is None
    module._save(run.folder, replace(GOLDEN, spec=SPEC))
    found = load_golden(run.folder)
    assert found is not None and found.kind == "made"
    assert all(np.array_equal(*pair) for pair in zip(found.images, GOLDEN.images, strict=True))
    assert compare([dict(one) for one in found.outputs], GOLDEN, EXACT) == ()
    path = tmp_path / module.FILE
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(RunFolderError, match="delete it"):
        load_golden(run.folder)


def test_the_examples_run_is_right_here_and_a_faulty_runtime_is_found(tmp_path: Path) -> None:
    from engine_runs import FP16, FP32, a_run
    from vitesse.backends import backend
    from vitesse.backends.fake import FakeBackend, Fault, scaled
    from vitesse.run import artifact_of

    run = a_run(tmp_path, {"source": FP32, "fp16": FP16})
    golden = module.golden_of(run)
    assert golden.kind == "made" and load_golden(tmp_path) is not None
    row = run.ledger.rows[1]
    artifact, tolerances = artifact_of(tmp_path, row, SPEC), tolerances_of(row, run.ledger)
    faults = {
        "": None,
        "differs": Fault(change=scaled(1.5)),
        "NaN": Fault(change=module_nan),
        "run": Fault(crash="x"),
    }
    for said, fault in faults.items():
        runtime = FakeBackend(backend("onnxruntime"), fault)
        with runtime.load(artifact) as engine, engine.session() as session:
            reasons = module.check(session, SPEC, golden, tolerances)
        assert (said in reasons[0]) if said else reasons == ()


def module_nan(name: str, array: np.ndarray) -> np.ndarray:
    return np.full_like(array, np.nan)
