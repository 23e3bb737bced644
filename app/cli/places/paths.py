"""Folders and files that a command is to read or to write: tried before anything slow is done for them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import typer

from app.errors import InvalidInput, NoSuchTask, NotFound
from app.model.loading.source import find_model
from app.registry.reference import Reference, require_alias_name, require_task_name, spell_out, suggest_task
from app.registry.store import FileStore
from app.settings import Settings


def require_registry(settings: Settings) -> None:
    """For a command that needs tasks. Raises NotFound, InvalidInput."""
    folder = settings.registry
    if folder is not None and not require_folder(folder, "registry"):
        raise NotFound(f"there is no registry at {folder}; name one with --registry", param="registry")


def require_tasks(settings: Settings, name: str) -> None:
    """That the tasks of a version or an ensemble are there, as far as folders show it; or it names the model itself.

    Args: settings: with a model that is here. Raises NoSuchTask.
    """
    model = find_model(str(settings.model), settings.cache_folder).name
    store = FileStore(settings.registry_folder, settings.tasks_below)
    for each in () if name == model else spell_out(name):
        task = model if each == model else Reference.parse(each).task
        if task != model and store.entry(task) is None:
            suggestion = suggest_task(task, store.entries("").keys())
            raise NoSuchTask(f"there is no task {task}{suggestion}", param="task")


def require_publishable(settings: Settings, task: str, alias: str, *, promote: bool) -> None:
    """What is known before anything is made that is to be published so.

    Args: alias: empty if none is to move. promote: it is to move whatever the version scores. Raises InvalidInput.
    """
    require_task_name(task)
    if alias:
        require_alias_name(alias)
    elif promote:
        raise InvalidInput("--promote moves an alias; name one with --alias", param="promote")
    require_registry_to_write(settings)


def require_registry_to_write(settings: Settings) -> None:
    """Says if the registry will be a new one. Raises InvalidInput."""
    folder = settings.registry
    if folder is None:
        _try_to_write(settings.registry_folder, "registry")
    elif not require_folder(folder, "registry", is_written=True):
        typer.echo(f"there is no registry at {folder} yet; it will be made", err=True)


def require_folder(folder: Path, name: str, *, is_written: bool = False) -> bool:
    """Whether it is there already; otherwise it can be made, in a folder that is there: what is mistyped is not made.

    Args: name: of the setting. is_written: whether it must be writable.

    Raises InvalidInput.
    """
    is_there, option = folder.is_dir(), f"--{name.replace('_', '-')}"
    if not is_there and folder.exists():
        raise InvalidInput(f"{folder} is a file; name a folder with {option}", param=name)
    if not is_there and not folder.parent.is_dir():
        place = f"there is no folder {folder.parent} to make {folder.name} in"
        raise InvalidInput(f"{place}; make it first, or name another with {option}", param=name)
    if is_written:
        _try_to_write(folder, name)
    return is_there


def require_new_folder(folder: Path, *, param: str) -> None:
    """Of a folder that will be made with its parents. Raises InvalidInput."""
    if folder.exists():
        raise InvalidInput(f"{folder} exists already; name a new folder", param=param)
    _try_to_write(folder, param)


def require_new_file(path: Path, *, param: str) -> None:
    """Of a file that will be written, or written over, in a folder that is there. Raises InvalidInput."""
    if not path.parent.is_dir():
        raise InvalidInput(f"there is no folder {path.parent} to write {path.name} in", param=param)
    if path.exists() and not os.access(path, os.W_OK):
        raise InvalidInput(f"{path} cannot be written", param=param)
    _try_to_write(path, param)


def _try_to_write(path: Path, name: str) -> None:
    """In the folder itself, or the nearest one that is there; leaves nothing. Modes do not tell of read-only disks."""
    places = (path, *path.absolute().parents) if path.is_dir() else path.absolute().parents
    try:
        with tempfile.TemporaryFile(dir=next(place for place in places if place.exists())):
            pass
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written ({error.strerror}); name another", param=name) from error
