from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from app.errors import CorruptState, TuningUnavailable
from app.jobs.state_folder import StateFolder


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[StateFolder]:
    with closing(StateFolder(tmp_path / "state")) as opened:
        yield opened


def test_contents_are_kept_once_and_checked_when_they_are_read(folder: StateFolder, tmp_path: Path) -> None:
    digest = folder.put_file(b"content")
    assert folder.put_file(b"content") == digest
    assert folder.read_file(digest) == b"content"
    (tmp_path / "state/files" / digest).write_bytes(b"other")
    with pytest.raises(CorruptState, match="damaged"):
        folder.read_file(digest)
    folder.put_file(b"content")
    assert folder.read_file(digest) == b"content"
    folder.remove_file(digest)
    with pytest.raises(CorruptState, match="missing"):
        folder.read_file(digest)


@pytest.mark.parametrize("place", [0, 31, 32, -1])
def test_every_flipped_bit_of_a_saved_run_is_seen(folder: StateFolder, tmp_path: Path, place: int) -> None:
    assert folder.read_run("a") is None
    folder.save_run("a", b"first")
    folder.save_run("a", b"second")
    assert folder.read_run("a") == b"second"
    stored = bytearray((tmp_path / "state/runs/a").read_bytes())
    stored[place] ^= 1
    (tmp_path / "state/runs/a").write_bytes(stored)
    with pytest.raises(CorruptState):
        folder.read_run("a")


def test_what_a_crash_left_is_cleared(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    kept, lost = folder.put_file(b"kept"), folder.put_file(b"lost")
    folder.save_run("kept", b"")
    folder.save_run("lost", b"")
    (tmp_path / "runs/.tmp-1").write_bytes(b"half")
    folder.close()
    with closing(StateFolder(tmp_path)) as reopened:
        reopened.keep_only(digests={kept}, job_ids={"kept"})
    assert [path.name for path in (tmp_path / "files").iterdir()] == [kept]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["kept"]
    assert lost not in (kept,)


def test_a_folder_that_vanished_is_not_made_anew(tmp_path: Path) -> None:
    registry = tmp_path / "prompts"
    with closing(StateFolder(registry / ".state")) as folder:
        registry.rename(tmp_path / "unmounted")
        with pytest.raises(TuningUnavailable, match="gone"):
            folder.put_file(b"content")
        with pytest.raises(TuningUnavailable, match="gone"):
            folder.save_run("a", b"first")
    assert not registry.exists()


def test_the_lock_ends_with_its_holder(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    with pytest.raises(TuningUnavailable):
        StateFolder(tmp_path)
    folder.close()
    folder.close()
    StateFolder(tmp_path).close()
