"""lm-eval's `local-completions` runs against the server and sees the log-likelihoods transformers computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from app.model.backbone import Backbone
from tests.support.models import byte_tokenizer
from tests.support.server import LiveServer

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed; pip install 'softswap[dev]'")

DOCUMENTS = [
    {"question": "The sky is", "choices": [" blue", " made of cheese"], "answer": 0},
    {"question": "Two and two are", "choices": [" four", " five", " a pear"], "answer": 0},
    {"question": "A reader of reviews", "choices": [" reads", " sleeps"], "answer": 1},
    {"question": "x", "choices": ["y", "z"], "answer": 1},
]
TASK = {
    "task": "local_choices",
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "answer",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}],
}


@pytest.mark.slow
@pytest.mark.parametrize("task", [None, "raw"], ids=["backbone", "task"])
def test_lm_eval_sees_the_log_likelihoods_that_transformers_computes(
    server: LiveServer, backbone: Backbone, tmp_path: Path, task: str | None
) -> None:
    found = run_lm_eval(server, tmp_path, task or backbone.name)
    assert len(found) == len(DOCUMENTS)
    for document, sample in zip(DOCUMENTS, found, strict=True):
        answers = [float(response[0][0]) for response in sample["resps"]]
        wanted = [log_likelihood(server, backbone, task, document["question"], c) for c in document["choices"]]
        assert answers == pytest.approx(wanted, abs=2e-3)


def run_lm_eval(server: LiveServer, folder: Path, model: str) -> list[dict[str, Any]]:
    """The samples lm-eval logged, in the order of the documents."""
    data, tokenizer = folder / "test.jsonl", folder / "tokenizer"
    data.write_text("\n".join(json.dumps(document) for document in DOCUMENTS))
    byte_tokenizer().save_pretrained(tokenizer)
    results = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "base_url": f"{server.url}/v1/completions",
            "model": model,
            "tokenizer": str(tokenizer),
            "tokenizer_backend": "huggingface",
            "max_length": 256,
            "add_bos_token": True,
        },
        tasks=[{**TASK, "dataset_kwargs": {"data_files": {"test": str(data)}}}],
        log_samples=True,
        bootstrap_iters=0,
    )
    return sorted(results["samples"]["local_choices"], key=lambda sample: sample["doc_id"])


def log_likelihood(server: LiveServer, backbone: Backbone, task: str | None, text: str, continuation: str) -> float:
    """The same sum from one plain forward of the transformers model."""
    context = backbone.tokenizer(text)["input_ids"]
    ids = backbone.tokenizer(text + continuation)["input_ids"]
    embedded = backbone.embed(torch.tensor(ids))
    num_virtual = 0
    if task is not None:
        prompt = server.registry.prompt(server.registry.resolve(task))
        assert prompt.rows is not None
        num_virtual = prompt.num_virtual_tokens
        embedded = torch.cat([prompt.rows, embedded])
    with torch.no_grad():
        logprobs = backbone.model(inputs_embeds=embedded[None]).logits[0].log_softmax(-1)[num_virtual:]
    return sum(float(logprobs[i - 1, ids[i]]) for i in range(len(context), len(ids)))
