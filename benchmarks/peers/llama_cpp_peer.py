"""llama.cpp through llama-cpp-python's C interface. Runs in the environment `llama.cpp`.

A task's rows are computed once, into a sequence of their own; a request's sequence begins as its copy, which shares the
cells of the unified KV cache. Requests take free slots as others end: continuous batching, by hand. The way `slots-N`
says how many there are.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llama_cpp  # type: ignore[import-not-found]
import numpy as np

from benchmarks.peers.gguf_file import write_gguf
from benchmarks.peers.protocol import CannotError, Load, Ran, Run, serve

NUM_BATCHED_TOKENS = 512
NUM_PHYSICAL_TOKENS = 512


@dataclass
class _Slot:
    """A request that is being answered. Attributes: pending: ids to compute next."""

    request: int
    pending: list[int]
    num_positions: int
    tokens: list[int] = field(default_factory=list)


class LlamaCppPeer:
    """One context, one batch at a time."""

    version = f"of llama-cpp-python {llama_cpp.__version__}"

    def load(self, wanted: Load) -> None:
        kind, _, number = wanted.way.partition("-")
        self._num_slots = int(number)
        prompts = np.load(wanted.prompts)
        self._num_tasks, self._num_virtual, hidden = prompts.shape
        path = Path(wanted.scratch) / "model.gguf"
        write_gguf(Path(wanted.model), path, wanted.dtype)
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise CannotError("llama.cpp cannot load the GGUF file")
        params = llama_cpp.llama_context_default_params()
        params.n_seq_max = self._num_slots + self._num_tasks
        params.n_ctx = self._num_tasks * self._num_virtual + self._num_slots * wanted.num_positions + 256
        params.n_batch, params.n_ubatch = NUM_BATCHED_TOKENS, NUM_PHYSICAL_TOKENS
        params.kv_unified = kind == "slots"
        params.n_threads = params.n_threads_batch = int(os.environ["OMP_NUM_THREADS"])
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise CannotError("llama.cpp cannot make a context of that size")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._num_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(NUM_BATCHED_TOKENS, 0, 1)
        for task, rows in enumerate(prompts):
            self._compute_rows(rows, self._num_slots + task, hidden)

    def run(self, wanted: Run) -> Ran:
        began_s = time.perf_counter()
        waiting = deque(range(len(wanted.texts)))
        slots: list[_Slot | None] = [None] * self._num_slots
        tokens: list[list[int]] = [[] for _ in wanted.texts]
        first_token_s = [0.0] * len(tokens)
        while waiting or any(slots):
            for number, slot in enumerate(slots):
                if slot is None and waiting:
                    slots[number] = self._occupy(number, waiting.popleft(), wanted)
            place_to_number = self._fill(slots)
            self._decode()
            for place, number in place_to_number.items():
                slot = slots[number]
                assert slot is not None
                chosen = self._choose(place, wanted.labels)
                slot.pending = [chosen]
                slot.tokens.append(chosen)
                first_token_s[slot.request] = first_token_s[slot.request] or time.perf_counter() - began_s
                if len(slot.tokens) == wanted.num_new_tokens:
                    tokens[slot.request], slots[number] = slot.tokens, None
        return Ran(tokens, first_token_s)

    def _occupy(self, number: int, request: int, wanted: Run) -> _Slot:
        llama_cpp.llama_memory_seq_rm(self._memory, number, -1, -1)
        source = self._num_slots + wanted.tasks[request]
        llama_cpp.llama_memory_seq_cp(self._memory, source, number, -1, -1)
        return _Slot(request, list(wanted.texts[request]), self._num_virtual)

    def _fill(self, slots: Sequence[_Slot | None]) -> dict[int, int]:
        """Put pending ids into the batch. Returns: the batch's places whose logits are wanted, to their slots."""
        self._batch.n_tokens = 0
        place_to_number = {}
        for number, slot in enumerate(slots):
            room = NUM_BATCHED_TOKENS - self._batch.n_tokens
            if slot is None or not room:
                continue
            now, slot.pending = slot.pending[:room], slot.pending[room:]
            for token_id in now:
                self._put(token_id, slot.num_positions, number)
                slot.num_positions += 1
            if not slot.pending:
                place = self._batch.n_tokens - 1
                self._batch.logits[place] = 1
                place_to_number[place] = number
        return place_to_number

    def _put(self, token_id: int, position: int, sequence: int) -> None:
        place = self._batch.n_tokens
        self._batch.token[place] = token_id
        self._batch.pos[place] = position
        self._batch.n_seq_id[place] = 1
        self._batch.seq_id[place][0] = sequence
        self._batch.logits[place] = 0
        self._batch.n_tokens += 1

    def _decode(self) -> None:
        if llama_cpp.llama_decode(self._context, self._batch):
            raise CannotError("llama_decode failed")

    def _choose(self, place: int, labels: Sequence[int]) -> int:
        pointer = llama_cpp.llama_get_logits_ith(self._context, place)
        logits = np.ctypeslib.as_array(pointer, shape=(self._num_vocab,))
        return labels[int(logits[labels].argmax())] if labels else int(logits.argmax())

    def _compute_rows(self, rows: Any, sequence: int, hidden: int) -> None:
        batch = llama_cpp.llama_batch_init(len(rows), hidden, 1)
        ctypes.memmove(batch.embd, np.ascontiguousarray(rows, np.float32).ctypes.data, rows.size * 4)
        batch.n_tokens = len(rows)
        for place in range(len(rows)):
            batch.pos[place], batch.n_seq_id[place] = place, 1
            batch.seq_id[place][0], batch.logits[place] = sequence, 0
        if llama_cpp.llama_decode(self._context, batch):
            raise CannotError("llama.cpp does not take the soft prompt's rows")
        llama_cpp.llama_batch_free(batch)


if __name__ == "__main__":
    serve(LlamaCppPeer())
