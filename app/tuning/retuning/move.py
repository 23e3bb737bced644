"""Move: how a task gets a version for another backbone, decided before any model is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from app.errors import InvalidInput, NotFound
from app.measure.dataset import Dataset, Example, find_stray, split_examples, unpack_examples
from app.model.backbone import find_fingerprint
from app.model.layout import BARE, Template
from app.model.loading.catalog.models import FINGERPRINT_TO_NAME
from app.model.loading.source import find_model
from app.registry.aliases import main_number
from app.registry.kept.examples import TunedOn
from app.registry.reference import LIVE, Reference
from app.registry.registry import Registry
from app.registry.task_view import BackboneView, TaskView
from app.registry.version import Version
from app.task_prompt import PromptKind

OF_A_TOKENIZER: Final = ("max_tokens", "min_tokens", "logit_bias", "stop_token_ids")
"""Sampling defaults that another tokenizer gives another meaning."""
MAX_HELD_OUT: Final = 1000
"""Inputs that the old version answers to be compared with; the rest of those held out is learned from."""


@dataclass(frozen=True)
class NamedModel:
    """A model that need not be loaded yet.

    Attributes:
        source: as `--model` takes it.
        name: of the backbone.
        fingerprint: None if its files are not here, so that the name must do.
    """

    source: str
    name: str
    fingerprint: str | None

    @classmethod
    def find(cls, source: str, cache: Path) -> NamedModel:
        """Raises InvalidInput, UnsupportedModel. Args: cache: folder of pulled models."""
        found = find_model(source, cache)
        return cls(source, found.name, find_fingerprint(found))

    @classmethod
    def of_version(cls, version: Version) -> NamedModel | None:
        """The backbone that a version was made for, if the catalog says where it is."""
        name = FINGERPRINT_TO_NAME.get(version.backbone_fingerprint)
        return None if name is None else cls(name, name, version.backbone_fingerprint)

    def has_made(self, version: Version) -> bool:
        """Whether the version is for this model."""
        if self.fingerprint is None:
            return version.backbone_name == self.name
        return version.backbone_fingerprint == self.fingerprint


@dataclass(frozen=True)
class Material:
    """What a new version can learn from.

    Attributes:
        train, held_out: no input is in both; a target is empty if it is not known.
        has_answers: whether the targets are to be learned; if not, what the old version answers is.
        kept: the examples as the task keeps them; None if it does not.
    """

    train: tuple[Example, ...] = field(repr=False)
    held_out: tuple[Example, ...] = field(repr=False)
    has_answers: bool
    kept: TunedOn | None = None

    @classmethod
    def of_examples(cls, train: Dataset, held_out: Dataset | None, labels: Sequence[str]) -> Material:
        """Raises InvalidInput, with file and line: a target is none of the labels; or too few examples."""
        for dataset in (train, held_out):
            if dataset is not None and labels:
                dataset.require_labels(labels)
        learned, measured = split_examples(train.examples) if held_out is None else (train.examples, held_out.examples)
        return cls(tuple(learned), tuple(measured), has_answers=True)

    @classmethod
    def of_inputs(cls, train: Dataset, held_out: Dataset | None, labels: Sequence[str]) -> Material:
        """Targets, where all of them are possible answers, are what both versions are scored on, and are not learned.

        Raises InvalidInput: too few inputs.
        """
        held_out_inputs = set() if held_out is None else {example.input for example in held_out.examples}
        learned = [example for example in _once(train, labels) if example.input not in held_out_inputs]
        measured: Sequence[Example] = () if held_out is None else _once(held_out, labels)
        if held_out is None:
            learned, measured = split_examples(learned)
        return cls((*learned, *measured[MAX_HELD_OUT:]), tuple(measured[:MAX_HELD_OUT]), has_answers=False)

    @classmethod
    def of_kept(cls, kept: TunedOn) -> Material:
        """What the old version was tuned on, in the same parts."""
        train, held_out = unpack_examples(kept.train), unpack_examples(kept.validation)
        return cls(tuple(train), tuple(held_out), has_answers=True, kept=kept)


@dataclass(frozen=True)
class Move:
    """Attributes: origin: the old version. material: None for a written prompt, which needs nothing but its text."""

    origin: Version
    material: Material | None

    @property
    def task(self) -> str:
        return self.origin.task

    @property
    def template(self) -> Template:
        return self.origin.template or BARE

    @property
    def sampling(self) -> dict[str, Any]:
        """The old version's defaults, as far as they mean the same on the new backbone."""
        return {name: value for name, value in self.origin.sampling.items() if name not in OF_A_TOKENIZER}

    @property
    def has_teacher(self) -> bool:
        """Whether what the old version answers is learned."""
        return self.material is not None and not self.material.has_answers

    @property
    def input_to_target(self) -> dict[str, str]:
        """Right answers to held-out inputs, where they are known."""
        held_out = () if self.material is None else self.material.held_out
        return {example.input: example.target for example in held_out if example.target}


def mix(inputs: Iterable[str]) -> list[str]:
    """Each of them once, in an order that no file decides: it may be sorted, and there may be time for a part of it."""
    return sorted(set(inputs), key=lambda text: hashlib.sha256(text.encode()).digest())


def plan_move(registry: Registry, origin: Version, given: Material | None) -> Move:
    """Args:
        registry: of any backbone, or of none.
        given: by the user; None takes what the task kept.

    Raises NotFound: there is nothing to learn from. CorruptPrompt: what was kept is damaged.
    """
    kept = None if given is not None else registry.examples(origin)
    material = given if kept is None else Material.of_kept(kept)
    if material is None and origin.kind is not PromptKind.TEXT:
        raise NotFound(f"the examples of {origin.id} were not kept", param="inputs")
    return Move(origin, material)


def choose_origin(view: TaskView, reference: Reference, new: NamedModel, old: NamedModel | None) -> Version:
    """The version that a new one is made from: one that is named, or what the alias means on the old backbone.

    Args:
        view: of the task, from no backbone.
        old: None: the only other one that the task has versions for.

    Raises NotFound, InvalidInput: there is none, or there are several; CorruptPrompt.
    """
    if reference.alias is None:
        origin = view.find(reference, None)
    else:
        origin = _named_on(_choose_backbone(view, new, old), view, reference.alias)
    if new.has_made(origin):
        raise InvalidInput(f"{origin.id} was made for {new.name} already", param="model")
    if old is not None and not old.has_made(origin):
        raise InvalidInput(f"{origin.id} was made for {origin.backbone_name}, not for {old.name}", param="from")
    return origin


def has_version_for(view: TaskView, model: NamedModel) -> bool:
    return any(model.has_made(version) for version in view.versions.values())


def is_live_on(view: TaskView, model: NamedModel) -> bool:
    """Whether callers on the model get a version by the task's name."""
    targets = [each.aliases[LIVE] for each in view.backbones if LIVE in each.aliases]
    return any(model.has_made(view.numbered(main_number(target))) for target in targets)


def _choose_backbone(view: TaskView, new: NamedModel, old: NamedModel | None) -> BackboneView:
    fingerprint_to_version = {version.backbone_fingerprint: version for version in view.versions.values()}
    others = [each for each in view.backbones if not new.has_made(fingerprint_to_version[each.fingerprint])]
    names = " and ".join(each.name for each in others)
    if not others:
        raise InvalidInput(f"task {view.task} has versions for {new.name} only, none to start from", param="model")
    if old is not None:
        found = [each for each in others if old.has_made(fingerprint_to_version[each.fingerprint])]
        if not found:
            raise NotFound(f"task {view.task} has no version for {old.name}; it has versions for {names}", param="from")
        return found[0]
    if len(others) > 1:
        raise InvalidInput(f"task {view.task} has versions for {names}; say with --from which is old", param="from")
    return others[0]


def _named_on(there: BackboneView, view: TaskView, alias: str) -> Version:
    """What the alias means there; without `live`, the newest version."""
    target = there.aliases.get(alias)
    if target is not None:
        return view.numbered(main_number(target))
    if alias != LIVE:
        raise NotFound(f"task {view.task} has no alias {alias} for {there.name}", param="alias")
    return [each for each in view.versions.values() if each.backbone_fingerprint == there.fingerprint][-1]


def _once(dataset: Dataset, labels: Sequence[str]) -> list[Example]:
    """Each input once; all targets, or none if one of them cannot be an answer."""
    input_to_target: Mapping[str, str] = {example.input: example.target for example in dataset.examples}
    is_scored = not labels or find_stray(dataset.examples, labels) is None
    return [Example(text, input_to_target[text] if is_scored else "") for text in mix(input_to_target)]
