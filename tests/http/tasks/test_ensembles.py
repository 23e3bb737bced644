"""Several versions that answer together: exactly what their own answers come to, in one batch."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from app.answers.generating.labels import LabelChances
from app.answers.targets import Combine, Ensemble, choose_text
from app.model.backbone import Backbone
from app.model.layout import Template
from app.registry.publication import Publication
from app.telemetry import Metrics
from tests.support.server import LABELS, REVIEW, LiveServer, make_settings, run_server, soft_prompt

INPUTS = [f"a film {'good' if n % 3 else 'dull'} {'indeed ' * (n % 7)}{n}" for n in range(24)]
TOGETHER = "two@1+2+3+other"
MEMBERS = ["two@1", "two@2", "two@3", "other@1"]


@pytest.fixture(scope="module")
def own(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with run_server(make_settings(tmp_path_factory.mktemp("prompts")), backbone) as live:
        publish = live.registry.publish
        for seed, temperature in ((0, None), (1, 2.5), (2, 0.5)):
            prompt = soft_prompt(backbone, seed=seed)
            labelled = Publication(prompt, template=Template(REVIEW), labels=LABELS, label_temperature=temperature)
            publish("two", labelled)
        publish("other", Publication(soft_prompt(backbone, seed=3, rows=4), labels=LABELS[::-1]))
        publish("many", Publication(soft_prompt(backbone, seed=4), labels=["a", "b", "c"]))
        for seed in (5, 6, 7):
            publish("text", Publication(soft_prompt(backbone, seed=seed), sampling={"max_tokens": 3}))
        publish("text", Publication(soft_prompt(backbone, seed=6, rows=9), sampling={"max_tokens": 3}))
        yield live


def _run(live: LiveServer, task: str, **body: object) -> dict[str, object]:
    answer = httpx.post(f"{live.url}/v1/tasks/{task}/run", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def _one_by_one(live: LiveServer, names: list[str], text: str) -> list[dict[str, object]]:
    return [_run(live, name, input=text) for name in names]


def test_usage_says_which_prompts_were_there_already(own: LiveServer) -> None:
    def cached(name: str, text: str) -> tuple[int, int]:
        decided = httpx.post(f"{own.url}/v1/decisions", json={"model": name, "input": text}).json()["usage"]
        ran = _run(own, name, input=text[::-1])["usage"]
        return decided["input_tokens_details"]["cached_tokens"], ran["prompt_tokens_details"]["cached_tokens"]

    for name in MEMBERS:
        cached(name, "the first request")
    assert cached("other", "another text") == (4, 4)
    alone = [cached(name, "what of that") for name in MEMBERS]
    assert cached(TOGETHER, "one more text") == tuple(map(sum, zip(*alone, strict=True)))


@pytest.mark.parametrize("text", INPUTS[:8])
def test_an_average_is_the_mean_of_what_each_member_says_alone(own: LiveServer, text: str) -> None:
    said = _run(own, TOGETHER, input=text)
    alone = _one_by_one(own, MEMBERS, text)
    mean = {label: sum(each["probabilities"][label] for each in alone) / 4 for label in LABELS}
    assert said["model"] == "two@1+2+3+other@1"
    assert said["probabilities"] == pytest.approx(mean, abs=1e-6)
    assert list(said["probabilities"]) == sorted(LABELS, key=lambda label: -mean[label])
    assert said["label"] == max(mean, key=mean.__getitem__)
    assert said["label_mass"] == pytest.approx(sum(each["label_mass"] for each in alone) / 4, abs=1e-6)
    assert [each["model"] for each in said["members"]] == MEMBERS
    assert [each["label"] for each in said["members"]] == [each["label"] for each in alone]
    assert said["usage"]["prompt_tokens"] == sum(each["usage"]["prompt_tokens"] for each in alone)
    decided = httpx.post(f"{own.url}/v1/decisions", json={"model": TOGETHER, "input": text}).json()
    [answer] = decided["answers"]
    assert (decided["model"], answer["name"]) == (said["model"], "two+other")
    assert answer["confidence"] == pytest.approx(mean[said["label"]], abs=1e-6)


def test_a_vote_counts_each_members_own_label(own: LiveServer) -> None:
    has_differed = False
    for text in INPUTS:
        said = _run(own, "two@1+2+3", input=text, combine="vote")
        votes = Counter(each["label"] for each in _one_by_one(own, MEMBERS[:3], text))
        assert said["label"] == votes.most_common(1)[0][0]
        assert said["probabilities"] == pytest.approx({label: votes[label] / 3 for label in LABELS})
        has_differed |= len(votes) > 1
    assert has_differed, "the members should not all be alike"


def test_votes_that_tie_go_to_the_higher_average_and_its_label_stands_first(own: LiveServer) -> None:
    chances = [LabelChances((0.2, 0.35, 0.45), 1.0), LabelChances((0.1, 0.8, 0.1), 0.5)]
    best, together = Ensemble(()).combine_chances(chances, Combine.VOTE)
    assert (best, together.probabilities, together.mass) == (1, (0.0, 0.5, 0.5), 0.75)
    for text in INPUTS:
        said = _run(own, "two@1+2", input=text, combine="vote")
        assert next(iter(said["probabilities"])) == said["label"]


def test_texts_are_voted_on_and_the_first_of_equal_answers_is_given(own: LiveServer) -> None:
    said = _run(own, "text@1+2+3+4", inputs=INPUTS[:3])
    for text, result in zip(INPUTS[:3], said["results"], strict=True):
        alone = [each["text"] for each in _one_by_one(own, [f"text@{n}" for n in (1, 2, 3, 4)], text)]
        assert [each["text"] for each in result["members"]] == alone
        assert result["text"] == alone[choose_text(alone)]
    assert choose_text(["Paris", "paris.", "Lyon"]) == 0
    assert choose_text(["Lyon", "Paris", "paris!"]) == 1
    assert choose_text(["a", "b"]) == 0
    assert choose_text(["?", "!", "!"]) == 1


def test_all_members_are_asked_in_one_batch(own: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine runs them side by side: no more steps than one member takes, and all rows in one of them."""
    seen: list[int] = []
    monkeypatch.setattr(own.part(Metrics).prompt_tokens, "inc", seen.append)
    _run(own, "two@1", input=INPUTS[0])
    alone = len(seen)
    seen.clear()
    _run(own, "two@1+2+3", input=INPUTS[0])
    assert len(seen) <= alone + 1
    assert max(seen) >= 3 * len(INPUTS[0])


def test_mixed_runs_take_ensembles_beside_tasks(own: LiveServer) -> None:
    items = [{"task": "two@1+2", "input": "x", "combine": "vote"}, {"task": "many", "input": "x"}]
    first, second = httpx.post(f"{own.url}/v1/run", json=items).json()["results"]
    assert first["label"] == _run(own, "two@1+2", input="x", combine="vote")["label"]
    assert (first["model"], second["model"]) == ("two@1+2", "many@1")


@pytest.mark.parametrize("combine", ["average", "vote"])
def test_an_evaluation_measures_what_the_ensemble_answers(own: LiveServer, combine: str) -> None:
    items = [{"input": text, "target": LABELS[n % 2]} for n, text in enumerate(INPUTS)]
    said = _evaluate(own, TOGETHER, items, combine=combine, with_predictions=True).json()
    runs = [_run(own, TOGETHER, input=text, combine=combine) for text in INPUTS]
    assert said["predictions"] == [each["label"] for each in runs]
    right = [each["label"] == item["target"] for each, item in zip(runs, items, strict=True)]
    assert said["metrics"]["accuracy"] == pytest.approx(sum(right) / len(right))
    assert ("calibration" in said) == (combine == "average")
    assert [each["label"] for each in said["labels"]] == list(LABELS)
    if combine == "average":
        chances = [each["probabilities"][item["target"]] for each, item in zip(runs, items, strict=True)]
        assert said["metrics"]["nll"] == pytest.approx(-sum(map(math.log, chances)) / len(chances), abs=1e-4)
        mass = sum(each["label_mass"] for each in runs) / len(runs)
        assert said["metrics"]["label_mass"] == pytest.approx(mass, abs=1e-5)


def test_labels_too_unlikely_for_a_float_keep_their_order_and_distance() -> None:
    worse, better = LabelChances.from_log_likelihoods([-800.0, -790.0]).to_log_likelihoods()
    assert better - worse == pytest.approx(10)
    likely = LabelChances.from_log_likelihoods([-3.0, -2.0, -40.0])
    assert likely.to_log_likelihoods() == pytest.approx([-3.0, -2.0, -40.0])


def test_an_evaluation_of_texts_takes_the_votes(own: LiveServer) -> None:
    items = [{"input": text, "target": "x"} for text in INPUTS[:6]]
    said = _evaluate(own, "text@1+2+3+4", items, with_predictions=True).json()
    assert said["predictions"] == [_run(own, "text@1+2+3+4", input=text)["text"] for text in INPUTS[:6]]


def _evaluate(live: LiveServer, task: str, items: list[dict[str, str]], **more: object) -> httpx.Response:
    return httpx.post(f"{live.url}/v1/tasks/{task}/evaluate", json={"examples": items, **more}, timeout=60)


def test_what_cannot_be_an_ensemble_names_the_field(own: LiveServer) -> None:
    def refused(path: str, body: object) -> tuple[int, str, str]:
        answer = httpx.post(f"{own.url}{path}", json=body)
        error = answer.json()["error"]
        return answer.status_code, error["param"], error["message"]

    def run(task: str, **more: object) -> tuple[int, str, str]:
        return refused(f"/v1/tasks/{task}/run", {"input": "x", **more})

    assert run("two@1+many")[:2] == (400, "task")
    assert "many@1 and two@1" in run("two@1+many")[2]
    assert run("two@1+text")[:2] == (400, "task")
    assert run("two@3+two")[:2] == (400, "task")  # the live version is the third
    assert run("two@1+9")[:2] == (404, "task")
    assert run("two@1+")[:2] == (404, "task")
    assert run("two@1", combine="vote")[:2] == (400, "combine")
    assert run("two@1+2", combine="best")[:2] == (400, "combine")
    assert run("text@1+2", combine="average")[:2] == (400, "combine")
    assert run("text@1+2", stream=True)[:2] == (400, "stream")
    assert run("two@1+2", temperature=0.5)[:2] == (400, "temperature")
    mixed = [{"task": "two", "input": "x"}, {"task": "two", "input": "x", "combine": "vote"}]
    assert refused("/v1/run", mixed)[:2] == (400, "items.1.combine")
    assert refused("/v1/run", [{"task": "two+many", "input": "x"}])[:2] == (400, "items.0.task")
    assert refused("/v1/completions", {"model": "two@1+2", "prompt": "x"})[:2] == (400, "model")
    assert refused("/v1/decisions", {"model": "text@1+2", "input": "x"})[:2] == (400, "model")
    items = {"examples": [{"input": "x", "target": "positive"}]}
    assert refused("/v1/tasks/two@1+2/evaluate", {**items, "record": True})[:2] == (400, "record")
    assert refused("/v1/tasks/two/evaluate", {**items, "combine": "vote"})[:2] == (400, "combine")
    bad = {"examples": [{"input": "x", "target": "maybe"}]}
    assert refused("/v1/tasks/two@1+2/evaluate", bad)[:2] == (400, "examples.0.target")


def test_an_ensemble_has_at_most_eight_members(own: LiveServer, backbone: Backbone) -> None:
    for seed in range(9):
        own.registry.publish("crowd", Publication(soft_prompt(backbone, seed=seed, rows=1), labels=LABELS))
    eight = "+".join(["crowd@1", *map(str, range(2, 9))])
    assert len(_run(own, eight, input="x")["members"]) == 8
    answer = httpx.post(f"{own.url}/v1/tasks/{eight}+9/run", json={"input": "x"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "task")


def test_a_client_that_leaves_ends_every_member(own: LiveServer) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{own.url}/v1/tasks/text@1+2+3/run",
            json={"input": "x", "max_tokens": 400, "ignore_eos": True},
            timeout=httpx.Timeout(60, read=0.2),
        )

    async def wait() -> None:
        while own.engine.stats.num_running + own.engine.stats.num_waiting:
            await asyncio.sleep(0.01)

    asyncio.run_coroutine_threadsafe(asyncio.wait_for(wait(), 3), own.loop).result()
