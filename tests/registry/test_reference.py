"""The names callers may use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidInput, NotFound
from app.registry.reference import Reference, name_together, require_alias_name, require_task_name, spell_out


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sentiment", Reference("sentiment", alias="live")),
        ("sentiment@3", Reference("sentiment", number=3)),
        ("sentiment@canary", Reference("sentiment", alias="canary")),
        ("sentiment@sha256:ab12cd34", Reference("sentiment", digest="ab12cd34")),
        ("sentiment@sha256", Reference("sentiment", alias="sha256")),
        ("0.a_b-c", Reference("0.a_b-c", alias="live")),
        ("a" * 63 + "@999999999", Reference("a" * 63, number=999_999_999)),
    ],
)
def test_a_name_says_one_thing(name: str, expected: Reference) -> None:
    assert Reference.parse(name) == expected


@pytest.mark.parametrize(
    "name",
    [
        "",
        "@",
        "@3",
        "a@",
        "a@0",
        "a@03",
        "a@-1",
        "a@1.0",
        "a@1000000000",
        "a@3@3",
        "A",
        "a/b",
        "../a",
        ".a",
        "-a",
        "a b",
        "a\n",
        "a@3\n",
        "a@sha256:",
        "a@sha256:ab12cd3",
        "a@sha256:AB12CD34",
        "a@sha256:" + "a" * 65,
        "a" * 64,
        "ä",
        "\ud800",
        "a\0",
    ],
)
def test_what_no_task_can_be_called_is_not_found(name: str) -> None:
    with pytest.raises(NotFound):
        Reference.parse(name)


@pytest.mark.parametrize("name", ["", "A", "a/b", ".", "..", ".a", "a" * 64, "a\n", "a@1"])
def test_a_task_cannot_be_published_under_a_name_it_could_not_be_called_by(name: str) -> None:
    with pytest.raises(InvalidInput):
        require_task_name(name)


@pytest.mark.parametrize("name", ["", "3", "3a", "A", "a/b", ".a", "sha256:ab12cd34", "a\n"])
def test_an_alias_cannot_look_like_a_number_or_digest(name: str) -> None:
    with pytest.raises(InvalidInput):
        require_alias_name(name)


def test_a_number_after_a_plus_is_another_version_of_the_same_task() -> None:
    assert spell_out("sentiment@1+2+3") == ["sentiment@1", "sentiment@2", "sentiment@3"]
    assert spell_out("sentiment+tone@4+5") == ["sentiment", "tone@4", "tone@5"]
    assert spell_out("7@1+2+8@live") == ["7@1", "7@2", "8@live"]


def test_an_ensemble_has_one_name() -> None:
    assert name_together(["a@1", "a@2", "b@1", "a@3"]) == "a@1+2+b@1+a@3"


@given(st.lists(st.tuples(st.sampled_from(["a", "7", "a.b"]), st.integers(1, 20)), min_size=1, max_size=8))
def test_an_ensembles_name_says_what_is_in_it(members: list[tuple[str, int]]) -> None:
    names = [f"{task}@{number}" for task, number in members]
    assert spell_out(name_together(names)) == names
