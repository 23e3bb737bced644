from __future__ import annotations

import json

from openai import OpenAI

from tests.support.commands import call
from tests.support.server import LiveServer
from tests.support.tuning_jobs import DATA


def test_jobs_of_a_running_server_are_shown_followed_and_steered(live: LiveServer) -> None:
    url = ("--url", live.url)
    assert "no jobs" in call("jobs", "show", "last", *url, code=1)
    client = OpenAI(base_url=f"{live.url}/v1", api_key="not needed")
    file = client.files.create(file=("likes.jsonl", DATA), purpose="fine-tune")

    def create(max_steps: int) -> str:
        hyperparameters = {"max_steps": max_steps, "batch_size": 8, "learning_rate": 0.1, "init": "vocab", "seeds": 0}
        method = {"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": hyperparameters}}
        model = live.backbone.name
        return client.fine_tuning.jobs.create(model=model, training_file=file.id, suffix="likes", method=method).id

    job = create(4)
    lines = call("jobs", "follow", "last", *url).splitlines()
    assert "Created fine-tuning job" in lines[0]
    assert "successfully completed: likes@" in lines[-1]
    shown = json.loads(call("jobs", "show", job, "--json", *url))
    assert (shown["status"], len(shown["checkpoints"]) > 0) == ("succeeded", True)
    assert shown["fine_tuned_model"] in call("jobs", "show", job, *url)
    assert [json.loads(line)["id"] for line in call("jobs", "ls", "--json", *url).splitlines()] == [job]
    assert "succeeded" in call("jobs", "ls", *url)
    events = [json.loads(line) for line in call("jobs", "follow", job, "--json", *url).splitlines()]
    assert len(events) == len(lines)

    long = create(100_000)
    assert call("jobs", "pause", long, *url) == f"{long} is paused\n"
    assert call("jobs", "resume", long, *url).startswith(f"{long} is ")
    assert "not ended" in call("jobs", "rm", long, *url, code=1)
    assert call("jobs", "cancel", "last", *url) == f"{long} is cancelled\n"
    assert call("jobs", "rm", long, *url) == f"{long} removed\n"
    assert "no such fine-tuning job" in call("jobs", "show", long, *url, code=1)
