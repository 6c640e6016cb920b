"""Loggers hear the rows of the tables, each once, also of runs that are killed; one that fails stops nothing."""

import sys
import types
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from visionmlp.engine import TrainingConfig
from visionmlp.engine.launch import launch
from visionmlp.engine.run_folder import Table
from visionmlp.errors import InvalidConfig, MissingExtra

from .toy import config_for, run_until_killed, table, toy_fit

TABLES = ("train", "metrics", "router")
Said = list[tuple[str, int, float]]


class FakeWandb(types.ModuleType):
    """W&B as far as it is called: what each run was told, by its id."""

    Settings = dict

    def __init__(self) -> None:
        super().__init__("wandb")
        self.rows: defaultdict[str, list[dict[str, float]]] = defaultdict(list)
        self.opened: list[dict[str, Any]] = []
        self.exit_codes: list[int] = []
        self.fail_from: int | None = None
        self.open_error: Exception | None = None

    def init(self, **arguments: Any) -> Any:
        if self.open_error is not None:
            raise self.open_error
        self.opened.append(arguments)
        rows = self.rows[arguments["id"]]

        def log(row: dict[str, float]) -> None:
            if self.fail_from is not None and row["step"] >= self.fail_from:
                raise ConnectionError("the network is down\nand more")
            rows.append(row)

        return types.SimpleNamespace(log=log, define_metric=lambda *_, **__: None, finish=self.finish)

    def finish(self, exit_code: int) -> None:
        self.exit_codes.append(exit_code)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def rows_of(folder: Path) -> Said:
    """All cells of the tables but the timing, which differs from run to run."""
    cells = [
        (f"{name}/{column}", int(row["step"]), value)
        for name in TABLES
        for row in Table(folder / f"{name}.csv").rows()
        for column, value in row.items()
        if column not in ("step", "images_per_second")
    ]
    return sorted(cells)


def said_to_wandb(module: FakeWandb) -> Said:
    (rows,) = module.rows.values()  # one run, whatever happened
    left_out = ("step", "train/images_per_second")
    return sorted((tag, int(row["step"]), value) for row in rows for tag, value in row.items() if tag not in left_out)


def test_wandb_hears_every_row_once_also_of_a_killed_run(tmp_path: Path, wandb: FakeWandb) -> None:
    config = config_for(tmp_path / "run", logger=("wandb",), log_every=1, save_every=4, epochs=3)
    run_until_killed(config, 11)  # has logged 10 steps, and resumes at 8
    toy_fit(config, resume=True)
    assert len(wandb.opened) == 2
    assert wandb.opened[0]["id"] == wandb.opened[1]["id"] == (tmp_path / "run/wandb_id.txt").read_text().strip()
    assert said_to_wandb(wandb) == rows_of(tmp_path / "run")
    assert [row["step"] for row in table(tmp_path / "run/train.csv")] == list(range(1, 19))
    assert wandb.opened[0]["config"] == config.to_plain()
    assert wandb.opened[0]["project"] == "visionmlp"
    assert wandb.exit_codes == [1, 0]


def test_a_logger_that_joins_later_hears_what_was_before(
    tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    config = config_for(tmp_path / "run", log_every=1)
    run_until_killed(config, 9)
    toy_fit(config_for(tmp_path / "run", log_every=1, logger=("wandb",)), resume=True)
    assert wandb.opened[0]["project"] == "mine"
    assert said_to_wandb(wandb) == rows_of(tmp_path / "run")


def test_a_logger_that_fails_is_named_once_and_the_run_goes_on(tmp_path: Path, wandb: FakeWandb) -> None:
    wandb.fail_from = 4
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        toy_fit(config_for(tmp_path / "run", logger=("wandb",), log_every=1))
    lines = [str(warning.message) for warning in caught if "logger" in str(warning.message)]
    assert lines == [
        "logger wandb failed (the network is down); training goes on without it, and train.csv and metrics.csv have "
        "every row"
    ]
    assert [row["step"] for row in table(tmp_path / "run/train.csv")] == list(range(1, 13))
    assert wandb.exit_codes == [1]


def test_a_logger_that_cannot_start_stops_a_new_run_but_not_a_resumed_one(tmp_path: Path, wandb: FakeWandb) -> None:
    config = config_for(tmp_path / "run", logger=("wandb",))
    wandb.open_error = RuntimeError("no API key")
    with pytest.raises(InvalidConfig, match=r"logger wandb cannot start \(no API key\); repair that, or leave out"):
        toy_fit(config)
    wandb.open_error = None
    run_until_killed(config, 8)  # the folder of the refused run counts as new
    wandb.open_error = RuntimeError("no network")
    with pytest.warns(UserWarning, match=r"logger wandb failed \(no network\); training goes on"):
        toy_fit(config, resume=True)
    assert [row["step"] for row in table(tmp_path / "run/metrics.csv")] == [6, 12]


def test_a_missing_package_names_its_extra_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingExtra, match=rf"pip install 'visionmlp\[{name}\]'"):
            launch(config_for(tmp_path / "run", logger=(name,)), lambda _: pytest.fail("was launched"))


@pytest.mark.parametrize(
    ("names", "message"), [(("mlflow",), "tensorboard, wandb, got 'mlflow'"), (("wandb", "wandb"), "wandb twice")]
)
def test_names_are_checked(names: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=message):
        config_for(tmp_path, logger=names)


def test_loggers_are_a_list_in_yaml(tmp_path: Path) -> None:
    config = config_for(tmp_path, logger=("tensorboard", "wandb"))
    assert config.to_plain()["logger"] == ["tensorboard", "wandb"]
    assert TrainingConfig.from_plain(config.to_plain()) == config


def events_of(folder: Path) -> Said:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return sorted(
        (tag, event.step, event.value)
        for tag in events.Tags()["scalars"]
        for event in events.Scalars(tag)
        if tag != "train/images_per_second"
    )


def test_tensorboard_shows_every_row_once_also_of_a_killed_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    config = config_for(tmp_path / "run", logger=("tensorboard",), log_every=1, save_every=4, epochs=3)
    run_until_killed(config, 11)
    toy_fit(config, resume=True)
    shown, rows = events_of(tmp_path / "run/tensorboard"), rows_of(tmp_path / "run")
    assert [cell[:2] for cell in shown] == [cell[:2] for cell in rows]
    assert [cell[2] for cell in shown] == pytest.approx([cell[2] for cell in rows], rel=1e-6)  # float32
