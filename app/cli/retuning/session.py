"""RetuningSession: the old models answer, one after the other; then the new one learns, task after task."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import typer

from app.cli.backbones.pull import obtain
from app.cli.places.folder_registry import open_folder
from app.cli.retuning.planning import Moves
from app.cli.retuning.report import Outcome
from app.cli.views.tuning_view import tune_and_show
from app.errors import InvalidInput, NotFound, SoftswapError
from app.registry.reference import LIVE
from app.settings import Settings
from app.tuning.budget import in_words
from app.tuning.config import TuneConfig

if TYPE_CHECKING:
    from app.measure.release import Release
    from app.model.backbone import Backbone
    from app.registry.registry import Registry
    from app.registry.version import Version
    from app.tuning.retuning.answers import VersionAnswers
    from app.tuning.retuning.move import Move, NamedModel
    from app.tuning.retuning.retuning import Retuned

Result = TypeVar("Result")
FAULTS: Final = (SoftswapError, RuntimeError, ValueError, OSError, MemoryError)
"""What ends one task's move and leaves the others alone."""


class RetuningSession:
    """Call `ask_old`, then `tune_new`. A task that fails leaves the others alone.

    Args:
        tried: values to try, by hyperparameter.
        promote: move `live` even if the task has a version for the new model already.

    Attributes: task_to_outcome: of every task that is done with.
    """

    def __init__(
        self,
        settings: Settings,
        moves: Moves,
        config: TuneConfig,
        tried: dict[str, Any],
        *,
        promote: bool,
        as_json: bool,
    ) -> None:
        self._settings, self._moves, self._config, self._tried = settings, moves, config, tried
        self._promote, self._as_json = promote, as_json
        self._task_to_answers: dict[str, VersionAnswers] = {}
        self.task_to_outcome: dict[str, Outcome] = {}

    def ask_old(self) -> None:
        """Each old model is loaded once, and gone when the next one comes.

        Raises ModelUnavailable: the new model cannot be fetched.
        """
        obtain(self._with_model(self._moves.new))  # first, lest answers be asked for in vain
        for model, moves in self._moves.by_old_model:
            self._ask(model, moves)
            free_memory()

    def tune_new(self) -> None:
        """Raises what loading raises."""
        if all(move.task in self.task_to_outcome for move in self._moves.of_tasks):
            return  # all failed
        _say(f"loading {self._moves.new.name}")
        backbone = self._load(self._moves.new)
        registry = open_folder(self._settings, backbone)
        is_interrupted = False
        for move in self._moves.of_tasks:
            if move.task in self.task_to_outcome:
                continue
            if is_interrupted:
                self._fail(move, "not begun: interrupted")
                continue
            retuned = self._attempt(move, lambda move=move: self._tune(backbone, registry, move))  # type: ignore[misc]
            is_interrupted = retuned is not None and retuned.stop_reason == "stopped"

    def _load(self, model: NamedModel) -> Backbone:
        settings = obtain(self._with_model(model))
        from app.main import load_backbone

        return load_backbone(settings)

    def _with_model(self, model: NamedModel) -> Settings:
        return self._settings.model_copy(update={"model": model.source})

    def _ask(self, model: NamedModel, moves: Sequence[Move]) -> None:
        _say(f"loading {model.name}, to ask for the old answers of {', '.join(move.task for move in moves)}")
        try:
            backbone = self._load(model)
        except FAULTS as error:
            fault = _in_words(error)
            _say(f"{model.name} cannot be asked: {fault}")
            for move in moves:
                if move.has_teacher:
                    self._fail(move, fault)
            return
        registry = open_folder(self._settings, backbone)
        for move in moves:
            self._attempt(move, lambda move=move: self._answer(backbone, registry, move))  # type: ignore[misc]

    def _answer(self, backbone: Backbone, registry: Registry, move: Move) -> None:
        from app.tuning.retuning.answers import ask_old

        if backbone.fingerprint != move.origin.backbone_fingerprint:
            raise InvalidInput(f"{backbone.name} is not the model that {move.origin.id} was made for", param="from")
        assert move.material is not None
        answers = ask_old(backbone, registry, move, move.material, self._config)
        num_learned, num_measured = len(answers.learned.examples), len(answers.measured.examples)
        learned = f"{num_learned} inputs to learn from and " if move.has_teacher else ""
        _say(f"{move.origin.id} answered {learned}{num_measured} held out, in {in_words(answers.spent_s)}")
        self._task_to_answers[move.task] = answers

    def _tune(self, backbone: Backbone, registry: Registry, move: Move) -> Retuned:
        began_s = time.monotonic()
        if backbone.fingerprint == move.origin.backbone_fingerprint:
            raise InvalidInput(f"{move.origin.id} was made for {backbone.name} already", param="model")
        registry.require_names(move.task, LIVE)
        _say(f"{move.task}: from {move.origin.id} to a version for {backbone.name}")
        answers = self._task_to_answers.get(move.task)
        spent_s = 0.0 if answers is None else answers.spent_s
        retuned = self._learn(backbone, move, answers, began_s - spent_s)
        registry.refresh()
        alias = LIVE if self._promote or not _is_live(registry, move.task) else None
        version = registry.publish(move.task, retuned.publication, alias=None)
        released = _release(backbone, registry, version, alias)
        seconds = time.monotonic() - began_s + spent_s
        means_it = released.alias if released.is_moved else None
        self.task_to_outcome[move.task] = Outcome(
            move.task, move.origin.id, version.id, means_it, retuned.side_by_side, seconds, released.words
        )
        return retuned

    def _learn(self, backbone: Backbone, move: Move, answers: VersionAnswers | None, began_s: float) -> Retuned:
        """Args: began_s: by `time.monotonic`, when the task's budget began to run."""
        from app.tuning.retuning.retuning import comparing_s, describe, plan_new, rebind

        if move.material is None:
            return rebind(backbone, move, self._moves.registry.prompt(move.origin))
        plan = plan_new(backbone, move, move.material, answers, self._config, **self._tried)
        result = tune_and_show(backbone, plan, as_json=self._as_json, began_s=began_s - comparing_s(plan.config))
        return describe(backbone, move, move.material, answers, result)

    def _attempt(self, move: Move, work: Callable[[], Result]) -> Result | None:
        """None if it failed, which is told with the others' outcomes."""
        try:
            return work()
        except FAULTS as error:
            self._fail(move, _in_words(error))
        return None

    def _fail(self, move: Move, fault: str) -> None:
        _say(f"{move.task}: {fault}")
        self.task_to_outcome[move.task] = Outcome(move.task, move.origin.id, fault=fault)


def _release(backbone: Backbone, registry: Registry, version: Version, alias: str | None) -> Release:
    """Move the alias unless its gate refuses."""
    from app.measure.plain_model import measure
    from app.measure.promote import run_with, score_move
    from app.measure.release import release

    if alias is not None:
        run_with(partial(measure, backbone), score_move(registry, version.task, alias, version.number))
    return release(registry, version, alias, None, is_told=True)


def _is_live(registry: Registry, task: str) -> bool:
    """Whether callers on this backbone get a version by the task's name."""
    try:
        return LIVE in registry.task(task).aliases
    except NotFound:
        return False


def _in_words(error: Exception) -> str:
    return error.message if isinstance(error, SoftswapError) else f"{type(error).__name__}: {error}"


def free_memory() -> None:
    """Of a model that nothing refers to any more: its modules do, to one another."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _say(text: str) -> None:
    typer.echo(text, err=True)
