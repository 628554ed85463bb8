import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitesse.serve.limits import MIB, Limits
from vitesse.serve.protocol.json_body import MOST_CONTAINERS, MOST_VALUES, json_depth, parse_json
from vitesse.serve.refusals import Refusal

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='"\\[]{}a', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('"\\[{', max_size=3), inner, max_size=3)
    ),
    max_leaves=20,
)


def depth_of(value: object) -> int:
    """Count nesting in the parsed value, another way than the one on trial."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth_of, inner), default=0)


@given(VALUES)
def test_depth_is_counted_outside_of_strings_whatever_they_hold(value: object) -> None:
    assert json_depth(json.dumps(value).encode()) == depth_of(value)
    assert parse_json(json.dumps(value).encode(), Limits()) == value


def test_depth_and_strings_go_on_across_blocks() -> None:
    inside = b'["' + b"[" * (2 * MIB) + b'", [[1]]]'
    assert json_depth(inside) == 3
    assert json_depth(b"[" * (2 * MIB + 5)) == 2 * MIB + 5


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def test_depth_is_bounded_by_the_limit_and_not_by_the_interpreter() -> None:
    assert parse_json(nested(64), Limits())
    for depth in (65, 1_000, 200_000):
        with pytest.raises(Refusal, match=r"JSON nesting depth exceeds maximum allowed limit \(64\)"):
            parse_json(nested(depth), Limits())


def test_a_generous_limit_ends_in_a_refusal_too() -> None:
    with pytest.raises(Refusal, match="JSON nesting depth exceeds"):
        parse_json(nested(200_000), Limits(json_depth=10**6))


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"0," * (MOST_VALUES + 1) + b"0]",
        b"[" + b"[]," * MOST_CONTAINERS + b"0]",
        b"{" + b'"":0,' * (MOST_CONTAINERS + 1) + b'"":0}',
    ],
    ids=["numbers", "lists", "keys"],
)
def test_more_values_than_memory_should_hold_are_refused_before_parsing(body: bytes) -> None:
    with pytest.raises(Refusal, match="send tensors of this size as binary data") as caught:
        parse_json(body, Limits())
    assert (caught.value.status, caught.value.code) == (413, "too_large")


def test_a_key_that_stands_twice_is_named_wherever_it_is() -> None:
    with pytest.raises(Refusal, match="the key 'b' stands twice in one object"):
        parse_json(b'{"a": [{"b": 1, "c": 2, "b": 1}]}', Limits())
    assert parse_json(b'{"a": {"a": 1}}', Limits()) == {"a": {"a": 1}}
