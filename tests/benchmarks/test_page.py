"""The page of results shows what was kept, every contender once and from its newest run."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import page
from benchmarks.__main__ import PARTS
from benchmarks.part import RESULTS, read_runs
from benchmarks.parts.prompt_length import NO_PROMPT


def contender(tokens_per_s: float) -> dict[str, Any]:
    return {
        "num_requests": 64,
        "wall_s": [2048 / tokens_per_s],
        "median_tokens_per_s": tokens_per_s,
        "median_first_token_s": None,
        "foreign_cores": [0.02],
    }


def part(**fields: Any) -> dict[str, Any]:
    empty = {"contenders": {}, "ratios": {}, "agreement": {}, "figures": {}, "cannot": {}, "foreign_cores": None}
    return {"question": "how fast?", "setting": {"requests": 64}} | empty | fields


def run(day: int, dtype: str = "float32", **name_to_part: dict[str, Any]) -> dict[str, Any]:
    return {
        "command": f"python -m benchmarks on day {day}",
        "measured_at": f"2026-11-{day:02}T10:00:00+00:00",
        "machine": {"cpu": "a CPU", "instruction_set": "AVX2", "num_threads": 2, "versions": {"torch": "2.13.0"}},
        "setting": {"dtype": dtype},
        "parts": {name.replace("_", "-"): each for name, each in name_to_part.items()},
    }


@pytest.fixture
def runs() -> list[dict[str, Any]]:
    """The newest first, one of them of all that has a picture."""
    ratio = {"softswap / PEFT one by one": {"value": 20.0, "target": ">= 16", "is_reached": True}}
    agreement = {"softswap = PEFT one by one": {"num_compared": 8, "num_equal": 7, "num_ties": 1, "largest_gap": 2e-5}}
    with_peft = part(
        contenders={"softswap": contender(200.0), "PEFT one by one": contender(10.0)},
        ratios=ratio,
        agreement=agreement,
        cannot={"vLLM": "not installed"},
    )
    lengths = {
        NO_PROMPT: contender(100.0),
        "50 virtual tokens": contender(98.0),
        "50, computed for every request": contender(70.0),
    }
    return [
        run(3, peers=part(contenders={"softswap": contender(222.0), "llama.cpp": contender(111.0)})),
        run(
            2,
            peers=with_peft,
            prompt_length=part(contenders=lengths),
        ),
        run(1, peers=part(contenders={"softswap": contender(199.0), "llama.cpp": contender(99.0)})),
    ]


def test_a_contender_is_shown_from_its_newest_run(runs):
    chosen = page.choose(runs, "peers", "float32")
    assert [shown.run["command"][-1] for shown in chosen] == ["3", "2"]
    assert "on day 1" not in page.render_page(runs, PARTS)


def test_a_figure_stands_with_its_command_and_what_was_wanted(runs):
    text = page.render_page(runs, PARTS)
    assert "$ python -m benchmarks on day 2" in text
    assert "| softswap / PEFT one by one | 20.00 | at least 16 | reached |" in text
    assert "7 of 8 answers are PEFT one by one's token for token" in text
    assert "vLLM: not installed." in text


def test_what_was_missed_and_what_was_disturbed_is_said(runs):
    missed = deepcopy(runs)
    missed[1]["parts"]["peers"]["ratios"]["softswap / PEFT one by one"] |= {"value": 9.0, "is_reached": False}
    missed[1]["parts"]["peers"]["contenders"]["softswap"]["foreign_cores"] = [0.7]
    text = page.render_page(missed, PARTS)
    assert "| 9.00 | at least 16 | **missed** |" in text
    assert "0.70 cores, too much to trust it" in text


def test_a_figure_of_interleaved_rounds_stands_with_its_interval(runs):
    ratio = {"value": 1.014, "interval": [0.987, 1.0424], "target": "<= 1", "is_reached": True}
    text = page.render_part("trees", part(ratios={"streams": ratio}))
    assert "| streams | 1.014 [0.987, 1.042] | at most 1 | reached |" in text


def test_the_steps_of_a_part_stand_in_its_section(runs):
    steps = {"gpu: device": part(figures={"measured": {"GB/s": 1.0}}), "gpu: loads": part(cannot={"x": "no time"})}
    text = page.render_page([run(1) | {"parts": steps}], ["gpu"])
    assert "### gpu: device, float32" in text


def test_a_workload_without_a_result_says_so(runs):
    sections = re.findall(r"^## (.+)\n\n(.+)", page.render_page(runs, PARTS), flags=re.MULTILINE)
    assert [name for name, _ in sections] == list(PARTS)
    assert dict(sections)["decisions"] == "Not measured yet."


def test_the_pictures_that_the_page_shows_are_there_and_name_the_contenders(runs, tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    for number, each in enumerate([*runs, run(1, dtype="bfloat16", peers=runs[1]["parts"]["peers"])]):
        (results / f"{number}.json").write_text(json.dumps(each))
    page.write_page(PARTS, tmp_path, results)
    text = (tmp_path / "results.md").read_text()
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", text)
    assert pictures == ["peers.svg", "prompt-length.svg"]
    for picture in pictures:
        assert ElementTree.parse(tmp_path / picture).getroot().tag.endswith("svg")
    drawn = (tmp_path / "peers.svg").read_text()
    assert all(word in drawn for word in ("llama.cpp", "PEFT one by one", "1.00", "prefers-color-scheme: dark"))


def test_the_page_in_the_repository_is_made_from_the_results_in_the_repository():
    made = page.render_page(read_runs(RESULTS), PARTS)
    assert (Path(page.DOCS) / "results.md").read_text() == made
