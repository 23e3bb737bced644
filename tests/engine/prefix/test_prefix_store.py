"""What memory has dropped is read back to the bit, and a file that is not what was written is never used."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from app.engine.engine import Engine
from app.engine.prefix import prefix_store
from app.engine.prefix.prefix_store import (
    ABANDONED_S,
    DESCRIPTION_FILE,
    FULL_S,
    LOOK_INTERVAL_S,
    MAX_LOOKING,
    MAX_PENDING,
    UNFINISHED,
    PrefixStore,
)
from app.errors import InvalidInput
from app.task_prompt import TaskPrompt
from app.telemetry import Metrics
from tests.engine.test_engine import BACKBONE, greedy_params, make_engine, prompt_of, read, text_of
from tests.support import naive

ROW_SIZE = 12
FILE_BYTES = 32 + 4 * 5 * ROW_SIZE


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def open_store(
    folder: Path,
    max_bytes: int = 2**20,
    dtype: torch.dtype = torch.float32,
    code: str = "C",
    clock: Callable[[], float] = lambda: 0.0,
) -> PrefixStore:
    return PrefixStore(
        folder, max_bytes=max_bytes, row_size=ROW_SIZE, dtype=dtype, computed_by={"code": code}, clock=clock
    )


def rows_of(seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(5, ROW_SIZE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def digest_of(seed: int) -> str:
    return f"{seed:064x}"


def keep(store: PrefixStore, *seeds: int, dtype: torch.dtype = torch.float32) -> None:
    """Keep them one after the other, each written before the next."""
    for seed in seeds:
        store.keep(digest_of(seed), lambda seed=seed: rows_of(seed, dtype))
        store.writer.submit(int).result()


def found(store: PrefixStore, seed: int) -> torch.Tensor | None:
    return store.find(digest_of(seed), 5)


def use_long_ago(folder: Path, *seeds: int) -> None:
    """One after the other."""
    for time_s, seed in enumerate(seeds):
        os.utime(file_of(folder, seed), (time_s, time_s))


def file_of(folder: Path, seed: int) -> Path:
    (path,) = folder.glob(f"*/{digest_of(seed)}.kv")
    return path


def only_file(folder: Path) -> Path:
    (path,) = folder.glob("*/*.kv")
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_kept_is_found_to_the_bit_now_and_after_a_restart(tmp_path: Path, dtype: torch.dtype) -> None:
    store = open_store(tmp_path, dtype=dtype)
    assert found(store, 1) is None
    keep(store, 1, 2, dtype=dtype)
    store.close()
    for each in (store, open_store(tmp_path, dtype=dtype)):
        rows = found(each, 1)
        assert rows is not None
        assert rows.dtype == dtype
        assert torch.equal(rows, rows_of(1, dtype))
        assert len(each) == 2
        assert each.num_bytes == sum(path.stat().st_size for path in tmp_path.glob("*/*.kv"))


@pytest.mark.parametrize("place", [0, 31, 32, 100, FILE_BYTES - 1])
def test_a_flipped_bit_is_found_out_and_the_file_goes(tmp_path: Path, place: int) -> None:
    store = open_store(tmp_path)
    keep(store, 1)
    path = only_file(tmp_path)
    content = bytearray(path.read_bytes())
    assert len(content) == FILE_BYTES
    content[place] ^= 4
    path.write_bytes(content)
    assert found(store, 1) is None
    assert not path.exists()
    assert (len(store), store.num_bytes) == (0, 0)
    keep(store, 1)
    assert found(store, 1) is not None


@pytest.mark.parametrize("size", [0, 10, 32, FILE_BYTES - 1, FILE_BYTES + 1])
def test_a_torn_file_is_found_out(tmp_path: Path, size: int) -> None:
    store = open_store(tmp_path)
    keep(store, 1)
    path = only_file(tmp_path)
    path.write_bytes((path.read_bytes() + b"\0")[:size])
    assert found(store, 1) is None


def test_a_file_that_another_server_removed_is_not_kept(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    keep(store, 1)
    only_file(tmp_path).unlink()
    assert found(store, 1) is None
    assert len(store) == 0


def test_the_least_recently_used_go_also_after_a_restart(tmp_path: Path) -> None:
    store = open_store(tmp_path, max_bytes=3 * FILE_BYTES)
    keep(store, 1, 2, 3)
    use_long_ago(tmp_path, 1, 2, 3)
    store = open_store(tmp_path, max_bytes=3 * FILE_BYTES)
    assert found(store, 1) is not None
    keep(store, 4)
    assert [found(store, seed) is not None for seed in (1, 2, 3, 4)] == [True, False, True, True]
    assert store.num_bytes == 3 * FILE_BYTES


def test_files_are_for_those_who_compute_the_same_and_share_the_room(tmp_path: Path) -> None:
    first, other = open_store(tmp_path), open_store(tmp_path, code="torch")
    keep(first, 1)
    assert found(other, 1) is None
    other = open_store(tmp_path, max_bytes=FILE_BYTES, code="torch")
    assert found(other, 1) is None
    use_long_ago(tmp_path, 1)
    keep(other, 2)
    assert found(other, 2) is not None
    assert found(first, 1) is None, "the oldest file goes, whoever wrote it"


def test_servers_that_share_a_folder_find_each_other_s_files_and_keep_its_limit_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    first, second = (open_store(tmp_path, max_bytes=3 * FILE_BYTES, clock=clock) for _ in range(2))
    look = prefix_store.kept_files
    lookers: set[str] = set()

    def seen_look(folder: Path) -> Iterator[tuple[Path, int]]:
        lookers.add(threading.current_thread().name)
        return look(folder)

    monkeypatch.setattr(prefix_store, "kept_files", seen_look)
    keep(first, 1, 2)
    keep(second, 3, 4)
    assert found(second, 1) is not None
    assert (first.num_bytes, second.num_bytes) == (2 * FILE_BYTES, 3 * FILE_BYTES)
    use_long_ago(tmp_path, 2, 1, 3, 4)
    assert found(first, 5) is None
    assert not lookers
    clock.now_s += LOOK_INTERVAL_S
    assert found(first, 5) is None
    first.close()
    assert first.num_bytes == 3 * FILE_BYTES
    assert [found(first, seed) is not None for seed in (1, 2, 3, 4)] == [True, False, True, True]
    assert lookers == {"prefix-store_0"}


def test_a_file_that_another_server_used_is_not_the_least_recently_used(tmp_path: Path) -> None:
    first, second = (open_store(tmp_path, max_bytes=3 * FILE_BYTES) for _ in range(2))
    keep(first, 1, 2, 3)
    use_long_ago(tmp_path, 1, 2, 3)
    assert found(second, 1) is not None
    keep(first, 4)
    assert [found(first, seed) is not None for seed in (1, 2, 3, 4)] == [True, False, True, True]


def test_a_look_that_took_long_is_good_for_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, look, looked_s = Clock(), prefix_store.kept_files, []
    store = open_store(tmp_path, max_bytes=2 * FILE_BYTES, clock=clock)

    def slow_look(folder: Path) -> Iterator[tuple[Path, int]]:
        clock.now_s += 1
        looked_s.append(clock.now_s)
        return look(folder)

    monkeypatch.setattr(prefix_store, "kept_files", slow_look)
    keep(store, 1, 2, 3, 4)
    clock.now_s += 0.9 / MAX_LOOKING
    keep(store, 5)
    assert len(looked_s) == 1
    clock.now_s += 0.2 / MAX_LOOKING
    keep(store, 6)
    assert len(looked_s) == 2
    assert store.num_bytes == 2 * FILE_BYTES
    assert len(list(tmp_path.glob("*/*.kv"))) == 2


def test_the_size_is_of_what_is_there(tmp_path: Path) -> None:
    clock = Clock()
    store = open_store(tmp_path, clock=clock)
    keep(store, 1, 2)
    file_of(tmp_path, 1).unlink()
    keep(store, 3)
    assert (len(store), store.num_bytes) == (3, 3 * FILE_BYTES)
    clock.now_s += LOOK_INTERVAL_S
    keep(store, 4)
    assert (len(store), store.num_bytes) == (3, 3 * FILE_BYTES)


def test_what_two_servers_write_counts_once(tmp_path: Path, gate: threading.Event) -> None:
    first, second = open_store(tmp_path), open_store(tmp_path)
    first.writer.submit(gate.wait)
    first.keep(digest_of(1), lambda: rows_of(1))
    keep(second, 1)
    assert found(first, 1) is not None
    gate.set()
    first.close()
    assert (len(first), first.num_bytes) == (1, FILE_BYTES)


def test_what_is_larger_than_the_whole_store_displaces_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path, max_bytes=FILE_BYTES)
    keep(store, 1)
    store.keep(digest_of(2), lambda: rows_of(2).repeat(2, 1))
    store.close()
    assert found(store, 1) is not None
    assert len(store) == 1


def test_what_is_not_finite_is_not_kept(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    rows = rows_of(1)
    rows[3, 4] = float("inf")
    store.keep(digest_of(1), lambda: rows)
    store.close()
    assert found(store, 1) is None
    assert not list(tmp_path.glob("*/*.kv"))


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_forgotten_before_it_is_written_is_not_written(tmp_path: Path, gate: threading.Event) -> None:
    store = open_store(tmp_path)
    store.writer.submit(gate.wait)
    store.keep(digest_of(1), lambda: rows_of(1))
    store.forget(digest_of(1))
    gate.set()
    store.close()
    assert not [path for path in tmp_path.glob("*/*") if path.suffix != ".json"]


def test_when_too_many_wait_to_be_written_no_more_are_copied(tmp_path: Path, gate: threading.Event) -> None:
    store = open_store(tmp_path)
    store.writer.submit(gate.wait)
    for index in range(MAX_PENDING):
        store.keep(digest_of(index), lambda: rows_of(1))
    store.keep(digest_of(MAX_PENDING), lambda: pytest.fail("copied"))
    gate.set()
    store.close()
    assert len(store) == MAX_PENDING


def test_what_a_crash_left_unfinished_goes_later(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    keep(store, 1)
    old, young = (only_file(tmp_path).with_name(UNFINISHED + name) for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, old.stat().st_mtime - 2 * ABANDONED_S))
    assert len(open_store(tmp_path)) == 1
    assert (old.exists(), young.exists()) == (False, True)


def test_files_of_other_programs_are_neither_counted_nor_removed(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    keep(store, 1)
    own, others = only_file(tmp_path).parent, tmp_path / "others"
    theirs = [
        others / DESCRIPTION_FILE,
        *(others / name for name in ("half.tmp", f"{UNFINISHED}half", f"{digest_of(2)}.kv")),
        *(tmp_path / "0123456789abcdef" / name for name in (f"{UNFINISHED}half", f"{digest_of(2)}.kv")),
        *(own / name for name in ("half.tmp", "notes.kv")),
    ]
    for path in theirs:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"theirs")
        os.utime(path, (0, 0))
    use_long_ago(tmp_path, 1)
    store = open_store(tmp_path, max_bytes=FILE_BYTES)
    assert (len(store), store.num_bytes) == (1, FILE_BYTES)
    keep(store, 2)
    assert [found(store, seed) is not None for seed in (1, 2)] == [False, True]
    assert all(path.exists() for path in theirs)


def test_a_folder_that_cannot_be_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="prefix_store") as caught:
        open_store(tmp_path / "file")
    assert caught.value.param == "prefix_store"


def test_a_full_disk_costs_nothing_but_the_file_and_has_no_room_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    store = open_store(tmp_path, clock=clock)

    def rename(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        keep(store, 1)
    assert "No space left" in caplog.text
    assert (len(store), store.num_bytes) == (0, 0)
    assert [path.name for path in tmp_path.glob("*/*")] == [DESCRIPTION_FILE]
    assert not store.has_room(5)
    keep(store, 1)
    assert found(store, 1) is not None, "what requests compute is tried all the same"
    assert not store.has_room(5)
    clock.now_s += FULL_S
    assert store.has_room(5)


# In the engine


def stored_engine(folder: Path, metrics: Metrics | None = None, **changes: int) -> Engine:
    return make_engine(metrics=metrics, prefix_store=folder, prefix_store_bytes=2**20, **changes)  # type: ignore[arg-type]


def answer(engine: Engine, prompt: TaskPrompt) -> object:
    sequence_id = engine.add(text_of(3), prompt=prompt, params=greedy_params(logprobs=5))
    deltas = naive.run(engine)[sequence_id]
    return [(delta.token_ids, delta.logprobs) for delta in deltas]


TEXT_PROMPT = TaskPrompt.from_text("text", list(range(40, 51)), BACKBONE.fingerprint)


@pytest.mark.parametrize("prompt", [prompt_of(10), prompt_of(100), TEXT_PROMPT], ids=["rows", "chunks", "text"])
def test_a_prefix_read_back_is_the_computed_one_to_the_bit(tmp_path: Path, prompt: TaskPrompt) -> None:
    wanted = answer(make_engine(), prompt)
    first = stored_engine(tmp_path)
    assert answer(first, prompt) == wanted
    first.scheduler.prefix_cache.clear()
    first.close()
    metrics = Metrics()
    for engine in (first, stored_engine(tmp_path, metrics)):
        assert answer(engine, prompt) == wanted
        (prefix,) = engine.scheduler.prefix_cache.prefixes
        assert torch.equal(engine.model_runner.computed_rows(prefix), computed_rows(prompt))
        engine.scheduler.audit()
    assert read(metrics, "prefix_store_loads_total") == 1
    assert read(metrics, "prefix_store_bytes") > 4 * BACKBONE.kv_row_size * prompt.num_virtual_tokens
    assert read(metrics, "prefix_cache_hits_total") == prompt.num_virtual_tokens


def test_rows_are_not_for_another_version_of_what_computes_them() -> None:
    versions = make_engine().model_runner.computed_by["versions"]
    assert all(f"{name} {version(name)}" in versions for name in ("softswap", "torch", "transformers"))


def computed_rows(prompt: TaskPrompt) -> torch.Tensor:
    engine = make_engine()
    answer(engine, prompt)
    (prefix,) = engine.scheduler.prefix_cache.prefixes
    return engine.model_runner.computed_rows(prefix)


def test_a_damaged_file_is_computed_anew(tmp_path: Path) -> None:
    prompt = prompt_of(10)
    engine = stored_engine(tmp_path)
    wanted = answer(engine, prompt)
    engine.close()
    path = only_file(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    engine = stored_engine(tmp_path)
    assert answer(engine, prompt) == wanted
    engine.close()
    assert only_file(tmp_path).read_bytes() == content


def test_keys_and_values_as_such_and_texts_of_requests_are_not_stored(tmp_path: Path) -> None:
    metrics = Metrics()
    engine = stored_engine(tmp_path, metrics)
    answer(engine, prompt_of(10, kind="kv"))
    shared = [engine.add(text_of(1, 20), params=greedy_params(), num_shared_tokens=12) for _ in range(2)]
    assert len(naive.run(engine)) == len(shared)
    engine.close()
    assert not list(tmp_path.glob("*/*.kv"))
    assert read(metrics, "prefix_store_loads_total") == 0


def test_a_prefix_that_failed_is_forgotten_on_disk_too(tmp_path: Path) -> None:
    engine = stored_engine(tmp_path)
    answer(engine, prompt_of(10))
    engine.close()
    path = only_file(tmp_path)
    (prefix,) = engine.scheduler.prefix_cache.prefixes
    engine.scheduler.prefix_cache.forget(prefix)
    assert not path.exists()


def test_many_tasks_in_little_memory_are_computed_once_each(tmp_path: Path) -> None:
    """Blocks for few prefixes: each is dropped before it is asked for again."""
    prompts = [prompt_of(10, seed=seed) for seed in range(12)]
    metrics = Metrics()
    engine = stored_engine(tmp_path, metrics, num_blocks=16)
    wanted = [answer(engine, prompt) for prompt in prompts]
    engine.prefix_store.writer.submit(int).result()  # type: ignore[union-attr]
    assert [answer(engine, prompt) for prompt in prompts] == wanted
    assert read(metrics, "prefix_store_loads_total") == 12
