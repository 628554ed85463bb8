"""Predicting and serving may need numpy and Pillow, and nothing heavier."""

import subprocess
import sys

import pytest

DEPLOY_PATH = ("images", "boxes", "preprocess", "postprocess", "results", "draw")


def foreign_imports(*modules):
    """Top-level packages that importing `modules` loads, beyond the standard library."""
    program = (
        f"import sys; before = set(sys.modules); import {', '.join(modules)}; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    ran = subprocess.run([sys.executable, "-I", "-c", program], check=True, capture_output=True, text=True)
    return set(ran.stdout.split())


def test_deploy_path_imports_only_numpy_and_pillow():
    modules = [f"vitesse.data.{module}" for module in DEPLOY_PATH]
    assert foreign_imports(*modules) <= {"vitesse", "numpy", "PIL"}


def test_a_foreign_import_is_seen():
    pytest.importorskip("pycocotools")
    assert "pycocotools" in foreign_imports("vitesse.verify.coco")
