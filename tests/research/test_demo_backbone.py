"""Claims about the embedded backbone's files, and about what its training text leaves out."""

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from research.demo.corpus import Document, headline_keys, is_held_out, passages, read_corpora
from research.demo.cues import CueWriter

pytestmark = pytest.mark.slow

BACKBONE = Path(__file__).parents[2] / "app" / "demo" / "backbone"
DATA = Path(os.environ.get("SOFTSWAP_TEST_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
needs_backbone = pytest.mark.skipif(
    not (BACKBONE / "model.safetensors").exists(), reason="the backbone's weights are not in this checkout"
)
needs_data = pytest.mark.skipif(
    not (DATA / "corpora").exists(), reason="the shared corpora are not here; SOFTSWAP_TEST_DATA names their folder"
)


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(BACKBONE, local_files_only=True)


@needs_backbone
def test_the_backbone_is_at_most_32_mb_and_has_a_card():
    assert sum(path.stat().st_size for path in BACKBONE.iterdir()) <= 32_000_000
    assert "licence" in (BACKBONE / "README.md").read_text(encoding="utf-8").lower()


@needs_backbone
def test_the_context_is_at_least_512_tokens_and_told_alike_by_config_and_tokenizer(tokenizer):
    config = json.loads((BACKBONE / "config.json").read_text())
    assert config["max_position_embeddings"] >= 512
    assert tokenizer.model_max_length == config["max_position_embeddings"]
    assert len(tokenizer) == config["vocab_size"]


@needs_backbone
def test_it_loads_offline_and_predicts_finite_logits(tokenizer):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(BACKBONE, local_files_only=True, dtype=torch.float32)
    logits = model(**tokenizer("The house stood on a", return_tensors="pt")).logits
    assert logits.isfinite().all()
    assert logits[0, -1].softmax(-1).max() > 10 / model.config.vocab_size


@needs_backbone
def test_text_is_opened_by_bos_and_not_closed_by_eos(tokenizer):
    assert [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id] == [0, 1, 2]
    ids = tokenizer("a text").input_ids
    assert ids[0] == 0
    assert not {0, 1, 2} & set(ids[1:])


@needs_backbone
@pytest.mark.parametrize(
    "text",
    [
        "plain",
        " two  spaces ",
        "naïve Ünïcode ł ß",
        "🎉👩‍👩‍👧 ok",
        "tab\tline\n\n",
        "@user http://x.y/z",
        "\x00\x7f",
        "",
    ],
)
def test_every_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


@needs_backbone
def test_every_byte_has_a_token(tokenizer):
    from tokenizers.pre_tokenizers import ByteLevel

    assert set(ByteLevel.alphabet()) <= set(tokenizer.get_vocab())


@needs_backbone
def test_a_chat_opens_with_one_bos_and_waits_for_the_assistant(tokenizer):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    text = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert text == "<s>User: hi\nAssistant:"
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "<s>User: hi\nAssistant: yes"


@needs_data
def test_no_held_out_headline_article_is_in_the_training_text():
    task = DATA / "tasks" / "wikinews_headline"
    news = read_corpora(DATA / "corpora", task)["news"]
    openings = set()
    for split in ("validation", "test"):
        for line in (task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
            openings.add(" ".join(json.loads(line)["input"].split())[:80])
    assert len(openings) == 1000
    assert not openings & {" ".join(article.text.split())[:80] for article in news}
    with gzip.open(DATA / "corpora" / "wikinews_en" / "wikinews_en.jsonl.gz", "rt", encoding="utf-8") as file:
        whole = [row for row in map(json.loads, file) if row["holes"] == 0]
    assert len(whole) - len(news) >= len(openings)


def test_an_article_is_held_out_by_its_opening_or_its_headline_whatever_the_spacing(tmp_path):
    row = {
        "input": "The  Senate voted,\non Monday, for a long bill about nothing in particular that anyone could name.",
        "target": "Senate votes",
    }
    for split in ("validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    keys = headline_keys(tmp_path)
    assert is_held_out(
        "",
        "The Senate voted, on Monday, for a long bill about nothing in particular that anyone could name. Then",
        keys,
    )
    assert is_held_out("Senate votes!", "Another text", keys)
    assert not is_held_out("Senate sleeps", "Another text", keys)


def test_passages_keep_every_word_and_depend_on_the_seed_alone():
    documents = [Document("novel", "\n\n".join(f"Paragraph {n} has some words. " * 30 for n in range(20)))]
    pieces = passages(documents, 10**9, random.Random(5))
    assert pieces == passages(documents, 10**9, random.Random(5))
    assert sorted(" ".join(piece.text for piece in pieces).split()) == sorted(documents[0].text.split())
    assert max(len(piece.text) for piece in pieces) <= 2400 + 2


def test_cues_are_the_same_for_the_same_seed_and_end_every_document():
    text = 'Mr. Smith saw Paris in 1890. "Was it fine?" asked Anna of him. It was fine, said John, and they went home.'
    parts = ("novel", "encyclopedia", "news", "speech", "play", "miscellany", "russian novel")
    corpus = {part: [Document(part, f"{text} {text}", "Paris", "Doe", "1890s")] for part in parts}
    corpus["encyclopedia"] *= 8
    corpus["encyclopedia"] += [
        Document("encyclopedia", f"Anna Lee is a Dutch {noun}. {text}") for noun in ["poet", "film"]
    ] * 8
    first, second = (CueWriter(corpus, None, seed=3) for _ in range(2))
    for _ in range(300):
        written = first.write()
        assert written == second.write()
        assert written.endswith("</s>")
        assert written.count("<s>") == written.count("</s>")


@pytest.mark.parametrize("module", ["research.demo.pretrain", "research.demo.evaluate"])
def test_the_commands_explain_themselves(module):
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "--work" in done.stdout or "--model" in done.stdout
