"""The five equalities of the design: what the engine computes is what the slow, plain way computes."""

from __future__ import annotations

import copy
import os
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file

from app.engine.config import EngineConfig
from app.engine.engine import Engine
from app.engine.output.output import Delta
from app.engine.sequence import FinishReason
from app.model.attention import Attend, attend_sdpa
from app.model.backbone import Backbone
from app.model.cpu.compiled_layer import compile_layers
from app.model.cpu.compiled_linear import compile_linears
from app.model.kernels import Replacements
from app.model.layout import Template, encode_text
from app.sampling import SamplingParams
from app.task_prompt import PromptKind, TaskPrompt
from tests.support import naive
from tests.support.compiled import needs_compiler
from tests.support.models import ARCHITECTURE_TO_CONFIG, tiny_backbone

ARCHITECTURES = list(ARCHITECTURE_TO_CONFIG)
PROMPT_LENGTHS = (1, 7, 20, 50, 100)
NUM_NEW = 6
ROOT = Path(__file__).parents[2]
SHARED_MODELS = Path(os.environ.get("SOFTSWAP_SHARED_DATA", ROOT.parent / "shared" / "data")) / "models"
REAL_CHECKPOINTS = (SHARED_MODELS / "stories260K", SHARED_MODELS / "llama2xs", ROOT / "app" / "demo" / "backbone")
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_NEW, ignore_eos=True, logprobs=20)


def random_ids(num_tokens: int, seed: int, vocab_size: int = 259) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [0, *torch.randint(3, vocab_size, (num_tokens - 1,), generator=generator).tolist()]


@cache
def random_prompt(backbone: Backbone, num_virtual_tokens: int, kind: str = "embeddings", seed: int = 0) -> TaskPrompt:
    generator = torch.Generator().manual_seed(1000 * seed + num_virtual_tokens)
    if kind == "text":
        ids = random_ids(num_virtual_tokens, seed)
        return TaskPrompt.from_text("written by hand", ids, backbone.fingerprint)
    width, make = {
        "embeddings": (backbone.hidden_size, TaskPrompt.from_embeddings),
        "kv": (backbone.kv_row_size, TaskPrompt.from_kv),
    }[kind]
    return make(torch.randn(num_virtual_tokens, width, generator=generator) * 0.5, backbone.fingerprint)


def rows_of(prompt: TaskPrompt) -> torch.Tensor:
    assert prompt.rows is not None
    return prompt.rows


def make_engine(
    backbone: Backbone,
    *,
    block_size: int = 16,
    num_blocks: int | None = None,
    attend: Attend | None = None,
    replacements: Replacements | None = None,
    **sizes: int,
) -> Engine:
    """An engine with the attention and layers it chooses itself, unless others are given."""
    config = EngineConfig(
        max_model_len=min(512, backbone.max_model_len),
        max_num_seqs=sizes.get("max_num_seqs", 8),
        max_num_batched_tokens=sizes.get("max_num_batched_tokens", 64),
        block_size=block_size,
        num_blocks=num_blocks or 2 + 4096 // block_size,
        max_waiting_requests=1024,
        max_waiting_tokens=10**6,
    )
    return Engine(backbone, config, attend=attend, replacements=replacements)


def assert_same(deltas: list[Delta], tokens: list[int], logprobs: torch.Tensor, tolerance: float = 2e-4) -> None:
    """The engine's tokens are those, and its 20 likeliest log-probabilities at every step too."""
    assert naive.tokens(deltas) == tokens
    reported = [entry for delta in deltas for entry in delta.logprobs or ()]
    for entry, row in zip(reported, logprobs, strict=True):
        ids = [token_id for token_id, _ in entry.top]
        torch.testing.assert_close(
            torch.tensor([value for _, value in entry.top]), row[ids], atol=tolerance, rtol=tolerance
        )
        assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=tolerance)


def generate_on_embeddings(backbone: Backbone, prompt: TaskPrompt, ids: list[int]) -> tuple[list[int], torch.Tensor]:
    """transformers' own `generate` after the prompt's rows."""
    embeds = torch.cat([rows_of(prompt), backbone.embed(torch.tensor(ids))])[None]
    output = backbone.model.generate(
        inputs_embeds=embeds,
        attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64),
        **_generation_settings(backbone),
    )
    return output.sequences[0].tolist(), _logprobs(output)


def peft_checkpoint(backbone: Backbone, num_virtual_tokens: int, kind: str, folder: Path) -> TaskPrompt:
    """Let PEFT write a checkpoint with random rows, and read what it wrote."""
    settings = {"embeddings": PromptTuningConfig, "kv": PrefixTuningConfig}[kind]
    adapted = get_peft_model(
        copy.deepcopy(backbone.model), settings(task_type="CAUSAL_LM", num_virtual_tokens=num_virtual_tokens)
    )
    torch.manual_seed(num_virtual_tokens)
    with torch.no_grad():
        for parameter in adapted.prompt_encoder.parameters():
            parameter.normal_(0, 0.5)
    adapted.save_pretrained(folder)
    rows = load_file(folder / "adapter_model.safetensors")["prompt_embeddings"]
    make = {"embeddings": TaskPrompt.from_embeddings, "kv": TaskPrompt.from_kv}[kind]
    return make(rows, backbone.fingerprint)


def greedy_of_peft(backbone: Backbone, folder: Path, ids: list[int]) -> tuple[list[int], torch.Tensor]:
    """What PEFT's own forward says of one unpadded row of the checkpoint, one greedy step at a time.

    Not its `generate`: with transformers 5.24 that of PEFT 0.21 leaves the prompt out, without an error.
    """
    adapted = PeftModel.from_pretrained(copy.deepcopy(backbone.model), folder)
    tokens, rows = list(ids), []
    for _ in range(NUM_NEW):
        with torch.no_grad():
            output = adapted(
                input_ids=torch.tensor([tokens]), attention_mask=torch.ones(1, len(tokens), dtype=torch.int64)
            )
        rows.append(output.logits[0, -1].float().log_softmax(-1))
        tokens.append(int(rows[-1].argmax()))
    return tokens[len(ids) :], torch.stack(rows)


def _generation_settings(backbone: Backbone) -> dict[str, object]:
    return {
        "max_new_tokens": NUM_NEW,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
        "eos_token_id": -1,
        "pad_token_id": 0,
    }


def _logprobs(output: object) -> torch.Tensor:
    return torch.stack([step[0] for step in output.logits]).float().log_softmax(-1)  # type: ignore[attr-defined]


# 1. Engine = naive loop = transformers' generate = PEFT's forward


@pytest.mark.parametrize("attend", [None, attend_sdpa])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_mixed_batch_equals_generate_on_each_request_alone(architecture: str, attend: Attend | None) -> None:
    backbone = tiny_backbone(architecture)
    assert_a_mixed_batch_equals_generate(make_engine(backbone, attend=attend))


def assert_a_mixed_batch_equals_generate(engine: Engine) -> None:
    backbone, wanted = engine.backbone, {}
    for k, length in enumerate(PROMPT_LENGTHS):
        prompt, ids = random_prompt(backbone, length), random_ids(5 + 9 * k, seed=k)
        wanted[engine.add(ids, prompt=prompt, params=GREEDY)] = generate_on_embeddings(backbone, prompt, ids)
    found = naive.run(engine)
    for sequence_id, (tokens, logprobs) in wanted.items():
        assert_same(found[sequence_id], tokens, logprobs)
    assert len({token for tokens, _ in wanted.values() for token in tokens}) > 3, "the model answers alike to all"


@needs_compiler
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiled_linear_layers_answer_as_the_models_own(architecture: str) -> None:
    backbone = tiny_backbone(architecture)
    linears = compile_linears(backbone.model)
    assert linears
    engine = make_engine(backbone, replacements=Replacements(linears))
    _assert_answers_are_the_models_own(engine)


@needs_compiler
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3", "smollm3"])
@pytest.mark.parametrize("token_budget", [5, 64])
def test_compiled_decoder_layers_answer_as_the_models_own(architecture: str, token_budget: int) -> None:
    backbone = tiny_backbone(architecture)
    layers = compile_layers(backbone.model, backbone.kv_shape)
    assert layers
    replacements = Replacements({compiled.layer: compiled.forward for compiled in layers})
    _assert_answers_are_the_models_own(
        make_engine(backbone, replacements=replacements, max_num_seqs=4, max_num_batched_tokens=token_budget)
    )


def _assert_answers_are_the_models_own(engine: Engine) -> None:
    backbone = engine.backbone
    wanted = {}
    for k, length in enumerate(PROMPT_LENGTHS):
        prompt, ids = random_prompt(backbone, length), random_ids(5 + 9 * k, seed=k)
        wanted[engine.add(ids, prompt=prompt, params=GREEDY)] = generate_on_embeddings(backbone, prompt, ids)
    found = naive.run(engine)
    for sequence_id, (tokens, logprobs) in wanted.items():
        assert_same(found[sequence_id], tokens, logprobs)


# PEFT 0.21 calls transformers by old names
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["embeddings", "kv"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_checkpoint_written_by_peft_answers_as_in_peft(architecture: str, kind: str, tmp_path: Path) -> None:
    backbone = tiny_backbone(architecture)
    engine = make_engine(backbone)
    wanted = {}
    for length in PROMPT_LENGTHS:
        folder, ids = tmp_path / str(length), random_ids(11, seed=length)
        prompt = peft_checkpoint(backbone, length, kind, folder)
        wanted[engine.add(ids, prompt=prompt, params=GREEDY)] = greedy_of_peft(backbone, folder, ids)
    found = naive.run(engine)
    for sequence_id, (tokens, logprobs) in wanted.items():
        assert_same(found[sequence_id], tokens, logprobs)


@pytest.mark.parametrize("attend", [None, attend_sdpa])
@pytest.mark.parametrize("block_size", [1, 4, 16, 256])
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt2"])
def test_every_block_size_gives_what_the_naive_loop_gives(
    architecture: str, block_size: int, attend: Attend | None
) -> None:
    backbone = tiny_backbone(architecture)
    engine = make_engine(backbone, block_size=block_size, attend=attend)
    wanted = {}
    for k, length in enumerate((*PROMPT_LENGTHS, 16, 32)):
        kind = ("embeddings", "kv", "text")[k % 3]
        prompt, ids = random_prompt(backbone, length, kind), random_ids(4 + 7 * k, seed=k)
        sequence_id = engine.add(ids, prompt=prompt, params=GREEDY, num_shared_tokens=k % 4)
        wanted[sequence_id] = naive.greedy(backbone, prompt, ids, NUM_NEW)
    found = naive.run(engine)
    for sequence_id, (tokens, logprobs) in wanted.items():
        assert_same(found[sequence_id], tokens, logprobs)


@pytest.mark.parametrize("folder", REAL_CHECKPOINTS, ids=lambda folder: folder.name)
# PEFT 0.21 calls transformers by old names
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_real_checkpoint_answers_as_in_transformers_and_peft(folder: Path, tmp_path: Path) -> None:
    if not (folder / "config.json").exists():
        pytest.skip(f"{folder.name} is not on this machine")
    backbone = Backbone.load(folder, dtype="float32", device="cpu")
    vocab_size = min(backbone.vocab_size, 500)
    engine = make_engine(backbone, num_blocks=64)
    wanted = {}
    for k, length in enumerate(PROMPT_LENGTHS):
        embed_scale = float(backbone.embed(torch.arange(vocab_size)).std())
        rows = torch.randn(length, backbone.hidden_size, generator=torch.Generator().manual_seed(k)) * embed_scale
        prompt = TaskPrompt.from_embeddings(rows, backbone.fingerprint)
        ids = encode_text(backbone.tokenizer, "Once upon a time there was a little dog who"[: 12 + 7 * k])
        wanted[engine.add(ids, prompt=prompt, params=GREEDY)] = generate_on_embeddings(backbone, prompt, ids)
    ids = random_ids(9, 3, vocab_size)
    written = peft_checkpoint(backbone, 20, "embeddings", tmp_path)
    wanted[engine.add(ids, prompt=written, params=GREEDY)] = greedy_of_peft(backbone, tmp_path, ids)
    found = naive.run(engine)
    for sequence_id, (tokens, logprobs) in wanted.items():
        assert_same(found[sequence_id], tokens, logprobs)
    assert len({tuple(tokens) for tokens, _ in wanted.values()}) > 1, "the model answers alike to all"


# 2. Batched = alone


@st.composite
def request_plans(draw: st.DrawFn) -> dict[str, object]:
    """What one request looks like, when it comes and whether it is given up."""
    return {
        "step": draw(st.integers(0, 12)),
        "prompt": draw(st.sampled_from([None, *((n, kind) for n in (1, 7, 20) for kind in PromptKind)])),
        "text": draw(st.integers(1, 40)),
        "shared": draw(st.booleans()),
        "max_tokens": draw(st.integers(1, 10)),
        "sampling": draw(st.sampled_from(["greedy", "hot", "nucleus", "penalized"])),
        "abort_after": draw(st.none() | st.integers(0, 8)),
    }


SAMPLING = {
    "greedy": {"temperature": 0.0},
    "hot": {"temperature": 1.3, "top_k": 40, "min_p": 0.01},
    "nucleus": {"temperature": 0.8, "top_p": 0.7},
    "penalized": {"temperature": 0.0, "frequency_penalty": 1.5, "repetition_penalty": 1.3, "presence_penalty": 0.5},
}


@cache
def alone(plan: tuple[tuple[str, object], ...], seed: int) -> list[int]:
    """What the request gives on an engine of its own with room for everything."""
    backbone = tiny_backbone("llama")
    engine = make_engine(backbone, block_size=256, max_num_batched_tokens=2048)
    add_planned(engine, dict(plan), seed, is_sharing=False)
    (deltas,) = naive.run(engine).values()
    return naive.tokens(deltas)


def add_planned(engine: Engine, plan: dict[str, object], seed: int, *, is_sharing: bool = True) -> int:
    backbone = engine.backbone
    prompt = random_prompt(backbone, *plan["prompt"]) if plan["prompt"] else None  # type: ignore[misc]
    # the seed repeats, so that requests share texts and prompts
    ids = random_ids(int(plan["text"]), seed=seed % 3)  # type: ignore[call-overload]
    params = SamplingParams(
        max_tokens=plan["max_tokens"],  # type: ignore[arg-type]
        ignore_eos=True,
        seed=seed,
        **SAMPLING[str(plan["sampling"])],  # type: ignore[arg-type]
    )
    shared = len(ids) - 1 if plan["shared"] and is_sharing else 0
    return engine.add(ids, prompt=prompt, params=params, num_shared_tokens=shared, flow=str(seed % 2))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    plans=st.lists(request_plans(), min_size=2, max_size=9),
    block_size=st.sampled_from([4, 16]),
    spare=st.integers(0, 6),
    budget=st.sampled_from([4, 7, 16, 64]),
    max_num_seqs=st.integers(1, 4),
)
def test_a_request_does_not_depend_on_its_neighbors(
    plans: list[dict[str, object]], block_size: int, spare: int, budget: int, max_num_seqs: int
) -> None:
    # the largest request needs 20 + 40 + 10 positions in up to three segments: few more blocks force preemption
    num_blocks = 1 + 70 // block_size + 3 + spare
    engine = make_engine(
        tiny_backbone("llama"),
        block_size=block_size,
        num_blocks=num_blocks,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
    )
    id_to_plan: dict[int, int] = {}
    found: dict[int, list[Delta]] = {}
    for step in range(2000):
        for seed, plan in enumerate(plans):
            if plan["step"] == step:
                id_to_plan[add_planned(engine, plan, seed)] = seed
        for sequence_id, seed in id_to_plan.items():
            if plans[seed]["abort_after"] == step:
                engine.abort(sequence_id)
        for sequence_id, delta in engine.step():
            found.setdefault(sequence_id, []).append(delta)
        engine.scheduler.audit()
        if step > 12 and not engine.has_unfinished:
            break
    assert not engine.has_unfinished
    for sequence_id, seed in id_to_plan.items():
        wanted = alone(tuple(plans[seed].items()), seed)
        deltas = found.get(sequence_id, [])
        is_complete = bool(deltas) and deltas[-1].finish_reason is FinishReason.LENGTH
        assert is_complete or plans[seed]["abort_after"] is not None
        assert naive.tokens(deltas) == wanted[: len(naive.tokens(deltas))]
        assert not is_complete or len(naive.tokens(deltas)) == len(wanted)


@pytest.mark.parametrize("attend", [None, attend_sdpa])
def test_preemption_changes_no_token(attend: Attend | None) -> None:
    backbone = tiny_backbone("llama")
    prompts = [random_prompt(backbone, n, kind) for n, kind in ((20, "embeddings"), (7, "kv"), (20, "text"))]
    engine = make_engine(backbone, block_size=4, num_blocks=30, max_num_batched_tokens=16, attend=attend)
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    wanted = {}
    for k in range(8):
        prompt, ids = prompts[k % 3], random_ids(3 + 2 * k, seed=k)
        wanted[engine.add(ids, prompt=prompt, params=params)] = naive.greedy(backbone, prompt, ids, 30)[0]
    found = naive.run(engine)
    assert {sequence_id: naive.tokens(deltas) for sequence_id, deltas in found.items()} == wanted
    assert engine.stats.num_preemptions > 5


# 3. Prompt as cached prefix = prompt as embeddings prefilled with the text


@pytest.mark.parametrize("kind", list(PromptKind))
@pytest.mark.parametrize("architecture", ["llama", "mistral", "granite"])
def test_a_cached_prefix_gives_the_logits_of_a_prompt_prefilled_with_the_text(architecture: str, kind: str) -> None:
    backbone = tiny_backbone(architecture)
    engine = make_engine(backbone)
    params = SamplingParams(temperature=0, max_tokens=0, prompt_logprobs=20)
    for length in PROMPT_LENGTHS:
        prompt, ids = random_prompt(backbone, length, kind, seed=5), random_ids(30, seed=length)
        logprobs = naive.text_logits(backbone, prompt, ids).log_softmax(-1)
        for num_cached in (0, length):
            sequence_id = engine.add(ids, prompt=prompt, params=params)
            (delta,) = naive.run(engine)[sequence_id]
            assert delta.num_cached_tokens == num_cached
            reported = delta.prompt_logprobs
            assert reported is not None
            assert reported[0] is None
            for entry, row, token_id in zip(reported[1:], logprobs, ids[1:], strict=False):
                assert entry is not None
                assert entry.token_id == token_id
                top = torch.tensor([value for _, value in entry.top])
                torch.testing.assert_close(top, row[[i for i, _ in entry.top]], atol=2e-4, rtol=2e-4)
                assert entry.logprob == pytest.approx(float(row[token_id]), abs=2e-4)
            assert len(reported) == len(ids)


@pytest.mark.parametrize("kind", [None, *PromptKind])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_text_found_in_the_cache_gives_the_logits_of_text_that_is_computed(architecture: str, kind: str | None) -> None:
    backbone = tiny_backbone(architecture)
    prompt = random_prompt(backbone, 7, kind, seed=5) if kind else None
    num_virtual = prompt.num_virtual_tokens if prompt else 0
    engine = make_engine(backbone, block_size=4)
    instruction = random_ids(30, seed=1)
    for seed, num_cached in ((2, 0), (3, (num_virtual + 30) // 4 * 4)):
        ids = [*instruction, *random_ids(9, seed=seed)[1:]]
        sequence_id = engine.add(ids, prompt=prompt, params=GREEDY)
        deltas = naive.run(engine)[sequence_id]
        assert deltas[0].num_cached_tokens == num_cached
        assert_same(deltas, *naive.greedy(backbone, prompt, ids, NUM_NEW))
        # the conversation's next turn continues what was generated
        turn = [*ids, *naive.tokens(deltas), *random_ids(5, seed=seed + 10)[1:]]
        sequence_id = engine.add(turn, prompt=prompt, params=GREEDY)
        deltas = naive.run(engine)[sequence_id]
        assert deltas[0].num_cached_tokens == (num_virtual + len(ids) + NUM_NEW - 1) // 4 * 4
        assert_same(deltas, *naive.greedy(backbone, prompt, turn, NUM_NEW))
    echo = SamplingParams(temperature=0, max_tokens=0, prompt_logprobs=0)
    sequence_id = engine.add(ids, prompt=prompt, params=echo)
    reported = naive.run(engine)[sequence_id][-1].prompt_logprobs
    assert reported is not None
    logprobs = naive.text_logits(backbone, prompt, ids).log_softmax(-1)
    wanted = [float(row[token_id]) for row, token_id in zip(logprobs, ids[1:], strict=False)]
    assert [entry.logprob for entry in reported if entry] == pytest.approx(wanted, abs=2e-4)


# 4. The tuner's logits = the engine's


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_padded_training_forward_gives_the_engines_logits(architecture: str) -> None:
    backbone = tiny_backbone(architecture)
    template = Template("Text: {input}\nSentiment: {target}")
    texts = ["good", "a rather long and winding sentence", "no"]
    prompts = [random_prompt(backbone, n) for n in (20, 7, 50)]
    encoded = [template.encode_input(backbone.tokenizer, text) for text in texts]
    rows = [torch.cat([rows_of(p), backbone.embed(torch.tensor(ids))]) for p, ids in zip(prompts, encoded, strict=True)]
    lengths = torch.tensor([len(row) for row in rows])
    embeds = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).requires_grad_()
    mask = (torch.arange(embeds.shape[1])[None] < lengths[:, None]).long()
    logits = backbone.model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits
    assert logits.requires_grad
    engine = make_engine(backbone)
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=20, ignore_eos=True)
    for i, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True)):
        engine.add(ids, prompt=prompt, params=params)
        (deltas,) = naive.run(engine).values()
        row = logits[i, lengths[i] - 1].detach().log_softmax(-1)
        assert_same(deltas, [int(row.argmax())], row[None])


# 5. A swap never touches a running sequence


def test_a_sequence_ends_on_the_prompt_it_began_with() -> None:
    backbone = tiny_backbone("llama")
    old, new = random_prompt(backbone, 20, seed=1), random_prompt(backbone, 20, seed=2)
    engine = make_engine(backbone, block_size=4, num_blocks=60)
    ids = random_ids(10, seed=0)
    engine.add(ids, prompt=old, params=SamplingParams(max_tokens=1))
    naive.run(engine)  # the text after the old prompt is in the cache, and the new one must not find it
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    first = engine.add(ids, prompt=old, params=params)
    found: dict[int, list[Delta]] = {}
    for _ in range(8):
        for sequence_id, delta in engine.step():
            found.setdefault(sequence_id, []).append(delta)
    second = engine.add(ids, prompt=new, params=params)
    # others press so hard that every prefix without a user is dropped meanwhile
    for seed in range(3, 9):
        engine.add(ids, prompt=random_prompt(backbone, 20, seed=seed), params=params)
    for sequence_id, deltas in naive.run(engine).items():
        found.setdefault(sequence_id, []).extend(deltas)
    wanted_old, wanted_new = (naive.greedy(backbone, prompt, ids, 24)[0] for prompt in (old, new))
    assert wanted_old != wanted_new
    assert naive.tokens(found[first]) == wanted_old
    assert naive.tokens(found[second]) == wanted_new
    assert len(engine.scheduler.prefix_cache) < 8, "no prefix was dropped, so the test shows nothing"
