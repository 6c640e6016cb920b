"""``recipes``, and ``train --recipe`` with ``--scale``."""

import json

import pytest
import yaml

from visionmlp.cli import main
from visionmlp.recipes import RECIPES
from visionmlp.recipes.register import config_class, header_of

GIVEN = ["--data", "d", "--output", "o", "--print-config"]


def printed(capsys, *words: str) -> dict:
    assert main(["train", *words, *GIVEN]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_the_table_has_every_recipe(capsys) -> None:
    assert main(["recipes"]) == 0
    text = capsys.readouterr().out
    for name in RECIPES:
        assert name in text
    for part in ("dino", "moco", "classify", "sparsemlp_moe_b", "76.4 (t224)", "arXiv 2112.11081"):
        assert part in text


def test_json_has_all_that_a_recipe_says(capsys) -> None:
    assert main(["recipes", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(RECIPES)
    dino = next(row for row in rows if row["name"] == "resmlp_dino")
    assert (dino["task"], dino["model"]) == ("dino", "resmlp_s12")
    assert dino["expected"] == header_of(RECIPES["resmlp_dino"]).expected
    assert {"title", "command", "cost", "source"} <= dino.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_one_recipe_is_shown_whole(name: str, capsys) -> None:
    assert main(["recipes", name]) == 0
    text = capsys.readouterr().out
    header = header_of(RECIPES[name])
    for part in (header.title, header.expected, header.cost, header.source):
        assert part.replace("``", "") in text
    config = yaml.safe_load(text.partition("# to be given: ")[2].partition("\n")[2])
    assert config_class(name).from_plain({"data": "d", "output": "o", **config}).model == config["model"]
    assert main(["recipes", name, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["config"] == config
    assert shown["expected"] == header.expected
    assert "output" in shown["to_give"]


def test_an_unknown_recipe_is_one_line_with_the_nearest(capsys) -> None:
    for words in (["recipes", "resmlp_imagenett"], ["train", "--recipe", "resmlp_imagenett", *GIVEN]):
        assert main(words) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: no recipe 'resmlp_imagenett'; did you mean resmlp_imagenet")
        assert captured.err.count("\n") == 1
        assert captured.out == ""


def test_a_scale_needs_a_recipe_and_must_exist(capsys) -> None:
    assert main(["train", "resmlp_s12", "--scale", "smoke", *GIVEN]) == 2
    assert capsys.readouterr().err == "error: --scale shrinks a recipe; give --recipe NAME, or leave out --scale\n"
    assert main(["train", "--recipe", "resmlp_sgd", "--scale", "tiny", *GIVEN]) == 2
    assert capsys.readouterr().err == "error: --scale takes smoke or small or full, got 'tiny'\n"


def test_options_win_over_the_scale(tmp_path, capsys) -> None:
    words = ("--recipe", "resmlp_imagenet", "--scale", "smoke")
    config = printed(capsys, *words)
    assert (config["model"], config["epochs"], config["batch_size"], config["max_images"]) == ("resmlp_test", 2, 4, 16)
    config = printed(capsys, *words, "--epochs", "7", "--max-images", "40", "--lr", "1e-3")
    assert (config["epochs"], config["max_images"], config["lr"], config["batch_size"]) == (7, 40, 1e-3, 4)
    (tmp_path / "run.yaml").write_text("epochs: 9\n")
    config = printed(capsys, *words, "--config", str(tmp_path / "run.yaml"))
    assert (config["epochs"], config["batch_size"]) == (9, 4)
    full = printed(capsys, *words[:2], "--scale", "full")
    assert full == printed(capsys, *words[:2])
    assert full["max_images"] is None


def test_values_follow_the_model_of_the_command_line(capsys) -> None:
    config = printed(capsys, "asmlp_b", "--recipe", "asmlp_imagenet")
    assert (config["model"], config["drop_path_rate"]) == ("asmlp_b", 0.5)
    config = printed(capsys, "--recipe", "hiremlp_imagenet", "--epochs", "30", "hiremlp_b")
    assert (config["model"], config["batch_size"], config["lr"]) == ("hiremlp_b", 1024, 1e-3)
    config = printed(capsys, "asmlp_b", "--recipe", "asmlp_imagenet", "--drop-path-rate", "0.1")
    assert config["drop_path_rate"] == 0.1


def test_the_task_is_the_recipes(capsys) -> None:
    assert printed(capsys, "--recipe", "resmlp_dino")["task"] == "dino"
    assert printed(capsys, "--recipe", "sparsemlp_moco", "--task", "moco")["temperature"] == 0.2
    assert main(["train", "--recipe", "resmlp_dino", "--task", "classify", *GIVEN]) == 2
    assert "--recipe resmlp_dino says dino" in capsys.readouterr().err


def test_weights_that_no_program_can_fetch_must_be_given(capsys) -> None:
    words = ("--recipe", "vip_transfer")
    assert main(["train", *words, *GIVEN]) == 2
    assert capsys.readouterr().err == "error: --checkpoint must be given\n"
    assert printed(capsys, *words, "--checkpoint", "vip.pth")["checkpoint"] == "vip.pth"
    assert printed(capsys, *words, "--scale", "smoke")["checkpoint"] is None
