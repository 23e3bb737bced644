"""From what the command line says to a move for each task, before any model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.cli.places.folder_registry import open_folder
from app.cli.retuning.material import Given, read_given
from app.errors import InvalidInput, NotFound
from app.model.loading.source import find_model
from app.registry.reference import Reference
from app.settings import DEFAULT_MODEL, Settings

if TYPE_CHECKING:
    from app.registry.registry import Registry
    from app.registry.version import Version
    from app.tuning.retuning.move import Move, NamedModel

WAYS = (
    "give --inputs, which the old version answers, or --examples with right answers: a file, task=file, or a folder "
    "with <task>.jsonl for each task. `softswap tune --keep-examples` makes this needless"
)


@dataclass(frozen=True)
class Asked:
    """Attributes:
    names: of tasks or versions; empty if `is_all`.
    is_all: every task that has no version for the model yet.
    old: where the old model is, or a version of the one task; None finds both.
    inputs, examples: files and folders.
    fields: names of input and target in all files.
    """

    names: Sequence[str]
    is_all: bool
    old: str | None
    inputs: Sequence[str]
    examples: Sequence[str]
    fields: tuple[str | None, str | None]

    @property
    def old_model(self) -> str | None:
        """As `--model` takes it."""
        return None if self.old is None or "@" in self.old else self.old

    def references(self) -> list[Reference]:
        """Tasks or versions to start from; none if `is_all`. Raises InvalidInput, NotFound: what no name can be."""
        found = [Reference.parse(name) for name in self.names]
        if self.is_all and found:
            raise InvalidInput("name tasks or give --all, not both", param="tasks")
        if self.old is not None and "@" in self.old:
            version = Reference.parse(self.old)
            if [each.task for each in found] not in ([], [version.task]):
                raise InvalidInput(f"--from names a version of {version.task}; name that task alone", param="from")
            found = [version]
        if not (found or self.is_all):
            raise InvalidInput("name the tasks to make versions of, or give --all", param="tasks")
        names = [each.task for each in found]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InvalidInput(f"{twice} is named twice", param="tasks")
        return found

    def read_given(self, tasks: Sequence[str]) -> dict[str, Given]:
        return read_given(tasks, self.examples, self.inputs, self.fields)


@dataclass(frozen=True, eq=False)
class Moves:
    """Attributes:
    new: the model to make versions for.
    of_tasks: in the order they were asked for.
    old: the model to ask for the old versions' answers, if the command line says one.
    registry: of no backbone.
    """

    new: NamedModel
    old: NamedModel | None
    of_tasks: tuple[Move, ...]
    registry: Registry

    def old_model(self, move: Move) -> NamedModel | None:
        """Where a move's old version can be asked; None if neither the command line nor the catalog says it."""
        from app.tuning.retuning.move import NamedModel

        return self.old or NamedModel.of_version(move.origin)

    @property
    def by_old_model(self) -> Iterator[tuple[NamedModel, list[Move]]]:
        """Each old model with the moves whose old versions it answers for."""
        asked = [(self.old_model(move), move) for move in self.of_tasks if move.material is not None]
        for model in dict.fromkeys(model for model, _ in asked if model is not None):
            yield model, [move for its, move in asked if its == model]


def plan_moves(settings: Settings, asked: Asked) -> Moves:
    """Reads the files and the registry.

    Raises:
        InvalidInput: what is asked for cannot be; a file is not as it should be; a task has nothing to learn from.
        NotFound: no such task, version, or version for the old model.
    """
    references = asked.references()
    given = asked.read_given([each.task for each in references]) if references else {}
    source, cache = settings.model or DEFAULT_MODEL, settings.cache_folder
    for each in filter(None, (source, asked.old_model)):
        find_model(each, cache)
    from app.tuning.retuning.move import NamedModel, choose_origin

    registry, new = open_folder(settings), NamedModel.find(source, cache)
    old = None if asked.old_model is None else NamedModel.find(asked.old_model, cache)
    if asked.is_all:
        references = _find_all(registry, new, old)
        given = asked.read_given([each.task for each in references])
    origins = [choose_origin(registry.task(each.task), each, new, old) for each in references]
    moves = Moves(new, old, _plan_all(registry, origins, given), registry)
    for move in moves.of_tasks:
        if move.has_teacher and moves.old_model(move) is None:
            raise InvalidInput(
                f"{move.origin.id} answers the inputs on {move.origin.backbone_name}; say with --from where that is",
                param="from",
            )
    return moves


def _find_all(registry: Registry, new: NamedModel, old: NamedModel | None) -> list[Reference]:
    """The tasks that callers on the new model do not get; those with a version for the old model, if it is said."""
    from app.tuning.retuning.move import has_version_for, is_live_on

    views = [view for view in registry.tasks() if not is_live_on(view, new)]
    found = [Reference.parse(view.task) for view in views if old is None or has_version_for(view, old)]
    if not found:
        raise NotFound(f"there is no task that lacks a version for {new.name}", param="tasks")
    return found


def _plan_all(registry: Registry, origins: Sequence[Version], given: Mapping[str, Given]) -> tuple[Move, ...]:
    from app.tuning.retuning.move import plan_move

    moves, lacking = [], []
    for origin in origins:
        data = given.get(origin.task)
        try:
            moves.append(plan_move(registry, origin, None if data is None else data.make_material(origin.labels)))
        except NotFound:
            lacking.append(origin.id)
    if lacking:
        raise InvalidInput(f"{', '.join(lacking)}: the examples were not kept; {WAYS}", param="inputs")
    return tuple(moves)
