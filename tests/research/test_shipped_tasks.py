"""What ships is the version as it was tuned, in bfloat16, measured as it ships, with the licence of its data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app.measure.dataset import Example
from app.model.layout import Template
from app.registry.prompts import PromptReader
from app.registry.publication import Publication
from app.registry.registry import Registry
from app.registry.store import FileStore
from research.demo.recipes import find_recipe
from research.shipped_tasks import render, ship
from tests.support.models import tiny_backbone
from tests.support.prompts import random_prompt

WRITTEN = {"text": "Is it good?\n", "template": "{input}\nA: {target}", "accuracy": 0.5, "num_examples": 4}


def test_a_version_ships_rounded_without_the_rows_it_started_from(tmp_path: Path) -> None:
    backbone, recipe = tiny_backbone(), find_recipe("sentiment")
    prompt = random_prompt(backbone, seed=3)
    assert prompt.rows is not None
    tuned = Publication(
        prompt,
        initial=torch.zeros_like(prompt.rows),
        template=Template("{input}\nA: {target}"),
        labels=("negative", "positive"),
        label_temperature=1.5,
        metrics={"validation_accuracy": 0.5},
        tuning={"kind": str(prompt.kind)},
        provenance={"written_prompt": WRITTEN},
    )
    Registry(FileStore(tmp_path / "tuned"), backbone).publish("sentiment", tuned)
    test = tuple(Example(f"text {i}", ("negative", "positive")[i % 2]) for i in range(6))
    found = ship(backbone, recipe, tmp_path / "tuned", test, tmp_path / "prompts")

    registry = Registry(FileStore(tmp_path / "prompts"), backbone)
    version = registry.resolve("sentiment")
    assert registry.prompt(version).digest == prompt.rounded(torch.bfloat16).digest
    assert PromptReader(FileStore(tmp_path / "prompts"), backbone).read_initial(version) is None
    assert (version.labels, version.label_temperature) == (tuned.labels, 1.5)
    assert version.provenance["data_licence"] == recipe.licence
    assert version.metrics["test_accuracy"] == found["tuned"]["accuracy"]
    assert found["num_bytes"] == version.num_bytes < 2**20
    assert 0 <= found["written"]["accuracy"] <= 1
    [*_, line] = render({"sentiment": found | {"budget_s": 600.0, "seconds": 580}}).splitlines()
    assert line.startswith("| `sentiment` | rotten_tomatoes | accuracy | **")
    assert "| 10m, 9m40s |" in line


@pytest.mark.parametrize("name", ["sentiment", "subjectivity", "domain", "language", "headline"])
def test_each_task_that_ships_names_a_licence_that_allows_it(name: str) -> None:
    assert find_recipe(name).licence.startswith(("CC BY ", "public domain"))
