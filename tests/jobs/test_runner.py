"""The runner's retries: waits that grow to a bound, separately for each job."""

from __future__ import annotations

from app.jobs.runner import MAX_RETRY_S, RETRY_S, Retries


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_waits_grow_to_a_bound_and_begin_anew_for_a_job_that_was_forgotten() -> None:
    retries = Retries()
    waits = [retries.put_off("a") for _ in range(20)]
    assert waits[0] == RETRY_S
    assert waits == sorted(waits)
    assert waits[-2:] == [MAX_RETRY_S, MAX_RETRY_S]
    assert retries.put_off("b") == RETRY_S
    assert retries.keep_only(["b"]) == {"a"}
    assert retries.put_off("a") == RETRY_S


def test_a_job_waits_as_long_as_was_said() -> None:
    clock = Clock()
    retries = Retries(clock)
    assert (retries.waiting, retries.next_s) == (set(), None)
    retries.put_off("a")
    clock.now_s = 1.0
    retries.put_off("b")
    assert (retries.waiting, retries.next_s) == ({"a", "b"}, RETRY_S - 1)
    clock.now_s = RETRY_S
    assert (retries.waiting, retries.next_s) == ({"b"}, 0.0)
    clock.now_s = RETRY_S + 2
    assert (retries.waiting, retries.next_s) == (set(), 0.0)
