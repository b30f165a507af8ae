"""A store that is filled tile by tile beside its name-to-be, and goes on where it was when its process is ended."""

from __future__ import annotations

import json
import os
import shutil
import socket
import uuid
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


def new_owner() -> str:
    """A prediction by this process, as told apart from all others: host, process, and a name of its own."""
    return f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex}"


class Unfinished:
    """The folder of a store under way: the store itself, the arguments that it follows from, and the tiles it has.

    A tile is in `tiles.txt` when all of it is on disk, so that whatever else there is of a tile is written again.
    Processes that `join` write down their tiles in a `tiles-*.txt` each. The folder belongs to one owner at a time; who
    lost it to another writes no more.

    Args:
        path: name that the store will have.
        owner: of `new_owner`, in whose name this process writes; one of its own if not given.

    Attributes:
        folder: beside that name.
        store: the zarr store in it.
        done: tiles that are on disk.
    """

    def __init__(self, path: Path, owner: str | None = None) -> None:
        """Look at what other processes left."""
        self.folder = unfinished_folder(path)
        self.store = self.folder / "maps.zarr"
        self._arguments, self._tiles, self._owner = (
            self.folder / name for name in ("arguments.json", "tiles.txt", "owner")
        )
        self._account, self._name = self._tiles, owner or new_owner()
        self.done: set[Tile] = {tile for file in self._accounts() for tile in _tiles_in(file)}

    def add(self, tile: Tile) -> None:
        """Note that a tile is on disk; raises as `require_own` does."""
        self.require_own()
        with self._account.open("a") as file:
            file.write(f"{tile[0]} {tile[1]}\n")
        self.done.add(tile)

    def _accounts(self) -> list[Path]:
        """The files that list tiles."""
        return sorted(self.folder.glob(f"{self._tiles.stem}*{self._tiles.suffix}"))

    @property
    def left(self) -> str:
        """What is kept, and how to go on."""
        if not self.done:
            return "nothing was left behind"
        tiles = "1 finished tile is" if len(self.done) == 1 else f"{len(self.done)} finished tiles are"
        return f"{tiles} kept in {self.folder}: give the same arguments again with --resume / resume=True to go on"

    def claim(self) -> None:
        """Write down who fills the store.

        Raises:
            StoreError: another owner does whose process is alive.
        """
        if (owner := self._owned_by()) != self._name:
            host, pid, *_ = [*owner.split(), "", ""]
            if host == socket.gethostname() and pid.isdigit() and is_alive(int(pid)):
                raise StoreError(
                    f"{self.folder} is being filled by process {pid}; wait for it, or end it first. If that process "
                    f"is something else, remove {self._owner}."
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_whole(self._owner, f"{self._name}\n")

    def join(self, arguments: Mapping[str, Any]) -> None:
        """Get ready to draw some of the tiles beside other processes of the same owner.

        Args:
            arguments: as `begin` wrote them down.

        Raises:
            StoreError: the folder belongs to another owner.
            RunError: this process would draw from other arguments; all that differ.
        """
        self.require_own()
        _check_same(json.loads(self._arguments.read_text()), json.loads(json.dumps(arguments)), self.folder)
        self._account = self._tiles.with_name(f"{self._tiles.stem}-{uuid.uuid4().hex}{self._tiles.suffix}")

    @property
    def is_own(self) -> bool:
        """Whether the folder is there and belongs to the owner in whose name this process writes."""
        return self._owned_by() == self._name

    def require_own(self) -> None:
        """Refuse to write into what belongs to another prediction by now.

        Raises:
            StoreError: the folder is gone, or belongs to another owner.
        """
        if not self.is_own:
            raise StoreError(
                f"{self.folder} must belong to this prediction while it is filled, but another one has taken it over, "
                "or has finished it or removed it; let one end before the next is started."
            )

    def _owned_by(self) -> str:
        """The owner, empty if there is none."""
        try:
            return self._owner.read_text().strip()
        except FileNotFoundError:
            return ""

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
            _write_whole(self._tiles, "".join(f"{row} {col}\n" for row, col in sorted(self.done)))
            scraps = self.store.rglob("*.partial")  # of a chunk that was being written, by zarr
            for leftover in [*scraps, *(file for file in self._accounts() if file != self._tiles)]:
                leftover.unlink(missing_ok=True)
            return
        shutil.rmtree(self.store, ignore_errors=True)
        for account in self._accounts():
            account.unlink(missing_ok=True)
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
    path: Path,
    arguments: Mapping[str, Any],
    *,
    overwrite: bool = False,
    resume: bool = False,
    owner: str | None = None,
) -> Iterator[Unfinished]:
    """Yield the folder of a store to fill; the store takes its name when the block ends without an error.

    However the block ends otherwise, tiles that are finished stay for a later `resume`; without any, nothing stays.

    Args:
        path: the store to come; folders above it are made.
        arguments: all that the store follows from, as JSON; a resumed one must have the same.
        overwrite: replace a store of that name, at the end and in two renames; drop an unfinished one.
        resume: go on with an unfinished one.
        owner: see `Unfinished`.

    Raises:
        StoreError: the name is taken, the disk is full, the folder cannot be written, or see `require_free`.
        RunError: the arguments are not those of the store to resume.
    """
    with begun_store(path, arguments, overwrite=overwrite, resume=resume, owner=owner) as under_way:
        yield under_way
        under_way.require_own()
        refuse_existing(path, overwrite=overwrite)  # another process may have been faster
        move_in(under_way.store, path)
        under_way.remove()


@contextmanager
def begun_store(
    path: Path, arguments: Mapping[str, Any], *, overwrite: bool, resume: bool, owner: str | None
) -> Iterator[Unfinished]:
    """As `unfinished_store`, but the folder stays when the block ends without an error: for others to `join`."""
    require_free(path, overwrite=overwrite, resume=resume)
    under_way = Unfinished(path, owner)
    with _in_words(path, under_way):
        under_way.claim()
        if not resume:
            under_way.remove()
            under_way.claim()
        remove_leftovers(path)
        under_way.begin(arguments)
    try:
        with _in_words(path, under_way):
            yield under_way
    except BaseException:
        if not under_way.done and under_way.is_own:
            under_way.remove()
        raise


@contextmanager
def joined_store(path: Path, arguments: Mapping[str, Any], *, owner: str) -> Iterator[Unfinished]:
    """Yield the folder of a store to fill beside other processes of the same owner; see `Unfinished.join`."""
    under_way = Unfinished(path, owner)
    with _in_words(path, under_way):
        under_way.join(arguments)
        yield under_way


@contextmanager
def _in_words(path: Path, under_way: Unfinished) -> Iterator[None]:
    """Have errors say what is kept."""
    try:
        yield
    except BaseException as exc:
        if isinstance(exc, OSError) and not isinstance(exc, SuperstError):
            raise cannot_write(path, exc, under_way.left) from exc
        if under_way.done:
            exc.add_note(f"{under_way.left}.")
        raise


def _tiles_in(account: Path) -> list[Tile]:
    """Tiles that a file lists."""
    text = account.read_text()
    lines = text[: text.rfind("\n") + 1].splitlines()  # a line cut by a kill or a full disk is not one
    return [(int(row), int(col)) for row, _, col in (line.partition(" ") for line in lines)]


def _write_whole(file: Path, text: str) -> None:
    """Put a file in its place, whole."""
    part = file.with_suffix(".part")
    part.write_text(text)
    part.replace(file)


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
