"""Importing vitesse, and asking for help, loads no runtime; running an artifact needs four packages only."""

import subprocess
import sys

import pytest

HEAVY = {
    "av", "cudnn", "flax", "httptools", "jax", "jax2onnx", "jinja2", "lightning_fabric", "numpy", "nvmath", "onnx",
    "onnx_ir", "onnxruntime", "onnxscript", "openvino", "PIL", "prometheus_client", "psutil", "pyarrow",
    "pycocotools", "ray", "rich", "safetensors", "scipy", "starlette", "sympy", "timm", "torch", "torch_pruning",
    "transformers", "triton", "uvicorn",
}  # fmt: skip
DEPLOY = {"numpy", "onnx", "onnxruntime", "PIL"}


def loaded_by(code: str) -> set[str]:
    """Return the heavy packages a fresh interpreter has loaded after `code`."""
    script = (
        f"{code}\nimport sys\nprint('\\n'.join(name for name in {sorted(HEAVY)!r} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import vitesse; vitesse.__version__; dir(vitesse)",
        "import vitesse.cli; vitesse.cli.build_parser()",
        "import vitesse.backends, vitesse.errors, vitesse.ledger, vitesse.recipe, vitesse.spec",
    ],
)
def test_the_light_modules_load_nothing_heavy(code: str) -> None:
    assert loaded_by(code) <= {"numpy"} if "backends" in code else loaded_by(code) == set()


def test_running_an_artifact_needs_four_packages_only() -> None:
    assert loaded_by("import vitesse; vitesse.load; import vitesse.backends.onnxruntime") <= DEPLOY


def test_the_check_would_see_an_offender() -> None:
    assert loaded_by("import vitesse, onnxruntime") >= {"onnxruntime", "numpy"}


def test_the_public_interface_is_eleven_names_and_each_of_them_is_there() -> None:
    import vitesse

    names = [name for name in vitesse.__all__ if name != "__version__"]
    assert len(names) == 11
    for name in names:
        if name == "from_jax":
            pytest.importorskip("jax2onnx", reason="needs jax2onnx: pip install 'vitesse[jax]'")
        assert callable(getattr(vitesse, name)), name
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = vitesse.nonsense


def test_a_stage_is_a_function_also_after_its_package_was_imported() -> None:
    code = (
        "import vitesse, vitesse.pipeline\nassert vitesse.fuse.__name__ == 'fuse' and callable(vitesse.fuse)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_extra_is_named_with_its_pip_line() -> None:
    code = "import sys\nsys.modules['onnxscript'] = None\nimport vitesse\nvitesse.fuse"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "onnxscript is not installed" in done.stderr
    assert "pip install 'vitesse[optimize]'" in done.stderr
