"""The option `--json`, and what it writes."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Write JSON, one object per line.")]


def write_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))
