"""`pip install 'vitesse[serve]'` is enough to serve: what other extras bring is not imported."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="needs the server: pip install 'vitesse[serve]'")

from serve.serving import make_run

ABSENT = (
    "pycocotools",
    "onnxscript",
    "onnx_ir",
    "rich",
    "jinja2",
    "sympy",
    "openvino",
    "nncf",
    "torch",
    "av",
    "ray",
)
PROGRAM = """
import sys
from pathlib import Path
run, *absent = sys.argv[1:]
sys.modules.update(dict.fromkeys(absent))
from vitesse.run import open_run
from vitesse.serve.served import open_served
from vitesse.serve.server import listen, serve
from vitesse.serve.variants import ServeOptions
with open_served(open_run(Path(run)), ServeOptions(workers=1)) as served:
    served.start()
    print(served.wait(60), served.service.unready())
"""


def served_without(run: Path, *packages: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(run), *packages], capture_output=True, text=True, check=False
    )


def test_a_run_is_served_with_the_packages_of_its_extra_alone(tmp_path: Path) -> None:
    done = served_without(make_run(tmp_path / "run"), *ABSENT)
    assert done.stdout.strip() == "True", done.stderr


def test_a_package_that_is_needed_is_missed(tmp_path: Path) -> None:
    done = served_without(make_run(tmp_path / "run"), "prometheus_client")
    assert done.returncode != 0 and "prometheus_client" in done.stderr
