"""What the tests of the command line share: a runner, stand-ins for heavy modules, and a small synthetic tissue."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from superst_monai.cli.app import app
from superst_monai.data.synthetic import SyntheticTissue, make_tissue, write_slide

StandIn = Callable[..., None]


@pytest.fixture
def run() -> Callable[..., Any]:
    """Run `superst` in this process: exit_code, stdout, stderr."""
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Put a stand-in with some names in the place of a module, so that it is not imported."""

    def put(module: str, **names: object) -> None:
        stub = ModuleType(module)
        for name, value in names.items():
            setattr(stub, name, value)
        monkeypatch.setitem(sys.modules, module, stub)

    return put


@pytest.fixture(scope="session")
def tissue() -> SyntheticTissue:
    """A tissue of 600 um with some thirty spots."""
    return make_tissue(seed=1, size_px=600, n_genes=12)


@pytest.fixture(scope="session")
def slide(tissue: SyntheticTissue, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its slide."""
    path = tmp_path_factory.mktemp("slide") / "slide.tif"
    write_slide(tissue, path)
    return path
