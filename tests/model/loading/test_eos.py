"""Where a text ends: whatever a checkpoint declares, in any of its files, ends it, and one of these is taught."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path

import pytest
from transformers import GenerationConfig, PreTrainedTokenizerFast

from app.engine.config import EngineConfig
from app.engine.engine import Engine
from app.engine.sequence import FinishReason
from app.errors import InvalidInput
from app.measure.dataset import Example
from app.measure.encoding import encode_examples
from app.measure.plain_model import evaluate
from app.measure.served_prompt import ServedPrompt
from app.model.attention import attend_sdpa
from app.model.backbone import Backbone
from app.model.kernels import Replacements
from app.model.layout import Template, encode_labels
from app.sampling import SamplingParams
from tests.support import naive
from tests.support.models import BOS, PAD, build_backbone, copy_tokenizer

OTHER, THIRD, OUTSIDE = 40, 41, 300
TEMPLATE = Template("{input}\n{target}")
END_OF_TURN = "{% for m in messages %}{{ m.role }}: {{ m.content }}<pad>\n{% endfor %}assistant:"


def tokenizer_without_eos() -> PreTrainedTokenizerFast:
    plain = copy_tokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=plain.backend_tokenizer, bos_token=BOS, pad_token=PAD)


def backbone_that_ends(
    *, generation: object = None, config: object = None, tokenizer: PreTrainedTokenizerFast | None = None
) -> Backbone:
    declared = GenerationConfig(eos_token_id=generation)
    return build_backbone("llama", tokenizer=tokenizer, generation=declared, eos_token_id=config)


@pytest.mark.parametrize(
    ("generation", "config", "has_own", "ends", "taught"),
    [
        (OTHER, 1, True, {1, OTHER}, 1),
        ([OTHER, THIRD], None, True, {1, OTHER, THIRD}, 1),
        ([THIRD, 1], OTHER, True, {1, THIRD, OTHER}, 1),
        (None, [OTHER, 1], True, {1, OTHER}, 1),
        (None, None, True, {1}, 1),
        (OTHER, 1, False, {OTHER, 1}, OTHER),
        ([THIRD, OTHER], None, False, {OTHER, THIRD}, THIRD),
        (None, OTHER, False, {OTHER}, OTHER),
        ([OUTSIDE, OTHER], -1, False, {OTHER}, OTHER),
        (OUTSIDE, 259, True, {1}, 1),
    ],
)
def test_a_text_ends_at_every_id_that_is_declared_and_one_is_taught(
    generation: object, config: object, has_own: bool, ends: set[int], taught: int
) -> None:
    tokenizer = None if has_own else tokenizer_without_eos()
    backbone = backbone_that_ends(generation=generation, config=config, tokenizer=tokenizer)
    assert set(backbone.eos_token_ids) == ends
    [row] = encode_examples(backbone, TEMPLATE, [Example("a", "up.")], max_input_tokens=9, max_target_tokens=9)
    assert row.target_ids == (*TEMPLATE.encode_target(backbone.tokenizer, "up."), taught)
    assert encode_labels(backbone, TEMPLATE, ("no", "nob"))[0][-1] == taught
    assert _ends_of_engine(backbone, (1, OTHER, THIRD, 50)) == ends


def _ends_of_engine(backbone: Backbone, tried: Iterable[int]) -> set[int]:
    """Those of the tokens at which a text of the engine's ends."""
    sizes = EngineConfig(
        max_model_len=64,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        block_size=16,
        num_blocks=20,
        max_waiting_requests=9,
        max_waiting_tokens=99,
    )
    engine = Engine(backbone, sizes, attend=attend_sdpa, replacements=Replacements())
    id_to_token = {
        engine.add([0, 70], params=SamplingParams(max_tokens=3, temperature=0, logit_bias={each: 100.0})): each
        for each in tried
    }
    found = naive.run(engine)
    return {token for each, token in id_to_token.items() if found[each][-1].finish_reason is FinishReason.STOP}


def test_the_plain_model_ends_where_the_engine_does() -> None:
    backbone = backbone_that_ends()
    written, _ = naive.greedy(backbone, None, TEMPLATE.encode_input(backbone.tokenizer, "abc"), 8)
    ending = backbone_that_ends(generation=[OUTSIDE, written[3]])
    [cut] = evaluate(ending, ServedPrompt(None, TEMPLATE, max_new_tokens=8), [Example("abc", "x")]).predictions
    before = written[: written.index(written[3])]
    assert cut == backbone.tokenizer.decode(before, skip_special_tokens=True).strip()


def test_a_chat_template_that_ends_turns_with_a_token_names_an_end() -> None:
    tokenizer = copy_tokenizer(chat_template=END_OF_TURN)
    assert build_backbone("llama", tokenizer=tokenizer).eos_token_ids == (1, 2)
    silent = tokenizer_without_eos()
    silent.chat_template = END_OF_TURN
    backbone = backbone_that_ends(tokenizer=silent)
    assert (backbone.eos_token_ids, backbone.taught_eos_ids) == ((2,), (2,))


def test_a_backbone_without_an_end_says_so_and_can_be_tuned(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        backbone = build_backbone("llama", tokenizer=tokenizer_without_eos(), eos_token_id=None)
    assert "texts end at max_tokens" in caplog.text
    assert backbone.eos_token_ids == backbone.taught_eos_ids == ()
    [row] = encode_examples(backbone, TEMPLATE, [Example("a", "up")], max_input_tokens=9, max_target_tokens=9)
    assert row.target_ids == tuple(TEMPLATE.encode_target(backbone.tokenizer, "up"))


def test_an_end_that_the_model_has_no_embedding_of_is_refused_by_name_where_it_would_be_taught(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokenizer = tokenizer_without_eos()
    tokenizer.eos_token = "<end>"
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    assert tokenizer.eos_token_id == 259
    with caplog.at_level(logging.WARNING):
        backbone = build_backbone("llama", tokenizer=tokenizer, eos_token_id=None)
    assert "'<end>'" in caplog.text
    assert backbone.eos_token_ids == ()
    with pytest.raises(InvalidInput, match=r"target of example 1 has the token '<end>' \(id 259\)"):
        encode_examples(backbone, TEMPLATE, [Example("a", "up")], max_input_tokens=9, max_target_tokens=9)
    assert evaluate(backbone, ServedPrompt(None, TEMPLATE, max_new_tokens=3), [Example("a", "up")]).predictions


@pytest.mark.parametrize("is_written", [True, False])
def test_an_id_that_only_a_configuration_class_presumes_ends_nothing(is_written: bool, tmp_path: Path) -> None:
    """Llama's class presumes 2; a byte-level vocabulary may have any token there."""
    backbone = build_backbone("llama", eos_token_id=2)
    backbone.model.save_pretrained(tmp_path)
    backbone.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    if not is_written:
        del config["eos_token_id"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Backbone.load(tmp_path, device="cpu").eos_token_ids == ((1, 2) if is_written else (1,))
