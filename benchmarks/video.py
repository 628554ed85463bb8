"""Frames per second of `vitesse predict` on a video, against the same work done frame by frame in one loop.

    python benchmarks/video.py [--rounds 5] [--frames 200]      writes benchmarks/results/video.json

The model is the example's detector with one thread, the video its scenes at 256×256 and scaled to 1280×720, with boxes
drawn and encoded. Both take turns, round by round; the ratio of each round is one sample. Beside each stands how many
cores other processes took meanwhile, and the load of the machine before and after (of one minute, in processes): where
others run, several threads get a larger share of the cores than one does, and the ratio comes out too high.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import onnx
from ledgers import ROOT
from PIL import Image

from vitesse import stages
from vitesse.backends.protocol import LoadOptions
from vitesse.environment import describe
from vitesse.predict import Model
from vitesse.spec import Resize
from vitesse.video.drawing import drawn
from vitesse.video.predicting import predict_video
from vitesse.video.reading import FileReader
from vitesse.video.writing import Writer

RESULTS = ROOT / "benchmarks" / "results" / "video.json"
EXAMPLE = ROOT / "examples" / "fashion"
SIZES = ((256, 256), (1280, 720))


def make_clip(path: Path, size: tuple[int, int], frames: int) -> Path:
    scenes = sorted((EXAMPLE / "detr" / "val").glob("*.jpg"))
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=25, options={"preset": "veryfast", "crf": "20"})
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            scene = Image.open(scenes[number // 5 % len(scenes)]).convert("RGB").resize(size)
            frame = av.VideoFrame.from_ndarray(np.asarray(scene), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
    return path


def in_one_loop(model: Model, clip: Path, out: Path) -> int:
    """The same functions, one after the other for each frame."""
    count = 0
    with (
        FileReader(str(clip), with_audio=True) as reader,
        Writer(out, rate=reader.rate, time_base=reader.time_base, audio=reader.audio) as writer,
    ):
        for frame in reader.frames(lambda seconds: False):
            writer.write(drawn(frame.pixels, model(frame.pixels)), frame.pts)
            count += 1
    return count


def overlapped(model: Model, clip: Path, out: Path) -> int:
    return predict_video(model, str(clip), out=out).frames


def busy_s() -> tuple[float, float]:
    """Seconds of processor time since some moment: of the whole machine, and of this process."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = ticks[3] + ticks[4]
    return (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK"), time.process_time()


def race(model: Model, clip: Path, folder: Path, rounds: int, frames: int) -> dict[str, list[float]]:
    """Frames per second of both ways by round, and `others`: cores that other processes took in the round."""
    speeds: dict[str, list[float]] = {"overlapped": [], "loop": [], "others": []}
    for number in range(rounds + 1):
        order = [("overlapped", overlapped), ("loop", in_one_loop)][:: 1 if number % 2 else -1]
        since, machine, own = time.perf_counter(), *busy_s()
        for name, run in order:
            began = time.perf_counter()
            assert run(model, clip, folder / "out.mp4") == frames
            if number:  # the first round warms up
                speeds[name].append(frames / (time.perf_counter() - began))
        if number:
            machine, own = (now - before for now, before in zip(busy_s(), (machine, own), strict=True))
            speeds["others"].append((machine - own) / (time.perf_counter() - since))
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=200)
    options = parser.parse_args()
    artifact = stages.open_model(EXAMPLE / "detr_fashion.onnx")
    rules = replace(
        artifact.spec.preprocessing, resize=Resize.STRETCH
    )  # the example's own takes 256×256 only
    artifact = replace(artifact, spec=replace(artifact.spec, preprocessing=rules))
    results = []
    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as name, Model(artifact, LoadOptions(threads=1)) as model:
        folder = Path(name)
        for size in SIZES:
            clip = make_clip(folder / f"{size[0]}x{size[1]}.mp4", size, options.frames)
            speeds = race(model, clip, folder, options.rounds, options.frames)
            ratios = [fast / slow for fast, slow in zip(speeds["overlapped"], speeds["loop"], strict=True)]
            median = statistics.median(ratios)
            results.append(
                {"size": list(size), "frames_per_s": speeds, "ratios": ratios, "median_ratio": median}
            )
            print(
                f"{size[0]}×{size[1]}: {median:.2f}× ({min(ratios):.2f} … {max(ratios):.2f})",
                speeds,
                flush=True,
            )
    load.append(os.getloadavg()[0])
    versions = {"av": av.__version__, "onnx": onnx.__version__}
    content = {
        "command": f"python benchmarks/video.py --rounds {options.rounds} --frames {options.frames}",
        "model": "examples/fashion/detr_fashion.onnx, 1 thread",
        "environment": {**describe(), "video": versions, "load": load},
        "results": results,
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
