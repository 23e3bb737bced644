"""The official client, unchanged, against a real server."""

from __future__ import annotations

import pytest
from openai import (
    APIError,
    APIStatusError,
    BadRequestError,
    NotFoundError,
    OpenAI,
)

from app.model.backbone import Backbone
from app.model.layout import encode_text
from app.registry.publication import Publication
from tests.support.server import LiveServer, soft_prompt

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def client(server: LiveServer) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="not needed", max_retries=0, timeout=60)


def test_a_completion_names_the_version_that_answered(client: OpenAI) -> None:
    answer = client.completions.create(model="headline", prompt="hello", max_tokens=4, temperature=0)
    assert answer.object == "text_completion"
    assert answer.model == "headline@1"
    [choice] = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 20 + len("<hello")
    assert answer.usage.completion_tokens == 4
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 4


def test_a_stream_adds_up_to_the_whole_answer(client: OpenAI) -> None:
    arguments = {"model": "headline", "prompt": "hello", "max_tokens": 9, "seed": 7, "temperature": 1.0}
    whole = client.completions.create(**arguments)
    stream = client.completions.create(**arguments, stream=True, stream_options={"include_usage": True})
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"]
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage == whole.usage
    assert len({chunk.id for chunk in [*chunks, last]}) == 1


def test_a_seed_repeats_and_n_differ(client: OpenAI) -> None:
    def texts(**arguments: object) -> list[str]:
        answer = client.completions.create(model="raw", prompt="hello", max_tokens=8, **arguments)
        return [choice.text for choice in answer.choices]

    assert texts(seed=1, n=4) == texts(seed=1, n=4)
    assert len(set(texts(seed=1, n=4))) > 1
    assert texts(seed=1, n=4)[0] == texts(seed=1)[0]
    assert texts(seed=1) != texts(seed=2)


def test_prompts_come_as_texts_and_as_ids(client: OpenAI, backbone: Backbone) -> None:
    ids = [encode_text(backbone.tokenizer, text) for text in ("hello", "a second one")]

    def texts(prompt: object) -> list[str]:
        answer = client.completions.create(model="raw", prompt=prompt, max_tokens=6, temperature=0)
        assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
        return [choice.text for choice in answer.choices]

    both = texts(["hello", "a second one"])
    assert both == texts(ids)
    assert both == [*texts("hello"), *texts(ids[1])]


def test_logprobs_have_the_legacy_format(client: OpenAI) -> None:
    answer = client.completions.create(model="raw", prompt="hello", max_tokens=5, temperature=0, logprobs=3)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == 5
    for token, value, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert max(top, key=top.get) == token
        assert top[token] == value <= 0
        assert len(top) == 3


def test_echo_scores_the_prompt_as_lm_eval_asks(client: OpenAI, server: LiveServer, backbone: Backbone) -> None:
    token_ids = encode_text(backbone.tokenizer, "hello there")
    answer = client.completions.create(
        model="tiny-llama", prompt=token_ids, max_tokens=1, logprobs=1, echo=True, temperature=0, seed=1
    )
    [choice] = answer.choices
    logprobs = choice.logprobs
    assert logprobs is not None
    assert choice.text.startswith("hello there")
    assert len(logprobs.tokens) == len(token_ids) + 1
    assert logprobs.token_logprobs[0] is None
    assert logprobs.text_offset[:4] == [0, 0, 1, 2]
    import torch

    with torch.no_grad():
        logits = backbone.model(torch.tensor([token_ids])).logits[0].log_softmax(-1)
    expected = [float(logits[place, token_id]) for place, token_id in enumerate(token_ids[1:])]
    assert logprobs.token_logprobs[1:-1] == pytest.approx(expected, abs=1e-4)


def test_echo_without_new_tokens_gives_the_prompt_back(client: OpenAI) -> None:
    answer = client.completions.create(model="headline", prompt="hello", max_tokens=0, logprobs=0, echo=True)
    assert answer.choices[0].text == "hello"
    assert answer.choices[0].finish_reason == "length"
    assert len(answer.choices[0].logprobs.tokens) == len("<hello")


def test_a_stop_string_ends_the_text_and_is_not_in_it(client: OpenAI) -> None:
    free = client.completions.create(model="raw", prompt="hello", max_tokens=40, temperature=0).choices[0]
    stop = next(char for char in free.text[2:] if char.isprintable() and char != "\ufffd")
    ended = client.completions.create(model="raw", prompt="hello", max_tokens=40, temperature=0, stop=stop).choices[0]
    assert ended.finish_reason == "stop"
    assert ended.text == free.text.split(stop)[0]


def test_what_the_version_says_holds_where_the_request_is_silent(client: OpenAI) -> None:
    silent = client.completions.create(model="headline", prompt="hello")
    assert silent.usage.completion_tokens == 5
    again = client.completions.create(model="headline", prompt="hello")
    assert again.choices[0].text == silent.choices[0].text


def test_chat_through_the_tokenizers_template(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny-llama", messages=HELLO, max_completion_tokens=4, temperature=0, logprobs=True, top_logprobs=2
    )
    assert (answer.object, answer.model) == ("chat.completion", "tiny-llama")
    [choice] = answer.choices
    assert (choice.message.role, choice.finish_reason) == ("assistant", "length")
    assert len(choice.logprobs.content) == 4
    assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)
    assert all(bytes(token.bytes) for token in choice.logprobs.content)


def test_chat_through_a_tasks_template_is_the_tasks_run(client: OpenAI, server: LiveServer) -> None:
    arguments = {"model": "headline", "messages": HELLO, "max_completion_tokens": 6, "temperature": 0}
    answer = client.chat.completions.create(**arguments)
    rendered = client.completions.create(model="headline", prompt="hello\nHeadline:", max_tokens=6, temperature=0)
    assert answer.choices[0].message.content == rendered.choices[0].text.lstrip()
    *chunks, last = client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True})
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "length"
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (answer.usage.prompt_tokens, 6)


def test_the_blank_in_front_of_a_templates_answer_is_no_part_of_it(client: OpenAI, server: LiveServer) -> None:
    blank, letter = (server.backbone.tokenizer(text)["input_ids"][-1] for text in (" ", "x"))
    alternating = {"logit_bias": {str(blank): 100, str(letter): 99}, "frequency_penalty": 2, "temperature": 0}
    raw = client.completions.create(model="headline", prompt="hello\nHeadline:", max_tokens=4, **alternating)
    written = raw.choices[0].text
    assert written[0] == " "
    assert set(written) == {" ", "x"}
    arguments = {"model": "headline", "messages": HELLO, "max_completion_tokens": 4, "logprobs": True, **alternating}
    assert client.chat.completions.create(**arguments).choices[0].message.content == written.lstrip()
    chunks = list(client.chat.completions.create(**arguments, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == written.lstrip()
    assert sum(len(chunk.choices[0].logprobs.content) for chunk in chunks if chunk.choices[0].logprobs) == 4


@pytest.mark.parametrize("roles", [("user", "user"), ("user", "system"), ("user", "assistant", "user"), ("system",)])
def test_a_template_takes_one_user_message(client: OpenAI, roles: tuple[str, ...]) -> None:
    messages = [{"role": role, "content": "x"} for role in roles]
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(model="headline", messages=messages)
    assert caught.value.param == "messages"


@pytest.mark.parametrize("model", ["headline", "sentiment"])
@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_message_is_the_beginning_of_a_templates_input(client: OpenAI, model: str, role: str) -> None:
    def ask(*messages: tuple[str, str]) -> tuple[int, str]:
        spoken = [{"role": role, "content": content} for role, content in messages]
        answer = client.chat.completions.create(model=model, messages=spoken, max_completion_tokens=8)
        return answer.usage.prompt_tokens, answer.choices[0].message.content

    assert ask((role, "be brief"), ("user", "a b")) == ask(("user", "be brief\na b"))


def test_an_assistants_own_message_can_be_sent_back(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny-llama", messages=HELLO, max_completion_tokens=2)
    messages = [*HELLO, answer.choices[0].message.model_dump(), *HELLO]
    assert client.chat.completions.create(model="tiny-llama", messages=messages, max_completion_tokens=2).choices


def test_models_are_the_backbone_and_the_tasks(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny-llama", "headline", "raw", "sentiment"]
    model = client.models.retrieve("sentiment")
    assert (model.id, model.object, model.root, model.parent) == ("sentiment", "model", "sentiment@2", "tiny-llama")
    assert client.models.retrieve("sentiment@1").root == "sentiment@1"


def test_what_a_job_left_is_deleted_like_a_fine_tuned_model(
    server: LiveServer, client: OpenAI, backbone: Backbone
) -> None:
    for seed in (7, 8):
        server.registry.publish("tuned", Publication(soft_prompt(backbone, seed=seed)))
    version = client.models.delete("tuned@1")
    assert (version.id, version.object, version.deleted) == ("tuned@1", "model", True)
    with pytest.raises(BadRequestError, match="alias live"):
        client.models.delete("tuned@2")
    assert client.models.delete("tuned").deleted
    with pytest.raises(NotFoundError):
        client.models.retrieve("tuned")


def test_a_task_with_labels_decides(client: OpenAI) -> None:
    decision = client.decisions.create(model="sentiment", input="a gorgeous film", questions=[])
    assert decision.model == "sentiment@2"
    [answer] = decision.answers
    assert (answer.type, answer.name) == ("choice", "sentiment")
    assert {each.value for each in answer.probabilities} == {"negative", "positive"}
    assert sum(each.probability for each in answer.probabilities) == pytest.approx(1)
    assert answer.confidence == max(each.probability for each in answer.probabilities)
    assert decision.usage.input_tokens == decision.usage.total_tokens > 0


def test_questions_to_the_backbone_are_answered_in_order(client: OpenAI) -> None:
    decision = client.decisions.create(
        model="tiny-llama",
        input=[{"role": "user", "content": [{"type": "input_text", "text": "a gorgeous film"}]}],
        questions=[
            {"type": "predicate", "name": "liked", "instructions": "The reviewer liked it."},
            {"type": "choice", "instructions": "Which?", "choices": [{"value": "film"}, {"value": True}]},
            {"type": "score", "instructions": "?", "levels": [{"label": "bad"}, {"label": "fair"}, {"label": "good"}]},
        ],
    )  # fmt: skip
    predicate, choice, score = decision.answers
    assert (predicate.type, predicate.name) == ("predicate", "liked")
    assert 0 <= predicate.probability <= 1
    assert choice.type == "choice"
    assert [each.value for each in choice.probabilities] == ["film", True]
    assert [each.value for each in score.probabilities] == [0, 1, 2]
    assert score.score == pytest.approx(sum(each.value * each.probability for each in score.probabilities))


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"temperature": 3.0}, "temperature"),
        ({"n": 9}, "n"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"logprobs": 21}, "logprobs"),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"logit_bias": {"300": 1}}, "logit_bias"),
        ({"extra_body": {"guided_json": "{}"}}, "guided_json"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_a_field_that_cannot_be_honoured_is_a_400_that_names_it(client: OpenAI, arguments: dict, param: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.completions.create(model="headline", prompt="hello", **arguments)
    assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")
    assert param in caught.value.message


@pytest.mark.parametrize("field", ["tools", "tool_choice", "functions", "reasoning_effort", "prediction", "audio"])
def test_chat_refuses_what_it_does_not_do(client: OpenAI, field: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(model="tiny-llama", messages=HELLO, extra_body={field: "x"})
    assert caught.value.param == field


def test_structured_output_is_refused_by_name(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(model="tiny-llama", messages=HELLO, response_format={"type": "json_object"})
    assert caught.value.param == "response_format.type"


def test_fields_of_identity_are_accepted(client: OpenAI) -> None:
    assert client.completions.create(model="raw", prompt="x", max_tokens=1, user="somebody").choices
    answer = client.chat.completions.create(
        model="tiny-llama", messages=HELLO, max_completion_tokens=1, metadata={"a": "b"}, safety_identifier="x",
        response_format={"type": "text"}, store=False,
    )  # fmt: skip
    assert answer.choices


def test_an_unknown_task_is_not_found(client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as caught:
        client.completions.create(model="no-such-task", prompt="hello")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert caught.value.request_id


def test_a_deadline_ends_a_request_with_504(client: OpenAI) -> None:
    with pytest.raises(APIStatusError) as caught:
        client.completions.create(
            model="raw", prompt="hello", max_tokens=400, extra_body={"ignore_eos": True},
            extra_headers={"X-Request-Timeout": "0.01"},
        )  # fmt: skip
    assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")


def test_a_deadline_ends_a_stream_with_an_error_in_band(client: OpenAI) -> None:
    stream = client.completions.create(
        model="raw", prompt="hello", max_tokens=400, stream=True, extra_body={"ignore_eos": True},
        extra_headers={"X-Request-Timeout": "0.2"},
    )  # fmt: skip
    with pytest.raises(APIError) as caught:
        list(stream)
    assert caught.value.code == "deadline_exceeded"
