"""Templates and written prompts for a task whose user gave none, made of its columns' names and its labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from transformers import PreTrainedTokenizerFast

from app.errors import InvalidInput
from app.measure.reading.columns import Columns
from app.model.chat_template import ChatTemplate
from app.model.layout import INPUT, TARGET, Template

MAX_TITLE_CHARS: Final = 40
MAX_LISTED_CHARS: Final = 300
"""Of labels in a written prompt; more are not listed, because each request would read them."""
MAX_CHAT_CHARS: Final = 2000
"""Of a rendered chat template: what some write before a conversation would take most of a short backbone."""
# fmt: off
PLAIN_INPUTS: Final = {
    "input", "inputs", "text", "texts", "prompt", "x", "user", "content", "body", "data", "document"}
PLAIN_TARGETS: Final = {
    "target", "targets", "label", "labels", "class", "y", "output", "completion", "assistant", "answer"}
# fmt: on
"""Names that say what every input or target is, and so nothing of the task."""


@dataclass(frozen=True)
class WrittenPrompt:
    """Attributes: text: an instruction that stands before every input. template: how an input becomes text after it."""

    text: str
    template: Template


def candidate_templates(
    columns: Columns | None, labels: Sequence[str], *, system: str = ""
) -> tuple[Template, Template]:
    """Two ways to write an input, to choose among on validation. The first is the default.

    Columns with names of their own make `Message: {input}\\nCategory: {target}`; names that any data could have, as
    `text` and `label`, leave the target alone on a line after the input. The other one is the second candidate.

    Args:
        columns: of the training file; None if it has none.
        system: a system message that all examples have; both say it first.
    """
    input_title, target_title = _titles(columns, labels)
    bare, titled = Template(), Template(f"{input_title}: {INPUT}\n{target_title}: {TARGET}")
    first, second = (titled, bare) if _has_own_names(columns) else (bare, titled)
    return first.after_system(system), second.after_system(system)


def written_candidates(
    columns: Columns | None,
    labels: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    *,
    template: Template | None = None,
    text: str | None = None,
    system: str = "",
) -> tuple[WrittenPrompt, ...]:
    """Written prompts to choose among on validation, each with its template.

    In a conversation the instruction is the system message: no default one takes up room before it. If the examples
    have one of their own, or the backbone knows none, the instruction begins the user's turn.

    Args:
        template, text: given by the user, and then that of all.
        system: a system message that all examples have.
    """
    instruction = written_prompt(columns, labels) if text is None else text
    if template is not None:
        return (WrittenPrompt(instruction, template),)
    plain = [WrittenPrompt(instruction, each) for each in candidate_templates(columns, labels, system=system)]
    input_title, target_title = _titles(columns, labels)
    question, answer = f"{input_title}: {INPUT}", f"{target_title}: {TARGET}"
    chat = None if system else chat_form(tokenizer, question, answer, instruction.strip())
    if chat is None:
        chat = chat_form(tokenizer, f"{instruction}{question}", answer, system)
    before, is_there, after = ("", "", "") if chat is None else chat.text.partition(question)
    if not is_there:
        return tuple(plain)
    return (*plain, WrittenPrompt(before, Template(question + after, system=system)))


def default_template(columns: Columns | None, labels: Sequence[str]) -> Template:
    """The first of `candidate_templates`."""
    return candidate_templates(columns, labels)[0]


def written_prompt(columns: Columns | None, labels: Sequence[str]) -> str:
    """An instruction in plain words that comes before every input, with the empty line between them.

    "Classify the message as billing, delivery or other." If the labels are too many to be listed, "Give the category of
    the message."; without labels, "Write the headline of the article."
    """
    input_title, target_title = _titles(columns, labels)
    given, wanted = _lower(input_title), _lower(target_title)
    listed = _list(labels)
    if labels and len(listed) <= MAX_LISTED_CHARS:
        return f"Classify the {given} as {listed}.\n\n"
    verb = "Give" if labels else "Write"
    return f"{verb} the {wanted} of the {given}.\n\n"


def chat_form(
    tokenizer: PreTrainedTokenizerFast, question: str = INPUT, answer: str = TARGET, system: str = ""
) -> Template | None:
    """The tokenizer's chat template around one user turn, where the assistant's turn begins.

    Without the beginning-of-sequence token where the tokenizer puts one itself. None if there is no chat template, or
    it does not keep the input as it is.
    """
    spoken = [("system", system), ("user", question)] if system else [("user", question)]
    text = ChatTemplate(tokenizer).write([{"role": role, "content": content} for role, content in spoken])
    if text is None:
        return None
    bos = tokenizer.bos_token
    if bos and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]:
        text = text.removeprefix(bos)
    if len(text) > MAX_CHAT_CHARS + len(system) or (system and system not in text):
        return None
    try:
        return Template(text + answer, system=system)
    except InvalidInput:
        return None


def _titles(columns: Columns | None, labels: Sequence[str]) -> tuple[str, str]:
    """What the input and the target are called in a template."""
    asked = columns or Columns("text", "label")
    first = "Text" if _is_plain(asked.input, PLAIN_INPUTS) else _title(asked.input)
    second = _title(asked.target)
    if _is_plain(asked.target, PLAIN_TARGETS):
        second = "Label" if labels else "Answer"
    return first, second


def _has_own_names(columns: Columns | None) -> bool:
    return columns is not None and not (
        _is_plain(columns.input, PLAIN_INPUTS) and _is_plain(columns.target, PLAIN_TARGETS)
    )


def _is_plain(name: str, plain: set[str]) -> bool:
    return _title(name).lower() in plain or not any(char.isalpha() for char in name)


def _title(name: str) -> str:
    """`customer_message` and `customerMessage` become `Customer message`. Braces would look like a place to fill."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    words = re.sub(r"[\s_\-.:/{}]+", " ", spaced).strip()[:MAX_TITLE_CHARS].strip()
    first, _, rest = words.partition(" ")
    return f"{first[:1].upper()}{first[1:]} {rest if rest.isupper() else rest.lower()}".strip()


def _lower(title: str) -> str:
    """Inside a sentence; an abbreviation such as FAQ stays."""
    return title if title[:2].isupper() else title[:1].lower() + title[1:]


def _list(labels: Sequence[str]) -> str:
    return " or ".join([", ".join(labels[:-1]), labels[-1]]) if len(labels) > 1 else "".join(labels)
