"""Values of options: all faults at once, nothing guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from superst_monai.cli.options import gene_list, pairs, require_inputs, require_store_name
from superst_monai.errors import RunError, StoreError


def test_pairs_are_read() -> None:
    """The first "=" separates; spaces round it do not count."""
    assert pairs(["patient=P1", "note = a=b"], "--set") == {"patient": "P1", "note": "a=b"}
    assert pairs(None, "--set") == {}


def test_every_bad_pair_is_named() -> None:
    """No "=", an empty side and a repeated name are reported together."""
    with pytest.raises(
        RunError, match=r"--set takes NAME=VALUE.*but 'x' is none; '=y' is none; 'z=' is none; a is given"
    ):
        pairs(["x", "=y", "z=", "a=1", "a=2"], "--set")


def test_gene_lists() -> None:
    """Commas separate, repeats and spaces do not count, and nothing is refused."""
    assert gene_list(" A, B,,A ") == ["A", "B"]
    with pytest.raises(RunError, match="got ' , '; pass for example"):
        gene_list(" , ")


def test_every_missing_input_is_named(tmp_path: Path) -> None:
    """All missing paths are named with their argument; given and existing ones pass."""
    here = tmp_path / "here"
    here.touch()
    require_inputs(a=here, b=None, c=[here])
    with pytest.raises(StoreError, match=r"there is no .*one \(A\), no .*two \(B\); check the path"):
        require_inputs(A=tmp_path / "one", B=[here, tmp_path / "two"])


def test_store_names(tmp_path: Path) -> None:
    """A store ends in .zarr and is new, unless it may be replaced."""
    require_store_name(tmp_path / "a.zarr", overwrite=False)
    with pytest.raises(StoreError, match=r"must end in .zarr, got .*a.png; pass for example --out a.zarr"):
        require_store_name(tmp_path / "a.png", overwrite=False)
    (tmp_path / "a.zarr").mkdir()
    require_store_name(tmp_path / "a.zarr", overwrite=True)
    with pytest.raises(StoreError, match=r"a.zarr must not exist yet"):
        require_store_name(tmp_path / "a.zarr", overwrite=False)
