from pathlib import Path

import pytest

from vitesse.errors import UsageError
from vitesse.recipe import Recipe, load_recipe, merge


def test_a_toml_file_sets_options_in_sections(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('target = "openvino"\nmax_drop = 1\nprecisions = ["fp32"]\n[measure]\nseconds = 2\n')
    recipe = load_recipe(path)
    assert (recipe.target, recipe.max_drop, recipe.precisions) == ("openvino", 1.0, ("fp32",))
    assert recipe.measure.seconds == 2.0
    assert recipe.measure.parity_images == Recipe().measure.parity_images


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ({"max_dorp": 1}, r"unknown key 'max_dorp'.*\n.*max_drop"),
        ({"measure": {"second": 1}}, "unknown key 'measure.second'"),
        ({"measure": 3}, r"expected: a table \[measure\]"),
        ({"max_drop": "half"}, "max_drop = 'half' in the recipe"),
        ({"max_drop": True}, "max_drop = True"),
        ({"max_drop": -1}, "--max-drop -1\n.*0 or more"),
        ({"latency_budget_ms": 0}, "as in 16ms"),
        ({"compress": {"steps": -1}}, "--train-steps -1\n.*1 or more"),
        ({"precisions": ["fp12"]}, r"unknown precision 'fp12'(.|\n)*fp32, fp16, bf16, int8, fp8"),
        ({"data": {"calib_images": 513}}, "1 to 512"),
        ({"int8": {"weight_bits": 4}}, "7, 8, or 0"),
    ],
)
def test_a_wrong_option_is_named_with_what_was_expected(raw: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        merge(Recipe(), raw)


@pytest.mark.parametrize("content", [b"max_drop = ", b"\xff\xfe"])
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="cannot read the recipe"):
        load_recipe(path)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.toml"):
        load_recipe(tmp_path / "absent.toml")
