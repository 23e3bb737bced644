"""Every row meets every prompt once, within the bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.measure.encoding import EncodedExample
from app.tuning.run.rows import Chunker


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20),
    num_prompts=st.integers(1, 5),
    max_rows=st.integers(1, 8),
    max_tokens=st.none() | st.integers(1, 100),
    num_extra=st.integers(0, 5),
)
def test_chunks_hold_every_pair_once_and_keep_their_bounds(
    lengths: list[int], num_prompts: int, max_rows: int, max_tokens: int | None, num_extra: int
) -> None:
    rows = [EncodedExample(tuple(range(length)), ()) for length in lengths]
    chunker = Chunker(max_rows=max_rows, num_extra_tokens=num_extra)
    chunker.max_tokens = max_tokens
    chunks = list(chunker.chunks(rows, num_prompts))
    assert sorted(place for chunk in chunks for place in chunk.places) == [
        (row, prompt) for row in range(len(rows)) for prompt in range(num_prompts)
    ]
    for chunk in chunks:
        assert [rows[i] for i, _ in chunk.places] == chunk.rows
        assert 1 <= len(chunk.rows) <= max_rows
        num_tokens = len(chunk.rows) * (max(row.num_tokens for row in chunk.rows) + num_extra)
        assert max_tokens is None or len(chunk.rows) == 1 or num_tokens <= max_tokens
