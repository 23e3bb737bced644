"""A task that writes is answered as it was tuned and measured: in evaluations, in runs and in streams alike."""

from __future__ import annotations

from pathlib import Path

import httpx
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AddedToken, GenerationConfig, PreTrainedTokenizerFast

from app.engine.threads.device_lease import run_to_end
from app.measure.dataset import Dataset, Example
from app.measure.plain_model import PlainModel, evaluate
from app.measure.served_prompt import ServedPrompt
from app.model.backbone import Backbone
from app.model.layout import Template
from app.task_prompt import PromptKind
from app.tuning.config import Metric, TuneConfig
from app.tuning.distillation import DistillationPlan, teach_in_slices
from app.tuning.plan import TuningPlan
from app.tuning.result import TuneResult
from app.tuning.run.run import tune_task
from app.tuning.search import Search
from tests.support.models import build_backbone, copy_tokenizer
from tests.support.server import make_settings, run_server

TEMPLATE = Template("{input}={target}")
CONFIG = TuneConfig(
    kind=PromptKind.KV, num_virtual_tokens=8, max_steps=60, batch_size=8, learning_rate=0.1, metric=Metric.EXACT_MATCH
)
WORDS = ["<s>", "</s>", "<unk>", "=", *(str(i) for i in range(24)), "not", "good", ".", "so", "?"]


def byte_level_with(*special: str) -> PreTrainedTokenizerFast:
    tokenizer = copy_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in special])
    return tokenizer


def whole_words() -> PreTrainedTokenizerFast:
    """As old vocabularies are: joined by blanks, which `decode` of the tokenizer takes away before punctuation."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=True,
    )


def tune(backbone: Backbone, *targets: str) -> TuneResult:
    examples = tuple(Example(f"{i}", targets[i % len(targets)]) for i in range(24))
    data = Dataset("d.jsonl", examples)
    return tune_task(backbone, TuningPlan.make(data, data, CONFIG, template=TEMPLATE, labels=()))


def check_all_ways(backbone: Backbone, result: TuneResult, target: str, folder: Path) -> None:
    """Tuning's own figure, evaluation without and with an engine, a run, a stream and a teacher all find the target."""
    examples = [Example(str(i), target) for i in range(3)]
    publication = result.publication()
    assert result.metrics["validation_exact_match"] == 1.0
    assert max(event.value for event in result.history if event.metric == "exact_match") == 1.0
    served = ServedPrompt.of(publication.prompt, publication)
    assert evaluate(backbone, served, examples).metrics["exact_match"] == 1.0
    with run_server(make_settings(folder), backbone) as live:
        version = live.registry.publish("task", publication)
        url = f"{live.url}/v1/tasks/task"
        measured = httpx.post(f"{url}/evaluate", json={"examples": [vars_of(each) for each in examples]}).json()
        [run] = httpx.post(f"{url}/run", json={"inputs": ["1"]}).json()["results"]
        streamed = httpx.post(
            f"{live.url}/v1/chat/completions",
            json={"model": "task", "messages": [{"role": "user", "content": "1"}], "stream": True},
        ).text
    assert measured["metrics"]["exact_match"] == 1.0
    assert (run["text"], run["finish_reason"]) == (target, "stop")
    assert streamed.count('"finish_reason":"stop"') == 1
    plan = DistillationPlan(
        teacher=publication.prompt,
        train=("1",),
        validation=("2",),
        template=TEMPLATE,
        labels=(),
        config=CONFIG,
        search=Search(),
        sampling=version.sampling,
    )
    answers = run_to_end(teach_in_slices(PlainModel(backbone), plan, ["1", "2"]))
    assert [each.target for each in answers.examples] == [target] * 2


def vars_of(example: Example) -> dict[str, str]:
    return {"input": example.input, "target": example.target}


def test_a_learned_end_ends_texts_whatever_the_checkpoint_declares_besides(tmp_path: Path) -> None:
    backbone = build_backbone(generation=GenerationConfig(eos_token_id=[40, 41]), eos_token_id=42)
    check_all_ways(backbone, tune(backbone, "up."), "up.", tmp_path)


def test_special_tokens_of_targets_are_in_the_answers(tmp_path: Path) -> None:
    backbone = build_backbone(tokenizer=byte_level_with("<call>", "</call>"), vocab_size=261)
    result = tune(backbone, "<call>up</call>")
    assert result.publication().sampling["skip_special_tokens"] is False
    check_all_ways(backbone, result, "<call>up</call>", tmp_path)


def test_blanks_that_a_tokenizer_would_clean_up_are_in_the_answers(tmp_path: Path) -> None:
    backbone = build_backbone(tokenizer=whole_words(), vocab_size=len(WORDS))
    result = tune(backbone, "not good .")
    assert "skip_special_tokens" not in result.publication().sampling
    check_all_ways(backbone, result, "not good .", tmp_path)


def test_a_target_that_the_tokenizer_cannot_write_is_a_miss_in_tuning_too() -> None:
    """ "bad" is no word of the vocabulary, so no answer has it."""
    backbone = build_backbone(tokenizer=whole_words(), vocab_size=len(WORDS))
    result = tune(backbone, "not bad .")
    assert result.metrics["validation_exact_match"] == 0.0
    assert max(event.value for event in result.history if event.metric == "exact_match") == 0.0
