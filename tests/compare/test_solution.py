"""Written prompts show examples as the task's own texts, as many as fit."""

from __future__ import annotations

from app.compare.solution import choose_shots, write_shot, written_prompts
from app.measure.dataset import Example
from app.model.layout import Template
from tests.support.models import tiny_backbone

TEMPLATE = Template("T: {input}\nA: {target}")
EXAMPLES = [Example(f"text {i}", ("no", "yes", "maybe")[i % 3]) for i in range(30)]


def texts(max_tokens: int, num_shots: int = 2, instructions: tuple[str, ...] = ("Say.",)) -> list[str]:
    found = written_prompts(tiny_backbone(), TEMPLATE, instructions, EXAMPLES[:num_shots], max_tokens)
    return ["" if prompt is None else prompt.text or "" for prompt in found]


def test_a_shot_reads_as_a_text_with_its_answer() -> None:
    assert write_shot(TEMPLATE, EXAMPLES[0]) == "T: text 0\nA: no"
    assert write_shot(Template("{input}\n{target}"), EXAMPLES[0]) == "text 0\nno"


def test_instructions_come_with_examples_and_without_and_end_before_the_text() -> None:
    shown = "T: text 0\nA: no\n\nT: text 1\nA: yes\n\n"
    assert texts(200) == [f"Say.\n\n{shown}", shown]
    assert texts(200, num_shots=0) == ["Say.\n\n", ""]


def test_what_does_not_fit_is_left_out() -> None:
    assert texts(30) == ["Say.\n\nT: text 0\nA: no\n\n", "T: text 0\nA: no\n\n"]
    assert texts(40, instructions=("x" * 100,)) == ["T: text 0\nA: no\n\nT: text 1\nA: yes\n\n"]
    assert texts(3, instructions=("x" * 100,)) == [""]


def test_shots_show_every_answer_and_depend_on_the_seed_alone() -> None:
    shots = choose_shots(EXAMPLES, 6, seed=1)
    assert sorted(shot.target for shot in shots) == ["maybe", "maybe", "no", "no", "yes", "yes"]
    assert shots == choose_shots(EXAMPLES, 6, seed=1) != choose_shots(EXAMPLES, 6, seed=2)
    assert len(choose_shots(EXAMPLES[:2], 6, seed=1)) == 2
