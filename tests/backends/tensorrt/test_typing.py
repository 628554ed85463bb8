"""Our calls against the recorded types of TensorRT 10.13: the checker sees a whole module, and a wrong call."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tensorrt_stubs import mended_stubs, stubs_installed

pytest.importorskip("mypy", reason="mypy is not installed")
pytestmark = pytest.mark.skipif(
    not stubs_installed(), reason="tensorrt-stubs 10 is not installed (pip install --no-deps tensorrt-stubs)"
)

SOURCE = Path(__file__).resolve().parents[3] / "src"
OURS = SOURCE / "vitesse" / "backends" / "tensorrt"

CONFIG = """\
[mypy]
strict = true
mypy_path = {source}:{stubs}
follow_imports = skip
ignore_missing_imports = true
warn_return_any = false
cache_dir = {cache}

[mypy-vitesse.*,numpy.*]
follow_imports = silent

[mypy-tensorrt.*,tensorrt_bindings.*]
follow_imports = normal
ignore_errors = true
"""

BROKEN = """\
from vitesse.backends.tensorrt.api import Api

def build(api: Api) -> None:
    builder = api.Builder(None)
    network = builder.create_network("strong")
    builder.build_everything(network)
    builder.create_optimization_profile().set_shape("x", (1,), (1,), (1,))
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stubs")
    assert mended_stubs(folder / "stubs") == 5
    path = folder / "mypy.ini"
    path.write_text(CONFIG.format(source=SOURCE, stubs=folder / "stubs", cache=folder / "cache"))
    return path


def check(config: Path, *files: Path) -> str:
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300).stdout


def test_every_call_fits_the_recorded_module_and_the_module_fits_the_protocol(config: Path) -> None:
    said = check(config, *OURS.glob("*.py"))
    assert "Success: no issues found" in said, said


def test_a_wrong_call_is_found(config: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    said = check(config, tmp_path / "broken.py")
    assert 'Argument 1 to "Builder" has incompatible type "None"; expected "ILogger"' in said
    assert 'Argument 1 to "create_network" of "Builder" has incompatible type "str"; expected "int"' in said
    assert '"Builder" has no attribute "build_everything"' in said
    assert 'incompatible type "tuple[int]"; expected "Dims"' in said
    assert "Found 6 errors" in said, said
