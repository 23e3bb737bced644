"""Setting: what all methods of a comparison share: data, form, budget and how they are chosen among."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from app.errors import InvalidInput
from app.measure.dataset import Dataset, Example, hash_examples, split_examples
from app.measure.reading.labels import settle
from app.model.backbone import Backbone
from app.model.layout import Template
from app.task_prompt import PromptKind
from app.tuning.config import TuneConfig
from app.tuning.plan import TuningPlan
from app.tuning.search import Search
from app.tuning.templates import default_template


@dataclass(frozen=True, eq=False)
class Setting:
    """Every tuned method sees batches of the same rows for the same number of updates, and keeps the state that does
    best on validation. It spends four or five such runs: prompts 4.7, as a population of twelve that is halved three
    times (Search.default; without labels 2.5, as six), weights four, one for each learning rate.

    Attributes:
        plan: train and validation split, template, labels, and what every run is configured with.
        test: measured once, with what validation chose.
        instructions: written prompts to choose among, besides none at all.
        num_shots: examples shown in a few-shot prompt, as far as they fit.
        lora_rank: of the updates; they are scaled by 2.
        lora_learning_rates, full_learning_rates: AdamW's, to choose among.
    """

    plan: TuningPlan
    test: tuple[Example, ...] = field(repr=False)
    instructions: tuple[str, ...]
    num_shots: int = 8
    lora_rank: int = 8
    lora_learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    full_learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3)

    def __post_init__(self) -> None:
        if not self.test:
            raise InvalidInput("test has no examples", param="test")
        if self.plan.labels:
            Dataset("test", self.test).require_labels(self.plan.labels)
        for name in ("num_shots", "lora_rank"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} must be at least 1", param=name)

    @classmethod
    def make(
        cls,
        data: Dataset,
        validation: Dataset | None,
        test: Dataset | None,
        config: TuneConfig,
        *,
        template: Template | None = None,
        labels: Sequence[str] | None = None,
        instructions: Sequence[str] = (),
        num_shots: int = 8,
        lora_rank: int = 8,
    ) -> Setting:
        """Args:
            validation, test: each missing one is a tenth of `data`, by a hash of the inputs; validation is the tenth
                that `softswap tune` would take.
            template: None makes one of the names of the file's columns.
            labels: None finds them in the targets of `data` and `validation`, without the rows of the rare ones; empty
                makes it a task that writes text.
            instructions: empty makes some from the labels (`automatic_instructions`).

        Raises InvalidInput.
        """
        settled = settle(data, validation, labels)
        if test is not None and settled.labels:
            test.require_labels(settled.labels)
        train, held_out, unseen = _split(settled.train, settled.validation, test)
        form = template or default_template(data.columns, settled.labels)
        plan = TuningPlan(train, held_out, form, settled.labels, config, Search())
        written = tuple(instructions) or automatic_instructions(settled.labels)
        return cls(plan, unseen, written, num_shots=num_shots, lora_rank=lora_rank)

    def fitted(self, backbone: Backbone) -> Setting:
        """With lengths that every method can manage, so that all read the same texts.

        Targets may be as long as the longest one; inputs take half of the backbone's positions, and the rest is left
        for written prompts.
        """
        targets = {example.target for example in (*self.plan.train, *self.plan.validation, *self.test)}
        longest = max(len(self.plan.template.encode_target(backbone.tokenizer, target)) for target in targets)
        config = replace(
            self.plan.config,
            max_target_tokens=longest + 1,
            max_input_tokens=self.plan.config.max_input_tokens or backbone.max_model_len // 2,
        )
        return replace(self, plan=replace(self.plan, config=config, search=Search()))

    def max_prompt_tokens(self, backbone: Backbone) -> int:
        """Of a written prompt, once the setting is fitted."""
        config = self.plan.config
        return backbone.max_model_len - config.max_input_tokens - config.max_target_tokens

    def prompt_plan(self, kind: PromptKind, seed: int) -> TuningPlan:
        """A population as `softswap tune` trains it; two seeds share no member."""
        config = replace(self.plan.config, kind=kind, seed=2 * seed)
        search = Search.default(
            config, has_labels=bool(self.plan.labels), num_virtual_tokens=(config.num_virtual_tokens,)
        )
        return replace(self.plan, config=config, search=search)

    def digest(self, backbone_fingerprint: str) -> str:
        """sha256 of everything that decides what a trial finds."""
        parts = [self.plan.digest(backbone_fingerprint), hash_examples(self.test), self._own]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def as_json(self) -> dict[str, object]:
        """What a reader needs to know, without the examples themselves."""
        plan = self.plan
        return {
            "num_train": len(plan.train),
            "num_validation": len(plan.validation),
            "num_test": len(self.test),
            "data_hash": hash_examples([*plan.train, *plan.validation, *self.test]),
            "template": plan.template.text,
            "labels": list(plan.labels),
            **self._own,
            "config": plan.config.record(),
        }

    @property
    def _own(self) -> dict[str, object]:
        """What it says itself, by name."""
        return {name: value for name, value in vars(self).items() if name not in ("plan", "test")}


def automatic_instructions(labels: Sequence[str]) -> tuple[str, ...]:
    """Written prompts for a caller who gave none."""
    if not labels:
        return ("Answer.", "Read the text and write the answer.", "Task: write what belongs to the text.")
    listed = ", ".join(labels)
    return (f"Labels: {listed}", f"Choose from {listed}.", f"Which one is it: {' or '.join(labels)}?")


def _split(
    data: Dataset, validation: Dataset | None, test: Dataset | None
) -> tuple[tuple[Example, ...], tuple[Example, ...], tuple[Example, ...]]:
    """(train, validation, test). A hash gives each input a point in [0, 1): the first tenth is validation's."""
    if validation is not None and test is not None:
        return data.examples, validation.examples, test.examples
    if validation is None and test is None:
        learned, rest = split_examples(data.examples, 0.2)
        unseen, held_out = split_examples(rest, 0.1)
        return tuple(learned), tuple(held_out), tuple(unseen)
    learned, tenth = split_examples(data.examples)
    held_out, unseen = (tenth if part is None else list(part.examples) for part in (validation, test))
    return tuple(learned), tuple(held_out), tuple(unseen)
