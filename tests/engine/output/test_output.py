"""What one sequence shows of its tokens, without an engine around it."""

from __future__ import annotations

import pytest

from app.engine.output.output import Delta, ScoringOutput, TextOutput
from app.engine.sequence import FinishReason, Sequence
from app.model.backbone import Backbone
from app.model.sampler import TokenLogprob
from app.sampling import SamplingParams
from tests.support.models import tiny_backbone

LOGPROB = TokenLogprob(token_id=5, logprob=-1.0, top=())


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone()


def ids_of(backbone: Backbone, text: str) -> list[int]:
    return backbone.tokenizer(text, add_special_tokens=False)["input_ids"]


def make(backbone: Backbone, text: str = "ab", **params: object) -> TextOutput:
    ids = ids_of(backbone, text)
    return TextOutput(
        Sequence(
            sequence_id=1,
            token_ids=ids,
            num_prompt_tokens=len(ids),
            params=SamplingParams(**{"max_tokens": 20, **params}),
            seed=0,
        ),
        backbone,
    )


def write(output: TextOutput, ids: list[int]) -> list[Delta]:
    """As the engine does it: nothing is added after an end."""
    deltas = []
    for token_id in ids:
        output.sequence.num_pending += 1
        deltas.append(output.add(token_id, None))
        if deltas[-1].finish_reason:
            break
    return deltas


def test_a_token_is_known_and_no_longer_pending(backbone: Backbone) -> None:
    output = make(backbone)
    [delta] = write(output, ids_of(backbone, "c"))
    assert (delta.text, delta.token_ids, delta.finish_reason) == ("c", tuple(ids_of(backbone, "c")), None)
    assert output.sequence.token_ids[output.sequence.num_prompt_tokens :] == ids_of(backbone, "c")
    assert output.sequence.num_pending == 0


def test_the_last_token_allowed_ends_it_and_shows_what_was_held_back(backbone: Backbone) -> None:
    deltas = write(make(backbone, max_tokens=3, stop=("cdx",)), ids_of(backbone, "acdefg"))
    assert [(delta.text, delta.finish_reason) for delta in deltas] == [
        ("a", None), ("", None), ("cd", FinishReason.LENGTH),
    ]  # fmt: skip
    assert deltas[-1].stop_reason is None


def test_a_stop_string_ends_it_and_is_named_and_not_shown(backbone: Backbone) -> None:
    deltas = write(make(backbone, stop=("de",)), ids_of(backbone, "cdef"))
    assert "".join(delta.text for delta in deltas) == "c"
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == (FinishReason.STOP, "de")


@pytest.mark.parametrize(("how", "named"), [("eos", False), ("stop_token_ids", True), ("ignored", None)])
def test_an_end_token_is_named_only_where_the_request_named_it(
    backbone: Backbone, how: str, named: bool | None
) -> None:
    end = backbone.eos_token_ids[0]
    params = {"eos": {}, "stop_token_ids": {"stop_token_ids": (end,)}, "ignored": {"ignore_eos": True}}[how]
    deltas = write(make(backbone, **params), [*ids_of(backbone, "c"), end, *ids_of(backbone, "d")])
    if named is None:
        assert [delta.finish_reason for delta in deltas] == [None] * 3
    else:
        assert [delta.finish_reason for delta in deltas] == [None, FinishReason.STOP]
        assert deltas[-1].stop_reason == (end if named else None)


def test_prompt_logprobs_are_shown_once_and_a_row_computed_again_adds_none(backbone: Backbone) -> None:
    output = make(backbone, "abc", prompt_logprobs=0)
    output.note_prompt_logprob(0, LOGPROB)
    output.note_prompt_logprob(0, LOGPROB)
    output.note_prompt_logprob(1, LOGPROB)
    assert output.sequence.num_reported_logprobs == 2
    first, second = write(output, ids_of(backbone, "de"))
    assert (first.prompt_logprobs, second.prompt_logprobs) == ((None, LOGPROB, LOGPROB), None)
    assert write(make(backbone), ids_of(backbone, "d"))[0].prompt_logprobs is None


def test_an_end_without_a_token_shows_all_that_is_left(backbone: Backbone) -> None:
    output = make(backbone, stop=("cdx",))
    write(output, ids_of(backbone, "cd"))
    delta = output.end(FinishReason.DEADLINE)
    assert (delta.text, delta.token_ids, delta.finish_reason) == ("cd", (), FinishReason.DEADLINE)


def test_scores_are_shown_at_the_end_of_a_scoring_sequence(backbone: Backbone) -> None:
    output = ScoringOutput(make(backbone, max_tokens=0).sequence)
    output.note_scores(0, {5: -1.5, 6: -2.5})
    scores = output.end(FinishReason.LENGTH)
    assert (scores.logprobs, scores.finish_reason) == ({(0, 5): -1.5, (0, 6): -2.5}, FinishReason.LENGTH)
