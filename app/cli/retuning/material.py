"""Which files a command was given for which task, and what is in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from app.errors import InvalidInput
from app.measure.dataset import Dataset
from app.measure.example_file import read_dataset, read_unlabeled
from app.registry.reference import is_task_name

if TYPE_CHECKING:
    from app.tuning.retuning.move import Material

ENDINGS: Final = (".jsonl", ".json", ".csv", ".tsv", ".txt")


@dataclass(frozen=True)
class Files:
    """Attributes: held_out: None leaves a tenth of the first to measure with."""

    train: Path
    held_out: Path | None = None

    @classmethod
    def in_folder(cls, folder: Path) -> Files | None:
        """`train.jsonl`, and `validation.jsonl` if there is one."""
        train = _find(folder, "train")
        return None if train is None else cls(train, _find(folder, "validation"))


@dataclass(frozen=True)
class Given:
    """What the command line says that a task is to be tuned on. Attributes: has_answers: they are to be learned."""

    train: Dataset
    held_out: Dataset | None
    has_answers: bool

    def make_material(self, labels: Sequence[str]) -> Material:
        """Args: labels: of the old version. Raises InvalidInput, with file and line."""
        from app.tuning.retuning.move import Material

        make = Material.of_examples if self.has_answers else Material.of_inputs
        return make(self.train, self.held_out, labels)


def read_given(
    tasks: Sequence[str], examples: Sequence[str], inputs: Sequence[str], fields: tuple[str | None, str | None]
) -> dict[str, Given]:
    """Task to what the files hold; tasks that none is for are left out.

    Args:
        examples, inputs: files and folders, see `find_files`.
        fields: names of input and target in all of them.

    Raises InvalidInput: a file is not there or not as it should be, or it is not clear whose it is.
    """
    task_to_examples, task_to_inputs = find_files(tasks, examples, "--examples"), find_files(tasks, inputs, "--inputs")
    if both := sorted(task_to_examples.keys() & task_to_inputs.keys()):
        raise InvalidInput(f"{both[0]} has --examples and --inputs; give one of them", param="inputs")
    given = {}
    for read, task_to_files in ((_read_examples, task_to_examples), (_read_inputs, task_to_inputs)):
        for task, files in task_to_files.items():
            held_out = None if files.held_out is None else read(files.held_out, fields)
            given[task] = Given(read(files.train, fields), held_out, has_answers=read is _read_examples)
    return given


def _read_examples(path: Path, fields: tuple[str | None, str | None]) -> Dataset:
    return read_dataset(path, input_field=fields[0], target_field=fields[1])


def _read_inputs(path: Path, fields: tuple[str | None, str | None]) -> Dataset:
    """With their targets, if the file has them for all inputs; a text file has none."""
    if path.suffix.lower() != ".txt":
        try:
            return _read_examples(path, fields)
        except InvalidInput:
            pass
    return read_unlabeled(path, input_field=fields[0])


def find_files(tasks: Sequence[str], given: Sequence[str], option: str) -> dict[str, Files]:
    """Task to its files.

    Args: given: each a file, which is for the only task; a folder with a file for each task; or `task=` before one of
        these.

    Raises InvalidInput.
    """
    task_to_files: dict[str, Files] = {}
    for said in given:
        name, is_named, place = said.partition("=")
        if is_named and is_task_name(name) and not Path(said).exists():
            if name not in tasks:
                raise InvalidInput(f"{option} names {name}, which is not to be tuned", param=option)
            task_to_files[name] = _find_for_one(Path(place), name, option)
        else:
            task_to_files |= _find_for_all(Path(said), tasks, option)
    return task_to_files


def _find_for_all(place: Path, tasks: Sequence[str], option: str) -> dict[str, Files]:
    if len(tasks) == 1:
        return {tasks[0]: _find_for_one(place, tasks[0], option)}
    _require_there(place, option)
    if place.is_file():
        advice = f"say whose it is, as {option} {tasks[0]}={place}, or give a folder with a file for each task"
        raise InvalidInput(f"{place} is one file for {len(tasks)} tasks; {advice}", param=option)
    found = {task: files for task in tasks if (files := _find_in_folder(place, task))}
    if not found:
        raise InvalidInput(f"{place} has no file for any of the tasks, such as {tasks[0]}.jsonl", param=option)
    return found


def _find_for_one(place: Path, task: str, option: str) -> Files:
    _require_there(place, option)
    if place.is_file():
        return Files(place)
    found = _find_in_folder(place, task) or Files.in_folder(place)
    if found is None:
        raise InvalidInput(f"{place} has neither {task}.jsonl nor train.jsonl", param=option)
    return found


def _find_in_folder(folder: Path, task: str) -> Files | None:
    """`<task>.jsonl`, or what lies in `<task>/`."""
    if file := _find(folder, task):
        return Files(file)
    return Files.in_folder(folder / task)


def _find(folder: Path, stem: str) -> Path | None:
    files = (folder / f"{stem}{ending}" for ending in ENDINGS)
    return next((file for file in files if file.is_file()), None)


def _require_there(place: Path, option: str) -> None:
    if not place.exists():
        raise InvalidInput(f"{option}: there is no {place}", param=option)
