"""A store that is filled tile by tile beside its name-to-be, and goes on where it was when its process is ended."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from superst_monai.data.atomic import cannot_write, is_alive, move_in, refuse_existing, remove_leftovers
from superst_monai.errors import RunError, StoreError, SuperstError

Tile = tuple[int, int]
"""Row and column of a tile in the grid of tiles."""


def unfinished_folder(path: Path) -> Path:
    """Where a store is filled that will be called `path`; present only while it is, or after that was broken off."""
    return path.with_name(f"{path.name}.unfinished")


class Unfinished:
    """The folder of a store under way: the store itself, the arguments that it follows from, and the tiles it has.

    A tile is in `tiles.txt` when all of it is on disk, so that whatever else there is of a tile is written again.

    Args:
        path: name that the store will have.

    Attributes:
        folder: beside that name.
        store: the zarr store in it.
        done: tiles that are on disk.
    """

    def __init__(self, path: Path) -> None:
        """Look at what an earlier process left."""
        self.folder = unfinished_folder(path)
        self.store = self.folder / "maps.zarr"
        self._arguments, self._tiles, self._owner = (
            self.folder / name for name in ("arguments.json", "tiles.txt", "owner")
        )
        text = self._tiles.read_text() if self._tiles.is_file() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()  # a line cut by a kill or a full disk is not one
        self.done: set[Tile] = {(int(row), int(col)) for row, _, col in (line.partition(" ") for line in lines)}

    def add(self, tile: Tile) -> None:
        """Note that a tile is on disk."""
        with self._tiles.open("a") as file:
            file.write(f"{tile[0]} {tile[1]}\n")
        self.done.add(tile)

    @property
    def left(self) -> str:
        """What is kept, and how to go on."""
        if not self.done:
            return "nothing was left behind"
        tiles = "1 finished tile is" if len(self.done) == 1 else f"{len(self.done)} finished tiles are"
        return f"{tiles} kept in {self.folder}: give the same arguments again with --resume / resume=True to go on"

    def claim(self) -> None:
        """Write down that this process fills the store.

        Raises:
            StoreError: another process that is alive does.
        """
        if self._owner.is_file():
            host, _, pid = self._owner.read_text().strip().rpartition(" ")
            if host == socket.gethostname() and pid.isdigit() and is_alive(int(pid)):
                raise StoreError(
                    f"{self.folder} is being filled by process {pid}; wait for it, or end it first. If that process "
                    f"is something else, remove {self._owner}."
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._owner.write_text(f"{socket.gethostname()} {os.getpid()}\n")

    def begin(self, arguments: Mapping[str, Any]) -> None:
        """Start with an empty folder, or go on with one of the same arguments.

        Args:
            arguments: all that the store follows from, as JSON.

        Raises:
            RunError: the tiles on disk follow from others; all that differ.
        """
        wanted = json.dumps(arguments, indent=2) + "\n"
        if self.done:
            _check_same(json.loads(self._arguments.read_text()), json.loads(wanted), self.folder)
            whole = self._tiles.with_suffix(".part")
            whole.write_text("".join(f"{row} {col}\n" for row, col in sorted(self.done)))
            whole.replace(self._tiles)
            for scrap in self.store.rglob("*.partial"):  # of a chunk that was being written, by zarr
                scrap.unlink()
            return
        shutil.rmtree(self.store, ignore_errors=True)
        self._tiles.unlink(missing_ok=True)
        self._arguments.write_text(wanted)

    def remove(self) -> None:
        """Remove the folder with all it holds."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.done.clear()


def require_free(path: Path, *, overwrite: bool, resume: bool) -> None:
    """Refuse the name of a store to come before the work.

    Args:
        path: the name.
        overwrite: replace a store of that name, and drop an unfinished one.
        resume: go on with an unfinished one.

    Raises:
        StoreError: the name is taken, there is nothing to resume, or an unfinished store would be lost.
    """
    refuse_existing(path, overwrite=overwrite)
    under_way = Unfinished(path)
    if resume and not under_way.folder.exists():
        raise StoreError(
            f"--resume goes on with an unfinished prediction, but there is no {under_way.folder}; leave --resume out."
        )
    if under_way.done and not (resume or overwrite):
        raise StoreError(
            f"{path} must not be under way yet, but {under_way.left}, or start anew with --overwrite / overwrite=True."
        )


@contextmanager
def unfinished_store(
    path: Path, arguments: Mapping[str, Any], *, overwrite: bool = False, resume: bool = False
) -> Iterator[Unfinished]:
    """Yield the folder of a store to fill; the store takes its name when the block ends without an error.

    However the block ends otherwise, tiles that are finished stay for a later `resume`; without any, nothing stays.

    Args:
        path: the store to come; folders above it are made.
        arguments: all that the store follows from, as JSON; a resumed one must have the same.
        overwrite: replace a store of that name, at the end and in two renames; drop an unfinished one.
        resume: go on with an unfinished one.

    Raises:
        StoreError: the name is taken, the disk is full, the folder cannot be written, or see `require_free`.
        RunError: the arguments are not those of the store to resume.
    """
    require_free(path, overwrite=overwrite, resume=resume)
    under_way = Unfinished(path)
    try:
        under_way.claim()
        if not resume:
            under_way.remove()
            under_way.claim()
        remove_leftovers(path)
        under_way.begin(arguments)
    except SuperstError:
        raise
    except OSError as exc:
        raise cannot_write(path, exc, under_way.left) from exc
    try:
        yield under_way
        refuse_existing(path, overwrite=overwrite)  # another process may have been faster
        move_in(under_way.store, path)
        under_way.remove()
    except BaseException as exc:
        if isinstance(exc, OSError) and not isinstance(exc, SuperstError):
            raise cannot_write(path, exc, under_way.left) from exc
        if under_way.done:
            exc.add_note(f"{under_way.left}.")
        raise
    finally:
        if not under_way.done:
            under_way.remove()


def _check_same(known: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    """Refuse to mix tiles of different arguments."""
    before, now = _flat(known), _flat(wanted)
    other = [
        f"{key} was {before.get(key)!r}, got {now.get(key)!r}"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key)
    ]
    if other:
        raise RunError(
            f"--resume goes on with the arguments that the tiles in {folder} follow from, but {'; '.join(other)}; "
            "give the same again, or start anew with --overwrite / overwrite=True."
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
