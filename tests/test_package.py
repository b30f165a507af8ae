"""The package as it is installed: light to import, complete in a wheel, and pinned as declared."""

from __future__ import annotations

import ast
import configparser
import importlib
import json
import subprocess
import sys
import zipfile
from importlib import resources
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import superst_monai

CHECKOUT = Path(__file__).resolve().parents[1]
BUNDLE = "pathology_spatial_expression_fusion"


@pytest.fixture(scope="module")
def declared() -> configparser.ConfigParser:
    """What setup.cfg declares."""
    parser = configparser.ConfigParser()
    parser.read(CHECKOUT / "setup.cfg", encoding="utf-8")
    return parser


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that a clean copy of the checkout builds."""
    source = tmp_path_factory.mktemp("source")
    for folder in ("superst_monai", "bundles"):
        copytree(CHECKOUT / folder, source / folder, ignore=ignore_patterns("__pycache__"))
    for file in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        (source / file).write_bytes((CHECKOUT / file).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--wheel-dir", "wheels", "."], cwd=source, check=True)
    (built,) = (source / "wheels").glob("*.whl")
    return built


def lines(text: str) -> list[str]:
    """Entries of a list of setup.cfg."""
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def run(code: str, cwd: Path) -> str:
    """Output of a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, check=True, capture_output=True, text=True).stdout


def test_importing_the_package_is_instant(tmp_path: Path) -> None:
    """`import superst_monai` loads none of the heavy libraries and none of its own rooms."""
    heavy = ("torch", "monai", "pyro", "numpy", "spatialdata", "matplotlib", "superst_monai.data")
    assert run(f"import sys, superst_monai; print([m for m in {heavy} if m in sys.modules])", tmp_path) == "[]\n"


def test_lazy_names_are_the_objects_of_their_modules() -> None:
    """A short name is the very object that its module defines, and completion offers it."""
    from superst_monai.data.slide import Slide
    from superst_monai.data.store import read_section
    from superst_monai.inference.maps import open_maps

    assert superst_monai.Slide is Slide
    assert superst_monai.read_section is read_section
    assert superst_monai.open_maps is open_maps
    assert {"Slide", "read_section", "open_maps", "__version__"} <= set(dir(superst_monai))


def test_version_is_the_declared_one(declared: configparser.ConfigParser) -> None:
    """The version is written once, in setup.cfg."""
    assert superst_monai.__version__ == declared["metadata"]["version"]


def test_unknown_name_is_refused() -> None:
    """A name that the package lacks raises AttributeError and lists those it has."""
    with pytest.raises(AttributeError, match=r"no attribute 'open_map'; its names are Slide, .*open_maps"):
        _ = superst_monai.open_map


def test_declared_packages_are_the_folders(declared: configparser.ConfigParser) -> None:
    """Every folder with an `__init__.py` is declared, so that no room is missing after installation."""
    found = {".".join(file.relative_to(CHECKOUT).parts[:-1]) for file in CHECKOUT.glob("superst_monai/**/__init__.py")}
    assert set(lines(declared["options"]["packages"])) == found | {"superst_monai.bundles"}


def test_wheel_holds_every_bundle_file(wheel: Path, tmp_path: Path) -> None:
    """The bundle of an installed package has the files of the checkout's, byte for byte, and is found as a resource."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    show = "from importlib.resources import files; print(files('superst_monai.bundles'))"
    installed = Path(run(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {show}", tmp_path).strip())
    assert installed == tmp_path / "superst_monai" / "bundles"
    bundle = CHECKOUT / "bundles" / BUNDLE
    want = {f.relative_to(bundle): f for f in bundle.rglob("*") if f.is_file() and "__pycache__" not in f.parts}
    got = {f.relative_to(installed / BUNDLE): f for f in (installed / BUNDLE).rglob("*") if f.is_file()}
    assert Path("configs/metadata.json") in want
    assert {p: f.read_bytes() for p, f in got.items()} == {p: f.read_bytes() for p, f in want.items()}
    assert (tmp_path / "superst_monai" / "py.typed").is_file()


def test_wheel_declares_command_and_licence(wheel: Path) -> None:
    """The wheel installs the command `superst`, and states and carries its licence."""
    with zipfile.ZipFile(wheel) as archive:
        text = {name.partition(".dist-info/")[2]: archive.read(name).decode() for name in archive.namelist()}
    assert "superst = superst_monai.cli:main" in text["entry_points.txt"].splitlines()
    assert "License-Expression: Apache-2.0" in text["METADATA"].splitlines()
    assert text["licenses/LICENSE"] == (CHECKOUT / "LICENSE").read_text(encoding="utf-8")


def test_bundle_is_found_in_this_environment() -> None:
    """However the package was installed here, editable or not, its bundle is the checkout's."""
    installed = resources.files("superst_monai.bundles") / BUNDLE / "configs" / "metadata.json"
    assert installed.read_text() == (CHECKOUT / "bundles" / BUNDLE / "configs" / "metadata.json").read_text()


def test_constraints_pin_what_is_declared(declared: configparser.ConfigParser) -> None:
    """Each declared requirement has one exact pin, and the pin is within its bounds."""
    pins = dict(line.split("==") for line in lines((CHECKOUT / "requirements" / "constraints.txt").read_text()))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    entries = [declared["options"]["install_requires"], *declared["options.extras_require"].values()]
    needs = [Requirement(line) for entry in entries for line in lines(entry)]
    named = [need for need in needs if need.name != declared["metadata"]["name"]]
    assert [str(n) for n in named if not n.specifier.contains(pins.get(canonicalize_name(n.name), "0.dev0"))] == []


def _programs() -> dict[str, str]:
    """Source of the notebook's code and of the benchmarks, which no other test runs."""
    book = json.loads((CHECKOUT / "notebooks" / "demo.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    scripts = {path.name: path.read_text() for path in sorted((CHECKOUT / "benchmarks").glob("*.py"))}
    return {"demo.ipynb": "\n".join(cells), **scripts}


@pytest.mark.parametrize(("name", "source"), _programs().items(), ids=list(_programs()))
def test_what_notebook_and_benchmarks_import_is_there(name: str, source: str) -> None:
    """A name of the package that they use has not been renamed or removed."""
    wanted = [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("superst_monai")
        for alias in node.names
    ]
    assert wanted
    missing = [f"{module}.{what}" for module, what in wanted if not hasattr(importlib.import_module(module), what)]
    assert not missing, name
