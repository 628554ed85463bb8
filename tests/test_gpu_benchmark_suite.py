"""python -m benchmarks.gpu tests: what became of every test, and its table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark_scripts import FOLDER
from gpu_benchmark import gpu_module, record
from gpu_records import line_of

pytest.importorskip("torch", reason="the benchmarks of the PyTorch engine need torch")

TESTS = """
import pytest

def test_right():
    pass

def test_wrong():
    assert 1 + 1 == 3, "a sum"

@pytest.mark.skipif(True, reason="needs a GPU")
def test_elsewhere():
    pass

@pytest.fixture
def broken():
    raise OSError("no driver")

def test_not_begun(broken):
    pass
"""


def test_every_outcome_is_kept_with_its_words(tmp_path: Path) -> None:
    file, out = tmp_path / "test_some.py", tmp_path / "out.json"
    file.write_text(TESTS)
    command = [sys.executable, "-m", "benchmarks.gpu", "tests", "--paths", str(file), "--out", str(out)]
    subprocess.run(command, cwd=FOLDER.parent, check=True, capture_output=True, timeout=120)
    found = json.loads(out.read_text())
    assert found["kind"] == "tests" and "torch" in found["environment"]
    outcomes = {name.partition("::")[2]: said for name, said in found["outcomes"].items()}
    assert outcomes.keys() == {"test_right", "test_wrong", "test_elsewhere", "test_not_begun"}
    assert outcomes["test_right"] == "passed"
    assert outcomes["test_wrong"].startswith("failed: AssertionError: a sum")
    assert outcomes["test_elsewhere"] == "skipped: Skipped: needs a GPU"
    assert outcomes["test_not_begun"] == "failed: OSError: no driver"


def test_the_table_counts_by_file_and_names_what_failed(tmp_path: Path) -> None:
    tables = gpu_module("tables")
    outcomes = {"a.py::one": "passed", "a.py::two": "failed: a | b", "b.py::three": "skipped: no GPU"}
    (tmp_path / "torch_cuda_tests.json").write_text(json.dumps(record("tests", outcomes=outcomes)))
    table = tables.test_table(tables.read(tmp_path))
    assert line_of(table, "`a.py`") == ["1", "1", "0"]
    assert line_of(table, "`b.py`") == ["0", "0", "1"]
    assert table.endswith("* `a.py::two` failed: a \\| b")
    assert tables.test_table(tables.Results()) == "not run."
