"""The default settings are compared with a grid whose runs are kept, counted and never done twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.tuning.config import Init, TuneConfig
from benchmarks import tuning_grid
from benchmarks.tuning_grid import Grid, GridPart, measure_grid
from tests.support.models import tiny_backbone

CONFIG = TuneConfig(max_steps=8, batch_size=4)
GRID = Grid(CONFIG, learning_rates=(0.1, 1.0), inits=(Init.VOCAB, Init.LABELS), lengths=(2, 3))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workplace = tmp_path_factory.mktemp("grid")
    folder = workplace / "data" / "rotten_tomatoes"
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        rows = [{"input": f"{split} {i}", "target": ("negative", "positive")[i % 2]} for i in range(12)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return workplace


def measure(workplace: Path) -> GridPart:
    data, work = workplace / "data", workplace / "work"
    return measure_grid(tiny_backbone(), data, work, lambda line: None, tasks=["sentiment"], config=CONFIG, grid=GRID)


@pytest.fixture(scope="module")
def part(workplace: Path) -> GridPart:
    return measure(workplace)


def test_the_grid_trains_every_point_to_the_end(part: GridPart) -> None:
    (found,) = part.comparisons
    points = {tuple(point[axis] for axis in ("learning_rate", "init", "num_virtual_tokens"))
              for run in found.grid for point in run.member_to_best}  # fmt: skip
    assert len(points) == GRID.num_points == 8
    assert sum(run.num_member_updates for run in found.grid) == GRID.num_points * CONFIG.max_steps


def test_the_default_costs_what_halving_leaves(part: GridPart) -> None:
    """Twelve members, six after 1 update, three after 2, two after 5: 12 + 6 + 3 * 3 + 3 * 2 member updates."""
    (found,) = part.comparisons
    assert found.single.num_member_updates == 8
    assert found.default.num_steps == 8
    assert found.cost["update_rows"] == 33 / 8


def test_validation_chooses_the_grids_best_and_test_judges_it(part: GridPart) -> None:
    (found,) = part.comparisons
    assert found.best.validation["accuracy"] == max(run.validation["accuracy"] for run in found.grid)
    behind = 100 * (found.best.test["accuracy"] - found.default.test["accuracy"])
    assert part.as_json()["tasks"]["sentiment"]["points_behind"] == round(behind, 2)


def test_what_lies_in_its_file_is_not_run_again(
    part: GridPart, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning_grid, "tune_task", lambda *args, **options: pytest.fail("ran again"))
    assert measure(workplace).as_json()["tasks"] == json.loads(json.dumps(part.as_json()))["tasks"]


def test_results_can_be_measured_on_some_rows_evenly_spread(workplace: Path, tmp_path: Path, monkeypatch) -> None:
    seen = []

    def look(_backbone, splits, _work, _say, task, *_):
        seen.append([[example.input for example in part.examples] for part in (splits.validation, splits.test)])

    monkeypatch.setattr(tuning_grid, "_compare", look)
    measured = {"tasks": ["sentiment"], "config": CONFIG, "grid": GRID}
    part = measure_grid(tiny_backbone(), workplace / "data", tmp_path, lambda line: None, num_final_rows=3, **measured)
    assert seen == [[[f"{split} {i}" for i in (0, 4, 8)] for split in ("validation", "test")]]
    assert part.setting["final_rows"] == 3
