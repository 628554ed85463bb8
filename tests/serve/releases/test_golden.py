"""Golden images: made once, compared on this machine; what is wrong there is said and not served."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from fashion import FOLDER
from tiny_onnx import SPEC
from vitesse.artifact import Provenance, Store
from vitesse.backends import backend
from vitesse.backends.fake import FakeBackend, Fault, scaled, with_nan
from vitesse.errors import RunFolderError
from vitesse.ledger import Ledger, Parity, Row, Verdict
from vitesse.metadata import read_spec
from vitesse.run import Run, RunFolder, open_run
from vitesse.serve.releases import golden as module
from vitesse.serve.releases.golden import (
    Golden,
    Tolerances,
    check,
    compare,
    golden_of,
    load_golden,
    made_images,
    tolerances_of,
)

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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of the example's classifier that made nothing of it; its command names the example's images."""
    folder = tmp_path_factory.mktemp("golden") / "run"
    content = (FOLDER / "vit_fashion.onnx").read_bytes()
    spec = read_spec(onnx.load_model_from_string(content))
    assert spec is not None
    RunFolder(folder).claim("model", "data", spec)
    artifact = Store(folder / "artifacts").put(content, spec, Provenance("source"), suffix=".onnx")
    command = f"vitesse optimize vit_fashion.onnx --data {FOLDER / 'vit'} --out run"
    source = Row("source", Verdict.PASS, "", artifact=artifact.ref(folder))
    Ledger("vit_fashion.onnx", "cpu", (source,), chosen=0, command=command).save(folder / "ledger.json")
    return open_run(folder)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (None, ""),
        (Fault(change=scaled(1.5)), "differs from the original's by up to"),
        (Fault(change=with_nan), "holds NaN"),
        (Fault(crash="no kernel image"), "could not be run: no kernel image"),
    ],
)
def test_a_runtime_that_is_wrong_on_this_machine_is_found(run: Run, fault: Fault | None, said: str) -> None:
    golden = golden_of(run)
    assert golden.kind == "validation" and len(golden.images) == module.COUNT
    tolerances = tolerances_of(run.ledger.rows[0], run.ledger)
    with (
        FakeBackend(backend("onnxruntime"), fault).load(run.artifact) as engine,
        engine.session() as session,
    ):
        reasons = check(session, run.artifact.spec, golden, tolerances)
    assert said in reasons[0] if said else reasons == ()


def test_without_the_data_images_are_made_and_another_original_makes_new_ones(run: Run) -> None:
    (run.folder / module.FILE).unlink(missing_ok=True)
    moved = Run(run.folder, replace(run.ledger, command="vitesse optimize m.onnx --data /absent"))
    assert golden_of(moved).kind == "made"
    assert golden_of(run).kind == "made"  # kept
    module._save(run.folder, replace(golden_of(run), source_sha256="another"))
    assert golden_of(run).kind == "validation"
