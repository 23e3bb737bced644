"""What a name in a request stands for: a version of a task, the bare backbone, or an ensemble of versions.

An ensemble is versions that answer together on the one backbone (Lester et al. 2021, section 6). The registry holds
none: the name says who is in it, `sentiment@1+2+3` or `sentiment+tone@4`. Its members answer in one batch, as N
requests for N versions do, and their answers are combined here. A single version is treated as an ensemble of one, so
callers need not know which it is.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, ClassVar, Final

from transformers import PreTrainedTokenizerFast

from app.answers.generating.labels import LabelChances
from app.engine.async_engine import all_of
from app.errors import InvalidInput, NotFound, naming
from app.measure.metrics import words_of
from app.model.backbone import Backbone
from app.model.layout import BARE, Template, continue_prompt
from app.registry.reference import JOINT, MAX_ENSEMBLE, name_together, spell_out
from app.registry.registry import Registry
from app.registry.version import Version
from app.task_prompt import TaskPrompt

MAX_CHARS_AT_ONCE: Final = 4096
"""A longer text is encoded in a thread, so that other requests need not wait for it."""
NUM_TRIES: Final = 5


class Combine(StrEnum):
    """How several answers become one."""

    AVERAGE = "average"
    """The mean of the members' probabilities, each with its own version's temperature."""
    VOTE = "vote"
    """What most members say; the probability of a label is its share of the votes."""


@dataclass(frozen=True)
class Target:
    """A version of a task with its prompt, or the backbone without one.

    Attributes:
        model_id: what the response's `model` says: "sentiment@3", or the backbone's name.
        flow: whose fair share the work counts against: the task's name, or the backbone's.
        sampling: defaults, by the names of SamplingParams.
        label_temperature: divides the labels' log-likelihoods.
    """

    model_id: str
    flow: str
    prompt: TaskPrompt | None
    template: Template | None
    labels: tuple[str, ...]
    sampling: dict[str, Any]
    label_temperature: float = 1.0
    is_ensemble: ClassVar = False

    @classmethod
    def of_backbone(cls, name: str) -> Target:
        return cls(name, name, None, None, (), {})

    @classmethod
    def of_version(cls, version: Version, prompt: TaskPrompt) -> Target:
        return cls(
            version.id,
            version.task,
            prompt,
            version.template,
            version.labels,
            dict(version.sampling),
            version.label_temperature or 1.0,
        )

    @property
    def members(self) -> tuple[Target, ...]:
        """As of an `Ensemble`, like the two methods below: who answers."""
        return (self,)

    def choose_combine(self, asked: Combine | None, *, param: str = "combine") -> Combine | None:
        """Raises InvalidInput: a request asks a single version to combine."""
        if asked is not None:
            raise InvalidInput("this belongs to an ensemble, such as sentiment@1+2+3", param=param)
        return None

    def combine_chances(self, chances: Sequence[LabelChances], how: Combine | None) -> tuple[int, LabelChances]:
        """Of a single version: its own."""
        [single] = chances
        return single.best, single

    @property
    def num_virtual_tokens(self) -> int:
        return self.prompt.num_virtual_tokens if self.prompt else 0

    @property
    def input_template(self) -> Template:
        """The task's template, or the bare input if it has none."""
        return self.template or BARE

    async def encode(
        self, tokenizer: PreTrainedTokenizerFast, text: str, template: Template | None = None
    ) -> tuple[int, ...]:
        """Ids of an input after the prompt: [prompt][BOS][text]; a written prompt begins with the BOS itself.

        Args: template: None takes the task's own.

        Raises InvalidInput: the template cuts inputs, and is too long itself.
        """
        encode_input = (template or self.input_template).encode_input
        if len(text) > MAX_CHARS_AT_ONCE:
            token_ids = await asyncio.to_thread(encode_input, tokenizer, text)
        else:
            token_ids = encode_input(tokenizer, text)
        return tuple(continue_prompt(tokenizer, self.prompt, token_ids))


@dataclass(frozen=True)
class Ensemble:
    """Attributes: members: two or more different versions; those with labels have the same ones, in the same order."""

    members: tuple[Target, ...]
    is_ensemble: ClassVar = True

    @classmethod
    def of(cls, targets: Sequence[Target], *, param: str) -> Ensemble:
        """Raises InvalidInput with `param`: a member named twice, or labels that differ."""
        first = targets[0]
        for index, target in enumerate(targets):
            if target.model_id in [earlier.model_id for earlier in targets[:index]]:
                raise InvalidInput(f"the ensemble names {target.model_id} twice", param=param)
            if set(target.labels) != set(first.labels):
                raise InvalidInput(
                    f"members of an ensemble have the same labels, and {target.model_id} and {first.model_id} do not",
                    param=param,
                )
        return cls(tuple(replace(target, labels=first.labels) for target in targets))

    @property
    def model_id(self) -> str:
        """Every member, pinned: `sentiment@1+2+3`."""
        return name_together(member.model_id for member in self.members)

    @property
    def flow(self) -> str:
        """The tasks, for messages; each member's work counts against its own."""
        return JOINT.join(dict.fromkeys(member.flow for member in self.members))

    @property
    def labels(self) -> tuple[str, ...]:
        return self.members[0].labels

    def choose_combine(self, asked: Combine | None, *, param: str = "combine") -> Combine:
        """What a request means. Raises InvalidInput: texts cannot be averaged."""
        if asked is Combine.AVERAGE and not self.labels:
            raise InvalidInput("texts cannot be averaged; leave this out or let it be vote", param=param)
        return asked or (Combine.AVERAGE if self.labels else Combine.VOTE)

    def combine_chances(self, chances: Sequence[LabelChances], how: Combine | None) -> tuple[int, LabelChances]:
        """Index of the label that wins, and the chances of all labels; a tie goes to the label with the higher average.

        Args:
            chances: of each member, for the same labels in the same order. The mean of their masses is the mass.
            how: None averages.
        """
        columns = zip(*(each.probabilities for each in chances), strict=True)
        average = tuple(sum(column) / len(chances) for column in columns)
        averaged = LabelChances(average, sum(each.mass for each in chances) / len(chances))
        if how is not Combine.VOTE:
            return averaged.best, averaged
        votes = Counter(each.best for each in chances)
        winner = max(votes, key=lambda label: (votes[label], average[label]))
        shares = tuple(votes[label] / len(chances) for label in range(len(average)))
        return winner, replace(averaged, probabilities=shares)


AnyTarget = Target | Ensemble


class TaskFinder:
    """Finds versions by name. A request keeps the version it gets here, whatever is published meanwhile."""

    def __init__(self, backbone: Backbone, registry: Registry) -> None:
        self._backbone_name = backbone.name
        self._registry = registry

    async def find(self, name: str, *, param: str = "model") -> AnyTarget:
        """One version, several joined by `+`, or the backbone.

        Raises:
            NotFound, CorruptPrompt, BackboneMismatch: with `param`.
            InvalidInput: an ensemble that cannot be.
        """
        if name == self._backbone_name:
            return Target.of_backbone(name)
        if JOINT not in name:
            return Target.of_version(*await self.find_version(name, param=param))
        names = spell_out(name)
        if len(names) > MAX_ENSEMBLE:
            raise InvalidInput(f"an ensemble has at most {MAX_ENSEMBLE} members", param=param)
        return Ensemble.of(await all_of(self.find_one(each, param=param) for each in names), param=param)

    async def find_one(self, name: str, *, param: str = "model") -> Target:
        """As `find`, of names that mean one version. Raises InvalidInput: the name is an ensemble's."""
        if JOINT in name and name != self._backbone_name:
            raise InvalidInput("an ensemble answers runs, decisions and evaluations, and nothing else", param=param)
        target = await self.find(name, param=param)
        assert isinstance(target, Target)
        return target

    async def find_version(self, name: str, *, param: str = "model") -> tuple[Version, TaskPrompt]:
        """A version with its prompt, read in a thread unless it is in memory. Raises as `find` does."""
        with naming(param):
            version = self._registry.resolve(name)
            loaded = self._registry.loaded_prompt(version)
            if loaded is not None:
                return version, loaded
            return await asyncio.to_thread(self._load, name, version)

    def _load(self, name: str, version: Version | None) -> tuple[Version, TaskPrompt]:
        """A version can be deleted between its name and its values; then the name means another version already.

        Args: version: what the name was found to mean a moment ago.
        """
        for num_left in reversed(range(NUM_TRIES)):
            version = version or self._registry.resolve(name)
            try:
                return version, self._registry.prompt(version)
            except NotFound:
                if not num_left:
                    raise
                version = None
        raise AssertionError("the last try returns or raises")


def choose_text(texts: Sequence[str]) -> int:
    """Index of the first answer that most members give: the same words, whatever their case and punctuation."""
    keys = [" ".join(words_of(text)) or text.strip() for text in texts]
    votes = Counter(keys)
    return max(range(len(keys)), key=lambda index: votes[keys[index]])
