"""The benchmarks rehearse on a tiny model, and what they report can be believed."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.__main__ import PARTS, main
from benchmarks.parts import co_serving, trees, tuning
from benchmarks.server import ROOT
from benchmarks.setup import Setting, Setup

pytestmark = pytest.mark.slow

SMOKE = Setting.smoke()
REHEARSED = [name for name in PARTS if name not in {"co-serving", "trees", "tuning", "gpu"}]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """One rehearsal of all parts, as the last line of its output shows it."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as output:
        patch.setenv("SOFTSWAP_BENCHMARK_CACHE", str(tmp_path_factory.mktemp("cache")))
        main([*REHEARSED, "--smoke"])
    return json.loads(output.getvalue().splitlines()[-1])


def test_the_last_line_tells_machine_versions_and_sizes(result):
    assert result["machine"]["num_cores"] >= 1
    assert set(result["machine"]["versions"]) == {"python", "torch", "transformers", "peft"}
    assert result["setting"]["dimensions"]["num_requests"] == SMOKE.dimensions.num_requests


def test_every_part_answers_its_question_with_figures(result):
    assert list(result["parts"]) == list(REHEARSED)
    for part in result["parts"].values():
        assert part["contenders"] or part["figures"]


def test_every_contender_ran_once_in_the_round(result):
    for part in result["parts"].values():
        assert all(len(contender["wall_s"]) == 1 for contender in part["contenders"].values())


def test_softswap_and_continuous_batching_answer_as_peft_does_alone(result):
    agreement = result["parts"]["peers"]["agreement"]
    for name in ("softswap", "softswap, cold tasks", "transformers, continuous batching"):
        compared = agreement[f"{name} = PEFT one by one"]
        assert compared["num_compared"] == SMOKE.dimensions.num_requests // SMOKE.one_by_one_stride
        assert compared["num_equal"] + compared["num_ties"] == compared["num_compared"]


def test_a_peer_that_is_not_there_says_how_to_get_it(result):
    reasons = result["parts"]["peers"]["cannot"]
    assert reasons["vLLM, prompt_embeds"] == "not installed: python -m benchmarks install vllm"


def test_decisions_over_http_are_the_engines(result):
    assert result["parts"]["http"]["setting"]["equal_decisions"] == SMOKE.num_decisions


def test_prefixes_are_shared_only_where_the_report_says_so(result):
    virtual_tokens = SMOKE.dimensions.num_virtual_tokens
    cached = {
        name: contender["num_cached_tokens"]
        for part in ("peers", "prompt-length", "many-tasks")
        for name, contender in result["parts"][part]["contenders"].items()
    }
    assert cached["softswap"] == SMOKE.dimensions.num_requests * virtual_tokens
    assert cached["50 virtual tokens"] == SMOKE.dimensions.num_requests * 50
    assert cached[f"{virtual_tokens}, computed for every request"] == cached["softswap, cold tasks"] == 0
    assert cached["no virtual tokens"] == 0
    assert cached["uniform over all tasks"] < cached["one task"] == SMOKE.num_many_requests * virtual_tokens


def test_a_target_is_reached_or_missed_by_its_figure(result):
    for part in result["parts"].values():
        for ratio in part["ratios"].values():
            word, _, bound = ratio["target"].partition(" ")
            if word == ">=":
                assert ratio["is_reached"] == (ratio["value"] >= float(bound))
            elif word == "<=":
                assert ratio["is_reached"] == (ratio["value"] <= float(bound))


def test_one_part_can_be_asked_for_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("SOFTSWAP_BENCHMARK_CACHE", str(tmp_path))
    main(["cold-task", "--smoke", "--json"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert list(json.loads(lines[0])["parts"]) == ["cold-task"]


@pytest.mark.by_hand
def test_the_server_lends_the_device_to_jobs_alone():
    (part,) = co_serving.measure(Setup(SMOKE), print)
    assert part.figures["half"]["tuning's share"] == part.figures["full"]["tuning's share"] == 0
    assert part.figures["half, with a job"]["tuning's share"] > 0
    assert part.setting["share_of_a_job_alone"] > 0.1


@pytest.mark.by_hand
def test_both_trees_give_the_same_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("SOFTSWAP_BENCHMARK_CACHE", str(tmp_path))
    (part,) = trees.measure(Setup(replace(SMOKE, other=ROOT)), print)
    assert {row["rounds with equal answers"] for row in part.figures.values()} == {1}
    assert all(len(values) == 1 for row in part.rounds.values() for values in row.values())


def test_a_part_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["speed"])
    assert "no such part: speed; there are peers" in capsys.readouterr().err


def test_tuning_is_measured_on_data_that_are_named() -> None:
    with pytest.raises(SystemExit, match="--data names a folder of data sets, and --model what to tune on"):
        next(tuning.measure(Setup(SMOKE), print))
