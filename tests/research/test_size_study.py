"""The size study is done piece by piece, never twice, and its page says what the pieces say."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

import research.size_study.__main__ as size_study
from app.compare.method import Method
from app.errors import InvalidInput
from research.demo.pretrain import Recipe, build_model
from research.size_study.backbones import SIZES, schedule
from research.size_study.page import read_results, write_page
from tests.compare.test_summary import trial
from tests.support.models import tiny_backbone

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.name)
def test_a_size_has_as_many_parameters_as_it_is_called(size) -> None:
    num_parameters = sum(parameter.numel() for parameter in build_model(size.recipe).parameters())
    assert num_parameters == pytest.approx(1e6 * float(size.name.removesuffix("M")), rel=0.05)


def test_sizes_differ_in_nothing_but_their_width() -> None:
    shape = {"hidden_size", "intermediate_size", "num_heads", "num_kv_heads"}
    rest = [{k: v for k, v in asdict(size.recipe).items() if k not in shape} for size in SIZES]
    assert all(each == rest[0] for each in rest)
    assert [getattr(SIZES[-1].recipe, name) for name in shape] == [getattr(Recipe(), name) for name in shape]


def test_the_schedule_sees_about_the_tokens_that_are_asked_for() -> None:
    decay_at, num_steps = schedule(Recipe(), 8_000_000)
    assert num_steps * Recipe().batch_tokens == pytest.approx(8_000_000, rel=0.01)
    assert num_steps - decay_at == int(0.2 * decay_at)
    assert schedule(Recipe(), 1) == (1, 2)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data, and the tiny backbone in place of one that would have to be pre-trained."""
    backbone = tiny_backbone()
    backbone.model.save_pretrained(tmp_path / "0.3M" / "export")
    backbone.tokenizer.save_pretrained(tmp_path / "0.3M" / "export")
    report = {"num_tokens": 8, "held_out_nats": {"text": 5.0, "cues": 4.0}, "recipe": asdict(SIZES[0].recipe)}
    (tmp_path / "0.3M" / "pretrained.json").write_text(json.dumps(report))
    folder = tmp_path / "data" / "tasks" / "subjectivity"
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        rows = [{"input": f"{split} {i}", "target": ("objective", "subjective")[i % 2]} for i in range(12)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(size_study, "prepare_tokens", lambda work, data: work)
    monkeypatch.setattr(size_study, "pretrain", lambda size, work, tokens, num_tokens: work / size.name / "export")
    return tmp_path


def test_a_trial_is_kept_and_not_repeated_until_the_setting_changes(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [f"--{name}={workplace / name}" for name in ("data", "results")]
    command = [*places, f"--work={workplace}", "--size=0.3M", "--method=zero_shot", "--seed=0"]
    size_study.main([*command, "--max-steps=2"])
    (path,) = (workplace / "results").iterdir()
    assert path.name == "subjectivity-0.3M-zero_shot-0.json"
    assert 0 <= json.loads(path.read_text())["trial"]["value"] <= 1
    runs = []
    monkeypatch.setattr(size_study, "run_isolated", lambda *arguments: runs.append(arguments) or trial())
    size_study.main([*command, "--max-steps=2"])
    assert not runs
    size_study.main([*command, "--max-steps=3"])
    assert len(runs) == 1


def results_in(folder: Path, **changes: object) -> None:
    for place, size in enumerate(SIZES):
        for method in Method:
            for seed in range(2):
                found = trial(method, seed, value=0.5 + place / 10)
                report = {
                    "size": size.name,
                    "task": "subjectivity",
                    "trial": asdict(found) | {"num_backbone_parameters": 10 ** (place + 5)},
                    "setting": {
                        "num_train": 8050, "num_validation": 987, "num_test": 963,
                        "config": {"max_steps": 400, "batch_size": 16},
                    },
                    "pretraining": {
                        "num_tokens": 8_000_000, "held_out_nats": {"text": 4.0, "cues": 3.0},
                        "recipe": asdict(size.recipe),
                    },
                    "machine": {"cpu": "a CPU", "num_threads": 1, "versions": {"torch": "2"}},
                }  # fmt: skip
                folder.mkdir(exist_ok=True)
                (folder / f"x-{size.name}-{method}-{seed}.json").write_text(json.dumps(report | changes))


def test_the_page_has_every_figure_and_the_commands_that_remake_it(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib belongs to the extra `compare`")
    results_in(tmp_path / "results")
    size_study.main(["--plot", f"--results={tmp_path / 'results'}", f"--docs={tmp_path}"])
    page = (tmp_path / "size_study.md").read_text()
    assert "8,000,000\ntokens" in page or "8,000,000 tokens" in page
    assert "| 4M | 80.0 [80.0, 80.0] (2 seeds) |" in page
    assert "$ python -m research.size_study --plot" in page
    assert all(method.words in page for method in Method)
    assert (tmp_path / "size_study.svg").read_text().count("prompt tuning") == 1


def test_results_of_different_runs_are_not_mixed(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no results"):
        read_results(tmp_path)
    results_in(tmp_path / "results")
    path = next((tmp_path / "results").iterdir())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"task": "sentiment"}))
    with pytest.raises(InvalidInput, match="differ in task"):
        write_page(read_results(tmp_path / "results"), tmp_path)
