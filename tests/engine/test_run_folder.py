"""Run folders: what is refused, and the tables."""

import os
from pathlib import Path

import pytest

from visionmlp.engine import RunFolder
from visionmlp.engine.run_folder import Table
from visionmlp.errors import InvalidConfig, RunFolderError

from .toy import ToyRecord, config_for


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    config = config_for(tmp_path / "run")
    (tmp_path / "run").mkdir()
    RunFolder(config.output).create(config, ToyRecord())  # an empty one is fine
    (config.output / "notes.txt").touch()
    with pytest.raises(RunFolderError, match="exists already; continue its run with --resume, or give"):
        RunFolder(config.output).create(config, ToyRecord())


def test_a_tokenizer_of_somebody_else_is_kept(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    (run.path / "tokenizer.model").write_bytes(b"mine")
    with pytest.raises(RunFolderError, match="exists already"):
        run.create(config_for(run.path), ToyRecord())
    assert (run.path / "tokenizer.model").read_bytes() == b"mine"


def test_a_run_that_never_began_can_be_started_again(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.create(config_for(run.path, lr=0.5), ToyRecord())
    (run.checkpoints / "step-000000.safetensors").touch()  # killed before its state was written
    (run.path / ".environment.json.partial").touch()
    (run.path / "tokenizer.model").touch()
    run.create(config_for(run.path), ToyRecord())
    assert run.read_config()["lr"] == config_for(run.path).lr
    assert len(run.read_sessions()) == 1
    (run.checkpoints / "step-000000.state").touch()
    with pytest.raises(RunFolderError, match=r"^\S+ exists already") as caught:
        run.create(config_for(run.path), ToyRecord())
    assert "cannot write" not in str(caught.value)


@pytest.mark.parametrize("content", ["[{", "3", "\xff"])
def test_files_that_cannot_be_read_are_one_line(tmp_path: Path, content: str) -> None:
    run = RunFolder(tmp_path / "run")
    run.create(config_for(run.path), ToyRecord())
    (run.path / "environment.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(RunFolderError, match=r"cannot read .*environment.json"):
        run.reopen(config_for(run.path), ToyRecord())
    (run.path / "config.yaml").write_bytes(content.encode("latin-1"))
    with pytest.raises(RunFolderError, match=r"(cannot read )?.*config.yaml"):
        run.reopen(config_for(run.path), ToyRecord())


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"nothing to resume in .*: it has no config.yaml"):
        RunFolder(tmp_path).reopen(config_for(tmp_path), ToyRecord())


def test_a_changed_option_is_named_and_a_harmless_one_is_not(tmp_path: Path) -> None:
    config = config_for(tmp_path / "run", optimizer_args={"betas": (0.9, 0.95)})
    run = RunFolder(config.output)
    run.create(config, ToyRecord())
    run.reopen(
        config_for(tmp_path / "run", optimizer_args={"betas": (0.9, 0.95)}, save_every=7, keep_checkpoints=5),
        ToyRecord(),
    )
    with pytest.raises(InvalidConfig, match=r"was started with lr = 0.01, not 0.02"):
        run.reopen(config_for(tmp_path / "run", optimizer_args={"betas": (0.9, 0.95)}, lr=0.02), ToyRecord())


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"cannot write .*run: Not a directory") as caught:
        RunFolder(tmp_path / "file" / "run").create(config_for(tmp_path / "file" / "run"), ToyRecord())
    assert "\n" not in str(caught.value)
    with pytest.raises(RunFolderError, match="exists already"):
        RunFolder(tmp_path / "file").create(config_for(tmp_path / "file"), ToyRecord())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    os.symlink("/dev/full", tmp_path / "train.csv")
    with pytest.raises(RunFolderError, match=r"cannot write .*train.csv: No space left on device"):
        Table(tmp_path / "train.csv").append({"step": 1})


def test_a_table_keeps_the_rows_up_to_a_step(tmp_path: Path) -> None:
    rows = Table(tmp_path / "table.csv")
    for step in (2, 4, 6):
        rows.append({"step": step, "loss": step / 10})
    rows.cut(4)
    assert rows.rows() == [{"step": 2.0, "loss": 0.2}, {"step": 4.0, "loss": 0.4}]
    rows.cut(1)
    assert rows.rows() == []
    rows.append({"step": 1, "loss": 0.1})
    assert (tmp_path / "table.csv").read_text() == "step,loss\n1,0.1\n"


def test_other_data_is_named(tmp_path: Path) -> None:
    config = config_for(tmp_path / "run")
    run = RunFolder(config.output)
    run.create(config, ToyRecord(40))
    run.reopen(config, ToyRecord(40))
    with pytest.raises(InvalidConfig, match="was started on other data; 40 images are 41 now; restore the data, or"):
        run.reopen(config, ToyRecord(41))
    for damaged in ("[3", "[3]", "{}", "null"):
        (run.path / "data.json").write_text(damaged)
        with pytest.raises(RunFolderError, match=r"cannot read .*data.json"):
            run.reopen(config, ToyRecord(40))
