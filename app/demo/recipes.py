"""The demo tasks: their data, how each is tuned, and the hand-written prompts they are compared with."""

from __future__ import annotations

from dataclasses import dataclass

from app.tuning.config import TuneConfig

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


RECIPES = (
    Recipe(
        task="sentiment",
        data="rotten_tomatoes",
        licence="CC BY 4.0",
        description="Whether a sentence of a film review is positive or negative (Pang and Lee 2005).",
        template="{input}\nSentiment: {target}",
        is_labelled=True,
        config=TuneConfig(num_virtual_tokens=50, learning_rate=0.1, max_steps=800),
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
        template="{input}\nStyle: {target}",
        is_labelled=True,
        config=TuneConfig(num_virtual_tokens=50, learning_rate=0.1, max_steps=800),
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
        template="{input}\nDomain: {target}",
        is_labelled=True,
        config=TuneConfig(num_virtual_tokens=50, learning_rate=0.1, max_steps=1200),
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
        template="{input}\nIntent: {target}",
        is_labelled=True,
        config=TuneConfig(num_virtual_tokens=50, learning_rate=0.1, max_steps=2000, max_validation_rows=200),
        instructions=("intent", "Customer intent.", "What does the customer want:", "Task: intent of the request"),
        num_shots=12,
    ),
    Recipe(
        task="language",
        data="language_id",
        licence="public domain",
        description="Which of twelve languages a passage is written in.",
        template="{input}\nLanguage: {target}",
        is_labelled=True,
        config=TuneConfig(num_virtual_tokens=50, learning_rate=0.1, max_steps=600),
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
        template="{input}\nEntities: {target}",
        is_labelled=False,
        config=TuneConfig(num_virtual_tokens=50, learning_rate=0.1, max_steps=800, max_target_tokens=96),
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
        config=TuneConfig(num_virtual_tokens=50, learning_rate=0.1, batch_size=16, max_steps=500, max_target_tokens=96),
        instructions=("title of the article", "Headline.", "Task: headline of the news article", "title"),
        num_shots=4,
    ),
)
"""In the order of the table."""


def find_recipe(task: str) -> Recipe:
    return next(recipe for recipe in RECIPES if recipe.task == task)
