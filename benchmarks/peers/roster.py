"""Every peer that runs in a process of its own, by the name reports use."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.peers.environments import python_of, variables_of
from benchmarks.peers.protocol import CannotError
from benchmarks.peers.remote import RemotePeer, start_peer
from benchmarks.report import Say
from benchmarks.saved_model import cache_folder
from benchmarks.setting import MAX_NUM_SEQS, Bench
from benchmarks.workloads import Workload


@dataclass(frozen=True)
class Entry:
    """Attributes: environment: None for the benchmark's own."""

    name: str
    module: str
    way: str
    environment: str | None

    @property
    def python(self) -> Path:
        return Path(sys.executable) if self.environment is None else python_of(self.environment)

    @property
    def variables(self) -> dict[str, str]:
        return {} if self.environment is None else variables_of(self.environment)


ROSTER = (
    Entry("transformers, continuous batching", "benchmarks.peers.transformers_peer", "virtual ids", None),
    Entry("vLLM, prompt_embeds", "benchmarks.peers.vllm_peer", "prompt_embeds", "vllm"),
    Entry("vLLM, LoRA adapters", "benchmarks.peers.vllm_peer", "lora", "vllm"),
    Entry("llama.cpp, 8 slots", "benchmarks.peers.llama_cpp_peer", "slots-8", "llama.cpp"),
    Entry("llama.cpp, 32 slots", "benchmarks.peers.llama_cpp_peer", "slots-32", "llama.cpp"),
)


@dataclass(frozen=True)
class Roster:
    """Attributes: name_to_reason: of those that cannot do the workload."""

    name_to_peer: dict[str, RemotePeer]
    name_to_reason: dict[str, str]

    @property
    def versions(self) -> dict[str, str]:
        """By the first word of a peer's name, as a part's setting shows them."""
        return {name.split(",")[0]: peer.version for name, peer in self.name_to_peer.items()}


@contextmanager
def start_roster(
    bench: Bench, workload: Workload, say: Say, name_to_reason: Mapping[str, str] | None = None
) -> Iterator[Roster]:
    """Every peer that is wanted, loaded and warm; what fails says why.

    Args: name_to_reason: those that are not even tried.
    """
    roster = Roster({}, dict(name_to_reason or {}))
    with ExitStack() as stack:
        for entry in ROSTER:
            if entry.name in roster.name_to_reason or not bench.setting.wants(entry.name):
                continue
            if not entry.python.exists():
                reason = f"not installed: python -m benchmarks.peers.environments {entry.environment}"
                roster.name_to_reason[entry.name] = reason
                continue
            say(f"starting {entry.name}")
            try:
                with ExitStack() as starting:
                    roster.name_to_peer[entry.name] = _start(starting, entry, bench, workload)
                    stack.enter_context(starting.pop_all())
            except CannotError as reason:
                roster.name_to_reason[entry.name] = str(reason)
        yield roster


def _start(stack: ExitStack, entry: Entry, bench: Bench, workload: Workload) -> RemotePeer:
    """The warm-up is of all tasks and of a full batch, with other texts, so that what is cached is the prompts."""
    logs = cache_folder() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    peer = stack.enter_context(
        start_peer(
            entry.python,
            entry.module,
            entry.way,
            model=bench.folder,
            workload=workload,
            dtype=bench.setting.dtype,
            max_num_seqs=MAX_NUM_SEQS,
            variables=entry.variables,
            log=logs / f"{entry.module.rpartition('.')[2]}-{entry.way}.log".replace(" ", "-"),
        )
    )
    peer.run(replace(workload.rotated(-1), num_new_tokens=min(2, workload.num_new_tokens)))
    return peer
