"""`softswap retune`: tasks move to another model and back, each model loaded once, and nothing is lost."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from app import main
from app.measure.dataset import split_examples
from app.model.backbone import Backbone
from app.model.layout import BARE
from app.registry.publication import Publication
from app.settings import Settings
from app.task_prompt import PromptKind
from tests.cli.retuning.conftest import EXAMPLES, LABELS, Place
from tests.support.commands import call
from tests.support.server import LiveServer, make_settings, run_server, soft_prompt
from tests.support.tuning_jobs import wait_until

QUICK = ("--max-steps", "2", "--virtual-tokens", "2", "--learning-rate", "0.1", "--init", "vocab", "--seed", "0")


def retune(place: Place, *arguments: str, model: Path | None = None, code: int = 0) -> list[dict[str, Any]]:
    """Outcomes of its tasks."""
    said = call("retune", *arguments, "--model", str(model or place.new), *QUICK, "--json", code=code)
    found = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return [each for each in found if "origin" in each]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models that are loaded, in order; each is gone when the next one comes."""
    names: list[str] = []
    loaded: list[weakref.ref[torch.nn.Module]] = []
    load = main.load_backbone

    def noting(settings: Settings) -> Backbone:
        if len(names) % 2:  # the new one stays until the test's command ends
            assert [each() for each in loaded[-1:]] == [None]
        names.append(Path(settings.model).name)
        backbone = load(settings)
        loaded.append(weakref.ref(backbone.model))
        return backbone

    monkeypatch.setattr(main, "load_backbone", noting)
    return names


def test_tasks_move_to_another_model_and_back_in_one_command_each(
    place: Place, saved: Backbone, new_saved: Backbone, loads: list[str]
) -> None:
    place.write("data/mood.jsonl")
    place.write("data/tone/train.jsonl", with_targets=False)
    place.write("data/words.jsonl", with_targets=False)
    names = ("mood", "tone", "words")
    folder = ("--inputs", str(place.folder / "data"))
    there = retune(place, *names, *folder, "--from", str(place.old))
    assert loads == ["tiny", "other"]
    assert [(each["task"], each["origin"], each["id"], each["alias"], each["fault"]) for each in there] == [
        (name, f"{name}@1", f"{name}@2", "live", None) for name in names
    ]
    mood, tone, words = (each["comparison"] for each in there)
    assert 0 <= mood["agreement"] <= 1
    assert (mood["metric"], mood["num_scored"]) == ("accuracy", mood["num_inputs"])
    assert None not in (mood["old"], mood["new"])
    assert (tone["old"], tone["new"], tone["num_scored"]) == (None, None, 0)
    assert tone["num_inputs"] == mood["num_inputs"] > 0
    assert words["metric"] == "rouge_l"

    registry = place.registry(new_saved)
    for name in names:
        old, new = registry.version(name, 1), registry.resolve(name)
        assert registry.prompt(new).backbone_fingerprint == new_saved.fingerprint
        assert (new.template, new.labels, new.description) == (old.template or BARE, old.labels, old.description)
        assert new.provenance["retuned_from"] == old.id
        assert new.provenance["retuned_from_backbone"] == "tiny"
    assert registry.resolve("mood").metrics["validation_agreement"] == mood["agreement"]
    assert registry.resolve("mood").metrics["validation_accuracy"] == mood["new"]
    assert "validation_accuracy" not in registry.resolve("tone").metrics
    sampling = dict(registry.resolve("words").sampling)
    assert 1 < sampling.pop("max_tokens") <= 13  # the longest answer that is learned: 4 tokens of 3 bytes, and its end
    assert sampling == {"temperature": 0.0, "stop": ("\n",)}

    loads.clear()
    back = retune(place, "mood", "tone", *folder, "--from", str(place.new), model=place.old)
    assert loads == ["other", "tiny"]
    assert [(each["origin"], each["id"], each["alias"]) for each in back] == [
        (f"{name}@2", f"{name}@3", None) for name in ("mood", "tone")
    ]
    registry = place.registry(saved)
    assert [registry.resolve(name).number for name in names] == [1, 1, 1]
    assert retune(place, "mood", *folder, "--from", str(place.new), "--promote", model=place.old)[0]["alias"] == "live"
    registry.refresh()
    assert registry.resolve("mood").number == 4


def test_kept_examples_are_learned_and_kept_again_without_the_old_model(
    place: Place, saved: Backbone, new_saved: Backbone, loads: list[str]
) -> None:
    [outcome] = retune(place, "kept")
    assert loads == ["other"]
    assert (outcome["id"], outcome["comparison"]["agreement"], outcome["comparison"]["old"]) == ("kept@2", None, None)
    assert outcome["comparison"]["num_scored"] == 20
    registry = place.registry(new_saved)
    version = registry.resolve("kept")
    assert registry.examples(version) == registry.examples(registry.version("kept", 1))
    assert version.metrics["validation_accuracy"] == outcome["comparison"]["new"]
    assert version.provenance["num_train"] == 60
    loads.clear()
    [outcome] = retune(place, "kept", "--from", str(place.old))
    assert loads == ["tiny", "other"]
    assert None not in (outcome["comparison"]["agreement"], outcome["comparison"]["old"])
    assert (outcome["id"], outcome["alias"]) == ("kept@3", None)


def test_given_examples_are_learned_and_must_have_the_tasks_labels(place: Place, loads: list[str]) -> None:
    path = place.write("mine.jsonl")
    [outcome] = retune(place, "mood", "--examples", f"mood={path}")
    assert (loads, outcome["id"]) == (["other"], "mood@2")
    path.write_text(path.read_text().replace('"yes"', '"maybe"'))
    loads.clear()
    said = call("retune", "tone", "--examples", str(path), "--model", str(place.new), code=1)
    assert said.startswith("mine.jsonl, line 2: the target is none of the 2 labels")
    assert loads == []


def test_a_written_prompt_is_bound_to_the_new_model_as_it_is(place: Place, new_saved: Backbone) -> None:
    [outcome] = retune(place, "told")
    assert (outcome["id"], outcome["alias"], outcome["comparison"]) == ("told@2", "live", None)
    registry = place.registry(new_saved)
    version = registry.resolve("told")
    assert (version.kind, registry.prompt(version).text) == (PromptKind.TEXT, "Say yes or no.")
    assert (version.labels, version.provenance["retuned_from"]) == (LABELS, "told@1")
    [outcome] = retune(place, "told", "--inputs", str(place.write("x.jsonl")), "--from", str(place.old))
    assert place.registry(new_saved).resolve("told@3").kind is not PromptKind.TEXT
    assert outcome["comparison"]["agreement"] is not None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mood", "tone", "kept"), "mood@1, tone@1: the examples were not kept; give --inputs, which the old version"),
        (("--all",), "mood@1, tone@1, words@1: the examples were not kept"),
        (("mood", "--inputs", "{data}"), "mood@1 answers the inputs on tiny; say with --from where that is"),
        (("nothing",), "there is no task nothing"),
        (("mood@7",), "task mood has no version 7"),
        (("mood@canary",), "task mood has no alias canary for tiny"),
        (("mood", "--from", "{new}"), "task mood has no version for other; it has versions for tiny"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(
    place: Place, loads: list[str], arguments: tuple[str, ...], words: str
) -> None:
    paths = {"data": place.write("data.jsonl"), "new": place.new}
    filled = [argument.format(**paths) for argument in arguments]
    said = call("retune", *filled, "--model", str(place.new), code=1)
    assert words in said
    assert loads == []


def test_a_version_that_is_for_the_model_already_is_nothing_to_start_from(place: Place, loads: list[str]) -> None:
    data = str(place.write("data.jsonl"))
    for name in ("mood", "mood@1"):
        said = call("retune", name, "--inputs", data, "--model", str(place.old), code=1)
        assert "tiny" in said
    assert loads == []


def test_a_task_that_fails_leaves_the_others_alone_and_the_exit_code_says_so(
    place: Place, new_saved: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.tuning.retuning import retuning

    plan = retuning.plan_new

    def failing(backbone: Backbone, move: Any, *arguments: Any, **options: Any) -> Any:
        if move.task == "kept":
            raise RuntimeError("the device is on fire")
        return plan(backbone, move, *arguments, **options)

    monkeypatch.setattr(retuning, "plan_new", failing)
    place.write("data/mood.jsonl")
    arguments = ("kept", "mood", "told", "--inputs", str(place.folder / "data"), "--from", str(place.old))
    outcomes = {each["task"]: each for each in retune(place, *arguments, code=1)}
    assert outcomes["kept"]["fault"] == "RuntimeError: the device is on fire"
    assert (outcomes["mood"]["id"], outcomes["told"]["id"]) == ("mood@2", "told@2")
    registry = place.registry(new_saved)
    assert list(registry.task("kept").own_versions) == []


def test_an_interruption_publishes_what_was_found_and_begins_nothing_else(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    from app.tuning.run import run

    advance = run.TuningRun.advance

    def interrupted(self: run.TuningRun) -> None:
        advance(self)
        if self.step == 1 and self.can_save:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(run.TuningRun, "advance", interrupted)
    outcomes = retune(place, "kept", "told", code=1)
    assert [(each["id"], each["fault"]) for each in outcomes] == [
        ("kept@2", None),
        (None, "not begun: interrupted"),
    ]


def test_a_model_that_is_not_the_old_versions_own_fails_its_tasks(
    place: Place, monkeypatch: pytest.MonkeyPatch, loads: list[str]
) -> None:
    """As with a hub id, of which only the name is known until it is loaded."""
    from app.tuning.retuning import move

    monkeypatch.setattr(move, "find_fingerprint", lambda found: None)
    renamed = place.folder / "tiny"
    shutil.copytree(place.new, renamed)
    data = str(place.write("data.jsonl"))
    [outcome] = retune(place, "mood", "--inputs", data, "--from", str(renamed), code=1)
    assert outcome["fault"] == "tiny is not the model that mood@1 was made for"
    assert loads == ["tiny"]


def test_all_takes_the_tasks_that_lack_a_version_for_the_model(place: Place) -> None:
    place.registry(None).delete_task("words")
    place.registry(None).delete_task("tone")
    place.write("data/mood.jsonl")
    arguments = ("--all", "--inputs", str(place.folder / "data"), "--from", str(place.old))
    assert [each["task"] for each in retune(place, *arguments)] == ["kept", "mood", "told"]
    assert "there is no task that lacks a version for other" in call(
        "retune", *arguments, "--model", str(place.new), code=1
    )


def test_the_table_has_old_and_new_side_by_side(place: Place) -> None:
    data = str(place.write("data.jsonl"))
    said = call("retune", "mood", "--inputs", data, "--from", str(place.old), "--model", str(place.new), *QUICK)
    learned, held_out = split_examples(EXAMPLES)
    lines = [line.split() for line in said.splitlines()]
    cells = next(line for line in lines if line[:2] == ["mood", "mood@1"])
    assert cells[2:4] == ["mood@2", "yes"]
    assert cells[5] == "accuracy"
    assert f"mood@1 answered {len(learned)} inputs to learn from and {len(held_out)} held out" in said
    assert "loading tiny, to ask for the old answers of mood" in said


def test_servers_of_both_models_answer_meanwhile(place: Place, saved: Backbone, new_saved: Backbone) -> None:
    def ask(live: LiveServer, task: str) -> httpx.Response:
        return httpx.post(f"{live.url}/v1/tasks/{task}/run", json={"input": "good 5"})

    registry = place.folder / "prompts"
    settings = [make_settings(registry, watch_interval=0.05, state=place.folder / name) for name in "ab"]
    with run_server(settings[0], saved) as old, run_server(settings[1], new_saved) as new:
        assert (ask(old, "kept").status_code, ask(new, "kept").status_code) == (200, 404)
        retune(place, "kept", "told")
        wait_until(lambda: ask(new, "told").status_code == 200)
        models = [ask(live, task).json()["model"] for live in (old, new) for task in ("kept", "told")]
        assert models == ["kept@1", "told@1", "kept@2", "told@2"]


def test_a_budget_is_planned_within(place: Place) -> None:
    arguments = ("--inputs", str(place.write("data.jsonl")), "--from", str(place.old), "--model", str(place.new))
    said = call("retune", "mood", *arguments, "--budget", "2s", "--json")
    [outcome] = [json.loads(line) for line in said.splitlines() if line.startswith('{"task"')]
    assert (outcome["id"], outcome["fault"]) == ("mood@2", None)
    assert outcome["comparison"]["agreement"] is not None
    assert '"event": "TuningPlanned"' in said


def test_what_was_tuned_is_published_although_it_cannot_be_compared(
    place: Place, new_saved: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("not enough memory")

    monkeypatch.setattr("app.tuning.retuning.retuning.ask_new", fail)
    [outcome] = retune(place, "kept")
    assert (outcome["id"], outcome["alias"], outcome["comparison"]) == ("kept@2", "live", None)
    assert place.registry(new_saved).resolve("kept").number == 2


def test_an_interruption_while_versions_are_compared_publishes_the_one_and_begins_no_other(
    place: Place, new_saved: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("app.tuning.retuning.retuning.ask_new", interrupt)
    place.write("mood.jsonl")
    given = ("--examples", f"mood={place.folder / 'mood.jsonl'}")
    done, other = retune(place, "kept", "mood", *given, code=1)
    assert (done["id"], done["alias"]) == ("kept@2", "live")
    assert (other["id"], other["fault"]) == (None, "not begun: interrupted")
    assert place.registry(new_saved).resolve("kept").number == 2


def test_an_old_model_that_cannot_be_loaded_ends_only_what_it_must_answer_for(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = main.load_backbone

    def failing(settings: Settings) -> Backbone:
        if settings.model == str(place.old):
            raise RuntimeError("not enough memory")
        return load(settings)

    monkeypatch.setattr(main, "load_backbone", failing)
    place.write("mood.jsonl")
    given = ("--inputs", f"mood={place.folder / 'mood.jsonl'}", "--from", str(place.old))
    mood, kept = retune(place, "kept", "mood", *given, code=1)  # in the order in which they end
    assert (kept["id"], kept["alias"], kept["fault"]) == ("kept@2", "live", None)
    assert mood["id"] is None
    assert "not enough memory" in mood["fault"]


def test_a_version_without_an_alias_does_not_keep_the_name_from_the_new_model(
    place: Place, new_saved: Backbone
) -> None:
    registry = place.registry(new_saved)
    registry.publish("kept", Publication(soft_prompt(new_saved, seed=4)), alias=None)
    [outcome] = retune(place, "kept")
    assert (outcome["task"], outcome["id"], outcome["alias"]) == ("kept", "kept@3", "live")
