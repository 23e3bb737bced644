"""What cannot be is refused in one line that says what to do, before torch is loaded, let alone a model."""

from __future__ import annotations

import errno
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli.entry import app, main
from tests.support.commands import call

TRY_ALL = """
import json, sys, time
from typer.testing import CliRunner
from app.cli.entry import app
from app.errors import SoftswapError

for arguments in json.load(sys.stdin):
    began_s = time.process_time()
    result = CliRunner().invoke(app, arguments, input="")
    is_told = isinstance(result.exception, SoftswapError)
    said = result.exception.message if is_told else result.output if result.exit_code == 2 else repr(result.exception)
    heavy = sorted({"torch", "transformers"} & set(sys.modules))
    print(json.dumps({"said": said, "heavy": heavy, "seconds": time.process_time() - began_s}))
    if heavy:
        break
"""
URL = ("--url", "http://127.0.0.1:9")
TUNE = ("tune", "{data}", "--task", "x")
DISTILL = ("distill", "{data}", "--task", "x")
COMPARE = ("compare", "{data}")
CASES: list[tuple[tuple[str, ...], str]] = [
    # numbers out of range
    ((*TUNE, "--epochs", "0"), "--epochs must be more than 0 and at most 10,000"),
    ((*TUNE, "--budget", "0"), "--budget must be more than 0"),
    ((*TUNE, "--budget", "0.5s"), "budget_s must be at least 1 second"),
    ((*TUNE, "--budget", "soon"), "--budget must be a time such as 20m"),
    ((*TUNE, "--budget", "9999h"), "--budget must be more than 0 and at most 168h"),
    ((*TUNE, "--epochs", "-1"), "--epochs must be more than 0"),
    ((*TUNE, "--epochs", "nan"), "--epochs must be more than 0"),
    ((*TUNE, "--max-steps", "0"), "--max-steps must be at least 1 and at most 10,000,000"),
    ((*TUNE, "--batch-size", "0"), "--batch-size must be at least 1"),
    ((*TUNE, "--learning-rate", "0"), "--learning-rate must be more than 0 and at most 1,000"),
    ((*TUNE, "--learning-rate", "1e9"), "--learning-rate must be more than 0 and at most 1,000"),
    ((*TUNE, "--learning-rate", "0.1,1e9"), "--learning-rate must be more than 0 and at most 1,000"),
    ((*TUNE, "--learning-rate", "inf"), "--learning-rate must be more than 0 and at most 1,000"),
    ((*TUNE, "--learning-rate", "0.1,0.1"), "--learning-rate must name each value once"),
    ((*TUNE, "--virtual-tokens", "0"), "--virtual-tokens must be at least 1"),
    ((*TUNE, "--virtual-tokens", "20,999999"), "--virtual-tokens must be at least 1"),
    ((*TUNE, "--patience", "-1"), "--patience must be at least 0"),
    ((*TUNE, "--seed", "-1"), "--seed must be at least 0"),
    ((*TUNE, "--publish", "0"), "--publish"),
    ((*TUNE, "--publish", "9"), "--publish"),
    ((*DISTILL, "--prompt", "{text}", "--epochs", "0"), "--epochs must be more than 0"),
    ((*COMPARE, "--max-steps", "0"), "--max-steps"),
    ((*COMPARE, "--batch-size", "0"), "--batch-size"),
    ((*COMPARE, "--virtual-tokens", "0"), "--virtual-tokens"),
    ((*COMPARE, "--shots", "0"), "--shots"),
    ((*COMPARE, "--lora-rank", "0"), "--lora-rank"),
    ((*COMPARE, "--seeds", "-1"), "--seeds must be whole numbers from 0"),
    ((*COMPARE, "--methods", "magic"), "--methods must be of zero_shot"),
    (("serve", "--max-model-len", "10000000000"), "--max-model-len (SOFTSWAP_MAX_MODEL_LEN) must be at most"),
    (("serve", "--max-model-len", "10000000"), "max_model_len must be at most 512, the positions of tiny"),
    (("serve", "--max-num-seqs", "64", "--max-num-batched-tokens", "32"), "--max-num-batched-tokens must be at least"),
    (("serve", "--keep-checkpoints", "0"), "--keep-checkpoints (SOFTSWAP_KEEP_CHECKPOINTS) must be at least 1"),
    (("serve", "--request-timeout", "0"), "--request-timeout (SOFTSWAP_REQUEST_TIMEOUT) must be more than 0"),
    (("serve", "--prompt-lookup", "17"), "--prompt-lookup (SOFTSWAP_PROMPT_LOOKUP) must be at most 16"),
    (("run", "x", "text", "--max-tokens", "-1"), "--max-tokens must be at least 0"),
    (("run", "x", "text", "--temperature", "3"), "--temperature must be at least 0 and at most 2"),
    (("run", "x", "text", "--temperature", "nan"), "--temperature must be at least 0 and at most 2"),
    (("run", "x", "text", "--seed", str(2**63)), "--seed must be"),
    (("tasks", "show", "x", "--tokens", "--nearest", "0"), "--nearest"),
    (("tasks", "alias", "x", "live", "0"), "give a number, or two with shares"),
    (("tasks", "alias", "x", "live", "1=0.5,2=0.6"), "must add up to 1"),
    (("tasks", "alias", "x", "live", "1=0.9"), "name exactly two versions"),
    (("tasks", "alias", "x", "live", "1=0.9,1=0.1"), "name exactly two versions"),
    (("tasks", "alias", "x", "live", "1=1,2=0"), "must be positive"),
    (("tasks", "alias", "x", "live", "1=nan,2=0.5"), "must be positive"),
    # words that no version could be published with
    ((*TUNE, "--description", "x" * 4097), "--description may have at most 4,096 characters"),
    ((*TUNE, "--template", "x" * 16_385), "--template may have at most 16,384 characters"),
    ((*TUNE, "--labels", "yes," + "n" * 257), "--labels may be at most 1,024, and each may have 256 characters"),
    ((*DISTILL, "--prompt", "{text}", "--labels", ",".join(map(str, range(1025)))), "--labels may be at most 1,024"),
    (("tasks", "add", "--text", "a", "--task", "x", "--description", "x" * 4097), "--description may have at most"),
    # names that cannot be
    (("run", "My Task!", "text"), "there is no such task: names have 1 to 63 of a-z"),
    (("run", "nothere", "text"), "there is no task nothere"),
    (("run", "greeting@3", "text"), "there is no task greeting; is it greetings?"),
    (("run", "greetings+nothere", "text"), "there is no task nothere"),
    (("eval", "nothere", "{data}"), "there is no task nothere"),
    ((*TUNE[:3], "My Task!"), "a task's name has 1 to 63 of a-z"),
    ((*TUNE, "--alias", "My Alias"), "an alias has 1 to 63 of a-z"),
    ((*DISTILL[:3], "My Task!", "--prompt", "{text}"), "a task's name has 1 to 63 of a-z"),
    (("tasks", "add", "--text", "Say hi.", "--task", "My Task!"), "a task's name has 1 to 63 of a-z"),
    (("tasks", "add", "--text", "Say hi.", "--task", "x", "--alias", "A"), "an alias has 1 to 63 of a-z"),
    (("tasks", "alias", "x", "Live", "1"), "an alias has 1 to 63 of a-z"),
    (("tasks", "rm", "x@"), "ends with @"),
    (("tasks", "rm", "", "--yes"), "a task's name has 1 to 63 of a-z"),
    (("tasks", "rm", "x@²"), "x@² is no version or alias"),
    (("tasks", "rm", "x@sha256:0123456789abcdef"), "is no version or alias"),
    (("serve", "--device", "gpu"), "--device (SOFTSWAP_DEVICE) must be auto, cpu, cuda or cuda:N"),
    (("serve", "--device", "cuda:x"), "--device (SOFTSWAP_DEVICE) must be auto, cpu, cuda or cuda:N"),
    ((*TUNE, "--device", "gpu"), "--device (SOFTSWAP_DEVICE) must be auto"),
    (("serve", "--device", "cuda:1", "--quantize", "int8"), "--quantize must be none on cuda:1"),
    # options that contradict one another, or need another one
    ((*TUNE, "--alias", "", "--promote"), "--promote moves an alias; name one with --alias"),
    (("run", "x", "text", *URL, "--model", "y"), "--model is for work on this machine, and --url names a server"),
    (("run", "x", "text", *URL, "--quantize", "int8"), "--quantize is for work on this machine"),
    (("eval", "x", "{data}", *URL, "--registry", "{folder}"), "--registry is for work on this machine"),
    (("tasks", "ls", *URL, "--registry", "{folder}"), "--registry is for work on this machine"),
    (("tasks", "add", "--text", "a", "--task", "x", *URL, "--device", "cpu"), "--device is for work on this machine"),
    (("run", "x", "text", "--api-key", "0123456789abcdef"), "--api-key is for a server; name it with --url"),
    (("run", "x", "text", "--combine", "vote"), "--combine belongs to an ensemble"),
    (("eval", "x", "{data}", "--combine", "vote"), "--combine belongs to an ensemble"),
    (("eval", "x@1+2", "{data}", "--record"), "--record"),
    (("eval", "x", "{data}", "--predictions"), "--predictions belongs to --json"),
    (("tasks", "show", "x", "--nearest", "3"), "belong to --tokens"),
    (("tasks", "alias", "x", "live", "1", "--tolerance", "0.1"), "belong to --gate"),
    (("tasks", "alias", "x", "live", "1", "--input-field", "a"), "belong to --gate"),
    (("tasks", "alias", "x", "live", "1", "--gate", "{unclear}"), "--input-field and --target-field"),
    (("tasks", "show", "x", "--tokens", "--target-field", "a"), "belong to --data"),
    (("tasks", "alias", "x", "live", "1", "--gate", "{data}", "--no-gate"), "--gate or --no-gate"),
    (("serve", "--revision", "main"), "--revision belongs to a hub id, and tiny lies on this machine"),
    (("serve", "--prefix-store-size", "1GiB"), "--prefix-store-size belongs to --prefix-store"),
    ((*TUNE, "--init", "text"), "init_text is needed by init"),
    ((*TUNE, "--init", "vocab", "--init-text", "abc"), "init_text is needed by init"),
    ((*TUNE, "--input-field", "question"), "input_field names no field of this file. It has: input, target"),
    ((*TUNE, "--input-field", "input", "--target-field", "input"), "input_field and target_field must differ"),
    ((*TUNE, "--labels", "yes,no,yes"), "--labels must differ from one another"),
    ((*TUNE, "--labels", "yes,"), "--labels has an empty one"),
    (("tasks", "add", "--text", "a", "--task", "x", "--labels", "a,a"), "--labels must differ from one another"),
    ((*TUNE, "--template", "Review:"), "template must contain {{input}} once"),
    (("tasks", "add", "--text", "a", "--task", "x", "--template", "Review:"), "template must contain {{input}} once"),
    (DISTILL, "--prompt or as --teacher, one of them"),
    ((*DISTILL, "--prompt", "{text}", "--teacher", "a"), "--prompt or as --teacher, one of them"),
    (("retune",), "name the tasks to make versions of, or give --all"),
    (("retune", "x", "--all"), "name tasks or give --all, not both"),
    (("retune", "x", "x@1"), "x is named twice"),
    (("retune", "My Task!"), "there is no such task"),
    (("retune", "x", "y", "--from", "x@1"), "--from names a version of x; name that task alone"),
    (("retune", "x", "--from", "{folder}/none"), "there is no {folder}/none"),
    (("retune", "x", "--model", "{folder}/none"), "there is no {folder}/none"),
    (("retune", "x", "--inputs", "{folder}/none"), "--inputs: there is no {folder}/none"),
    (("retune", "x", "--inputs", "x={folder}/none"), "--inputs: there is no {folder}/none"),
    (("retune", "x", "--inputs", "y={data}"), "--inputs names y, which is not to be tuned"),
    (("retune", "x", "y", "--inputs", "{data}"), "is one file for 2 tasks; say whose it is, as --inputs x={data}"),
    (("retune", "x", "y", "--examples", "{folder}/prompts"), "has no file for any of the tasks, such as x.jsonl"),
    (("retune", "x", "--inputs", "{folder}/prompts"), "has neither x.jsonl nor train.jsonl"),
    (("retune", "x", "--inputs", "{data}", "--examples", "{data}"), "x has --examples and --inputs"),
    (("retune", "x", "--inputs", "{broken}"), "broken.jsonl, line 2: is not JSON"),
    (("retune", "x", "--examples", "{broken}"), "broken.jsonl, line 2: is not JSON"),
    (("retune", "x", "--registry", "{folder}/none"), "there is no registry at {folder}/none"),
    (("retune", "x", "--budget", "soon"), "--budget must be a time"),
    (("tasks", "rm", "x"), "--yes"),
    (("tasks", "rm", "x", *URL), "--yes"),
    # files instead of folders, folders instead of files, and places that cannot be written
    ((*TUNE, "--registry", "{data}"), "{data} is a file; name a folder with --registry"),
    ((*TUNE, "--registry", "{data}/prompts"), "there is no folder {data} to make prompts in"),
    ((*TUNE, "--registry", "{folder}/mistyped/prompts"), "there is no folder {folder}/mistyped to make prompts in"),
    ((*TUNE, "--registry", "/proc/prompts"), "cannot be written"),
    ((*DISTILL, "--prompt", "{text}", "--registry", "{data}"), "is a file; name a folder with --registry"),
    (("tasks", "add", "--text", "a", "--task", "x", "--registry", "{data}"), "is a file; name a folder"),
    (("tasks", "add", "--text", "a", "--task", "x", "--registry", "{folder}/a/b"), "there is no folder {folder}/a"),
    (("tasks", "add", "{folder}/none", "--task", "x"), "there is no {folder}/none"),
    (("tasks", "ls", "--registry", "{data}"), "{data} is a file; name a folder with --registry"),
    (("tasks", "ls", "--registry", "{folder}/none"), "there is no registry at {folder}/none"),
    (("tasks", "show", "x", "--registry", "{folder}/none"), "there is no registry at {folder}/none"),
    (("tasks", "alias", "x", "live", "1", "--registry", "{folder}/none"), "there is no registry at {folder}/none"),
    (("tasks", "rm", "x@1", "--registry", "{folder}/none"), "there is no registry at {folder}/none"),
    (("tasks", "export", "x", "{folder}/out", "--registry", "{folder}/none"), "there is no registry at"),
    (("run", "x", "text", "--registry", "{data}"), "{data} is a file; name a folder with --registry"),
    (("run", "x", "text", "--registry", "{folder}/none"), "there is no registry at {folder}/none"),
    (("eval", "x", "{data}", "--registry", "{folder}/none"), "there is no registry at {folder}/none"),
    (("serve", "--registry", "{data}"), "{data} is a file; name a folder with --registry"),
    (("serve", "--registry", "{folder}/a/b"), "there is no folder {folder}/a to make b in"),
    (("serve", "--state", "{data}"), "{data} is a file; name a folder with --state"),
    (("serve", "--state", "{folder}/a/b"), "there is no folder {folder}/a to make b in"),
    (("serve", "--state", "/proc/state"), "cannot be written"),
    (("serve", "--prefix-store", "{data}"), "{data} is a file; name a folder with --prefix-store"),
    (("serve", "--prefix-store", "{folder}/a/b"), "there is no folder {folder}/a to make b in"),
    (("serve", "--cache", "{data}"), "{data} is a file; name a folder with --cache"),
    (("serve", "--api-keys-file", "{folder}/none"), "api_keys_file cannot be read"),
    (("tasks", "export", "x", "{folder}"), "{folder} exists already"),
    (("tasks", "export", "x", "/proc/exported"), "/proc/exported cannot be written"),
    (("tasks", "export", "x", "{data}/exported"), "{data}/exported cannot be written"),
    (("tasks", "show", "x", "--tokens", "--plot", "{folder}/none/x.svg"), "there is no folder {folder}/none"),
    (("tasks", "show", "x", "--tokens", "--plot", "/proc/x.svg"), "/proc/x.svg cannot be written"),
    (("tasks", "show", "x", "--tokens", "--plot", "{folder}/none/x.svg", *URL), "there is no folder {folder}/none"),
    ((*COMPARE, "--plot", "{folder}/none/x.svg"), "there is no folder {folder}/none"),
    ((*COMPARE, "--plot", "/proc/x.svg"), "/proc/x.svg cannot be written"),
    # what a server starts with
    (("serve", "--port", "{taken}"), "cannot listen on 127.0.0.1:{taken}"),
    (("serve", "--host", "no.such.host.invalid", "--insecure"), "cannot listen on no.such.host.invalid"),
    (("serve", "--api-key", "short"), "an API key must have at least 16 characters"),
    (("serve", "--host", "0.0.0.0"), "0.0.0.0 can be reached from other machines"),
    # models that are not there, or are none
    (("serve", "--model", "/nope"), "there is no /nope"),
    (("serve", "--model", "{folder}"), "there is no config.json in {folder}; a model is a folder with config.json"),
    (("serve", "--model", "{data}"), "{data} is a file; name its folder, or a .gguf file"),
    (("serve", "--model", "smolm2"), "there is no model smolm2; did you mean smollm2-135m-instruct?"),
    (("serve", "--model", "no model"), "'no model' cannot be a model: give a name that `softswap models` lists"),
    (("serve", "--model", "{cut}"), "cut.gguf is damaged or was not fetched whole"),
    ((*TUNE, "--model", "/nope"), "there is no /nope"),
    ((*TUNE, "--model", "{folder}"), "there is no config.json in {folder}"),
    ((*DISTILL, "--prompt", "{text}", "--model", "/nope"), "there is no /nope"),
    ((*COMPARE, "--model", "/nope"), "there is no /nope"),
    (("run", "x", "text", "--model", "/nope"), "there is no /nope"),
    (("eval", "x", "{data}", "--model", "/nope"), "there is no /nope"),
    (("tasks", "add", "--text", "a", "--task", "x", "--model", "/nope"), "there is no /nope"),
    (("tasks", "show", "x", "--tokens", "--model", "/nope"), "there is no /nope"),
    (("pull", "smolm2"), "there is no model smolm2; did you mean smollm2-135m-instruct?"),
    (("pull", "gpt2"), "gpt2 is not of the catalog, which has demo, smollm2-135m-instruct"),
    # data that cannot be read, or learned from
    (("tune", "{same}", "--task", "x"), "same.jsonl: every target is the same: there is nothing to tell apart"),
    (("tune", "{same}", "--task", "x", "--labels", "b,c"), "there is nothing to tell apart"),
    (("compare", "{same}"), "there is nothing to tell apart"),
    ((*TUNE, "--labels", "b,c"), "data.jsonl, line 2: the target is none of the 2 labels"),
    (("eval", "x", "{unclear}"), "--input-field and --target-field"),
    (("tune", "{unclear}", "--task", "x"), "It has: kind, part, size"),
    (("tune", "{broken}", "--task", "x"), "broken.jsonl, line 2: is not JSON"),
    (("distill", "{broken}", "--task", "x", "--prompt", "{text}"), "broken.jsonl, line 2: is not JSON"),
    (("compare", "{broken}"), "broken.jsonl, line 2: is not JSON"),
    (("eval", "x", "{broken}"), "broken.jsonl, line 2: is not JSON"),
    ((*TUNE, "--validation", "{broken}"), "broken.jsonl, line 2: is not JSON"),
    ((*COMPARE, "--test", "{broken}"), "broken.jsonl, line 2: is not JSON"),
    (("tasks", "alias", "x", "live", "1", "--gate", "{broken}"), "broken.jsonl, line 2: is not JSON"),
    ((*DISTILL, "--prompt", "{latin}"), "latin.txt: is not UTF-8"),
    ((*DISTILL, "--prompt", "{empty}"), "empty.txt: the file is empty"),
]


@pytest.fixture
def places(local: Path) -> Iterator[dict[str, str]]:
    """What stands for the names in braces."""
    contents = {
        "data.jsonl": b'{"input": "a", "target": "b"}\n{"input": "c", "target": "d"}\n',
        "same.jsonl": b'{"input": "a", "target": "b"}\n{"input": "c", "target": "b"}\n',
        "broken.jsonl": b'{"input": "a", "target": "b"}\n{"input":',
        "text.txt": b"Say yes or no.",
        "unclear.csv": b"kind,part,size\none,two,three\nfour,five,six\n",
        "latin.txt": "schön".encode("latin-1"),
        "empty.txt": b" \n",
    }
    for name, content in contents.items():
        (local / name).write_bytes(content)
    (local / "prompts" / "greetings").mkdir()
    (local / "weights").mkdir()
    (local / "weights" / "cut.gguf").write_bytes(b"GGUF\x03\0\0\0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {name.partition(".")[0]: str(local / name) for name in contents}
        yield {**names, "folder": str(local), "cut": f"{local}/weights/cut.gguf", "taken": str(taken.getsockname()[1])}


def test_what_cannot_be_is_refused_before_anything_heavy_is_loaded(places: dict[str, str]) -> None:
    asked = [[argument.format(**places) for argument in arguments] for arguments, _ in CASES]
    done = subprocess.run(
        [sys.executable, "-c", TRY_ALL], input=json.dumps(asked), check=True, capture_output=True, text=True, timeout=60
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    wrong = []
    for arguments, (_, words), each in zip(asked, CASES, found, strict=False):
        said = " ".join(each["said"].replace("│", " ").split())
        if words.format(**places) not in said or each["heavy"] or each["seconds"] > 1:
            wrong.append({"arguments": arguments, **each, "said": said})
    assert wrong == []
    assert len(found) == len(CASES)


def test_a_new_registry_is_made_next_to_what_is_there_and_said(local: Path) -> None:
    """A name that was mistyped in the middle is refused above."""
    said = call("tasks", "add", "--text", "Say hi.", "--task", "greet", "--registry", str(local / "new"))
    assert f"there is no registry at {local / 'new'} yet; it will be made" in said
    assert "greet@1 published" in said
    assert "no registry" not in call(
        "tasks", "add", "--text", "Say hi.", "--task", "greet", "--registry", f"{local}/new"
    )


def test_a_whole_task_is_removed_only_by_who_says_so(local: Path) -> None:
    for _ in range(2):
        call("tasks", "add", "--text", "Say hi.", "--task", "greet")
    assert call("tasks", "rm", "greet", code=1) == "greet would go with all of its versions; say so with --yes"
    assert "greet@1 removed" in call("tasks", "rm", "greet@1")
    assert json.loads(call("tasks", "show", "greet", "--json"))["num_versions"] == 1
    assert "greet removed" in call("tasks", "rm", "greet", "--yes")


def test_what_is_piped_in_must_be_utf_8(local: Path) -> None:
    call("tasks", "add", "--text", "Say hi.", "--task", "greet")
    result = CliRunner().invoke(app, ["run", "greet"], input="schön".encode("latin-1"))
    assert str(result.exception) == "what is piped in is not UTF-8"


def test_a_fault_of_the_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere/x.svg")

    monkeypatch.setattr("app.cli.entry.app", fail)
    with pytest.raises(SystemExit, match="1"):
        main()
    assert capsys.readouterr().err == "softswap: /somewhere/x.svg: No space left on device\n"


def test_half_an_export_is_no_export(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call("tasks", "add", "--text", "Say hi.", "--task", "greet")
    monkeypatch.setattr(Path, "write_bytes", lambda self, content: self.joinpath("none").open("xb"))
    CliRunner().invoke(app, ["tasks", "export", "greet", str(local / "exported")])
    assert not (local / "exported").exists()
    monkeypatch.undo()
