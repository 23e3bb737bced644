"""The page of results shows what was kept, every contender once and from its newest run."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import page
from benchmarks.parts.catalogue import NAME_TO_PART
from benchmarks.parts.prompt_length import NONE
from benchmarks.report import RESULTS


def contender(tokens_per_s: float) -> dict[str, Any]:
    return {
        "num_requests": 64,
        "wall_s": [2048 / tokens_per_s],
        "median_tokens_per_s": tokens_per_s,
        "median_first_token_s": None,
        "foreign_cores": [0.02],
    }


def part(**fields: Any) -> dict[str, Any]:
    empty = {"contenders": {}, "ratios": {}, "agreement": {}, "figures": {}, "cannot": {}}
    return {"question": "how fast?", "setting": {"requests": 64}} | empty | fields


def run(day: int, dtype: str = "float32", **name_to_part: dict[str, Any]) -> dict[str, Any]:
    return {
        "command": f"python -m benchmarks on day {day}",
        "measured_at": f"2026-11-{day:02}T10:00:00+00:00",
        "machine": {"cpu": "a CPU", "instruction_set": "AVX2", "num_threads": 2, "versions": {"torch": "2.13.0"}},
        "setting": {"dtype": dtype},
        "parts": {name.replace("_", "-"): each for name, each in name_to_part.items()},
    }


def waits(factor: float) -> dict[str, float]:
    columns = (
        f"{what} {quantile}, s" for what in ("first token", "between tokens") for quantile in ("p50", "p95", "p99")
    )
    return {column: factor * (1 + number) for number, column in enumerate(columns)}


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
        NONE: contender(100.0),
        "50 virtual tokens": contender(98.0),
        "50, computed for every request": contender(70.0),
    }
    return [
        run(3, peers=part(contenders={"softswap": contender(222.0), "llama.cpp": contender(111.0)})),
        run(
            2,
            peers=with_peft,
            arrivals=part(figures={"0.5 of capacity": waits(0.1), "2 of capacity": waits(1.0)}),
            prompt_length=part(contenders=lengths),
        ),
        run(1, peers=part(contenders={"softswap": contender(199.0), "llama.cpp": contender(99.0)})),
    ]


def test_a_contender_is_shown_from_its_newest_run(runs):
    chosen = page.choose(runs, "peers", "float32")
    assert [shown.run["command"][-1] for shown in chosen] == ["3", "2"]
    assert "on day 1" not in page.render_page(runs)


def test_a_figure_stands_with_its_command_and_what_was_wanted(runs):
    text = page.render_page(runs)
    assert "$ python -m benchmarks on day 2" in text
    assert "| softswap / PEFT one by one | 20.00 | at least 16 | reached |" in text
    assert "7 of 8 answers are PEFT one by one's token for token" in text
    assert "vLLM: not installed." in text


def test_what_was_missed_and_what_was_disturbed_is_said(runs):
    missed = deepcopy(runs)
    missed[1]["parts"]["peers"]["ratios"]["softswap / PEFT one by one"] |= {"value": 9.0, "is_reached": False}
    missed[1]["parts"]["peers"]["contenders"]["softswap"]["foreign_cores"] = [0.7]
    text = page.render_page(missed)
    assert "| 9.00 | at least 16 | **missed** |" in text
    assert "0.70 cores, too much to trust it" in text


def test_a_workload_without_a_result_says_so(runs):
    sections = re.findall(r"^## (.+)\n\n(.+)", page.render_page(runs), flags=re.MULTILINE)
    assert [name for name, _ in sections] == list(NAME_TO_PART)
    assert dict(sections)["decisions"] == "Not measured yet."


def test_the_pictures_that_the_page_shows_are_there_and_name_the_contenders(runs, tmp_path):
    page.write_page([*runs, {**run(1, dtype="bfloat16", peers=runs[1]["parts"]["peers"])}], tmp_path)
    text = (tmp_path / "results.md").read_text()
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", text)
    assert pictures == ["peers.svg", "arrivals.svg", "prompt-length.svg"]
    for picture in pictures:
        assert ElementTree.parse(tmp_path / picture).getroot().tag.endswith("svg")
    drawn = (tmp_path / "peers.svg").read_text()
    assert all(word in drawn for word in ("llama.cpp", "PEFT one by one", "1.00", "prefers-color-scheme: dark"))


def test_the_page_in_the_repository_is_made_from_the_results_in_the_repository():
    made = page.render_page(page.read_runs(RESULTS))
    assert (Path(page.DOCS) / "results.md").read_text() == made
