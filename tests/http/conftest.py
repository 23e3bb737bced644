from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from app.model.backbone import Backbone
from tests.support.models import tiny_backbone
from tests.support.server import LiveServer, make_settings, publish_tasks, run_server


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    return tiny_backbone()


@pytest.fixture(scope="session")
def server(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Shared by all tests that leave its tasks as they are."""
    with run_server(make_settings(tmp_path_factory.mktemp("prompts")), backbone) as live:
        publish_tasks(live.registry, backbone)
        yield live


@pytest.fixture
def http(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client
