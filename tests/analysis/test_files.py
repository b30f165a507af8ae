"""Files appear whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from superst_monai.analysis.files import make_folder, write_json, write_whole
from superst_monai.errors import StoreError


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """When the disk is full half-way, the file of before stays and no partial one is left."""
    path = tmp_path / "a.json"
    write_json(path, {"x": 1, "µ": None})

    def fill(partial: Path) -> None:
        partial.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match=r"cannot write .*a.json \(No space left on device\); check the folder"):
        write_whole(path, fill)
    assert json.loads(path.read_text(encoding="utf-8")) == {"x": 1, "µ": None}
    assert list(tmp_path.iterdir()) == [path]


def test_json_has_no_nan(tmp_path: Path) -> None:
    """A NaN, which no JSON reader must accept, is refused instead of written."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})


def test_folders_are_made_once(tmp_path: Path) -> None:
    """A missing folder is made with those above it; an existing one is fine."""
    assert make_folder(tmp_path / "a" / "b").is_dir()
    assert make_folder(str(tmp_path / "a" / "b")).is_dir()
