"""GridSample as a gather, against the definition in float64, torch-like corner by corner, and against ONNX Runtime."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deimv2 import deimv2
from fusing import graph, normal, ops, run
from vitesse.fusion import clean_model
from vitesse.lowering.lower import lower_model


def model(
    mode: str = "bilinear",
    padding: str = "zeros",
    align: int = 0,
    opset: int = 16,
    image: str = "N,3,5,7",
    grid: str = "N,4,6,2",
) -> onnx.ModelProto:
    inputs = f"float[{image}] x, float[{grid}] g"
    rank = image.count(",") + 1
    body = f'y = GridSample<mode="{mode}", padding_mode="{padding}", align_corners={align}>(x, g)'
    return graph(body, inputs, f"float[{','.join('abcde'[:rank])}] y", opset, check=False)


def points(*shape: int, seed: int = 0) -> np.ndarray:
    """Grid points inside, outside, far outside, and on the borders and centres of pixels."""
    grid = np.random.default_rng(seed).uniform(-1.4, 1.4, shape).astype(np.float32)
    special = np.array([-1, 1, 0, -1.0000001, 1.0000001, 50, -50, 1e30, 0.2, 1 / 7, 6 / 7], np.float32)
    flat = grid.reshape(-1)
    flat[: len(special)] = special
    flat[-len(special) :] = special[::-1]
    return grid


def by_definition(x: np.ndarray, grid: np.ndarray, padding: str, align: int) -> np.ndarray:
    """Bilinear sampling in float64, one point at a time."""
    n, c, h, w = x.shape
    out = np.zeros((n, c, *grid.shape[1:3]))
    for b, i, j in np.ndindex(n, *grid.shape[1:3]):
        place = []
        for number, size in zip(grid[b, i, j].astype(np.float64), (w, h), strict=True):
            pixel = (number + 1) / 2 * (size - 1) if align else ((number + 1) * size - 1) / 2
            place.append(min(max(pixel, 0), size - 1) if padding == "border" else pixel)
        low = [int(np.floor(one)) for one in place]
        for dx, dy in itertools.product((0, 1), repeat=2):
            at = low[0] + dx, low[1] + dy
            weight = (1 - abs(place[0] - at[0])) * (1 - abs(place[1] - at[1]))
            if 0 <= at[0] < w and 0 <= at[1] < h:
                out[b, :, i, j] += weight * x[b, :, at[1], at[0]]
    return out


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("align", [0, 1])
@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize(("mode", "opset"), [("bilinear", 16), ("bilinear", 18), ("linear", 20)])
def test_the_gather_form_agrees_with_the_definition_and_the_operator(
    mode: str, opset: int, padding: str, align: int, batch: int
) -> None:
    before = model(mode, padding, align, opset)
    done = lower_model(before, ["grid_sample"])
    assert done.changes == {"grid_sample": 1}
    assert "GridSample" not in ops(done.model)
    feeds = {"x": normal(batch, 3, 5, 7, seed=2), "g": points(batch, 4, 6, 2)}
    found = run(done.model, feeds)[0]
    np.testing.assert_allclose(found, by_definition(feeds["x"], feeds["g"], padding, align), atol=1e-5)
    # ONNX Runtime's own index overflows for points as far out as 1e30; moved nearer they mean the same.
    feeds["g"] = feeds["g"].clip(-1e6, 1e6)
    np.testing.assert_allclose(found, run(before, feeds)[0], atol=2e-6)


@settings(max_examples=20, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    rows=st.integers(1, 4),
    seed=st.integers(0, 99),
    padding=st.sampled_from(["zeros", "border"]),
    align=st.integers(0, 1),
)
def test_any_size_is_sampled_alike(
    height: int, width: int, rows: int, seed: int, padding: str, align: int
) -> None:
    before = model("linear", padding, align, 20, f"N,2,{height},{width}", f"N,{rows},6,2")
    feeds = {
        "x": normal(2, 2, height, width, seed=seed),
        "g": points(2, rows, 6, 2, seed=seed).clip(-1e6, 1e6),
    }
    after = lower_model(before, ["grid_sample"]).model
    np.testing.assert_allclose(run(after, feeds)[0], run(before, feeds)[0], atol=3e-6)


@pytest.mark.parametrize("image", ["N,C,H,W", "2,3,H,7"])
@pytest.mark.parametrize("grid", ["N,P,Q,2", "2,4,Q,2"])
def test_open_sizes_are_read_at_run_time(image: str, grid: str) -> None:
    before = model("linear", image=image, grid=grid, opset=20)
    after = lower_model(before, ["grid_sample"]).model
    feeds = {"x": normal(2, 3, 5, 7, seed=2), "g": points(2, 4, 6, 2)}
    np.testing.assert_allclose(run(after, feeds)[0], run(before, feeds)[0], atol=2e-6)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_volumes_and_nearest_pixels_are_gathered_too(mode: str) -> None:
    for image, grid, sizes in (
        ("N,2,3,5,4", "N,2,3,4,3", ((2, 2, 3, 5, 4), (2, 2, 3, 4, 3))),
        ("N,2,5,7", "N,6,4,2", ((2, 2, 5, 7), (2, 6, 4, 2))),
    ):
        before = model(mode, image=image, grid=grid, opset=20)
        after = lower_model(before, ["grid_sample"]).model
        feeds = {"x": normal(*sizes[0], seed=2), "g": np.clip(points(*sizes[1]), -3, 3)}
        np.testing.assert_allclose(run(after, feeds)[0], run(before, feeds)[0], atol=2e-6)


def test_points_that_are_no_numbers_weigh_nothing_and_read_no_memory() -> None:
    after = lower_model(model(), ["grid_sample"]).model
    grid = np.zeros((1, 4, 6, 2), np.float32)
    grid[0, 0, :3, 0] = np.nan, np.inf, -np.inf
    found = run(after, {"x": normal(1, 3, 5, 7), "g": grid})[0]
    assert np.array_equal(found[0, :, 0, :3], np.zeros((3, 3)))
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mode": "bicubic"}, "mode 'bicubic' reads more than the corners around a point"),
        ({"padding": "reflection"}, "padding mode 'reflection'"),
    ],
)
def test_what_reads_other_pixels_is_left_alone(changes: dict[str, str], reason: str) -> None:
    done = lower_model(model(**changes), ["grid_sample"])
    assert done.changes == {"grid_sample": 0}
    assert done.reasons == {"grid_sample": (reason,)}
    assert ops(done.model) == {"GridSample": 1}


def test_rewriting_again_changes_nothing() -> None:
    once = lower_model(model(), ["grid_sample"]).model
    again = lower_model(once, ["grid_sample"])
    assert again.changes == {"grid_sample": 0}
    assert again.model.graph.node == once.graph.node


@pytest.mark.slow
def test_a_deformable_detector_answers_the_same() -> None:
    path, spec = deimv2()
    cleaned = clean_model(onnx.load(path), spec.outputs.values()).model
    done = lower_model(cleaned, ["grid_sample"])
    count = ops(cleaned)["GridSample"]
    assert done.changes == {"grid_sample": count} and count >= 3
    feeds = {
        "images": np.random.default_rng(1).random((1, 3, 320, 320)).astype(np.float32),
        "orig_target_sizes": np.array([[640, 480]]),
    }
    names = [value.name for value in cleaned.graph.output]
    before, after = (dict(zip(names, run(m, feeds), strict=True)) for m in (cleaned, done.model))
    np.testing.assert_allclose(np.sort(after["scores"]), np.sort(before["scores"]), atol=1e-5)
    confident = before["scores"] > 0.05
    np.testing.assert_array_equal(after["labels"][confident], before["labels"][confident])
    np.testing.assert_allclose(after["boxes"][confident], before["boxes"][confident], atol=0.05)
