"""Call: what is bounded by one deadline."""

from __future__ import annotations

import math

import pytest

from app.answers.call import Call
from app.errors import DeadlineExceeded


def test_the_seconds_left_shrink_and_are_never_negative() -> None:
    assert 0 < Call.within(60).left_s <= 60
    with pytest.raises(DeadlineExceeded):
        _ = Call.within(-1).left_s


def test_a_call_without_a_deadline_never_ends() -> None:
    assert Call.within(math.inf).left_s == math.inf
