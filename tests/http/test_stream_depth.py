"""What a streamed token passes on its way from the engine to the socket."""

from __future__ import annotations

import inspect
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import pytest

import app
from app.model.backbone import Backbone
from tests.support.server import make_settings, publish_tasks, run_server

PACKAGE = str(Path(app.__file__).parent)
NUM_TOKENS = 20
TEXT = "The council met on Monday"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "headline", "prompt": TEXT}),
        ("/v1/chat/completions", {"model": "headline", "messages": [{"role": "user", "content": TEXT}]}),
        ("/v1/tasks/headline/run", {"input": TEXT}),
    ],
)
def test_a_token_passes_at_most_three_async_generators(
    backbone: Backbone, tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    resumed: Counter[str] = Counter()

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_flags & inspect.CO_ASYNC_GENERATOR and code.co_filename.startswith(PACKAGE):
            resumed[f"{code.co_filename}:{code.co_name}"] += 1

    threading.setprofile(note)
    try:
        with run_server(make_settings(tmp_path), backbone) as live:
            publish_tasks(live.registry, backbone)
            asked = {**body, "max_tokens": NUM_TOKENS, "ignore_eos": True, "stream": True}
            assert httpx.post(f"{live.url}{path}", json=asked, timeout=60).text.endswith("data: [DONE]\n\n")
    finally:
        threading.setprofile(None)  # type: ignore[arg-type]
    passed = [name for name, count in resumed.items() if count >= NUM_TOKENS]
    assert 0 < len(passed) <= 3, passed
