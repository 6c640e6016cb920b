"""Who started the processes: torchrun, SLURM, or nobody; and which of them speaks."""

import pickle
import sys
from pathlib import Path

import pytest

from visionmlp.cli.main import main
from visionmlp.engine.launch import as_launched
from visionmlp.engine.sharded_files import DamagedShards, put_shards, read_index, take_shards
from visionmlp.engine.started import Started, rank, started
from visionmlp.errors import InvalidConfig, Note

from .toy import config_for

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "3", "LOCAL_RANK": "1"}
SLURM = {"SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_PROCID": "3", "SLURM_JOB_NAME": "training"}


@pytest.mark.parametrize(("by", "env"), [("torchrun", TORCHRUN), ("SLURM", SLURM)])
def test_a_run_takes_the_processes_that_a_launcher_started(by: str, env: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_for(Path("run"))
    assert (started(), rank(), as_launched(config)) == (None, 0, config)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert (started(), rank()) == (Started(by, 2, 2), 3)
    launched = as_launched(config)
    assert (launched.nodes, launched.devices, launched.part_size) == (2, 2, 2)
    monkeypatch.setenv("RANK" if by == "torchrun" else "SLURM_PROCID", "0")
    with pytest.warns(Note, match=f"{by} started 2 process.* on each of 2 node.* are not 1 and 8"):
        as_launched(config_for(Path("run"), devices=8))
    monkeypatch.setenv("WORLD_SIZE" if by == "torchrun" else "SLURM_NTASKS", "5")
    with pytest.raises(InvalidConfig, match=f"{by} must start as many processes on each of the 2 nodes"):
        as_launched(config)


def test_interactive_jobs_start_processes_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SLURM, "SLURM_JOB_NAME": "bash"}.items():
        monkeypatch.setenv(name, value)
    assert (started(), rank()) == (None, 0)


@pytest.mark.parametrize(("number", "is_alone", "lines"), [(0, False, 1), (1, False, 0), (1, True, 1)])
def test_one_of_several_processes_says_what_is_wrong(
    number: int, is_alone: bool, lines: int, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", str(number))
    monkeypatch.setattr(sys.modules[main.__module__], "first_is_silent", lambda: is_alone)
    assert main(["train", "resmlp_test", "--data", "d", "--output", "o", "--batch-size", "0"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == lines


def test_an_index_runs_no_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (tmp_path.joinpath("sprung").touch, ())

    (tmp_path / ".metadata").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DamagedShards, match="which no index does"):
        read_index(tmp_path)
    assert not (tmp_path / "sprung").exists()
    (tmp_path / ".metadata").write_bytes(pickle.dumps([1]))
    with pytest.raises(DamagedShards, match="no index of tensors"):
        read_index(tmp_path)


def test_a_tree_without_shards_stays_as_it_is() -> None:
    tree = {"a": [1, {"b": None}], 2: {}}
    rest, shards = take_shards(tree)
    assert (rest, shards) == (tree, {})
    assert put_shards({"a": [{"shard": "x"}]}, {"x": 3}) == {"a": [3]}  # type: ignore[dict-item]
