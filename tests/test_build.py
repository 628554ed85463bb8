"""`vitesse build`: what is typed becomes one call, what was built is named, and a refusal is the exit code."""

import argparse
from pathlib import Path

import pytest

from engine_runs import FP16, FP32, AnApi, FakeBuilds, a_run
from fashion import VIT
from vitesse import engines
from vitesse.backends.protocol import Built
from vitesse.backends.tensorrt import building
from vitesse.backends.tensorrt.options import Profile, ShapeRange
from vitesse.cli import build
from vitesse.cli.values import batch_range, bytes_of
from vitesse.errors import SpecError, UsageError


class Runtime:
    distrusts = ("grid_sample",)

    def build(self, artifact: object, store: object) -> Built:
        raise AssertionError("not for TensorRT")


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> FakeBuilds:
    made = FakeBuilds()
    monkeypatch.setattr(building, "build_plan", made)
    monkeypatch.setattr(engines, "load_api", lambda _: AnApi())
    monkeypatch.setattr(engines, "backend", lambda _: Runtime())
    monkeypatch.setattr(engines, "current_device", lambda: (None, "there is no driver"))
    return made


def called(*given: object) -> int:
    arguments = [str(one) for one in given]
    parser = argparse.ArgumentParser()
    build.add(parser)
    options = parser.parse_args(arguments)
    options.command_line = ["vitesse", "build", *arguments]
    return build.run(options)


def test_engines_are_named_with_step_precision_time_size_and_file(
    tmp_path: Path, builds: FakeBuilds, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path / "run", {"source": FP32, "fp16": FP16})
    assert called(run.folder, "--target", "tensorrt-rtx:sm75,sm86", "--stage", "source") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("tensorrt-rtx:sm75  fp16 (fp16)  1.5 s  0.0 MB  ")
    assert Path(said[0].split("  ")[-1]).is_file()
    assert said[1].startswith("  fp16 in place of source: it multiplies matrices in FP32")
    assert said[2] == "  a warning"
    assert said[3].startswith("tensorrt-rtx:sm86  source (fp16)")
    assert called(run.folder, "--target", "tensorrt-rtx:sm86", "--stage", "source") == 0
    assert "1.5 s, built before" in capsys.readouterr().out
    assert called(run.folder, "--target", "tensorrt-rtx:sm86", "--stage", "source", "--rebuild") == 0
    assert "built before" not in capsys.readouterr().out


def test_one_refusal_is_exit_code_1_and_the_others_are_there(
    tmp_path: Path, builds: FakeBuilds, capsys: pytest.CaptureFixture[str]
) -> None:
    builds.refuses = ("sm120",)
    run = a_run(tmp_path / "run", {"source": FP32})
    assert called(run.folder, "--target", "tensorrt-rtx:sm86,sm120") == 1
    said = capsys.readouterr().out
    assert "tensorrt-rtx:sm86  source (fp16)" in said
    assert "tensorrt-rtx:sm120  not built: no kernel for sm120" in said
    assert "next step: another GPU" in said


def test_every_option_reaches_the_builder(tmp_path: Path, builds: FakeBuilds) -> None:
    run = a_run(tmp_path / "run", {"source": FP32})
    given = ("--workspace", "4GiB", "--level", "3", "--batch", "2..4", "--version-compatible", "--verbose")
    assert called(run.folder, "--target", "tensorrt", *given) == 0
    options = builds.asked[0][1]
    assert (options.workspace_bytes, options.level) == (4 * 2**30, 3)
    assert options.compute_capabilities == ()
    assert options.version_compatible
    assert options.verbose
    assert options.profiles == (Profile({"x": ShapeRange((2, 6), (4, 6), (4, 6))}),)


def test_a_file_is_built_beside_itself_with_the_spec_it_carries(
    tmp_path: Path, builds: FakeBuilds, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(VIT.read_bytes())
    assert called(file, "--target", "tensorrt-rtx:sm86") == 0
    assert len(list((tmp_path / "model.engines").glob("*.plan"))) == 1
    assert "the file (fp16)" in capsys.readouterr().out
    assert called(file, "--target", "tensorrt-rtx:sm86", "--out", tmp_path / "there") == 0
    assert len(list((tmp_path / "there").glob("*.plan"))) == 1
    bare = tmp_path / "bare.onnx"
    bare.write_bytes(FP32.SerializeToString())
    with pytest.raises(SpecError):
        called(bare, "--target", "tensorrt-rtx:sm86")


def test_options_for_the_other_kind_of_model_are_refused(tmp_path: Path, builds: FakeBuilds) -> None:
    run = a_run(tmp_path / "run", {"source": FP32})
    with pytest.raises(UsageError, match="--preset beside a run folder"):
        called(run.folder, "--target", "cuda", "--preset", "vit")
    with pytest.raises(UsageError, match=r"--stage beside an .onnx file"):
        called(VIT, "--target", "cuda", "--stage", "fp16")
    assert builds.asked == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4GiB", 4 * 2**30),
        ("512MiB", 512 * 2**20),
        ("1.5GB", 1_500_000_000),
        ("64 KiB", 65536),
        ("2T", 2 * 10**12),
        ("1048576", 1048576),
        ("7B", 7),
        ("0", 0),
    ],
)
def test_a_size_in_memory_is_read_with_its_unit(text: str, expected: int) -> None:
    assert bytes_of(text) == expected


@pytest.mark.parametrize("text", ["", "4 gigabytes", "-1GiB", "GiB", "4iB", "1e9"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="write 4GiB or 512MiB"):
        bytes_of(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("8", (8, 8, 8)), ("1..8", (1, 8, 8)), ("1..4..8", (1, 4, 8))]
)
def test_a_range_of_batches_is_read_as_shapes_are(text: str, expected: tuple[int, int, int]) -> None:
    assert batch_range(text) == expected


@pytest.mark.parametrize("text", ["", "0..8", "8..1", "1..9..8", "1-8", "1..2..3..4", "a..b"])
def test_what_is_no_range_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"write 1\.\.8 or 1\.\.4\.\.8"):
        batch_range(text)
