"""A task with labels answers chats and completions with the label that its runs give."""

from __future__ import annotations

import csv
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, BadRequestError, OpenAI

from app.main import load_backbone
from app.model.backbone import Backbone
from app.model.layout import Template
from app.registry.publication import Publication
from tests.support.server import LABELS, REVIEW, LiveServer, make_settings, run_server, soft_prompt

ROOT = Path(__file__).parents[3]
MANY = [f"{first}{second} {third}" for first in "abcd" for second in ("", "x", "xy") for third in ("m", "mn", "z")]
TEXTS = [f"a film {'good' if n % 3 else 'dull'} {'indeed ' * (n % 7)}{n}" for n in range(12)]
DEMO_TASKS = ["sentiment", "subjectivity", "domain", "intent", "language"]
DEMO_TEXTS = [
    "a warm , funny and touching film", "a dull mess", "how much is left on my credit card",
    "a young widow returns to the village where she was born", "what is the spanish word for pasta",
    "would you please tell me the name of who you are", "set an alarm for the early morning",
]  # fmt: skip


@pytest.fixture(scope="module")
def own(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with run_server(make_settings(tmp_path_factory.mktemp("prompts")), backbone) as live:
        publish = live.registry.publish
        publish("two", Publication(soft_prompt(backbone, seed=1), template=Template(REVIEW), labels=LABELS))
        publish(
            "cold",
            Publication(soft_prompt(backbone, seed=2), template=Template(REVIEW), labels=LABELS, label_temperature=3.0),
        )
        publish("many", Publication(soft_prompt(backbone, seed=3), template=Template(REVIEW), labels=MANY))
        publish("bare", Publication(soft_prompt(backbone, seed=4), labels=LABELS))
        publish("text", Publication(soft_prompt(backbone, seed=5), template=Template(REVIEW)))
        yield live


@pytest.fixture
def client(own: LiveServer) -> OpenAI:
    return client_of(own)


def client_of(live: LiveServer) -> OpenAI:
    return OpenAI(base_url=f"{live.url}/v1", api_key="unused", max_retries=0, timeout=60)


def run(client: OpenAI, task: str, text: str) -> dict[str, Any]:
    return client.post(f"/tasks/{task}/run", body={"input": text}, cast_to=dict[str, Any])


def chat(client: OpenAI, task: str, text: str, **more: Any) -> Any:
    return client.chat.completions.create(model=task, messages=[{"role": "user", "content": text}], **more)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("demo") / "prompts"
    shutil.copytree(ROOT / "prompts", folder)
    settings = make_settings(folder)
    with run_server(settings, load_backbone(settings)) as live:
        yield live


@pytest.mark.parametrize("task", DEMO_TASKS)
def test_a_demo_tasks_chat_completion_and_run_say_the_same_label(demo: LiveServer, task: str) -> None:
    client = client_of(demo)
    template = demo.registry.resolve(task).template
    assert template is not None
    with (ROOT / "docs" / "messages.csv").open() as file:
        texts = [*DEMO_TEXTS, *(row["text"] for row in list(csv.DictReader(file))[::6])]
    for text in texts:
        label = run(client, task, text)["label"]
        assert chat(client, task, text).choices[0].message.content == label
        written = client.completions.create(model=task, prompt=template.render(text)).choices[0]
        assert (written.text, written.finish_reason) == (template.write_target(label), "stop")


def test_what_is_written_freely_is_not_always_a_label(demo: LiveServer) -> None:
    client = client_of(demo)
    labels = demo.registry.resolve("intent").labels
    free = [chat(client, "intent", t, extra_body={"free_text": True}).choices[0].message.content for t in DEMO_TEXTS]
    assert any(text not in labels for text in free)


@pytest.mark.parametrize("task", ["two", "cold", "many", "bare"])
@pytest.mark.parametrize("arguments", [{}, {"temperature": 0}, {"n": 2}, {"stop": ["\n"], "max_tokens": 40}])
def test_whatever_else_is_asked_the_label_is_the_runs(client: OpenAI, task: str, arguments: dict[str, Any]) -> None:
    for text in TEXTS:
        label = run(client, task, text)["label"]
        answer = chat(client, task, text, **arguments)
        assert {choice.message.content for choice in answer.choices} == {label}
        assert {choice.finish_reason for choice in answer.choices} == {"stop"}
        streamed = list(chat(client, task, text, stream=True, **arguments))
        for index in range(arguments.get("n", 1)):
            mine = [chunk.choices[0] for chunk in streamed if chunk.choices[0].index == index]
            assert "".join(choice.delta.content or "" for choice in mine) == label
            assert [choice.finish_reason for choice in mine if choice.finish_reason] == ["stop"]


def test_usage_counts_the_labels_tokens(client: OpenAI, backbone: Backbone) -> None:
    answer = chat(client, "two", TEXTS[0], n=3)
    label = answer.choices[0].message.content
    said = run(client, "two", TEXTS[0])["usage"]
    assert answer.usage.completion_tokens == 3 * len(Template(REVIEW).encode_target(backbone.tokenizer, label))
    assert answer.usage.prompt_tokens == said["prompt_tokens"]
    *_, last = chat(client, "two", TEXTS[0], n=3, stream=True, stream_options={"include_usage": True})
    assert last.usage.completion_tokens == answer.usage.completion_tokens


@pytest.mark.parametrize("task", ["two", "cold", "many"])
def test_at_a_temperature_labels_are_drawn_from_the_runs_probabilities(client: OpenAI, task: str) -> None:
    """Within four standard errors, and with a seed always the same."""
    chances = run(client, task, TEXTS[1])["probabilities"]

    def draw(seed: int) -> list[str]:
        answer = chat(client, task, TEXTS[1], temperature=1.0, n=8, seed=seed)
        return [choice.message.content for choice in answer.choices]

    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(draw, range(0, 320, 8)))
    assert drawn[3] == draw(24)
    counts = Counter(label for each in drawn for label in each)
    assert set(counts) <= set(chances)
    for label, chance in chances.items():
        assert counts[label] / 320 == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / 320) + 0.01)
    best = max(chances, key=chances.__getitem__)
    body = {"extra_body": {"top_k": 1}}
    assert {each.message.content for each in chat(client, task, TEXTS[1], temperature=2, n=8, **body).choices} == {best}


def test_log_probabilities_are_the_models_own_and_add_up_to_the_labels(client: OpenAI) -> None:
    said = run(client, "two", TEXTS[2])
    wanted = said["probabilities"][said["label"]] * said["label_mass"]
    spoken = chat(client, "two", TEXTS[2], logprobs=True, top_logprobs=3).choices[0]
    tokens = spoken.logprobs.content
    assert "".join(token.token for token in tokens).lstrip() == said["label"]
    assert math.exp(sum(token.logprob for token in tokens)) == pytest.approx(wanted, rel=1e-3)
    assert all(len(token.top_logprobs) == 3 for token in tokens)
    prompt = Template(REVIEW).render(TEXTS[2])
    written = client.completions.create(model="two", prompt=prompt, logprobs=2, echo=True).choices[0]
    assert written.text == f"{prompt} {said['label']}"
    assert len(written.logprobs.tokens) == len(written.logprobs.token_logprobs) == len("<" + written.text)
    assert written.logprobs.token_logprobs[-len(tokens) :] == pytest.approx([each.logprob for each in tokens], abs=1e-4)


def test_echo_without_new_tokens_adds_no_label(client: OpenAI) -> None:
    answer = client.completions.create(model="two", prompt="hello", max_tokens=0, logprobs=0, echo=True)
    assert answer.choices[0].text == "hello"
    assert answer.usage.completion_tokens == 0


def test_a_label_is_cut_where_any_text_would_be(client: OpenAI) -> None:
    label = run(client, "two", TEXTS[0])["label"]
    cut = chat(client, "two", TEXTS[0], max_completion_tokens=3)
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == (label[:2], "length")
    assert cut.usage.completion_tokens == 3
    stopped = chat(client, "two", TEXTS[0], stop="tive").choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (label.removesuffix("tive"), "stop")
    kept = chat(client, "two", TEXTS[0], stop="ti", extra_body={"include_stop_str_in_output": True}).choices[0]
    assert kept.message.content == label.removesuffix("ve")


def test_several_prompts_are_answered_in_order(client: OpenAI) -> None:
    prompts = [Template(REVIEW).render(text) for text in [*TEXTS, TEXTS[0]]]
    answer = client.completions.create(model="many", prompt=prompts, n=2)
    wanted = [run(client, "many", text)["label"] for text in [*TEXTS, TEXTS[0]]]
    assert [choice.text.strip() for choice in answer.choices] == [label for label in wanted for _ in range(2)]


def test_free_text_is_what_an_unlabelled_version_would_write(client: OpenAI, own: LiveServer) -> None:
    free = chat(client, "two", "hello", max_completion_tokens=9, temperature=0, extra_body={"free_text": True})
    own.registry.publish(
        "twin", Publication(own.registry.prompt(own.registry.resolve("two")), template=Template(REVIEW))
    )
    twin = chat(client, "twin", "hello", max_completion_tokens=9, temperature=0)
    assert free.choices[0].message.content == twin.choices[0].message.content
    assert free.usage.completion_tokens == twin.usage.completion_tokens


@pytest.mark.parametrize(
    ("task", "arguments", "param"),
    [
        ("two", {"frequency_penalty": 0.5}, "frequency_penalty"),
        ("two", {"presence_penalty": -0.5}, "presence_penalty"),
        ("two", {"logit_bias": {"5": 1}}, "logit_bias"),
        ("two", {"extra_body": {"ignore_eos": True}}, "ignore_eos"),
        ("two", {"extra_body": {"repetition_penalty": 1.1}}, "repetition_penalty"),
        ("text", {"extra_body": {"free_text": False}}, "free_text"),
        ("two", {"max_tokens": 1, "temperature": 3.0}, "temperature"),
    ],
)
def test_what_cannot_shape_a_label_is_refused_by_name(
    client: OpenAI, task: str, arguments: dict[str, Any], param: str
) -> None:
    with pytest.raises(BadRequestError) as caught:
        chat(client, task, "hello", **arguments)
    assert caught.value.param == param


def test_what_clients_send_by_habit_is_accepted(client: OpenAI) -> None:
    habits = {"top_p": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "n": 1, "logit_bias": {}, "stop": []}
    assert chat(client, "two", TEXTS[0], **habits).choices[0].message.content == run(client, "two", TEXTS[0])["label"]


def test_a_deadline_ends_it(client: OpenAI) -> None:
    with pytest.raises(APIStatusError) as caught:
        chat(client, "many", "x", extra_headers={"X-Request-Timeout": "0.0001"})
    assert caught.value.status_code == 504


def test_wide_tasks_fill_no_queue(backbone: Backbone, tmp_path: Path) -> None:
    """One call with more labels times inputs, and several clients at once, than requests may wait."""
    with run_server(make_settings(tmp_path, max_num_seqs=4, max_waiting_requests=40), backbone) as live:
        live.registry.publish(
            "many", Publication(soft_prompt(backbone, seed=3), template=Template(REVIEW), labels=MANY)
        )
        client = client_of(live)
        together = client.post("/tasks/many/run", body={"inputs": TEXTS}, cast_to=dict[str, Any])["results"]
        with ThreadPoolExecutor(8) as pool:
            alone = list(pool.map(lambda text: run(client, "many", text), TEXTS))
            spoken = list(pool.map(lambda text: chat(client, "many", text).choices[0].message.content, TEXTS))
    assert [each["label"] for each in together] == [each["label"] for each in alone] == spoken
