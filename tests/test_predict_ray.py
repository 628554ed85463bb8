"""Offline scoring on Ray: really started, with a pool of two actors on this machine. Skips without Ray."""

import json
import os
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fashion import FOLDER
from serve.serving import make_run
from vitesse.predict import load, show
from vitesse.scoring.lines import Lines

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # their own
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'vitesse[ray]'")
    import psutil

    from scoring.tables import table
    from vitesse.ray_cluster import MIB, joined
    from vitesse.scoring.on_ray import Scored, score_on_ray

# Ray leaves sockets and files open where nobody sees it, and warns about its own past.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

PICTURES = sorted((FOLDER / "vit" / "val").glob("*/*.png"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run, and a cluster of this process for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "local")  # never a cluster that somebody else runs here
        with joined(2, 100 * MIB):
            yield make_run(tmp_path_factory.mktemp("scoring") / "run")


def lines_of(path: Path) -> dict[str, str]:
    """Return the lines by image."""
    return {json.loads(line)["image"]: line for line in path.read_text().splitlines()}


def expected(run: Path, paths: list[Path]) -> dict[str, str]:
    with load(run) as model:
        return {str(path): show(model(path), path, threshold=0.5, as_json=True) for path in paths}


def test_files_and_tables_get_the_lines_of_plain_predict_and_bad_images_fail_alone(
    run: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(PICTURES[0].read_bytes()[:200])
    content = [path.read_bytes() for path in PICTURES[3:10]]
    names: list[str | None] = [str(path) for path in PICTURES[3:10]]
    shard = table(tmp_path / "shard.parquet", [*content, b"no image", None], [*names, None, None])
    out = tmp_path / "out.jsonl"
    done = score_on_ray(run, [*map(str, PICTURES[:3]), str(bad), str(shard)], out, actors=2)
    assert done == Scored(answered=10, failed=3, known=0)
    found = lines_of(out)
    wrong = {name: json.loads(found.pop(name))["error"] for name in (str(bad), f"{shard}#7", f"{shard}#8")}
    assert "bad.png is damaged" in wrong[str(bad)]
    assert "is not an image that can be read" in wrong[f"{shard}#7"]
    assert "is empty" in wrong[f"{shard}#8"]
    assert found == expected(run, PICTURES[:10])


@pytest.mark.long
def test_an_interrupted_run_does_only_what_is_missing(run: Path, tmp_path: Path) -> None:
    sources, out = list(map(str, PICTURES[:6])), tmp_path / "out.jsonl"
    whole = expected(run, PICTURES[:6])
    kept = list(whole.values())[:4]
    made_by = {"artifact_sha256": json.loads((run / "ledger.json").read_text())["rows"][1]["artifact"]["sha256"],
               "threshold": "0.5"}  # fmt: skip
    with Lines(out, made_by) as lines:
        lines.add(kept)
    assert score_on_ray(run, sources, out, actors=2) == Scored(answered=2, failed=0, known=4)
    assert lines_of(out) == whole
    assert len(out.read_text().splitlines()) == 6


@pytest.mark.long
def test_a_killed_actor_costs_no_image_and_doubles_none(run: Path, tmp_path: Path) -> None:
    names = [f"{index}" for index in range(600)]
    content = [PICTURES[index % 50].read_bytes() for index in range(600)]
    shard = table(tmp_path / "shard.parquet", list(content), list(names), rows=100)
    out, killed = tmp_path / "out.jsonl", []

    def kill() -> None:
        end = time.monotonic() + 60
        while not killed and time.monotonic() < end:
            if out.exists() and out.read_text().count("\n") >= 32:
                actors = [one for one in psutil.process_iter(["cmdline"])
                          if "MapWorker" in (one.info["cmdline"] or [""])[0]]  # fmt: skip
                if actors:
                    os.kill(actors[0].pid, signal.SIGKILL)
                    killed.append(actors[0].pid)
            time.sleep(0.005)

    killer = threading.Thread(target=kill)
    killer.start()
    done = score_on_ray(run, [str(shard)], out, actors=2)
    killer.join()
    assert killed, "nothing was killed, so that nothing is shown"
    assert done == Scored(answered=600, failed=0, known=0)
    assert Counter(json.loads(line)["image"] for line in out.read_text().splitlines()) == Counter(names)
