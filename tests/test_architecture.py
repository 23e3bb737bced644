"""docs/architecture.md lists the steps of a labeled run and the files it enters besides: here one is traced."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import httpx

from tests.support.models import tiny_backbone
from tests.support.server import make_settings, publish_tasks, run_server

ROOT = Path(__file__).parent.parent
APP = ROOT / "app"
DOCS = ROOT / "docs" / "architecture.md"
MAX_STEPS = 30
VARYING = {"app/engine/threads/device_lease.py", "app/model/kernels.py"}


class Tracer:
    """Notes the files of `app` whose functions are called in threads that start while it is installed."""

    def __init__(self) -> None:
        self.is_on = False
        self.files: set[str] = set()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if self.is_on and event == "call" and frame.f_code.co_filename.startswith(f"{APP}/"):
            self.files.add(str(Path(frame.f_code.co_filename).relative_to(ROOT)))


def test_the_life_of_a_labeled_run_is_the_documented_one(tmp_path: Path) -> None:
    tracer = Tracer()
    backbone = tiny_backbone()
    threading.setprofile(tracer)
    try:
        with run_server(make_settings(tmp_path), backbone) as live:
            publish_tasks(live.registry, backbone)
            run = live.url + "/v1/tasks/sentiment/run"
            for text in ("what loads and encodes for the first time is not the life of a request", "a dull mess"):
                tracer.is_on = text == "a dull mess"
                answer = httpx.post(run, json={"input": text})
                tracer.is_on = False
                assert answer.json()["label"] in ("negative", "positive")
    finally:
        threading.setprofile(None)
    section = re.search(r"^## The life of a request\n(.*?)^## ", DOCS.read_text(), re.MULTILINE | re.DOTALL)[1]
    steps = re.findall(r"^\|.*?\| `(app/[\w/]+\.py)` \|", section, re.MULTILINE)
    mentioned = set(re.findall(r"`(app/[\w/]+\.py)`", section))
    assert len(steps) == len(set(steps)) <= MAX_STEPS
    assert set(steps) <= tracer.files, "a step that a run does not take"
    # which kernels the device has, and whether a turn for tuning is asked for in these milliseconds, may vary
    assert tracer.files <= mentioned | {f for f in tracer.files if f.startswith(("app/model/cpu/", "app/model/cuda/"))}
    assert {f for f in mentioned - tracer.files if not f.startswith("app/model/cpu/")} <= VARYING
