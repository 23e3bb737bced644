"""The serving benchmark rehearses on a tiny model, and what it reports can be believed."""

from __future__ import annotations

import json

import pytest

from benchmarks.serving import main
from benchmarks.setting import Setting

QUICK = Setting.quick()


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """One quick run of all parts, as the last line of its output shows it."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as output:
        main(["--quick", "--repetitions", "2", "--one-by-one-stride", "2"])
    return json.loads(output.getvalue().splitlines()[-1])


def test_the_last_line_tells_machine_versions_and_sizes(result):
    assert result["machine"]["num_cores"] >= 1
    assert set(result["machine"]["versions"]) == {"python", "torch", "transformers", "peft"}
    assert result["setting"]["dimensions"]["num_requests"] == QUICK.dimensions.num_requests


def test_every_contender_ran_once_in_each_round(result):
    for part in result["parts"].values():
        assert all(len(contender["wall_s"]) == 2 for contender in part["contenders"].values())


def test_softswap_answers_as_peft_does_alone(result):
    agreement = result["parts"]["peers"]["agreement"]
    for name in ("softswap = PEFT one by one", "softswap, cold tasks = PEFT one by one"):
        compared = agreement[name]
        assert compared["num_compared"] == QUICK.dimensions.num_requests // 2
        assert compared["num_equal"] + compared["num_ties"] == compared["num_compared"]


def test_prefixes_are_shared_only_where_the_report_says_so(result):
    virtual_tokens = QUICK.dimensions.num_virtual_tokens
    cached = {
        name: contender["num_cached_tokens"]
        for part in result["parts"].values()
        for name, contender in part["contenders"].items()
    }
    assert cached["softswap"] == QUICK.dimensions.num_requests * virtual_tokens
    assert cached["many tasks, all in memory"] == QUICK.num_many_requests * virtual_tokens
    assert cached["prompt computed per request"] == cached["softswap, cold tasks"] == 0
    assert cached["without prompts"] == 0


def test_a_target_is_reached_or_missed_by_its_figure(result):
    for part in result["parts"].values():
        for ratio in part["ratios"].values():
            word, _, bound = ratio["target"].partition(" ")
            if word == ">=":
                assert ratio["is_reached"] == (ratio["value"] >= float(bound))
            elif word == "<=":
                assert ratio["is_reached"] == (ratio["value"] <= float(bound))


def test_one_part_can_be_asked_for_alone(capsys):
    main(["--quick", "--repetitions", "1", "--only", "prompt-cost", "--json"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert list(json.loads(lines[0])["parts"]) == ["prompt-cost"]
