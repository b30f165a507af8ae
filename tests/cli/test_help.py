"""Help of every command: quick, with an example, and with the defaults of what is called."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import typer
import yaml

from superst_monai.analysis.differential_figures import write_differential
from superst_monai.analysis.imputation import write_imputation
from superst_monai.analysis.metagene_summary_figures import write_metagenes
from superst_monai.cli.app import app
from superst_monai.data.platforms.st import read_st
from superst_monai.data.section import join_section
from superst_monai.engines.run_folder import bundle_folder
from superst_monai.engines.training_data import METAGENES
from superst_monai.experiments.demo import run_demo
from superst_monai.experiments.misalignment import run_misalignment
from superst_monai.experiments.occlusion import run_occlusion
from superst_monai.inference.slide_map import predict

COMMANDS = (
    "",
    "demo",
    "prepare",
    "prepare visium",
    "prepare st",
    "prepare h5ad",
    "prepare slide",
    "train",
    "predict",
    "maps",
    "evaluate",
    "export",
    "inspect",
    "analyze",
    "analyze metagenes",
    "analyze genes",
    "analyze impute",
    "analyze differential",
    "analyze cell-types",
    "experiment",
    "experiment holdout",
    "experiment stain",
    "experiment restarts",
    "experiment runtime",
    "experiment deconvolution-synthetic",
    "experiment deconvolution-merged",
    "experiment misalignment",
    "experiment occlusion",
    "experiment differential",
    "bundle",
    "bundle export",
    "bundle check",
)
HEAVY = ("torch", "monai", "spatialdata", "matplotlib", "pandas", "numpy", "scipy", "zarr")


def test_help_imports_nothing_heavy() -> None:
    """The help of all commands is printed without any of the heavy libraries."""
    code = f"""
import sys
from typer.testing import CliRunner
from superst_monai.cli.app import app
for command in {COMMANDS!r}:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0 and "Example: superst" in result.stdout, (command, result.stdout)
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said == "[]\n"


def test_the_console_entry_is_lazy_and_works() -> None:
    """`superst_monai.cli:main` imports the application when called; --version is the package's."""
    import superst_monai

    code = """
import sys
from superst_monai.cli import main
assert "typer" not in sys.modules
sys.argv[1:] = ["--version"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == f"superst {superst_monai.__version__}\n"


@pytest.mark.parametrize(("words", "shown"), [(["nonsense"], "nonsense"), (["train"], "--out"), ([], "Usage")])
def test_usage_errors_end_with_code_2(run: Callable[..., Any], words: list[str], shown: str) -> None:
    """An unknown command, or a command without its arguments, ends with code 2 and shows what there is."""
    result = run(*words)
    assert result.exit_code == 2
    assert shown in re.sub(r"\x1b\[[0-9;]*m", "", result.output)


def shown_defaults(*command: str) -> dict[str, object]:
    """What the help of a command shows as default, by the name of the parameter."""
    group = typer.main.get_command(app)
    for name in command:
        group = group.commands[name]  # type: ignore[attr-defined]
    return {p.name: p.show_default for p in group.params}


def defaults_of(function: Callable[..., Any]) -> dict[str, str]:
    """Defaults in a signature, as text."""
    found = inspect.signature(function).parameters.values()
    return {p.name: str(p.default) for p in found if p.default is not inspect.Parameter.empty}


@pytest.mark.parametrize(
    ("command", "function", "names"),
    [
        ("prepare visium", join_section, ["mpp"]),
        ("prepare st", read_st, ["spot_diameter_um", "pitch_um"]),
        ("predict", predict, ["samples", "seed"]),
        ("demo", run_demo, ["minutes", "seed"]),
        ("experiment misalignment", run_misalignment, ["withheld"]),
        ("experiment occlusion", run_occlusion, ["withheld", "grid"]),
        ("analyze metagenes", write_metagenes, ["top"]),
        ("analyze impute", write_imputation, ["per"]),
        ("analyze differential", write_differential, ["per"]),
    ],
)
def test_defaults_shown_are_those_of_the_function(command: str, function: Callable[..., Any], names: list[str]) -> None:
    """What the help says is the default of the function that is called, where it is written."""
    shown, true = shown_defaults(*command.split()), defaults_of(function)
    assert {name: shown[name] for name in names} == {name: true[name] for name in names}


def test_defaults_shown_of_training_are_those_of_the_bundle() -> None:
    """What the help of `train` says is what the bundle's configuration holds; every option is a key of it."""
    config = yaml.safe_load((bundle_folder() / "configs" / "train.yaml").read_text())
    keys = {"patch": "patch_px", "batch": "batch_size"}
    same = ("seed", "nproc", "learning_rate", "depth", "width", "val_share", "min_counts")
    keys |= {name: name for name in same}
    shown = shown_defaults("train")
    assert {name: shown[name] for name in keys} == {name: str(config[key]) for name, key in keys.items()}
    assert config["n_metagenes"] is None  # by the spots
    assert shown["metagenes"] == "{} to {}, by spots".format(*METAGENES)
    assert {"exclude_genes", "epochs", "minutes", "mpp", "covariates", "seed", "resume"} <= set(config)


def test_main_runs_the_application(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The entry point prints the version and ends with code 0; a subcommand is not held up by the option."""
    from superst_monai.cli import main

    monkeypatch.setattr(sys, "argv", ["superst", "--version"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert capsys.readouterr().out.startswith("superst ")
