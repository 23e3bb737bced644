"""Work on passing threads leaves no thread behind, OpenMP's included."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading

import pytest

from app.model.threads import PassingThreads, begin_on_passing_thread, on_passing_thread

COUNT_THREADS = """
import os, time, torch
from app.model.threads import on_passing_thread

def compute():
    torch.ones(2**20).exp().sum()
    return count()

def count():
    return len(os.listdir("/proc/self/task"))

before = count()
during = on_passing_thread(compute)
deadline_s = time.monotonic() + 10
while count() > before and time.monotonic() < deadline_s:  # the system ends a thread a moment after Python does
    time.sleep(0.01)
print(during - before, count() - before)
"""


def test_the_team_of_openmp_threads_ends_with_its_thread():
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("needs Linux's /proc")
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    printed = subprocess.run(
        [sys.executable, "-c", COUNT_THREADS], check=True, capture_output=True, text=True, env=environment
    ).stdout
    during, after = map(int, printed.split())
    assert during >= 1
    assert after == 0


def test_what_the_work_raises_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        on_passing_thread(lambda: 1 // 0)


def test_what_was_begun_is_done_without_waiting_and_its_thread_ends():
    may_go_on = threading.Event()

    def work():
        assert may_go_on.wait(10)
        return threading.current_thread()

    outcome = begin_on_passing_thread(work)
    assert not outcome.done()
    may_go_on.set()
    thread = outcome.result(10)
    thread.join(10)
    assert not thread.is_alive()
    assert thread is not threading.current_thread()


def test_an_event_loop_takes_them_as_its_default():
    async def two_names():
        asyncio.get_running_loop().set_default_executor(PassingThreads())
        return [await asyncio.to_thread(threading.current_thread) for _ in range(2)]

    first, second = asyncio.run(two_names())
    assert first is not second
    assert not first.is_alive()
