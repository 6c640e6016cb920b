"""Settings of the process hold during a run and no longer."""

from pathlib import Path

import pytest
import torch

from visionmlp.engine.launch import launch, on_rank_zero
from visionmlp.engine.processes import leave_group
from visionmlp.errors import DataError, InvalidConfig

from .toy import config_for


def test_threads_and_determinism_hold_during_the_run() -> None:
    before = torch.get_num_threads()
    config = config_for(Path("run"), threads=before + 2, deterministic=True)

    def look(_fabric: object) -> tuple[int, bool]:
        return torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()

    assert launch(config, look) == (before + 2, True)
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (before, False)
    assert launch(config_for(Path("run")), look) == (before, False)


def test_missing_devices_are_one_line() -> None:
    if torch.cuda.is_available():
        pytest.skip("has a GPU")
    with pytest.raises(InvalidConfig, match=r"cannot run on 1 device\(s\) of kind cuda") as caught:
        launch(config_for(Path("run"), accelerator="cuda"), lambda _fabric: None)
    assert "\n" not in str(caught.value)


def test_errors_of_the_first_process_are_raised() -> None:
    def fail() -> None:
        raise DataError("empty")

    with pytest.raises(DataError, match="empty"):
        launch(config_for(Path("run")), lambda fabric: on_rank_zero(fabric, fail))


def test_a_process_group_of_the_callers_outlives_the_run(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        assert launch(config_for(Path("run")), lambda _fabric: 3) == 3
        assert torch.distributed.is_initialized()
    finally:
        leave_group()
