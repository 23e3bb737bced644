from __future__ import annotations

import inspect

import pytest
from typer.main import get_command

from app.cli.entry import app
from app.cli.serve import serve
from app.settings import Settings
from tests.support.commands import call


def test_serve_has_every_setting_as_a_flag() -> None:
    assert set(inspect.signature(serve).parameters) == set(Settings.model_fields)
    command = get_command(app).commands["serve"]
    flags = {option for parameter in command.params for option in parameter.opts}
    assert {f"--{name.replace('_', '-')}" for name in Settings.model_fields} <= flags
    assert {name: field.description for name, field in Settings.model_fields.items()} == {
        parameter.name: parameter.help for parameter in command.params if parameter.name in Settings.model_fields
    }


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--dtype", "int8", "(SOFTSWAP_DTYPE) must be 'auto', 'float32', 'bfloat16' or 'float16'"),
        ("--quantize", "int4", "(SOFTSWAP_QUANTIZE) must be 'none' or 'int8'"),
        ("--port", "70000", "(SOFTSWAP_PORT) must be at most 65535"),
        ("--kv-cache-memory", "much", "(SOFTSWAP_KV_CACHE_MEMORY) must be a number of bytes, such as"),
        ("--kv-cache-memory", f"{'9' * 400}GB", "(SOFTSWAP_KV_CACHE_MEMORY) must be a number of bytes, such as"),
    ],
)
def test_a_setting_that_cannot_be_is_named(flag: str, value: str, said: str) -> None:
    assert call("serve", flag, value, code=1).startswith(f"{flag} {said}")
