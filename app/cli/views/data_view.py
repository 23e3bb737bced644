"""How commands show what a file of examples holds, before anything slow begins."""

from __future__ import annotations

import typer

from app.cli.options import write_json
from app.measure.dataset import Dataset
from app.measure.reading.look import DataLook, FileLook

REMEDY = "name other fields with --input-field and --target-field"


def show_data(look: DataLook, *, as_json: bool) -> None:
    """On stderr; with --json, an object on stdout."""
    if as_json:
        write_json({"event": "DataRead", **look.as_dict()})
        return
    for line in look.in_words(with_quotes=True):
        typer.echo(line, err=True)
    _suggest_fields(look.files)


def show_reading(dataset: Dataset) -> None:
    """On stderr, and only what could surprise: columns that were guessed, rows that are set aside."""
    file = FileLook.of(dataset)
    if file.is_guessed:
        typer.echo(file.in_words(), err=True)
    for line in file.say_set_aside(with_quotes=True):
        typer.echo(line, err=True)
    _suggest_fields((file,))


def _suggest_fields(files: tuple[FileLook, ...]) -> None:
    if any(file.is_guessed for file in files):
        typer.echo(REMEDY, err=True)
