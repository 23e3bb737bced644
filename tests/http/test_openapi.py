"""The OpenAPI document: true to the server (schemathesis), and readable offline."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.http.protection.validation import PATTERN_TO_WORDS
from app.model.backbone import Backbone
from tests.support.server import LiveServer, make_settings, publish_tasks, run_server

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
DOCS = ROOT / "docs" / "http.md"
MAX_EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "5")


def test_the_server_keeps_to_its_document(backbone: Backbone, tmp_path: Path) -> None:
    """0 statuses of 5xx, none undocumented, every body as described, what the document forbids refused."""
    tool = Path(sys.executable).with_name("schemathesis")
    if not tool.exists():
        pytest.skip("schemathesis is not installed beside this Python")
    with run_server(make_settings(tmp_path), backbone) as live:
        publish_tasks(live.registry, backbone)
        done = subprocess.run(
            [
                *(tool, "--config-file", FOLDER / "schemathesis.toml", "--no-color"),
                *("run", f"{live.url}/openapi.json", "--phases", "examples,coverage,fuzzing"),
                *("--max-examples", MAX_EXAMPLES, "--generation-deterministic"),
                *("--suppress-health-check", "all", "--warnings", "off", "--request-timeout", "60"),
            ],
            check=False,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.support.schemathesis_hooks"},
        )
        answers = httpx.get(f"{live.url}/health")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert answers.status_code == 200


@pytest.fixture(scope="module")
def document(server: LiveServer) -> dict[str, Any]:
    return dict(httpx.get(f"{server.url}/openapi.json").json())


def test_operations_are_named_and_described(document: dict[str, Any]) -> None:
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names) > 15
    assert all(operation["summary"] and operation["description"] for operation in operations)
    assert not any("422" in operation["responses"] for operation in operations)


def test_the_document_says_what_the_guard_does(document: dict[str, Any]) -> None:
    paths = document["paths"]
    public = {path for path, operations in paths.items() for each in operations.values() if each["security"] == []}
    assert public == {"/health", "/ready"}
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"


def test_the_docs_page_needs_nothing_from_elsewhere(http: httpx.Client) -> None:
    page = http.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+", page.text) == []
    assert re.findall(r"<(?:link|img|iframe|object)|src=|@import|url\(", page.text) == []
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert 'fetch("/openapi.json")' in page.text


def test_a_refusal_has_words_for_every_pattern(http: httpx.Client) -> None:
    assert set(_patterns(http.get("/openapi.json").json())) == set(PATTERN_TO_WORDS)


def _patterns(document: Any) -> Iterator[str]:
    if isinstance(document, list):
        for each in document:
            yield from _patterns(each)
    elif isinstance(document, dict):
        yield from document.get("patternProperties", {})
        if isinstance(pattern := document.get("pattern"), str):
            yield pattern
        for each in document.values():
            yield from _patterns(each)


def test_every_route_is_documented(server: LiveServer) -> None:
    routes = {f"{method} {route.path_format}" for route in server.routes for method in route.methods}
    documented = set(re.findall(r"`((?:GET|POST|PUT|DELETE) /[^`]*)`", DOCS.read_text()))
    assert documented == routes
