"""The README's commands and code blocks do what they say, in an empty folder with the examples in it."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vitesse.cli import main

pytestmark = pytest.mark.usefixtures("short_races")
ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
# Cut short: what is tested is that the commands work, not their figures; `make demo` searches for precisions, too.
QUICK = ("--limit", "20", "--precisions", "fp32", "--recipe", "quick.toml")
QUICK_RECIPE = "[measure]\nseconds = 0.1\nmin_rounds = 8\nparity_images = 4\n"
QUICK_CODE = """
from vitesse.recipe import DataOptions, MeasureOptions, Recipe
quick = Recipe(
    precisions=("fp32",),
    data=DataOptions(limit=20, calib_images=8),
    measure=MeasureOptions(seconds=0.1, min_rounds=8, parity_images=4),
)
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "quick.toml").write_text(QUICK_RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shell(line: str) -> str:
    """Run one line as a user would, with the `vitesse` of this environment."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", line], capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_the_commands_work_in_their_order(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that only measure run in this process, where races are short; `make demo` types them, too."""
    lines = [line.partition("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    commands = [line for line in lines if line.startswith("vitesse ")]
    wanted = ["optimize", "report", "profile", "predict", "doctor"]
    assert [command.split()[1] for command in commands] == wanted
    said = {}
    for command in commands:
        _, name, *arguments = shlex.split(command)
        if name in ("optimize", "profile"):
            assert main([name, *arguments, *(QUICK if name == "optimize" else ())]) == 0
            said[name] = capsys.readouterr().out
        else:
            said[name] = shell(command)
    assert "fuse" in said["optimize"]
    assert "report.html" in said["report"]
    assert (here / "run" / "report.html").is_file()
    assert (here / "boxes.png").is_file()
    assert re.search(r"\d\.\d{3} +\w+", said["predict"]), "a detection with its score is printed"
    assert all(part in said["profile"] for part in ("backbone", "encoder", "decoder", "heads"))
    assert "onnxruntime" in said["doctor"]


def test_make_demo_and_make_test_are_targets_of_the_makefile() -> None:
    lines = [line.partition("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    targets = [line.split()[1] for line in lines if line.startswith("make ")]
    assert targets == ["demo", "test"]
    makefile = (ROOT / "Makefile").read_text()
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_a_python_block_runs_as_printed(number: int, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = QUICK_CODE + blocks("python")[number].replace('target="cpu"', 'target="cpu", recipe=quick')
    exec(compile(code, f"README.md, block {number}", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


def test_every_file_the_readme_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) >= 5
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not missing
