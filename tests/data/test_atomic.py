"""Scratch folders are gone when the work is, however it ends."""

from __future__ import annotations

import errno
import socket
import subprocess
from pathlib import Path

import pytest

from superst_monai.data.atomic import scratch_folder
from superst_monai.errors import StoreError


def test_scratch_is_hidden_and_removed(tmp_path: Path) -> None:
    """The folder is there in the block alone, beside the file to come; that of a killed process goes too."""
    out = tmp_path / "new" / "a.tif"
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    left = out.parent / f".a.tif.partial-{socket.gethostname()}-{gone.pid}"
    left.mkdir(parents=True)
    with scratch_folder(out) as folder:
        assert folder.parent == out.parent
        assert folder.name.startswith(".a.tif.")
        (folder / "image").write_text("x")
        (folder / "image").replace(out)
        assert not left.exists()
    assert list(out.parent.iterdir()) == [out]


def test_a_full_disk_is_told_in_words(tmp_path: Path) -> None:
    """Nothing is left, and the error says what to do."""

    def work() -> None:
        with scratch_folder(tmp_path / "a.tif") as folder:
            (folder / "half").write_text("x")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StoreError, match=r"a.tif cannot be written \(disk full\), nothing was left behind; free"):
        work()
    assert list(tmp_path.iterdir()) == []
