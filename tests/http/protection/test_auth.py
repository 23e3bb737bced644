"""With keys set, every route but the public ones asks for one."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.errors import InvalidInput
from app.http.protection.guard import PUBLIC_PATHS, GuardedRoute
from app.model.backbone import Backbone
from app.settings import Settings
from tests.support.server import LiveServer, make_settings, run_server

KEY = "key-0123456789abcdef"
OTHER_KEY = "key-fedcba9876543210"


@pytest.fixture(scope="module")
def guarded(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("prompts")
    with run_server(make_settings(folder, api_keys=f"{OTHER_KEY}, {KEY}"), backbone) as live:
        yield live


def test_every_route_is_guarded(guarded: LiveServer) -> None:
    assert len(guarded.routes) > 20
    assert all(isinstance(route, GuardedRoute) for route in guarded.routes)
    assert {"/health", "/ready"} == PUBLIC_PATHS


WRONG = [
    {},
    {"authorization": ""},
    {"authorization": "Bearer"},
    {"authorization": f"Bearer {KEY}x"},
    {"authorization": f"Bearer {KEY[:-1]}"},
    {"authorization": f"Bearer {KEY}, {KEY}"},
    {"authorization": KEY},
    {"authorization": f"Token {KEY}"},
    {"authorization": "Bearer \xff\xfe"},
    {"x-api-key": KEY},
    {"authorization": "Basic " + base64.b64encode(b"x:wrong").decode()},
    {"authorization": "Basic \xff"},
]


def test_every_route_refuses_every_wrong_key_and_takes_the_right_ones(guarded: LiveServer) -> None:
    with httpx.Client(base_url=guarded.url, timeout=60) as client:
        for route in guarded.routes:
            values = dict.fromkeys(("task", "model", "file_id", "fine_tuning_job_id"), "a")
            path = route.path_format.format(number=1, alias="live", **values)
            for method in route.methods:
                is_public = route.path in PUBLIC_PATHS
                for headers in WRONG:
                    sent = {name: value.encode("latin-1") for name, value in headers.items()}
                    status = client.request(method, path, headers=sent).status_code
                    assert status == (200 if is_public else 401), (method, path, headers)
                for key in (KEY, OTHER_KEY):
                    status = client.request(method, path, headers={"authorization": f"bearer {key}"}).status_code
                    assert status != 401, (method, path)


def test_a_refusal_is_in_openais_shape(guarded: LiveServer) -> None:
    answer = httpx.get(f"{guarded.url}/v1/models")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert KEY not in answer.text


def test_a_browser_may_bring_the_key_to_pages_that_change_nothing(guarded: LiveServer) -> None:
    for path, status in (("/docs", 200), ("/openapi.json", 200), ("/v1/models", 401), ("/metrics", 401)):
        assert httpx.get(f"{guarded.url}{path}", auth=("anybody", KEY)).status_code == status
    assert httpx.get(f"{guarded.url}/docs").headers["www-authenticate"].startswith("Basic")


@pytest.mark.parametrize("path", ["/v1/models?x=/health", "/v1/models#/health", "/health/../v1/models", "//v1/models",
                                  "/v1/%6dodels", "/v1/models/%2e%2e/health"])  # fmt: skip
@pytest.mark.parametrize("host", ["localhost/health?x=", "x", "localhost:8000/openapi.json#"])
def test_no_spelling_of_path_or_host_gets_around_the_key(guarded: LiveServer, path: str, host: str) -> None:
    with httpx.Client(base_url=guarded.url) as client:
        status = client.get(path, headers={"host": host}).status_code
    assert status in (400, 401, 404)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.org", "127.0.0.1.example.org"])
def test_others_may_not_reach_a_server_without_keys(host: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="SOFTSWAP_API_KEYS"):
        Settings(host=host).read_api_keys()
    Settings(host=host, insecure=True).read_api_keys()
    Settings(host=host, api_keys=(KEY,)).read_api_keys()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost", "[::1]"])
def test_this_machine_may(host: str) -> None:
    Settings(host=host).read_api_keys()


def test_a_text_computed_for_one_key_is_found_under_that_key_only(guarded: LiveServer) -> None:
    body = {"model": guarded.backbone.name, "prompt": "what one caller asked " * 5, "max_tokens": 1}

    def num_cached(key: str) -> int:
        headers = {"authorization": f"Bearer {key}"}
        answer = httpx.post(f"{guarded.url}/v1/completions", json=body, headers=headers).raise_for_status().json()
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert num_cached(KEY) == 0
    assert num_cached(KEY) >= 16
    assert num_cached(OTHER_KEY) == 0
    assert num_cached(OTHER_KEY) >= 16
