"""The names callers may use."""

from __future__ import annotations

import pytest

from app.errors import InvalidInput, NotFound
from app.registry.reference import Reference, require_alias_name, require_task_name


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
