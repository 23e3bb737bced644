"""No conversation, and nothing that a checkpoint's chat template does with it, is an error of the server's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.models import build_backbone, copy_tokenizer
from tests.support.server import LiveServer, make_settings, run_server

CASES = {
    "type": "{{ tools | length }}",
    "zero": "{{ 1 / 0 }}",
    "deep": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "own": "{{ raise_exception('only after a question') }}",
    "many": "{{ range(10 ** 9) | list }}",
    "odd": "{{ '\\ud800' }}",
    "none": "",
}
TEMPLATE = (
    "{% set said = messages[0].content %}{% if said == 'hello' %}hello"
    + "".join(f"{{% elif said == '{name}' %}}{text}" for name, text in CASES.items())
    + "{% endif %}"
)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    backbone = build_backbone(tokenizer=copy_tokenizer(chat_template=TEMPLATE))
    with run_server(make_settings(tmp_path_factory.mktemp("registry")), backbone) as server:
        yield server


def chat(live: LiveServer, text: str) -> httpx.Response:
    body = {"model": live.backbone.name, "messages": [{"role": "user", "content": text}], "max_completion_tokens": 3}
    return httpx.post(f"{live.url}/v1/chat/completions", json=body)


@pytest.mark.parametrize("name", CASES)
def test_a_template_that_fails_is_a_400_with_its_reason(live: LiveServer, name: str) -> None:
    answer = chat(live, name)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "messages"
    assert "roles" not in error["message"]
    assert chat(live, "hello").status_code == 200


def test_several_templates_without_a_default_are_a_400_that_names_them(tmp_path: Path) -> None:
    tokenizer = copy_tokenizer(chat_template={"rag": "{{ messages[0].content }}"})
    with run_server(make_settings(tmp_path), build_backbone(tokenizer=tokenizer)) as live:
        answer = chat(live, "hello")
        assert answer.status_code == 400
        assert "chat templates named rag, and none named default" in answer.json()["error"]["message"]
        assert not httpx.get(f"{live.url}/v1/server").json()["backbone"]["has_chat_template"]
