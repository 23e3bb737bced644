"""Peers in processes of their own, spoken to in the lines of `benchmarks.peers.protocol`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.models import cache_folder
from benchmarks.part import Say
from benchmarks.peers.environments import python_of, variables_of
from benchmarks.peers.protocol import CannotError, Load, Run
from benchmarks.server import ROOT
from benchmarks.setup import Setup
from benchmarks.workloads import Outcome, Workload


@dataclass(frozen=True)
class Entry:
    """Attributes: module: of `benchmarks.peers`. environment: None for the benchmark's own."""

    name: str
    module: str
    way: str
    environment: str | None = None


ENTRIES = (
    Entry("transformers, continuous batching", "transformers_peer", "virtual-ids"),
    Entry("vLLM, prompt_embeds", "vllm_peer", "prompt_embeds", "vllm"),
    Entry("llama.cpp, 8 slots", "llama_cpp_peer", "slots-8", "llama.cpp"),
    Entry("llama.cpp, 32 slots", "llama_cpp_peer", "slots-32", "llama.cpp"),
)


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
        for entry in ENTRIES:
            if not setup.setting.wants(entry.name):
                continue
            if entry.environment and not python_of(entry.environment).exists():
                reason = f"not installed: python -m benchmarks install {entry.environment}"
                peers.name_to_reason[entry.name] = reason
                continue
            say(f"starting {entry.name}")
            try:
                with ExitStack() as starting:
                    peer = starting.enter_context(_start(entry, setup, workload))
                    # of all tasks and a full batch, with other texts, so that what is cached is the prompts
                    peer.run(replace(workload.rotated(-1), num_new_tokens=min(2, workload.num_new_tokens)))
                    stack.enter_context(starting.pop_all())
                    peers.name_to_peer[entry.name] = peer
            except CannotError as reason:
                peers.name_to_reason[entry.name] = str(reason)
        yield peers


@contextmanager
def _start(entry: Entry, setup: Setup, workload: Workload) -> Iterator[RemotePeer]:
    """Raises: CannotError: it cannot be loaded."""
    python = python_of(entry.environment) if entry.environment else Path(sys.executable)
    variables = variables_of(entry.environment) if entry.environment else {}
    log = cache_folder() / "logs" / f"{entry.module}-{entry.way}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder, log.open("w") as stream:
        rows = torch.stack([prompt.rows for prompt in workload.prompts if prompt.rows is not None])
        np.save(Path(folder) / "prompts.npy", rows.float().numpy())
        wanted = Load(
            model=str(setup.folder),
            prompts=f"{folder}/prompts.npy",
            dtype=setup.setting.dtype,
            way=entry.way,
            max_num_seqs=setup.setting.max_num_seqs,
            num_positions=rows.shape[1] + max(len(r.token_ids) for r in workload.requests) + workload.num_new_tokens,
            scratch=folder,
        )
        ours = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
        process = subprocess.Popen(
            [python, "-m", f"benchmarks.peers.{entry.module}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            cwd=ROOT,
            start_new_session=True,
            env=ours | variables,
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
