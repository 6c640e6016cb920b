"""Help, version, and readers that leave."""

import json
import os
import subprocess
import sys

import pytest

import visionmlp
from visionmlp.cli import main
from visionmlp.cli.commands import COMMANDS


def test_help_lists_every_command(capsys) -> None:
    for words in ([], ["--help"]):
        assert main(words) == 0
        text = capsys.readouterr().out
        assert all(name in text and command.summary in text for name, command in COMMANDS.items())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_explains_every_option_and_shows_examples(name: str, capsys) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"usage: visionmlp {name}" in text
    assert COMMANDS[name].description.splitlines()[0] in text
    for example in COMMANDS[name].examples:
        assert f"visionmlp {example}" in text
    assert "<class" not in text
    for line in text.splitlines():
        assert len(line) <= 120, line


def test_version(capsys) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"visionmlp {visionmlp.__version__}\n"


def test_a_reader_that_leaves_is_no_error() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "visionmlp", "models", "resmlp_s12", "--json"],
        stdout=closed_pipe(),
        stderr=subprocess.PIPE,
        timeout=120,
        check=False,
    )
    assert done.stderr == b""
    assert done.returncode == 141


def closed_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def test_models(capsys) -> None:
    assert main(["models", "resmlp_s12"]) == 0
    text = capsys.readouterr().out
    assert "resmlp_s12_p8" in text
    assert "76.6" in text
    assert "ResMLP, Table 3" in text


def test_models_json_and_family(capsys) -> None:
    assert main(["models", "*_t*", "--family", "repmlpnet", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in entries] == ["repmlpnet_t224", "repmlpnet_t256"]
    assert entries[0]["paper_top1"] == 76.4
