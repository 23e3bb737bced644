"""The demo tasks are tuned, compared and tabulated by one command; here with tiny data and a tiny backbone."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from app.measure.plain_model import evaluate
from app.measure.served_prompt import ServedPrompt
from app.model.layout import Template
from app.registry.registry import Registry
from app.registry.store import FileStore
from research.demo import tasks
from research.demo.recipes import RECIPES, Recipe
from tests.support.models import tiny_backbone


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    short = replace(RECIPES[0].config, num_virtual_tokens=4, max_steps=2, batch_size=8, max_target_tokens=20)
    chosen = replace(RECIPES[0], config=short, instructions=("good or bad", "sentiment"), num_shots=2)
    monkeypatch.setattr(tasks, "RECIPES", (chosen,))
    monkeypatch.setattr(tasks, "find_recipe", lambda task: chosen)
    return chosen


@pytest.fixture
def workplace(tmp_path: Path, recipe: Recipe) -> Path:
    backbone = tiny_backbone()
    backbone.model.save_pretrained(tmp_path / "backbone")
    backbone.tokenizer.save_pretrained(tmp_path / "backbone")
    folder = tmp_path / "data" / recipe.data
    folder.mkdir(parents=True)
    for split, num in (("train", 40), ("validation", 12), ("test", 16)):
        rows = [
            {"input": f"{split} number {i} is a text", "target": ("negative", "positive")[i % 2]} for i in range(num)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "README.md").write_text("# x\n<!-- demo-table:begin -->\nold\n<!-- demo-table:end -->\nrest\n")
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, command: str, folder: Path) -> None:
    places = {
        "data": "data",
        "registry": "prompts",
        "backbone": "backbone",
        "results": "results",
        "page": "README.md",
    }
    options = [word for name, place in places.items() for word in (f"--{name}", str(folder / place))]
    monkeypatch.setattr(sys, "argv", ["tasks", command, *options, "--task", "sentiment"])
    tasks.main()


def test_tuned_tasks_are_published_measured_and_tabulated(
    workplace: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in ("compare", "tune", "table"):
        run(monkeypatch, command, workplace)
    backbone = tasks.Backbone.load(workplace / "backbone")
    registry = Registry(FileStore(workplace / "prompts"), backbone)
    version = registry.resolve("sentiment")
    assert version.labels == ("negative", "positive")
    assert version.provenance["data_licence"] == "CC BY 4.0"
    test = tasks.read_splits(workplace / "data" / recipe.data).test.examples
    measured = evaluate(
        backbone, ServedPrompt(registry.prompt(version), Template(recipe.template), version.labels), test
    )
    assert version.metrics["test_accuracy"] == pytest.approx(measured.metrics["accuracy"], abs=1e-4)
    readme = (workplace / "README.md").read_text()
    assert readme.startswith("# x\n<!-- demo-table:begin -->\n| task |")
    assert readme.endswith("<!-- demo-table:end -->\nrest\n")
    assert "old" not in readme
    assert f"**{100 * measured.metrics['accuracy']:.1f}**" in readme
    found = json.loads((workplace / "results" / "sentiment.json").read_text())
    assert found["tuned"]["num_parameters"] == 4 * backbone.kv_row_size
    assert {"zero_shot", "few_shot", "majority"} <= found.keys()


def test_a_few_shot_prompt_shows_training_examples_in_the_tasks_own_form(workplace: Path, recipe: Recipe) -> None:
    splits = tasks.read_splits(workplace / "data" / recipe.data)
    texts = list(tasks.written_prompts(tiny_backbone(), recipe, splits, 2))
    first = "Text: train number 0 is a text\nAnswer: negative"
    assert texts[0].startswith(f"good or bad\n\n{first}\n\nText: train number 1")
    assert texts[-1].startswith("Text: train number 0")
    assert not any("test number" in text for text in texts)
    assert list(tasks.written_prompts(tiny_backbone(), recipe, splits, 0)) == ["good or bad", "sentiment", ""]


def test_every_recipe_asks_for_its_target() -> None:
    assert len({recipe.task for recipe in RECIPES}) == len(RECIPES) == 7
    for recipe in RECIPES:
        assert Template(recipe.template).render("x").endswith(":")
