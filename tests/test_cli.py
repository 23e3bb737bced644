"""The `softswap` command, as a person or a script meets it."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
from openai import OpenAI
from typer.main import get_command
from typer.testing import CliRunner

from app.cli.entry import app
from app.cli.serve import serve
from app.cli.views.task_view import main_figure
from app.errors import SoftswapError
from app.model.backbone import Backbone
from app.registry.evaluations.evaluation_folder import RecordedEvaluation
from app.registry.publication import Publication
from app.registry.registry import Registry
from app.registry.stores.store import FileStore
from app.settings import Settings, demo_tasks
from tests.support.models import tiny_backbone
from tests.support.server import LABELS, LiveServer, make_settings, publish_tasks, run_server, soft_prompt
from tests.support.tuning_jobs import DATA

runner = CliRunner()
README = Path(__file__).parent.parent / "README.md"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    backbone = tiny_backbone()
    backbone.model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(checkpoint: Path) -> Backbone:
    """The tiny backbone as it is after loading: its fingerprint is over files."""
    return Backbone.load(checkpoint)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with run_server(make_settings(tmp_path_factory.mktemp("prompts")), tiny_backbone()) as server:
        publish_tasks(server.registry, tiny_backbone())
        yield server


@pytest.fixture
def local(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry of its own, and the tiny backbone, through the environment."""
    (tmp_path / "prompts").mkdir()
    monkeypatch.setenv("SOFTSWAP_MODEL", str(checkpoint))
    monkeypatch.setenv("SOFTSWAP_REGISTRY", str(tmp_path / "prompts"))
    return tmp_path


def call(*arguments: str, stdin: str | None = None, code: int = 0) -> str:
    result = runner.invoke(app, list(arguments), input=stdin)
    if isinstance(result.exception, SoftswapError):
        assert code == 1, result.exception.message
        return result.exception.message
    assert result.exit_code == code, result.output
    return result.output


def call_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments], check=False, capture_output=True, text=True, timeout=120
    )


def test_help_answers_without_loading_torch() -> None:
    code = (
        "import sys, runpy, resource; sys.argv = ['softswap', '--help']\n"
        "try: runpy.run_module('app.cli', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'fastapi', 'httpx', 'numpy'} & set(sys.modules)\n"
        "print(heavy or '', resource.getrusage(resource.RUSAGE_SELF).ru_utime, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    *heavy, seconds = done.stderr.split()
    assert heavy == []
    assert float(seconds) < 2.0  # 0.3 alone; much of the margin is for a crowded machine
    for name in ("serve", "run", "tune", "distill", "compare", "eval", "tasks", "jobs", "doctor"):
        assert name in done.stdout


def test_every_command_explains_itself() -> None:
    groups = [
        *("serve", "run", "tune", "distill", "compare", "eval", "doctor", "tasks"),
        *(f"tasks {name}" for name in ("ls", "show", "add", "rm", "alias")),
        *(f"jobs {name}" for name in ("ls", "show", "follow", "cancel", "pause", "resume", "rm")),
    ]
    for command in groups:
        lines = call(*command.split(), "--help").splitlines()
        assert len(lines) > 5
        examples = {re.match(" *", line)[0] for line in lines if re.match(r" *(softswap|curl|cat) ", line)}
        assert len(examples) <= 1, f"{command}: examples start at different columns"


def test_serve_has_every_setting_as_a_flag() -> None:
    assert set(inspect.signature(serve).parameters) == set(Settings.model_fields)
    command = get_command(app).commands["serve"]
    flags = {option for parameter in command.params for option in parameter.opts}
    assert {f"--{name.replace('_', '-')}" for name in Settings.model_fields} <= flags
    assert {name: field.description for name, field in Settings.model_fields.items()} == {
        parameter.name: parameter.help for parameter in command.params if parameter.name in Settings.model_fields
    }


def test_the_readmes_commands_are_commands() -> None:
    """Every `$ softswap ...` line of the README names a command and options there are."""
    lines = re.findall(r"^\$ .*?\bsoftswap (.+)$", README.read_text(), re.MULTILINE)
    assert len(lines) > 5
    for line in lines:
        words = shlex.split(line, comments=True)
        command = get_command(app)
        while hasattr(command, "commands") and not words[0].startswith("-"):
            command = command.commands[words.pop(0)]
        options = {name for parameter in command.params for name in parameter.opts} | {"--help"}
        assert {word for word in words if word.startswith("--")} <= options, line


@pytest.mark.parametrize(
    ("metrics", "figure"),
    [
        ({"validation_num_examples": 10.0, "validation_accuracy": 0.8}, "validation accuracy 0.800"),
        ({"validation_accuracy": 0.8, "test_accuracy": 0.7, "test_accuracy_low": 0.6, "test_accuracy_high": 0.75},
         "test accuracy 0.700 [0.600, 0.750]"),
        ({"validation_exact_match": 0.0, "validation_rouge_l": 0.2}, "validation rouge_l 0.200"),
        ({"gain": 1.0}, ""),
    ],
)  # fmt: skip
def test_the_main_figure_is_the_metric_on_the_unseen_split(metrics: dict[str, float], figure: str) -> None:
    assert main_figure(metrics) == figure


def test_a_wrong_call_is_exit_code_2() -> None:
    call("run", code=2)
    call("serve", "--port", "x", code=2)
    call("nonsense", code=2)
    call("tasks", "alias", "a", "live", "x=y", code=2)


def test_an_expected_error_is_one_line_on_stderr_and_exit_code_1(tmp_path: Path) -> None:
    done = call_process("tasks", "ls", "--registry", str(tmp_path / "missing"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("softswap: there is no registry at")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--dtype", "int8", "(SOFTSWAP_DTYPE) must be 'auto', 'float32', 'bfloat16' or 'float16'"),
        ("--quantize", "int4", "(SOFTSWAP_QUANTIZE) must be 'none' or 'int8'"),
        ("--port", "70000", "(SOFTSWAP_PORT) must be at most 65535"),
        ("--kv-cache-memory", "much", "(SOFTSWAP_KV_CACHE_MEMORY) must be a number of bytes, such as"),
    ],
)
def test_a_setting_that_cannot_be_is_named(flag: str, value: str, said: str) -> None:
    assert call("serve", flag, value, code=1).startswith(f"{flag} {said}")


def test_without_a_registry_one_changes_a_folder_of_ones_own_and_not_the_demo_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOFTSWAP_REGISTRY", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    before = {path: path.read_bytes() for path in demo_tasks().rglob("*.json") if ".state" not in path.parts}
    assert "sentiment" in call("tasks", "ls")
    call("tasks", "alias", "sentiment", "canary", "1")
    call("tasks", "rm", "entities")
    assert {path.name for path in (tmp_path / "softswap" / "prompts").glob("[a-z]*")} == {"sentiment", "entities"}
    listed = [json.loads(line) for line in call("tasks", "ls", "--json").splitlines()]
    names = {task["id"]: task["aliases"] for task in listed}
    assert "entities" not in names
    assert names["sentiment"] == {"live": 1, "canary": 1}
    assert names["headline"] == {"live": 1}
    assert all(path.read_bytes() == content for path, content in before.items())
    assert "entities" in call("tasks", "ls", "--registry", str(demo_tasks()))


def test_what_could_not_be_published_is_not_tuned(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.tuning.tune.tune_task", None)
    monkeypatch.setattr("app.tuning.tune.distill_prompt", None)
    data = local / "data.jsonl"
    data.write_text("\n".join(json.dumps({"input": f"good {n}", "target": "yes"}) for n in range(40)))
    assert "a task's name has" in call("tune", str(data), "--task", "Liked", code=1)
    assert "an alias has" in call("tune", str(data), "--task", "liked", "--alias", "LIVE", code=1)
    backbone = Path(os.environ["SOFTSWAP_MODEL"]).name
    assert "backbone's own name" in call("tune", str(data), "--task", backbone, code=1)
    no_folder = call("tune", str(data), "--task", "liked", "--registry", str(data / "prompts"), code=1)
    assert no_folder == f"the registry {data / 'prompts'} cannot be written; name another with --registry"
    assert "a task's name has" in call("distill", str(data), "--prompt", str(data), "--task", "Liked", code=1)


def test_a_task_is_tuned_used_moved_exported_and_removed(local: Path) -> None:
    data = local / "data.jsonl"
    rows = [{"input": f"{'good' if n % 2 else 'bad'} {n}", "target": "yes" if n % 2 else "no"} for n in range(120)]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    said = call("tune", str(data), "--task", "liked", "--max-steps", "3", "--virtual-tokens", "2", "--epochs", "1")
    assert "liked@1 published: validation accuracy" in said
    assert "--kind must be" in call("tune", str(data), "--task", "liked", "--kind", "text", code=1)
    keys_and_values = ("--kind", "kv", "--max-steps", "2", "--virtual-tokens", "2")
    events = call("tune", str(data), "--task", "liked", *keys_and_values, "--json")
    *progress, last = [json.loads(line) for line in events.splitlines() if line.startswith("{")]
    assert last["id"] == "liked@2"
    assert {event["event"] for event in progress} >= {"TuningStarted", "StepDone", "Evaluated"}

    assert call("run", "liked", "good 5").strip() in ("yes", "no")
    lines = call("run", "liked@1", "--json", stdin="good 5\nbad 6\n").splitlines()
    assert [json.loads(line)["model"] for line in lines] == ["liked@1", "liked@1"]

    shown = json.loads(call("tasks", "show", "liked", "--json"))
    assert (shown["live"]["id"], [each["number"] for each in shown["versions"]]) == ("liked@2", [1, 2])
    assert shown["live"]["labels"] == ["no", "yes"]
    assert call("tasks", "alias", "liked", "live", "1") == "liked@live is 1\n"
    assert call("tasks", "alias", "liked", "canary", "1=0.5,2=0.5")
    assert json.loads(call("tasks", "ls", "--json"))["aliases"] == {"live": 1, "canary": {"1": 0.5, "2": 0.5}}
    assert re.search(
        r"^liked +1 +2 +embeddings +2 +2 +validation accuracy \d\.\d{3} \[", call("tasks", "ls"), re.MULTILINE
    )
    assert re.search(r"^  liked@2 .* kv +validation accuracy \d", call("tasks", "show", "liked"), re.MULTILINE)
    assert re.search(r"^labels +no, yes$", call("tasks", "show", "liked@1"), re.MULTILINE)

    call("tasks", "export", "liked@2", str(local / "exported"))
    assert (local / "exported" / "adapter_model.safetensors").is_file()
    call("tasks", "export", "liked@2", str(local / "exported"), code=1)
    assert shown["live"]["kind"] == "kv"
    again = call("tasks", "add", str(local / "exported"), "--task", "copied", "--labels", "no,yes")
    assert "copied@1 published: 2 virtual tokens" in again

    call("tasks", "rm", "liked@canary")
    call("tasks", "rm", "liked@2")
    call("tasks", "rm", "liked", "--yes")
    assert "liked" in call("tasks", "show", "liked", code=1)


def test_a_task_is_measured_here_as_on_a_server(
    local: Path, saved: Backbone, live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_tasks(Registry(FileStore(local / "prompts"), saved), saved)
    data = local / "test.csv"
    data.write_text("text,label\n" + "".join(f"film {n},{('negative', 'positive')[n % 2]}\n" for n in range(20)))
    here = json.loads(call("eval", "sentiment", str(data), "--json", "--predictions"))
    there = json.loads(call("eval", "sentiment", str(data), "--json", "--predictions", "--url", live.url))
    assert here["model"] == there["model"] == "sentiment@2"
    assert here.pop("metrics") == pytest.approx(there.pop("metrics"), abs=1e-4)
    assert (here["confusion"], here["predictions"]) == (there["confusion"], there["predictions"])
    shown = call("eval", "sentiment@1", str(data))
    for words in ("sentiment@1 on test.csv: 20 examples", "accuracy", "95 %", "precision", "calibration"):
        assert words in shown
    data.write_text("text,label\na,neutral\n")
    assert "test.csv, line 2: the target is none of the 2 labels" in call("eval", "sentiment", str(data), code=1)


def test_an_ensemble_answers_and_is_measured_here_as_on_a_server(
    local: Path, saved: Backbone, live: LiveServer
) -> None:
    publish_tasks(Registry(FileStore(local / "prompts"), saved), saved)
    for combine in ("average", "vote"):
        asked = ("run", "sentiment@1+2", "a film", "--json", "--combine", combine)
        here, there = json.loads(call(*asked)), json.loads(call(*asked, "--url", live.url))
        assert here["model"] == there["model"] == "sentiment@1+2"
        assert here["label"] == there["label"]
        assert here["probabilities"] == pytest.approx(there["probabilities"], abs=1e-5)
    data = local / "test.csv"
    data.write_text("text,label\n" + "".join(f"film {n},{LABELS[n % 2]}\n" for n in range(20)))
    asked = ("eval", "sentiment@1+2", str(data), "--json", "--combine", "vote")
    here, there = json.loads(call(*asked)), json.loads(call(*asked, "--url", live.url))
    assert here["metrics"] == pytest.approx(there["metrics"], abs=1e-4)
    assert "sentiment@1+2 on test.csv" in call("eval", "sentiment@1+2", str(data), "--combine", "vote")
    assert "belongs to an ensemble" in call("eval", "sentiment", str(data), "--combine", "vote", code=1)
    assert "an ensemble" in call("eval", "sentiment@1+2", str(data), "--record", code=1)


def test_an_alias_moves_behind_a_gate(local: Path, saved: Backbone) -> None:
    """On these examples, each there with both labels, every version scores 0.5; version 1 is said to have 0.9."""
    registry = Registry(FileStore(local / "prompts"), saved)
    publish_tasks(registry, saved)
    data = local / "gate.jsonl"
    rows = [{"input": f"film {n}", "target": label} for n in range(12) for label in LABELS]
    data.write_text("\n".join(map(json.dumps, rows)))
    call("tasks", "alias", "sentiment", "live", "1", "--gate", str(data), "--metric", "accuracy")
    registry.refresh()
    first = registry.resolve("sentiment@1")
    gate = registry.gates.find("sentiment", "live")
    registry.evaluations.record(
        first, RecordedEvaluation(digest=first.digest, data_sha256=gate.data_sha256, metrics={"accuracy": 0.9})
    )

    assert "version 2 has accuracy 0.5000" in call("tasks", "alias", "sentiment", "live", "2", code=1)
    said = call("tune", str(data), "--task", "sentiment", "--max-steps", "1", "--labels", "negative,positive")
    assert "live stays where it is: version 3 has accuracy 0.5000" in said
    assert "sentiment@3 published" in said
    call("tasks", "alias", "sentiment", "live", "2", "--force")
    call("tasks", "alias", "sentiment", "live", "3")
    shown = json.loads(call("tasks", "show", "sentiment", "--json"))
    assert (shown["aliases"]["live"], shown["gates"]["live"]["metric"]) == (3, "accuracy")
    call("tasks", "alias", "sentiment", "live", "1", "--no-gate")
    assert json.loads(call("tasks", "show", "sentiment", "--json"))["gates"] == {}
    call("tasks", "alias", "sentiment", "live", "3", "--metric", "accuracy", code=2)
    call("eval", "sentiment@3", str(data), "--record")
    registry.refresh()
    [kept] = registry.evaluations.of_version(registry.resolve("sentiment@3"))
    assert (kept.data_name, kept.metrics["accuracy"]) == ("gate.jsonl", 0.5)


def test_virtual_tokens_are_shown_here_as_on_a_server(local: Path, saved: Backbone, live: LiveServer) -> None:
    publish_tasks(Registry(FileStore(local / "prompts"), saved), saved)
    data = local / "data.jsonl"
    data.write_text("\n".join(json.dumps({"input": f"film {n}", "target": LABELS[n % 2]}) for n in range(6)))
    asked = ("tasks", "show", "sentiment@1", "--tokens", "--compare", "sentiment@2", "--data", str(data))
    here, there = local / "here.svg", local / "there.svg"
    seen = json.loads(call(*asked, "--nearest", "2", "--json", "--plot", str(here)))
    said = json.loads(call(*asked, "--nearest", "2", "--json", "--plot", str(there), "--url", live.url))
    assert [len(token["by_cosine"]) for token in seen["virtual_tokens"]] == [2] * 7
    assert seen["difference"]["rows"] == said["difference"]["rows"]
    losses = [[effect["loss"] for effect in each["effects"]["without"]] for each in (seen, said)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert here.read_text()[:5] == there.read_text()[:5] == "<?xml"
    shown = call(*asked)
    for words in (
        "7 virtual tokens",
        "near tokens",
        "distance to sentiment@2",
        "Δ loss",
        "near-duplicates",
        "Khashabi",
    ):
        assert words in shown
    call("tasks", "show", "sentiment", "--plot", "x.svg", code=2)


def test_a_written_prompt_is_a_task_too(local: Path) -> None:
    call("tasks", "add", "--task", "greet", "--text", r"Say hi.\n", "--template", r"{input}\nHi: {target}")
    shown = json.loads(call("tasks", "show", "greet@1", "--json"))
    assert (shown["kind"], shown["template"]) == ("text", "{input}\nHi: {target}")
    assert len(call("run", "greet", "you", "--max-tokens", "4", "--json").splitlines()) == 1
    call("tasks", "add", "--task", "greet", code=2)
    call("tasks", "add", "nowhere", "--task", "greet", code=1)


def test_doctor_finds_what_is_wrong(local: Path, saved: Backbone) -> None:
    Registry(FileStore(local / "prompts"), saved).publish("fine", Publication(soft_prompt(saved)))
    findings = [json.loads(line) for line in call("doctor", "--port", "0", "--json").splitlines()]
    assert {finding["name"] for finding in findings} >= {"python", "torch", "device", "memory", "backbone", "registry"}
    (attention,) = (finding["fact"] for finding in findings if finding["name"] == "attention")
    assert attention.startswith(("attend_compiled (compiled for", "attend_sdpa (no C compiler"))
    (layers,) = (finding["fact"] for finding in findings if finding["name"] == "layers")
    assert "layers compiled (" in layers or layers.startswith("torch's own (")
    assert (
        "attend_sdpa (as told)"
        in runner.invoke(app, ["doctor", "--port", "0"], env={"SOFTSWAP_ATTENTION": "sdpa"}).output
    )
    assert all(finding["is_fine"] for finding in findings)
    assert "with weights in int8" in call("doctor", "--port", "0", "--quantize", "int8")

    file = local / "prompts" / "fine" / "1" / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "fine" in call("doctor", "--port", "0", code=1)


def test_a_running_server_is_asked_with_url(live: LiveServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOFTSWAP_URL", f"{live.url}/v1")
    assert call("run", "sentiment", "a film").strip() in ("negative", "positive")
    assert len(call("run", "headline", "--json", stdin="a\nb\nc\n").splitlines()) == 3
    streamed = call("run", "headline", "hello")
    assert streamed.strip() == json.loads(call("run", "headline", "hello", "--json"))["text"]
    assert [json.loads(line)["id"] for line in call("tasks", "ls", "--json").splitlines()] == [
        "headline",
        "raw",
        "sentiment",
    ]
    assert json.loads(call("tasks", "show", "sentiment@1", "--json"))["number"] == 1
    assert json.loads(call("run", "headline+raw@1", "hello", "--json"))["text"] in {
        json.loads(call("run", task, "hello", "--json"))["text"] for task in ("headline", "raw")
    }
    safetensors.torch.save_file(
        {"prompt_embeddings": soft_prompt(tiny_backbone()).rows}, tmp_path / "adapter_model.safetensors"
    )
    assert "sent@1 published" in call("tasks", "add", str(tmp_path), "--task", "sent", "--labels", "a,b")
    call("tasks", "alias", "sent", "canary", "1")
    call("tasks", "rm", "sent@canary")
    call("tasks", "rm", "sent", "--yes")
    assert call("run", "sent", "x", code=1) == "there is no task sent; is it sentiment?"


def test_a_server_that_is_not_there_is_said_in_one_line() -> None:
    message = call("run", "sentiment", "x", "--url", "http://127.0.0.1:9", code=1)
    assert message.startswith("no answer from http://127.0.0.1:9")
    assert "http://" in call("run", "sentiment", "x", "--url", "ftp://x", code=1)


def test_a_reader_that_stops_reading_is_no_error(live: LiveServer) -> None:
    command = f"yes x | head -300 | {sys.executable} -m app.cli run headline --url {live.url} | head -1"
    done = subprocess.run(["sh", "-c", command], check=False, capture_output=True, text=True, timeout=120)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_jobs_of_a_running_server_are_shown_followed_and_steered(live: LiveServer) -> None:
    url = ("--url", live.url)
    assert "no jobs" in call("jobs", "show", "last", *url, code=1)
    client = OpenAI(base_url=f"{live.url}/v1", api_key="not needed")
    file = client.files.create(file=("likes.jsonl", DATA), purpose="fine-tune")

    def create(max_steps: int) -> str:
        hyperparameters = {"max_steps": max_steps, "batch_size": 8, "learning_rate": 0.1, "init": "vocab", "seeds": 0}
        method = {"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": hyperparameters}}
        model = live.services.backbone.name
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
