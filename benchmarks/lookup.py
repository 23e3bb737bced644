"""`python -m benchmarks.lookup`: what speculative decoding by prompt lookup gains.

`answers` measures it: the demo task `headline`, some texts at a time, by an engine that guesses and by one that does
not, in turns. What other answers would gain is reckoned from two figures. `acceptance` counts how many guesses would be
kept of answers that are known already; `step` measures a step of 1 + k tokens of each sequence beside one of a single
token. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from app.engine.config import EngineConfig
from app.engine.engine import Engine
from app.engine.output.prompt_lookup import PromptLookup, count_right
from app.engine.sequence import Sequence as EngineSequence
from app.measure.dataset import Example, read_examples
from app.model.backbone import Backbone
from app.model.layout import Template, encode_text
from app.registry.registry import Registry
from app.registry.stores.store import FileStore
from app.sampling import SamplingParams
from benchmarks.machine import Machine, Stopwatch
from benchmarks.report import FOREIGN_CORES_LIMIT, Say, save
from benchmarks.shapes import SMOLLM2_135M, TINY
from research.demo.tasks import PACKAGE

NUMS_DRAFTED = (2, 3, 4)
BATCHES = (1, 8)
AT_ONCE = (1, 2, 3, 4)
NUM_TEXT_TOKENS = 150
NUM_WARM_UPS = 3
WRITTEN = {"headline": "wikinews_headline", "entities": "wnut17_ner"}
"""Demo tasks that write, and the sets their texts come from."""
WANTED = ("wikinews_headline", "wnut17_ner", "e2e_nlg", "jfleg_gec")
"""Sets of which the wanted answers are counted too, as a model would have written that makes no mistake."""


@dataclass(frozen=True)
class Answer:
    """Ids of a text, and of what was written behind it."""

    text_ids: tuple[int, ...]
    written_ids: tuple[int, ...]


@dataclass(frozen=True)
class Acceptance:
    """What guessing does for some answers. The first token of each comes with its text and is not counted.

    Attributes:
        num_drafting: steps with a guess.
    """

    num_drafted: int
    num_tokens: int
    num_steps: int
    num_drafting: int

    @property
    def tokens_per_step(self) -> float:
        return self.num_tokens / self.num_steps

    def speed_up(self, cost: float) -> float:
        """Over one token a step. Args: cost: of a step with a guess, in steps of one token."""
        return self.num_tokens / (self.num_steps - self.num_drafting + self.num_drafting * cost)


class Part(Protocol):
    """One question, answered."""

    @property
    def name(self) -> str: ...

    def as_json(self) -> dict[str, Any]: ...

    def show(self, console: Console) -> None: ...


@dataclass(frozen=True)
class AcceptancePart:
    """Attributes: name_to_found: of each set of answers, for every way to guess."""

    name_to_found: Mapping[str, Sequence[Acceptance]]
    name: str = "acceptance"

    def as_json(self) -> dict[str, Any]:
        return {
            name: [{**asdict(each), "tokens_per_step": round(each.tokens_per_step, 3)} for each in found]
            for name, found in self.name_to_found.items()
        }

    def show(self, console: Console) -> None:
        table = Table("tokens a step", *(f"k = {k}" for k in NUMS_DRAFTED))
        for name, found in self.name_to_found.items():
            table.add_row(name, *(f"{each.tokens_per_step:.2f}" for each in found))
        console.print(table)


@dataclass(frozen=True)
class Speed:
    """Seconds for the same answers, and how many of them are equal."""

    plain_s: float
    guessing_s: float
    num_tokens: int
    num_equal: int


@dataclass(frozen=True)
class AnswersPart:
    """Attributes: at_once_to_speed: texts that are answered at a time, and what that took."""

    num_answers: int
    at_once_to_speed: Mapping[int, Speed]
    foreign_cores: float
    name: str = "answers"

    def as_json(self) -> dict[str, Any]:
        speeds = {f"{at_once} at a time": asdict(speed) for at_once, speed in self.at_once_to_speed.items()}
        return {"answers": self.num_answers, **speeds, "foreign_cores": round(self.foreign_cores, 2)}

    def show(self, console: Console) -> None:
        table = Table("texts at a time", "tokens/s", "with guesses", "times as fast", "equal answers")
        for at_once, speed in self.at_once_to_speed.items():
            table.add_row(
                str(at_once),
                f"{speed.num_tokens / speed.plain_s:.0f}",
                f"{speed.num_tokens / speed.guessing_s:.0f}",
                f"{speed.plain_s / speed.guessing_s:.2f}",
                f"{speed.num_equal} of {self.num_answers}",
            )
        console.print(table)
        if self.foreign_cores > FOREIGN_CORES_LIMIT:
            console.print(f"  other programs used {self.foreign_cores:.2f} cores: not to be trusted")


@dataclass(frozen=True)
class StepPart:
    """Attributes:
    batch_to_step_s, batch_to_cpu_s: number of sequences to (tokens of each to the median seconds of a step). With one
        thread the CPU's hold on a busy machine too.
    """

    batch_to_step_s: Mapping[int, Mapping[int, float]]
    batch_to_cpu_s: Mapping[int, Mapping[int, float]]
    foreign_cores: float
    name: str = "step"

    def as_json(self) -> dict[str, Any]:
        steps = {
            f"batch {batch}": {f"{rows} tokens, ms": round(1e3 * seconds, 3) for rows, seconds in step_s.items()}
            for batch, step_s in self.batch_to_step_s.items()
        }
        costs = {
            name: {
                f"batch {batch}": {str(k): round(_cost(taken[batch], k), 3) for k in NUMS_DRAFTED} for batch in taken
            }
            for name, taken in (("cost", self.batch_to_step_s), ("cost by CPU time", self.batch_to_cpu_s))
        }
        return {"steps": steps, **costs, "foreign_cores": round(self.foreign_cores, 2)}

    def cost(self, batch: int, num_drafted: int) -> float:
        """Of a step with guesses, in steps without."""
        return _cost(self.batch_to_step_s[batch], num_drafted)

    def show(self, console: Console) -> None:
        table = Table("sequences", "", "step of one token, ms", *(f"{1 + k} tokens / one" for k in NUMS_DRAFTED))
        for batch in self.batch_to_step_s:
            for clock, taken in (("wall", self.batch_to_step_s[batch]), ("CPU", self.batch_to_cpu_s[batch])):
                costs = (f"{_cost(taken, each):.2f}" for each in NUMS_DRAFTED)
                table.add_row(str(batch), clock, f"{1e3 * taken[1]:.2f}", *costs)
        console.print(table)
        if self.foreign_cores > FOREIGN_CORES_LIMIT:
            console.print(
                f"  other programs used {self.foreign_cores:.2f} cores: trust the CPU's time of one thread only"
            )


def _cost(step_s: Mapping[int, float], num_drafted: int) -> float:
    return step_s[1 + num_drafted] / step_s[1]


def count(answers: Iterable[Answer], num_drafted: int) -> Acceptance:
    """Decode every answer with guesses."""
    num_tokens = num_steps = num_drafting = 0
    for answer in answers:
        first, *left = answer.written_ids
        lookup, known = PromptLookup(), [*answer.text_ids, first]
        while left:
            drafted = lookup.guess(known, num_drafted)
            num_kept = count_right(drafted, left)
            new, left = left[: num_kept + 1], left[num_kept + 1 :]
            known += new
            num_tokens, num_steps, num_drafting = num_tokens + len(new), num_steps + 1, num_drafting + bool(drafted)
    return Acceptance(num_drafted, num_tokens, num_steps, num_drafting)


def measure_acceptance(
    backbone: Backbone, data: Path, registry: Path, num_answers: int, tokenizer: PreTrainedTokenizerFast, say: Say
) -> AcceptancePart:
    """Args: tokenizer: of the wanted answers; what the demo model writes is in its own tokens."""
    name_to_answers = {}
    for task, folder in WRITTEN.items():
        say(f"{task}: {num_answers} answers")
        written = Writer(backbone, registry, task).write(_read(data, folder, num_answers))
        name_to_answers[f"{task}, written"] = written
    for folder in WANTED:
        wanted = [_encode(tokenizer, example) for example in _read(data, folder, num_answers)]
        name_to_answers[f"{folder}, wanted"] = wanted
    say("guessing")
    return AcceptancePart({name: [count(each, k) for k in NUMS_DRAFTED] for name, each in name_to_answers.items()})


def _read(data: Path, folder: str, num_answers: int) -> list[Example]:
    examples = read_examples(data / folder / "test.jsonl")
    return list(examples)[:: max(1, len(examples) // num_answers)][:num_answers]


def _encode(tokenizer: PreTrainedTokenizerFast, example: Example) -> Answer:
    template = Template("{input}\nAnswer: {target}")
    eos_id = tokenizer.eos_token_id
    written = template.encode_target(tokenizer, example.target)
    return Answer(tuple(template.encode_input(tokenizer, example.input)), (*written, int(eos_id or 0)))


class Writer:
    """A demo task's greedy answers.

    Attributes:
        wall_s: what writing took so far.
    """

    def __init__(
        self, backbone: Backbone, registry: Path, task: str, *, at_once: int = 32, num_guessed: int = 0
    ) -> None:
        shelf = Registry(FileStore(registry), backbone)
        version = shelf.resolve(task)
        assert version.template is not None
        self._template, self._prompt = version.template, shelf.prompt(version)
        self._engine = Engine(
            backbone, EngineConfig.sized_for(backbone, max_num_seqs=at_once, prompt_lookup=num_guessed)
        )
        self._params = SamplingParams(temperature=0.0, max_tokens=version.sampling["max_tokens"])
        self._room = self._engine.config.max_model_len - version.num_virtual_tokens - self._params.max_tokens
        self.wall_s = 0.0

    def write(self, examples: Iterable[Example]) -> list[Answer]:
        tokenizer = self._engine.backbone.tokenizer
        id_to_text: dict[int, tuple[int, ...]] = {}
        for example in examples:
            text_ids = tuple(encode_text(tokenizer, self._template.render(example.input))[-self._room :])
            id_to_text[self._engine.add(text_ids, prompt=self._prompt, params=self._params)] = text_ids
        id_to_written: dict[int, list[int]] = {sequence_id: [] for sequence_id in id_to_text}
        began_s = time.perf_counter()
        while self._engine.has_unfinished:
            for sequence_id, delta in self._engine.step():
                id_to_written[sequence_id] += delta.token_ids
        self.wall_s += time.perf_counter() - began_s
        return [Answer(text_ids, tuple(id_to_written[sequence_id])) for sequence_id, text_ids in id_to_text.items()]


def measure_answers(backbone: Backbone, data: Path, registry: Path, num_answers: int, say: Say) -> AnswersPart:
    """Texts of `headline`, so many at a time, written by two engines in turns."""
    examples = _read(data, WRITTEN["headline"], num_answers)
    found = {}
    with Stopwatch() as stopwatch:
        for at_once in AT_ONCE:
            say(f"{len(examples)} headlines, {at_once} at a time")
            plain, guessing = (
                Writer(backbone, registry, "headline", at_once=at_once, num_guessed=k) for k in (0, NUMS_DRAFTED[-1])
            )
            num_equal = num_tokens = 0
            for turn, start in enumerate(range(0, len(examples), at_once)):
                some = examples[start : start + at_once]
                order = (plain, guessing) if turn % 2 else (guessing, plain)
                written = {writer: writer.write(some) for writer in order}
                num_equal += sum(one == other for one, other in zip(written[plain], written[guessing], strict=True))
                num_tokens += sum(len(answer.written_ids) for answer in written[plain])
            found[at_once] = Speed(plain.wall_s, guessing.wall_s, num_tokens, num_equal)
    return AnswersPart(len(examples), found, stopwatch.foreign_cores or 0.0)


def measure_step(backbone: Backbone, num_rounds: int, say: Say) -> StepPart:
    """Steps of the same sequences at the same place, with nothing guessed and with guesses, in turns."""
    nums_rows = (1, *(1 + k for k in NUMS_DRAFTED))
    batch_to_step_s, batch_to_cpu_s = {}, {}
    with Stopwatch() as stopwatch:
        for batch in BATCHES:
            say(f"steps of {batch}")
            engine, sequences = _begin(backbone, batch)
            taken: dict[int, list[tuple[float, float]]] = {num_rows: [] for num_rows in nums_rows}
            for number in range(NUM_WARM_UPS + num_rounds):
                for num_rows in nums_rows if number % 2 else nums_rows[::-1]:
                    seconds = _time_step(engine, sequences, num_rows)
                    if number >= NUM_WARM_UPS:
                        taken[num_rows].append(seconds)
            batch_to_step_s[batch] = {rows: statistics.median(wall for wall, _ in each) for rows, each in taken.items()}
            batch_to_cpu_s[batch] = {rows: statistics.median(cpu for _, cpu in each) for rows, each in taken.items()}
    return StepPart(batch_to_step_s, batch_to_cpu_s, stopwatch.foreign_cores or 0.0)


def _begin(backbone: Backbone, batch: int) -> tuple[Engine, list[EngineSequence]]:
    """Sequences that have written a token each."""
    config = EngineConfig.sized_for(backbone, max_num_seqs=batch, max_num_batched_tokens=512, prefix_caching=False)
    engine = Engine(backbone, replace(config, num_blocks=(batch + 1) * (NUM_TEXT_TOKENS // config.block_size + 4)))
    generator = torch.Generator().manual_seed(0)
    for _ in range(batch):
        ids = torch.randint(3, min(1000, backbone.vocab_size), (NUM_TEXT_TOKENS,), generator=generator).tolist()
        engine.add(ids, params=SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True))
    while not all(sequence.num_generated_tokens for sequence in engine.scheduler.running) or engine.stats.num_waiting:
        engine.step()
    return engine, engine.scheduler.running


def _time_step(engine: Engine, sequences: Sequence[EngineSequence], num_rows: int) -> tuple[float, float]:
    """Seconds of planning and computing `num_rows` tokens of each and choosing one behind all of them; and of the CPU.

    Nothing is booked, so that the next call computes the same tokens again.
    """
    for sequence in sequences:
        guessed = sequence.token_ids[: num_rows - 1]
        sequence.token_ids.extend(guessed)
        last = len(sequence.token_ids)
        sequence.score_targets = dict.fromkeys(range(last - num_rows, last), ())
    began_s, cpu_began_s = time.perf_counter(), time.process_time()
    batch = engine.scheduler.schedule()
    rows, logits = engine.model_runner.run(batch)
    chosen = logits.argmax(-1).tolist()
    took_s = time.perf_counter() - began_s, time.process_time() - cpu_began_s
    assert len(rows) == len(chosen) == num_rows * len(sequences) == batch.num_tokens
    for sequence in sequences:
        del sequence.token_ids[len(sequence.token_ids) - num_rows + 1 :]
        sequence.score_targets = None
    return took_s


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    transformers_logging.set_verbosity_error()
    progress = Console(stderr=True)
    console = Console(width=140)
    machine = Machine.here()
    console.print(str(machine))

    def say(line: str) -> None:
        progress.print(line, style="dim", highlight=False)

    parts = [NAME_TO_PART[name](options, say) for name in options.only]
    for part in parts:
        part.show(console)
    result = {
        "benchmark": "lookup",
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": asdict(machine),
        "setting": {
            "shape": options.shape if "step" in options.only else "+".join(options.only),
            "dtype": options.dtype,
            "answers": options.answers,
            "tokenizer": "demo" if options.tokenizer is None else options.tokenizer.name,
        },
        "parts": {part.name: part.as_json() for part in parts},
    }
    if options.save:
        progress.print(f"kept as {save(result)}")
    print(json.dumps(result))


def _acceptance(options: argparse.Namespace, say: Say) -> Part:
    demo = Backbone.load(str(PACKAGE / "backbone"))
    folder = options.tokenizer
    tokenizer = demo.tokenizer if folder is None else PreTrainedTokenizerFast.from_pretrained(folder)
    return measure_acceptance(demo, options.data, options.registry, options.answers, tokenizer, say)


def _step(options: argparse.Namespace, say: Say) -> Part:
    return measure_step(_load(options.shape, options.dtype), options.repetitions, say)


def _load(name: str, dtype: str) -> Backbone:
    shape = next((shape for shape in (SMOLLM2_135M, TINY) if shape.name == name), None)
    if shape is None:
        return Backbone.load(str(PACKAGE / "backbone"), dtype=dtype)
    model = shape.build_model().to(getattr(torch, dtype))
    return Backbone.from_model(model, shape.build_tokenizer(), name=shape.name)


def _answers(options: argparse.Namespace, say: Say) -> Part:
    demo = Backbone.load(str(PACKAGE / "backbone"))
    return measure_answers(demo, options.data, options.registry, options.answers, say)


NAME_TO_PART: Mapping[str, Callable[[argparse.Namespace, Say], Part]] = {
    "answers": _answers,
    "acceptance": _acceptance,
    "step": _step,
}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lookup", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=list(NAME_TO_PART), help="one part; may be repeated")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    acceptance = parser.add_argument_group("answers and acceptance")
    acceptance.add_argument("--data", type=Path, help="folder of the sets, one folder each")
    acceptance.add_argument("--registry", type=Path, default=Path("prompts"), help="where the demo tasks lie")
    acceptance.add_argument("--answers", type=int, default=200, help="of each set")
    acceptance.add_argument("--tokenizer", type=Path, help="of the wanted answers (default: the demo model's)")
    step = parser.add_argument_group("step")
    step.add_argument("--shape", default="demo", choices=["demo", SMOLLM2_135M.name, TINY.name])
    step.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    step.add_argument("--repetitions", type=int, default=30, help="rounds in which every step has its turn")
    options = parser.parse_args(arguments)
    options.only = options.only or list(NAME_TO_PART)
    if {"acceptance", "answers"} & set(options.only) and options.data is None:
        parser.error("--data is needed for answers and acceptance")
    return options


if __name__ == "__main__":
    main()
