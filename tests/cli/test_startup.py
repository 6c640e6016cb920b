"""What must not wait for torch: help, refusals, the table of models. And what the import of the package still does."""

import subprocess
import sys

import pytest

import visionmlp
from visionmlp import engine, recipes
from visionmlp.errors import UnknownModel
from visionmlp.measure.catalog import check_name
from visionmlp.tasks import classify

HEAVY = ("torch", "timm", "torchvision", "numpy", "matplotlib", "lightning_fabric", "onnx", "openvino")
# words, exit code, part of what is printed
QUICK = (
    (["--help"], 0, "deploy"),
    (["--version"], 0, visionmlp.__version__),
    (["trian"], 2, "did you mean train"),
    (["--hepl"], 2, "did you mean --help"),
    (["models"], 0, "cyclemlp_b5"),
    (["models", "resmlp", "--json"], 0, '"paper_top1"'),
    (["models", "resmpl_s12"], 2, "did you mean resmlp_s12"),
    (["recipes"], 0, "cyclemlp_imagenet"),
    (["recipes", "--json"], 0, '"expected"'),
    (["recipes", "resmlp_sgd"], 0, "nesterov: false"),
    (["recipes", "resmlp_sdg"], 2, "did you mean resmlp_sgd"),
    (["train", "--help"], 0, "--mixup"),
    (["train", "--recipe", "resmlp_dino", "--help"], 0, "--teacher-momentum"),
    (["train", "--recipe", "resmlp_imagnet", "--data", "d", "--output", "o"], 2, "did you mean resmlp_imagenet"),
    (["train", "resmlp_s12", "--scale", "smoke"], 2, "give --recipe NAME"),
    (["predict", "--help"], 0, "--top-k"),
    (["train", "resmlp_s12", "--bath-size", "3"], 2, "did you mean --batch-size"),
    (["train", "--recipe", "resmlp_imagenet", "--lrr", "3"], 2, "did you mean --lr"),
    (["train", "resmlp_s12", "--task", "clasify"], 2, "did you mean classify"),
    (["eval", "resmlp_s12", "--dta", "x"], 2, "did you mean --data"),
    (["eval", "resmlp_s12", "--batch-size", "x"], 2, "takes an integer"),
    (["bench", "resmlp_s12", "--froms", "deploy"], 2, "did you mean --form"),
    (["bench", "resmlp_s12", "--data", "d", "--auto-augmnt", "x"], 2, "did you mean --auto-augment"),
    (["bench", "resmpl_s12", "--data", "d"], 2, "did you mean resmlp_s12"),
    (["pack", "photos", "--ouput", "x"], 2, "did you mean --output"),
    (["train", "resmpl_s12", "--data", "d", "--output", "o"], 2, "did you mean resmlp_s12"),
    (["eval", "resmpl_s12"], 2, "did you mean resmlp_s12"),
    (["eval", "resmlp_s24.dits"], 2, "there are no_dist, dist, dino"),
    (["predict", "resmpl_s12", "x.png"], 2, "did you mean resmlp_s12"),
    (["deploy", "resmpl_s12"], 2, "did you mean resmlp_s12"),
    (["export", "resmpl_s12", "--output", "x.onnx"], 2, "did you mean resmlp_s12"),
    (["bench", "resmlp_s12", "resmpl_s12"], 2, "did you mean resmlp_s12"),
)


def python(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_help_refusals_and_the_table_of_models_import_nothing_heavy() -> None:
    code = f"""
import contextlib, io, sys
import visionmlp_command
from visionmlp.cli import main
for words, code, part in {QUICK!r}:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        assert main(words) == code, words
    assert part in said.getvalue(), (words, said.getvalue())
    assert not set({HEAVY!r}) & sys.modules.keys(), (words, sys.modules.keys())
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [["-m", "visionmlp"], ["-c", "import visionmlp_command as c; c.main()"]])
def test_both_ways_to_start_the_command_are_light(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *words, "--version"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert visionmlp.__version__ in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "visionmlp.cli.main" in imported
    assert not imported & {*HEAVY, "jsonargparse", "rich", "yaml"}


@pytest.mark.parametrize("first", ["import visionmlp, timm", "import timm, visionmlp"])
def test_the_import_registers_with_timm_in_either_order(first: str) -> None:
    code = f"""
{first}
assert "resmlp_s12" in timm.list_models("resmlp_s*")
assert timm.create_model("resmlp_test", num_classes=3).num_classes == 3
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", [visionmlp, engine, recipes, classify])
def test_every_public_name_is_there(package: object) -> None:
    for name in package.__all__:  # type: ignore[attr-defined]
        value = getattr(package, name)
        assert getattr(value, "__name__", name) == name
        assert name in dir(package)
    with pytest.raises(AttributeError, match="has no attribute 'nonesuch'"):
        package.nonesuch  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("name", ["resmpl_s12", "qqqq", "resmlp_s24.dits", "asmlp_t.in22k", "vip_s14.any"])
def test_a_wrong_name_is_refused_in_the_words_of_the_registry(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownModel) as registry:
        visionmlp.create_model(name)
    check_name(name)  # models are imported here, and a program may have registered its own
    monkeypatch.delitem(sys.modules, "visionmlp.models.registry")
    with pytest.raises(UnknownModel) as catalog:
        check_name(name)
    assert str(catalog.value) == str(registry.value)


def test_names_tags_and_paths_pass(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "visionmlp.models.registry")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resmpl_s12").mkdir()
    for name in ("resmlp_s12", "resmlp_test", "resmlp_s24.dist", "resmpl_s12", "a/b", "other.safetensors", "x.onnx"):
        check_name(name)


@pytest.mark.parametrize("module", ["visionmlp.cli.commands", "jsonargparse", "torch"])
def test_an_interrupt_while_importing_is_one_line(module: str) -> None:
    code = f"""
import sys
import visionmlp_command

class Interrupt:
    @staticmethod
    def find_spec(name, path, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt)
sys.argv[1:] = ["deploy", "resmlp_test"]
sys.exit(visionmlp_command.main())
"""
    done = python(code)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
