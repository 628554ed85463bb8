"""Optimisation profiles: read, made from a graph's inputs, held against them, chosen for a call."""

from __future__ import annotations

import pytest

from vitesse.backends.protocol import TensorInfo
from vitesse.backends.tensorrt.options import Profile, ShapeRange
from vitesse.backends.tensorrt.profiles import (
    check_profiles,
    default_profiles,
    parse_shapes,
    profile_for,
    profile_text,
)
from vitesse.errors import DataError, UsageError

IMAGES = TensorInfo("images", ("batch", 3, 56, 56), "float32")
SIZES = TensorInfo("sizes", ("batch", 2), "int64")
FREE = TensorInfo("images", ("batch", 3, "height", "width"), "float32")


def test_three_parts_are_min_opt_max() -> None:
    (profile,) = parse_shapes("images=1x3x480x640..8x3x800x1333..16x3x1333x1333")
    assert profile.inputs == {"images": ShapeRange((1, 3, 480, 640), (8, 3, 800, 1333), (16, 3, 1333, 1333))}


def test_of_two_parts_the_largest_is_the_usual_one_and_one_part_is_fixed() -> None:
    (profile,) = parse_shapes("a=1x3..8x3, b=4x2")
    assert profile.inputs == {
        "a": ShapeRange((1, 3), (8, 3), (8, 3)),
        "b": ShapeRange((4, 2), (4, 2), (4, 2)),
    }


def test_a_semicolon_begins_another_profile_and_names_may_have_dots_and_colons() -> None:
    small, large = parse_shapes("input.1:0=1x8..2x8;input.1:0=4x8..8x8")
    assert small.inputs["input.1:0"].max == (2, 8)
    assert large.inputs["input.1:0"].min == (4, 8)


@pytest.mark.parametrize(
    "text", ["a=1x3..2x3..3x3", "a=1x3..2x3..3x3,b=2..2..2", "a=1..2..4;a=8..8..8", "x.y=7"]
)
def test_what_is_written_is_read_again(text: str) -> None:
    profiles = parse_shapes(text)
    assert parse_shapes(";".join(map(profile_text, profiles))) == profiles


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the shapes '' of '' cannot be read"),
        ("1x3x4", "the shapes '1x3x4' of '1x3x4' cannot be read"),
        ("=1x3", "the shapes '=1x3' of '=1x3' cannot be read"),
        ("a=1x3..2x3..3x3..4x3", "the shapes '1x3..2x3..3x3..4x3' of 'a' cannot be read"),
        ("a=0x3", "the shapes '0x3' of 'a' cannot be read"),
        ("a=1x-1", "the shapes '1x-1' of 'a' cannot be read"),
        ("a=1x3..8x3x3", "have different numbers of dimensions"),
        ("a=8x3..1x3", "are out of order"),
        ("a=1x3..9x3..8x3", "are out of order"),
        ("a=1,a=2", "'a' stands twice in the profile 'a=1,a=2'"),
        ("a=1x3;b=1x3", r"profile 2 gives shapes for b \(2 dimensions\), profile 1 for a \(2 dimensions\)"),
        ("a=1x3;a=1x3x3", "with as many dimensions, in every profile"),
        ("a=1x3;", "the shapes '' of '' cannot be read"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_shapes(text)


def test_a_free_batch_gets_the_batch_in_every_input() -> None:
    (profile,) = default_profiles((IMAGES, SIZES), (1, 2, 8))
    assert profile.inputs == {
        "images": ShapeRange((1, 3, 56, 56), (2, 3, 56, 56), (8, 3, 56, 56)),
        "sizes": ShapeRange((1, 2), (2, 2), (8, 2)),
    }


def test_a_graph_of_fixed_shapes_needs_none() -> None:
    assert default_profiles((TensorInfo("x", (1, 3), "float32"),), (1, 1, 8)) == ()


def test_a_batch_out_of_order_is_refused() -> None:
    with pytest.raises(UsageError, match="1 ≤ min ≤ opt ≤ max"):
        default_profiles((IMAGES,), (4, 2, 8))


def test_another_free_dimension_shows_a_line_that_can_be_typed() -> None:
    with pytest.raises(UsageError, match="more than the batch is free in the input images") as caught:
        default_profiles((FREE,), (1, 1, 8))
    line = caught.value.fix.split('"')[1]
    (profile,) = parse_shapes(line)
    assert profile.inputs["images"] == ShapeRange((1, 3, 320, 320), (1, 3, 640, 640), (8, 3, 1280, 1280))


def test_a_fixed_batch_beside_a_free_one_is_refused() -> None:
    fixed = TensorInfo("sizes", (1, 2), "int64")
    with pytest.raises(UsageError, match=r"the input sizes int64 \[1, 2\] has a fixed batch"):
        default_profiles((IMAGES, fixed), (1, 1, 8))


def test_a_free_input_without_a_profile_is_refused_with_a_line() -> None:
    with pytest.raises(
        UsageError, match="no optimisation profile for the free dimensions of images"
    ) as caught:
        check_profiles((IMAGES,), ())
    assert '--shapes "images=1x3x56x56..1x3x56x56..8x3x56x56"' in caught.value.fix
    check_profiles((TensorInfo("x", (1, 3), "float32"),), ())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("images=1x3x56x56,other=1x2", "profile 1 gives shapes for 'other', which is no input of the model"),
        ("images=1x3x56", "profile 1 gives 3 dimensions for 'images'"),
        ("images=1x3x64x56", "gives 64..64 for a dimension of 'images' that the model fixes to 56"),
        ("sizes=1x2", "profile 1 has no shapes for the input images"),
    ],
)
def test_a_profile_that_does_not_fit_the_model_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_profiles((IMAGES, TensorInfo("sizes", (1, 2), "int64")), parse_shapes(text))


def test_the_profile_with_the_nearest_usual_shape_is_chosen() -> None:
    profiles = parse_shapes("x=1x8..1x8..8x8;x=1x8..8x8..8x8;x=16x8..16x8..32x8")
    assert [profile_for({"x": (batch, 8)}, profiles) for batch in (1, 2, 4, 8, 20)] == [0, 0, 1, 1, 2]


def test_near_is_a_matter_of_ratio() -> None:
    profiles = parse_shapes("x=1..4..100;x=1..64..100")
    assert profile_for({"x": (15,)}, profiles) == 0  # 3.75 times 4, and 64 is 4.3 times 15
    assert profile_for({"x": (18,)}, profiles) == 1


def test_fixed_inputs_do_not_count_and_no_profile_is_the_first() -> None:
    assert profile_for({"x": (4, 8), "mask": (1, 2)}, parse_shapes("x=1x8..8x8")) == 0
    assert profile_for({"x": (4, 8)}, ()) == 0


def test_shapes_that_no_profile_holds_are_refused_with_the_list() -> None:
    with pytest.raises(DataError) as caught:
        profile_for({"x": (9, 8)}, parse_shapes("x=1x8..1x8..4x8;x=5x8..8x8"))
    assert caught.value.what == "no optimisation profile of the engine holds x=9x8"
    assert "1: x=1x8..1x8..4x8; 2: x=5x8..8x8..8x8" in caught.value.expected
    assert "--shapes" in caught.value.fix


def test_a_missing_input_or_another_rank_is_held_by_no_profile() -> None:
    profiles = (Profile({"x": ShapeRange((1, 8), (1, 8), (4, 8))}),)
    for shapes in ({"x": (1, 8, 1)}, {"y": (1, 8)}):
        with pytest.raises(DataError):
            profile_for(shapes, profiles)
