"""The demo tasks: their data, how each is tuned, and the hand-written prompts they are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.task_prompt import PromptKind
from app.tuning.config import Init, Loss, TuneConfig

ASKED = "Text: {input}\nAnswer: {target}"
"""A form the backbone saw in pre-training: it has learned to read a text and to answer at this place."""

DOMAIN_LABELS = """domain
Labels: auto and commute, banking, credit cards, home, kitchen and dining, meta, out of scope, small talk, travel, utility, work"""  # noqa: E501
LANGUAGE_LABELS = """language
Labels: Dutch, English, Finnish, French, German, Indonesian, Italian, Polish, Portuguese, Spanish, Swedish, Turkish"""


@dataclass(frozen=True)
class Recipe:
    """One demo task.

    Attributes:
        task: its name in the registry.
        data: folder with train.jsonl, validation.jsonl and test.jsonl.
        licence: as the data's source states it.
        description: of the task, for the model card.
        template: see Template.
        is_labelled: whether the targets are a fixed set of labels.
        config: how the prompt is tuned.
        instructions: hand-written prompts, of which the best on validation is compared with the tuned one.
        num_shots: examples shown in the few-shot prompt.
        max_new_tokens: longest answer of a task that writes.
        start_from: demo task whose live prompt tuning starts from (transfer, Vu et al. 2022, SPoT); none when empty.
    """

    task: str
    data: str
    licence: str
    description: str
    template: str
    is_labelled: bool
    config: TuneConfig
    instructions: tuple[str, ...]
    num_shots: int = 8
    max_new_tokens: int = 48
    start_from: str = ""


def prefix_tuning(**settings: Any) -> TuneConfig:
    """Keys and values of 20 virtual tokens, measured ten times on the way."""
    return TuneConfig(
        kind=PromptKind.KV,
        num_virtual_tokens=20,
        learning_rate=0.02,
        max_target_tokens=96,
        max_validation_rows=300,
        eval_every=settings["max_steps"] // 10,
        **settings,
    )


RECIPES = (
    Recipe(
        task="sentiment",
        data="rotten_tomatoes",
        licence="CC BY 4.0",
        description="Whether a sentence of a film review is positive or negative (Pang and Lee 2005).",
        template=ASKED,
        is_labelled=True,
        config=prefix_tuning(max_steps=1000, batch_size=16),
        instructions=(
            "Sentiment of the film review. Choose from positive, negative",
            "Is the review positive or negative?",
            "sentiment\nLabels: negative, positive",
            "good or bad",
        ),
    ),
    Recipe(
        task="subjectivity",
        data="subjectivity",
        licence="CC BY 4.0",
        description="Whether a sentence gives an opinion (subjective) or tells a plot (objective; Pang and Lee 2004).",
        template=ASKED,
        is_labelled=True,
        config=prefix_tuning(max_steps=1000, batch_size=16),
        instructions=(
            "Is the sentence subjective or objective?",
            "Opinion or fact. Choose from subjective, objective",
            "style\nLabels: objective, subjective",
            "kind of text",
        ),
    ),
    Recipe(
        task="domain",
        data="clinc_domain",
        licence="CC BY 3.0",
        description="Which of ten domains a spoken request belongs to, or none of them (Larson et al. 2019).",
        template=ASKED,
        is_labelled=True,
        config=prefix_tuning(max_steps=1200, loss=Loss.TOKENS),
        instructions=(
            "Domain of the request.",
            DOMAIN_LABELS,
            "Task: topic",
            "category",
        ),
        num_shots=11,
    ),
    Recipe(
        task="intent",
        data="clinc150",
        licence="CC BY 3.0",
        description="Which of 150 intents a spoken request has (Larson et al. 2019).",
        template=ASKED,
        is_labelled=True,
        config=prefix_tuning(init=Init.PROMPT, max_steps=1200, loss=Loss.TOKENS),
        start_from="domain",
        instructions=("intent", "Customer intent.", "What does the customer want:", "Task: intent of the request"),
        num_shots=12,
    ),
    Recipe(
        task="language",
        data="language_id",
        licence="public domain",
        description="Which of twelve languages a passage is written in.",
        template=ASKED,
        is_labelled=True,
        config=prefix_tuning(max_steps=700, batch_size=16),
        instructions=(
            "Language of the text.",
            LANGUAGE_LABELS,
            "Task: name of the language",
            "In which language is this written?",
        ),
        num_shots=12,
    ),
    Recipe(
        task="entities",
        data="wnut17_ner",
        licence="CC BY 4.0",
        description='Rare and emerging names in a message, as "type = name; ..." or "none" (Derczynski et al. 2017).',
        template=ASKED,
        is_labelled=False,
        config=prefix_tuning(max_steps=600, batch_size=16),
        instructions=(
            "extract the entities",
            "Names in the text.",
            "list the names",
            "find person, location, group, corporation, product, creative-work",
        ),
    ),
    Recipe(
        task="headline",
        data="wikinews_headline",
        licence="CC BY 2.5",
        description="A headline for the beginning of a news article (English Wikinews).",
        template="{input}\nHeadline: {target}",
        is_labelled=False,
        config=prefix_tuning(max_steps=400, batch_size=8),
        instructions=("title of the article", "Headline.", "Task: headline of the news article", "title"),
        num_shots=4,
    ),
)
"""In the order of the table."""


def find_recipe(task: str) -> Recipe:
    return next(recipe for recipe in RECIPES if recipe.task == task)
