"""`/v1/fine_tuning/jobs` through the official client, and followed live."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from openai.types.fine_tuning import FineTuningJob

from app.errors import Draining
from app.jobs import notifier
from app.measure.dataset import unpack_examples
from app.measure.example_file import read_dataset
from app.model.backbone import Backbone
from tests.support.server import LABELS, REVIEW, LiveServer, make_settings, publish_tasks, run_server
from tests.support.tuning_jobs import DATA, wait_until

pytestmark = pytest.mark.slow

QUICK = {"max_steps": 8, "batch_size": 8, "num_virtual_tokens": 2, "learning_rate": 0.1, "seeds": 0, "init": "vocab"}


@pytest.fixture(scope="module")
def live(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with run_server(make_settings(tmp_path_factory.mktemp("prompts")), backbone) as server:
        publish_tasks(server.registry, backbone)
        yield server


@pytest.fixture
def client(live: LiveServer) -> OpenAI:
    return OpenAI(base_url=f"{live.url}/v1", api_key="not needed", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def file_id(live: LiveServer) -> str:
    client = OpenAI(base_url=f"{live.url}/v1", api_key="not needed")
    return client.files.create(file=("likes.jsonl", DATA), purpose="fine-tune").id


def prompt_tuning(**fields: Any) -> dict[str, Any]:
    hyperparameters = {**QUICK, **fields.pop("hyperparameters", {})}
    return {"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": hyperparameters, **fields}}


def distillation(**fields: Any) -> dict[str, Any]:
    return {"type": "distillation", "distillation": fields}


@pytest.fixture(scope="module")
def done(live: LiveServer, file_id: str, backbone: Backbone) -> FineTuningJob:
    """A job that has succeeded."""
    client = OpenAI(base_url=f"{live.url}/v1", api_key="not needed")
    job = client.fine_tuning.jobs.create(
        model=backbone.name,
        training_file=file_id,
        validation_file=file_id,
        suffix="likes",
        seed=7,
        metadata={"team": "reviews"},
        method=prompt_tuning(
            template="{input}\nLiked: {target}", labels=["no", "yes"], description="Likes it?", keep_examples=True
        ),
    )
    return wait(client, job.id)


def wait(client: OpenAI, job_id: str, *statuses: str) -> FineTuningJob:
    wanted = statuses or ("succeeded", "failed", "cancelled")
    wait_until(lambda: client.fine_tuning.jobs.retrieve(job_id).status in wanted)
    return client.fine_tuning.jobs.retrieve(job_id)


def follow(live: LiveServer, job_id: str, **headers: str) -> list[dict[str, Any]]:
    """The events of a stream; each event's `id:` line must be its id, and `[DONE]` the end."""
    events: list[dict[str, Any]] = []
    with httpx.stream(
        "GET", f"{live.url}/v1/fine_tuning/jobs/{job_id}/events?stream=true", headers=headers, timeout=60
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        parts = "".join(answer.iter_text()).strip().split("\n\n")
    assert parts.pop() == "data: [DONE]"
    for part in parts:
        name, line = part.split("\n")
        events.append(json.loads(line.removeprefix("data: ")))
        assert name == f"id: {events[-1]['id']}"
    return events


def test_a_job_is_typed_as_openais(client: OpenAI, done: FineTuningJob, backbone: Backbone, file_id: str) -> None:
    assert done.object == "fine_tuning.job"
    assert (done.status, done.error, done.seed, done.model) == ("succeeded", None, 7, backbone.name)
    assert (done.training_file, done.validation_file) == (file_id, file_id)
    assert done.metadata == {"team": "reviews"}
    assert (len(done.result_files), done.estimated_finish) == (1, None)
    assert isinstance(done.finished_at, int)
    assert done.method is not None
    assert done.method.type == "prompt_tuning"
    assert done.fine_tuned_model == client.models.retrieve("likes").model_dump()["root"]


def test_the_result_and_every_checkpoint_can_be_called(client: OpenAI, live: LiveServer, done: FineTuningJob) -> None:
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(done.id))
    assert len(checkpoints) >= 2
    steps = [checkpoint.step_number for checkpoint in checkpoints]
    assert steps == sorted(steps, reverse=True)
    for name in [done.fine_tuned_model, *(each.fine_tuned_model_checkpoint for each in checkpoints)]:
        answer = httpx.post(f"{live.url}/v1/tasks/{name}/run", json={"input": "good 5"}).json()
        assert answer["model"] == name
        assert answer["label"] in ("no", "yes")
    first = checkpoints[-1]
    assert (first.object, first.fine_tuning_job_id) == ("fine_tuning.job.checkpoint", done.id)
    assert first.metrics.step == first.step_number
    page = client.fine_tuning.jobs.checkpoints.list(done.id, limit=1)
    assert ([each.id for each in page.data], page.has_more) == ([checkpoints[0].id], True)
    rest = client.fine_tuning.jobs.checkpoints.list(done.id, after=checkpoints[0].id)
    assert [each.id for each in rest] == [each.id for each in checkpoints[1:]]
    versions = live.registry.versions("likes")
    assert versions[-1].template.text == "{input}\nLiked: {target}"
    assert versions[-1].description == "Likes it?"
    assert live.registry.task("likes").aliases == {"live": versions[-1].number}


def test_kept_examples_are_named_and_served_by_no_route(live: LiveServer, done: FineTuningJob) -> None:
    version = live.registry.resolve(done.fine_tuned_model)
    kept = live.registry.examples(version)
    assert unpack_examples(kept.train) == list(read_dataset(DATA).examples)
    said = httpx.get(f"{live.url}/v1/tasks/likes/versions/{version.number}").json()["provenance"]["kept_examples"]
    assert said["sha256"] == kept.sha256
    for name in (kept.sha256, f"{kept.sha256}.jsonl"):
        for place in ("examples", "evaluations", "versions", f"versions/{version.number}"):
            assert httpx.get(f"{live.url}/v1/tasks/likes/{place}/{name}").status_code in (400, 404, 405)


def test_the_figures_are_a_file(client: OpenAI, live: LiveServer, done: FineTuningJob) -> None:
    """One line for each update and one for each measurement, with what the events say."""
    [file_id] = done.result_files
    file = client.files.retrieve(file_id)
    assert (file.purpose, file.filename) == ("fine-tune-results", f"{done.id}.csv")
    rows = list(csv.DictReader(io.StringIO(client.files.content(file_id).text)))
    figures = [event["data"] for event in follow(live, done.id) if event["data"]]
    losses = {each["step"]: each["train_loss"] for each in figures if "train_loss" in each}
    assert {int(row["step"]): float(row["train_loss"]) for row in rows if row["train_loss"]} == losses
    measured = [(each["step"], each["valid_accuracy"]) for each in figures if "valid_accuracy" in each]
    assert [(int(row["step"]), float(row["valid_accuracy"])) for row in rows if row["member"]] == measured
    assert file_id in [each.id for each in client.files.list(purpose="fine-tune-results")]
    assert file_id not in [each.id for each in client.files.list(purpose="fine-tune")]
    with pytest.raises(BadRequestError) as refused:
        client.fine_tuning.jobs.create(model=live.backbone.name, training_file=file_id)
    assert refused.value.param == "training_file"


def test_trained_tokens_are_those_of_the_examples_learned_from(
    client: OpenAI, live: LiveServer, done: FineTuningJob, file_id: str, backbone: Backbone
) -> None:
    """Of two members twice as many; and the metrics count what the jobs do."""
    assert done.trained_tokens is not None
    before = _metrics(live)
    method = prompt_tuning(
        template="{input}\nLiked: {target}",
        labels=["no", "yes"],
        hyperparameters={"seeds": [7, 8], "num_cuts": 0, "patience": 0},
    )
    job = client.fine_tuning.jobs.create(
        model=backbone.name, training_file=file_id, validation_file=file_id, suffix="twice", seed=7, method=method
    )
    ended = wait(client, job.id)
    assert ended.trained_tokens == 2 * done.trained_tokens
    after = _metrics(live)
    assert after["softswap_tuning_updates_total"] - before["softswap_tuning_updates_total"] == 8
    assert after["softswap_tuning_tokens_total"] - before["softswap_tuning_tokens_total"] == ended.trained_tokens
    ended_name = 'softswap_tuning_jobs_total{status="succeeded"}'
    assert after[ended_name] - before[ended_name] == 1
    wait_until(lambda: _metrics(live)['softswap_num_tuning_jobs{status="running"}'] == 0)
    assert after["softswap_tuning_device_seconds_total"] > before["softswap_tuning_device_seconds_total"]


def _metrics(live: LiveServer) -> dict[str, float]:
    lines = httpx.get(f"{live.url}/metrics").text.splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_an_ensemble_comes_of_one_job(client: OpenAI, live: LiveServer, file_id: str, backbone: Backbone) -> None:
    method = prompt_tuning(publish=3, hyperparameters={"seeds": [0, 1, 2, 3]})
    job = client.fine_tuning.jobs.create(model=backbone.name, training_file=file_id, suffix="team", method=method)
    ended = wait(client, job.id)
    results = [each for each in live.registry.versions("team") if "result_member" in each.provenance]
    assert len({each.provenance["result_member"] for each in results}) == 3
    assert ended.fine_tuned_model == results[0].id == live.registry.resolve("team").id
    name = "+".join([results[0].id, *(str(each.number) for each in results[1:])])
    assert f"{name} answers as an ensemble" in follow(live, job.id)[-1]["message"]
    answer = httpx.post(f"{live.url}/v1/tasks/{name}/run", json={"input": "good 5"}).json()
    assert [each["model"] for each in answer["members"]] == [each.id for each in results]


def test_a_written_prompt_is_distilled(client: OpenAI, live: LiveServer, backbone: Backbone) -> None:
    text = "\n".join(f"{'good' if n % 2 else 'bad'} film {n}" for n in range(60)).encode()
    file = client.files.create(file=("films.txt", text), purpose="user_data")
    assert (file.purpose, file.bytes) == ("user_data", len(text))
    written = {"prompt": "Is the film liked? Say yes or no. " * 3, "labels": ["no", "yes"], "hyperparameters": QUICK}
    job = client.fine_tuning.jobs.create(
        model=backbone.name, training_file=file.id, suffix="short", method=distillation(**written)
    )
    ended = wait(client, job.id)
    assert ended.status == "succeeded"
    assert ended.method is not None
    assert ended.method.type == "distillation"
    version = live.registry.resolve(str(ended.fine_tuned_model))
    worth = version.provenance["distillation"]
    assert (version.labels, worth["num_virtual_tokens"]) == (("no", "yes"), 2)
    assert "decides as the teacher does" in follow(live, job.id)[-1]["message"]
    method = distillation(teacher="sentiment", hyperparameters=QUICK)
    again = client.fine_tuning.jobs.create(model=backbone.name, training_file=file.id, suffix="brief", method=method)
    assert wait(client, again.id).status == "succeeded"
    brief, teacher = (live.registry.resolve(name) for name in ("brief", "sentiment"))
    assert (brief.template.text, brief.labels) == (teacher.template.text, teacher.labels)


def test_events_are_typed_and_paged_newest_first(client: OpenAI, live: LiveServer, done: FineTuningJob) -> None:
    events = list(client.fine_tuning.jobs.list_events(done.id, limit=5))
    assert events[0].message.startswith("The job has successfully completed")
    assert events[-1].message.startswith("Created fine-tuning job")
    assert [event.model_dump()["id"] for event in events] == [each["id"] for each in follow(live, done.id)][::-1]
    assert {event.object for event in events} == {"fine_tuning.job.event"}
    figures = [event.data for event in events if event.type == "metrics"]
    losses = [each["train_loss"] for each in figures if "train_loss" in each]
    assert len(losses) == 8
    assert any("valid_accuracy" in each and each["member"] == 0 for each in figures)


def test_a_broken_stream_continues_where_it_broke(live: LiveServer, done: FineTuningJob) -> None:
    events = follow(live, done.id)
    for place in (0, len(events) // 2, len(events) - 1):
        assert follow(live, done.id, **{"last-event-id": events[place]["id"]}) == events[place + 1 :]
    url = f"{live.url}/v1/fine_tuning/jobs/{done.id}/events?stream=true"
    for wrong in ("ftevent-000000000000000000000000-1", "nonsense", f"{events[0]['id']}0x"):
        assert httpx.get(url, headers={"last-event-id": wrong}).status_code == 404
    assert httpx.get(f"{url}&after={events[-2]['id']}").text.count("data: {") == 1


def test_a_job_is_followed_live(client: OpenAI, live: LiveServer, file_id: str, backbone: Backbone) -> None:
    method = prompt_tuning(hyperparameters={"max_steps": 60})
    job = client.fine_tuning.jobs.create(model=backbone.name, training_file=file_id, suffix="live", method=method)
    began = time.monotonic()
    url = f"{live.url}/v1/fine_tuning/jobs/{job.id}/events?stream=true"
    with httpx.stream("GET", url, timeout=60) as answer:
        times = [time.monotonic() - began for line in answer.iter_lines() if '"train_loss"' in line]
    assert len(times) == 60
    assert times[0] < 0.7 * times[-1], "the first figures came before the last were made"
    assert len(follow(live, job.id)) > 60


def test_clients_of_openai_need_to_name_nothing_but_the_model(client: OpenAI, file_id: str, backbone: Backbone) -> None:
    job = client.fine_tuning.jobs.create(
        model=backbone.name,
        training_file=file_id,
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 30, "learning_rate_multiplier": "auto"}},
        },
    )
    assert job.hyperparameters.n_epochs == 1
    assert job.hyperparameters.batch_size == 30
    assert job.model_dump()["task"].startswith("likes-")  # `likes` is a task already
    assert wait(client, job.id).status == "succeeded"
    old = client.fine_tuning.jobs.create(model=backbone.name, training_file=file_id, hyperparameters={"n_epochs": 1})
    assert old.method is not None
    assert old.method.type == "supervised"
    client.fine_tuning.jobs.cancel(old.id)


def test_tuning_continues_from_a_version(client: OpenAI, live: LiveServer, backbone: Backbone) -> None:
    rows = [{"input": f"film {n}", "target": LABELS[n % 2]} for n in range(60)]
    data = "\n".join(json.dumps(row) for row in rows).encode()
    file = client.files.create(file=("r.jsonl", data), purpose="fine-tune")
    method = {"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": {"max_steps": 2, "batch_size": 8}}}
    job = client.fine_tuning.jobs.create(model="sentiment@1", training_file=file.id, method=method)
    ended = wait(client, job.id)
    version = live.registry.resolve("sentiment")
    assert (ended.status, ended.fine_tuned_model, version.num_virtual_tokens) == ("succeeded", version.id, 7)
    assert (version.template.text, version.labels) == (REVIEW, LABELS)
    for hyperparameters, param in (({"kind": "kv"}, "kind"), ({"num_virtual_tokens": [7, 8]}, "num_virtual_tokens")):
        method = {"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": hyperparameters}}
        with pytest.raises(BadRequestError) as caught:
            client.fine_tuning.jobs.create(model="sentiment@1", training_file=file.id, method=method)
        assert caught.value.param == f"method.prompt_tuning.hyperparameters.{param}"


def test_jobs_come_in_pages_and_by_metadata(client: OpenAI, done: FineTuningJob) -> None:
    every = [job.id for job in client.fine_tuning.jobs.list(limit=2)]
    assert len(every) == len(set(every)) >= 2
    assert every == [job.id for job in client.fine_tuning.jobs.list()]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"team": "reviews"})] == [done.id]
    assert list(client.fine_tuning.jobs.list(metadata={"team": "others"})) == []
    assert [job.id for job in client.fine_tuning.jobs.list(after=every[0])] == every[1:]
    with pytest.raises(NotFoundError):
        client.fine_tuning.jobs.list(after="ftjob-none")


def test_pause_resume_cancel_and_forget(client: OpenAI, live: LiveServer, file_id: str, backbone: Backbone) -> None:
    method = prompt_tuning(hyperparameters={"max_steps": 5000}, alias=None)
    jobs = client.fine_tuning.jobs
    job = jobs.create(model=backbone.name, training_file=file_id, suffix="long", method=method)
    wait(client, job.id, "running")
    wait_until(lambda: jobs.retrieve(job.id).model_dump()["step"] > 3)
    assert jobs.retrieve(job.id).estimated_finish is not None
    assert jobs.pause(job.id).status == "paused"
    assert jobs.pause(job.id).status == "paused"
    other = jobs.create(model=backbone.name, training_file=file_id, suffix="other", method=prompt_tuning())
    assert wait(client, other.id).status == "succeeded"
    assert jobs.resume(job.id).status in ("queued", "running")
    wait(client, job.id, "running")
    refused = httpx.delete(f"{live.url}/v1/fine_tuning/jobs/{job.id}")
    assert refused.status_code == 400
    assert jobs.cancel(job.id).status == "cancelled"
    assert jobs.cancel(job.id).status == "cancelled"
    for order in (jobs.pause, jobs.resume):
        with pytest.raises(BadRequestError):
            order(job.id)
    assert httpx.get(f"{live.url}/v1/models/long").status_code == 404
    assert httpx.delete(f"{live.url}/v1/fine_tuning/jobs/{job.id}").json()["deleted"] is True
    for call in (jobs.retrieve, jobs.cancel, jobs.list_events, jobs.checkpoints.list):
        with pytest.raises(NotFoundError) as caught:
            call(job.id)
        assert caught.value.code == "job_not_found"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"model": "nowhere"}, "model"),
        ({"training_file": "file-none"}, "training_file"),
        ({"validation_file": "file-none"}, "validation_file"),
        ({"suffix": "Not A Name"}, "suffix"),
        ({"suffix": "tiny-llama"}, "suffix"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]}, "integrations"),
        ({"method": {"type": "dpo"}}, "method.type"),
        ({"method": {"type": "supervised", "dpo": {}}}, "method.dpo"),
        ({"method": {"type": "supervised", "prompt_tuning": {}}}, "method.prompt_tuning"),
        ({"method": {"type": "supervised"}, "hyperparameters": {"n_epochs": 1}}, "hyperparameters"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"n_epochs": "many"}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"beta": 1}}, "hyperparameters.beta"),
        ({"seed": -1}, "seed"),
        ({"metadata": {"k": 1}}, "metadata.k"),
        ({"promote": 1}, "promote"),
        ({"promote": True, "method": prompt_tuning(alias=None)}, "promote"),
        ({"method": prompt_tuning(template="no place")}, "method.prompt_tuning.template"),
        ({"method": prompt_tuning(labels=["a", "a"])}, "method.prompt_tuning.labels"),
        ({"method": prompt_tuning(labels=["no", "maybe"])}, "method.prompt_tuning.labels"),
        ({"method": prompt_tuning(alias="3")}, "method.prompt_tuning.alias"),
        (
            {"method": prompt_tuning(hyperparameters={"seeds": list(range(64)), "learning_rate": [0.1, 0.2]})},
            "method.prompt_tuning.hyperparameters.seeds",
        ),
        ({"method": prompt_tuning(publish=2)}, "method.prompt_tuning.publish"),
        ({"method": prompt_tuning(publish=9)}, "method.prompt_tuning.publish"),
        ({"method": {"type": "distillation"}}, "method.distillation"),
        ({"method": distillation()}, "method.distillation"),
        ({"method": distillation(prompt="a", teacher="sentiment")}, "method.distillation"),
        ({"method": distillation(teacher="nowhere")}, "method.distillation.teacher"),
        ({"method": distillation(prompt="x" * 600)}, "method.distillation.prompt"),
        ({"method": distillation(prompt="a", labels=["a", "a"])}, "method.distillation.labels"),
        (
            {"method": distillation(prompt="a", hyperparameters={"init": "prompt"})},
            "method.distillation.hyperparameters.init",
        ),
        ({"method": distillation(prompt="a"), "model": "sentiment"}, "model"),
        ({"method": distillation(prompt="a"), "validation_file": "file-x"}, "validation_file"),
        ({"method": {**distillation(prompt="a"), "prompt_tuning": {}}}, "method.prompt_tuning"),
        *(
            ({"method": prompt_tuning(hyperparameters={name: value})}, f"method.prompt_tuning.hyperparameters.{path}")
            for name, value, path in (
                ("learning_rate", [0.1, 0], "learning_rate.1"),
                ("learning_rate", [], "learning_rate"),
                ("kind", "text", "kind"),
                ("init", "text", "init_text"),
                ("init_text", "x", "init_text"),
                ("init", "prompt", "init"),
                ("num_virtual_tokens", 10**9, "num_virtual_tokens"),
                ("max_steps", 10**9, "max_steps"),
                ("seeds", list(range(100)), "seeds"),
                ("patience", "some", "patience"),
                ("nonsense", 1, "nonsense"),
                ("learning_rate", [0.1, 0.1], "learning_rate"),
            )
        ),
    ],
)
def test_what_cannot_be_honoured_is_named(
    live: LiveServer, client: OpenAI, file_id: str, backbone: Backbone, changes: dict[str, Any], param: str
) -> None:
    num_jobs = len(list(client.fine_tuning.jobs.list()))
    body = {"model": backbone.name, "training_file": file_id, **changes}
    answer = httpx.post(f"{live.url}/v1/fine_tuning/jobs", json=body)
    assert answer.status_code in (400, 404), answer.text
    shown = answer.json()["error"]["param"]
    assert shown == param or shown.startswith(f"{param}.")
    assert len(list(client.fine_tuning.jobs.list())) == num_jobs


def test_a_wrong_label_is_refused_with_file_and_line(client: OpenAI, file_id: str, backbone: Backbone) -> None:
    with pytest.raises(BadRequestError, match=r"likes\.jsonl, line 2: the target is none of the 2 labels"):
        client.fine_tuning.jobs.create(
            model=backbone.name, training_file=file_id, method=prompt_tuning(labels=["no", "maybe"])
        )


def test_a_file_in_use_stays(client: OpenAI, file_id: str, backbone: Backbone) -> None:
    method = prompt_tuning(hyperparameters={"max_steps": 5000})
    job = client.fine_tuning.jobs.create(model=backbone.name, training_file=file_id, suffix="used", method=method)
    with pytest.raises(BadRequestError, match="needs this file"):
        client.files.delete(file_id)
    client.fine_tuning.jobs.cancel(job.id)


def test_followers_are_bounded_and_told_when_the_server_stops(
    live: LiveServer, done: FineTuningJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifier, "MAX_LISTENERS", 0)
    answer = httpx.get(f"{live.url}/v1/fine_tuning/jobs/{done.id}/events?stream=true")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "queue_full")
    assert answer.headers["retry-after"] == "5"


def test_a_closed_notifier_wakes_everyone() -> None:
    async def listen() -> None:
        notified = notifier.Notifier()
        with notified.listening("a") as listener:
            notified.notify("b")
            await asyncio.sleep(0)
            assert not listener.news.is_set()
            notified.close()
            with pytest.raises(Draining):
                await listener.wait()
        with notified.listening("a") as late, pytest.raises(Draining):
            await late.wait()

    asyncio.run(listen())
