"""Files of any columns are uploaded, and named where they are used; what a version was tuned on is how it is asked."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.model.backbone import Backbone
from tests.support.server import LiveServer, make_settings, run_server
from tests.support.tuning_jobs import wait_until

QUICK = {"max_steps": 6, "batch_size": 8, "num_virtual_tokens": 2, "learning_rate": 0.1, "seeds": 0, "init": "vocab"}
LINES = [f"{i};some note {i};{('good', 'bad')[i % 2]} thing {i};{('yes', 'no')[i % 2]};low" for i in range(40)]
UNCLEAR = "\n".join(["nr;remark;comment;kind;rank", *LINES]).encode()
FIELDS = {"input_field": "comment", "target_field": "kind"}


@pytest.fixture(scope="module")
def live(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with run_server(make_settings(tmp_path_factory.mktemp("prompts")), backbone) as server:
        yield server


@pytest.fixture
def http(live: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{live.url}/v1", timeout=60) as client:
        yield client


def upload(http: httpx.Client, name: str, content: bytes, purpose: str = "fine-tune") -> dict[str, Any]:
    answer = http.post("/files", files={"file": (name, content)}, data={"purpose": purpose})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def create(http: httpx.Client, file: str, **more: Any) -> httpx.Response:
    hyperparameters = {**QUICK, **more.pop("hyperparameters", {})}
    method = {"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": hyperparameters, **more.pop("tuning", {})}}
    return http.post("/fine_tuning/jobs", json={"model": "tiny-llama", "training_file": file, "method": method, **more})


def finish(http: httpx.Client, created: httpx.Response) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The job when it has succeeded, and its events, oldest first."""
    assert created.status_code == 200, created.text
    path = f"/fine_tuning/jobs/{created.json()['id']}"
    wait_until(lambda: http.get(path).json()["status"] in ("succeeded", "failed"))
    job = http.get(path).json()
    assert job["status"] == "succeeded", job["error"]
    return job, http.get(f"{path}/events?limit=100").json()["data"][::-1]


def test_an_upload_of_unclear_columns_is_taken_and_the_job_names_them(http: httpx.Client) -> None:
    file = upload(http, "notes.csv", UNCLEAR.replace(b"kind", b"art").replace(b"comment", b"frage"))
    assert file["reading"] == {
        "name": "notes.csv",
        "num_examples": 40,
        "num_duplicates": 0,
        "fields": ["nr", "remark", "frage", "art", "rank"],
    }
    assert file["status_details"].startswith("40 rows; name the fields to use with input_field and target_field: nr, ")
    refused = create(http, file["id"])
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "input_field"
    assert "It has: nr, remark, frage, art, rank" in refused.json()["error"]["message"]
    missing = create(http, file["id"], input_field="frage", target_field="kind").json()["error"]
    assert (missing["param"], "kind" in missing["message"]) == ("target_field", False)
    job, events = finish(http, create(http, file["id"], input_field="frage", target_field="art", suffix="notes"))
    [read] = job["data"]["files"]
    assert (read["input_field"], read["target_field"], read["separator"]) == ("frage", "art", ";")
    assert job["data"]["labels"] == {"no": 20, "yes": 20}
    assert events[0]["message"].startswith("Created fine-tuning job: ")
    version = http.get("/tasks/notes/versions/1").json()
    assert version["template"] == "Frage: {input}\nArt: {target}"

    def evaluate(**body: str) -> httpx.Response:
        return http.post("/tasks/notes/evaluate", json={"file": file["id"], **body})

    assert evaluate().json()["error"]["param"] == "input_field"
    assert evaluate(input_field="frage", target_field="art").json()["metrics"]["num_examples"] == 40
    examples = {"examples": [{"input": "a", "target": "yes"}], "input_field": "frage"}
    assert http.post("/tasks/notes/evaluate", json=examples).status_code == 400


def test_what_was_guessed_or_set_aside_is_said_by_file_and_job(http: httpx.Client) -> None:
    rows = [f"{('good', 'bad')[i % 2]} thing number {i},{('yes', 'no')[i % 2]}" for i in range(60)]
    content = "\n".join(["v2,v1", *rows, "secret thing,yess", "another thing,"]).encode()
    file = upload(http, "odd.csv", content)
    assert "using v2 as input, v1 as target (guessed by their content)" in file["status_details"]
    assert "odd.csv: 1 row is set aside: line 63 (v1 is empty)" in file["status_details"]
    job, events = finish(http, create(http, file["id"], suffix="odd"))
    assert "guessed by their content" in events[0]["message"]
    assert "line 62 (its target occurs only once, and 'yes' seems to be meant)" in events[0]["message"]
    assert [row["line"] for row in job["data"]["files"][0]["set_aside"]] == [62, 63]
    assert "yess" not in json.dumps([job, events])
    strays = upload(http, "strays.csv", b"text,label\ngood one,yes\nbad one,secret\n")
    refused = http.post("/tasks/odd/evaluate", json={"file": strays["id"]}).json()["error"]
    assert (refused["message"], refused["param"]) == ("strays.csv, line 3: the target is none of the 2 labels", "file")


@pytest.mark.parametrize("more", [{}, {"tuning": {"labels": ["a", "b"]}}])
def test_one_class_is_refused_when_the_job_is_created(http: httpx.Client, more: dict[str, Any]) -> None:
    rows = [{"input": f"text {i}", "target": "a"} for i in range(30)]
    file = upload(http, "same.jsonl", "\n".join(map(json.dumps, rows)).encode())
    refused = create(http, file["id"], **more).json()["error"]
    assert refused["message"] == "same.jsonl: every target is the same: there is nothing to tell apart"


def test_a_version_keeps_the_cut_that_it_was_tuned_with(http: httpx.Client) -> None:
    letters = random.Random(1)
    rows = []
    for i in range(48):
        noise = "".join(letters.choices("abcdefgh", k=40))
        rows.append({"input": f"{'zq'[i % 2]}{noise}", "target": ("yes", "no")[i % 2]})
    file = upload(http, "long.jsonl", "\n".join(map(json.dumps, rows)).encode())
    hyperparameters = {"max_input_tokens": 12, "max_steps": 10, "max_validation_rows": 12}
    asked = create(http, file["id"], validation_file=file["id"], suffix="long", hyperparameters=hyperparameters)
    job, events = finish(http, asked)
    cut = next(event for event in events if "lose their end" in event["message"])
    assert cut["level"] == "warn"
    assert "60 of 60 texts are longer than 12 tokens and lose their end, 3" in cut["message"]
    number = job["fine_tuned_model"].rpartition("@")[2]
    version = http.get(f"/tasks/long/versions/{number}").json()
    assert version["max_input_tokens"] == 12
    published = {name.removeprefix("validation_"): value for name, value in version["metrics"].items()}
    measured = http.post("/tasks/long/evaluate", json={"file": file["id"]}).json()["metrics"]
    assert measured == pytest.approx(published, abs=1e-4)
    answers = http.post("/tasks/long/run", json={"inputs": [row["input"] for row in rows]}).json()["results"]
    right = [answer["label"] == row["target"] for answer, row in zip(answers, rows, strict=True)]
    assert sum(right) / len(rows) == pytest.approx(published["accuracy"])
    whole, short = (
        http.post("/tasks/long/run", json={"input": text}).json() for text in ("zabcdefghij" * 9, "zabcdefghi")
    )
    assert whole["usage"] == short["usage"]
    chat = {"model": "long", "messages": [{"role": "user", "content": rows[0]["input"]}]}
    assert http.post("/chat/completions", json=chat).json()["choices"][0]["message"]["content"] == answers[0]["label"]


def conversations(systems: list[str]) -> bytes:
    rows = []
    for i in range(40):
        spoken = [
            ("system", systems[i % len(systems)]),
            ("user", f"{('good', 'bad')[i % 2]} {i}"),
            ("assistant", ("yes", "no")[i % 2]),
        ]
        rows.append({"messages": [{"role": role, "content": content} for role, content in spoken if content]})
    return "\n".join(map(json.dumps, rows)).encode()


def prompt_tokens(http: httpx.Client, model: str, *messages: tuple[str, str]) -> int:
    spoken = [{"role": role, "content": content} for role, content in messages]
    answer = http.post("/chat/completions", json={"model": model, "messages": spoken})
    assert answer.status_code == 200, answer.text
    return int(answer.json()["usage"]["prompt_tokens"])


def test_a_system_message_of_all_examples_is_part_of_how_the_task_is_asked(http: httpx.Client) -> None:
    file = upload(http, "talk.jsonl", conversations(["Say yes or no."]))
    finish(http, create(http, file["id"], suffix="talk"))
    template = http.get("/tasks/talk/versions/1").json()["template"]
    assert template == "Say yes or no.\n{input}\n{target}"
    alone = prompt_tokens(http, "talk", ("user", "good 3"))
    assert prompt_tokens(http, "talk", ("system", "Say yes or no."), ("user", "good 3")) == alone
    assert prompt_tokens(http, "talk", ("developer", "Be kind."), ("user", "good 3")) == alone + len("Be kind.\n")
    runs = http.post("/tasks/talk/run", json={"inputs": ["good 3", "Say yes or no.\ngood 3"]}).json()["results"]
    assert runs[0] == runs[1]
    measured = http.post("/tasks/talk/evaluate", json={"file": file["id"]}).json()["metrics"]
    rows = [json.loads(line)["messages"] for line in conversations(["Say yes or no."]).splitlines()]
    examples = [{"input": user["content"], "target": assistant["content"]} for _, user, assistant in rows]
    assert http.post("/tasks/talk/evaluate", json={"examples": examples}).json()["metrics"] == pytest.approx(measured)


def test_a_system_message_of_its_own_is_the_beginning_of_each_input(http: httpx.Client) -> None:
    file = upload(http, "own.jsonl", conversations(["Be kind.", "Be strict.", ""]))
    finish(http, create(http, file["id"], suffix="own", tuning={"template": "{input}\nA: {target}"}))
    assert http.get("/tasks/own/versions/1").json()["template"] == "{input}\nA: {target}"
    asked = prompt_tokens(http, "own", ("system", "Be kind."), ("user", "good 3"))
    assert asked == prompt_tokens(http, "own", ("user", "Be kind.\ngood 3"))


def test_labels_that_the_backbone_would_not_write_are_a_warning(http: httpx.Client) -> None:
    rows = [{"input": f"text {i}", "target": ("zqxj", "vkwy")[i % 2]} for i in range(40)]
    file = upload(http, "strange.jsonl", "\n".join(map(json.dumps, rows)).encode())
    job, events = finish(http, create(http, file["id"], suffix="strange", hyperparameters={"max_steps": 1}))
    [warning] = [event["message"] for event in events if event["level"] == "warn"]
    assert warning.startswith("all labels together have a probability of 0.0")
    assert 'A template that says what is asked for, such as "Review: {input}\\nSentiment: {target}"' in warning
    measured = http.post("/tasks/strange/evaluate", json={"file": file["id"]}).json()
    assert len(measured["warnings"]) == 1
    assert job["fine_tuned_model"].startswith("strange@")
