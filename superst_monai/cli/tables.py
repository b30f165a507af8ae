"""Tables on the terminal: preflight checks, and pairs of names and values."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

_STYLE = {"ok": "green", "warn": "bold yellow", "fault": "bold red"}
_WIDTH = 120  # [characters] of tables that go to a file


def show_checks(name: str, rows: Iterable[Mapping[str, str]]) -> None:
    """Print the preflight table of a section: rows with keys check, value, verdict and advice."""
    table = Table(title=f"Preflight of {name}", title_justify="left")
    for heading in ("check", "found", "verdict", "next step"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        verdict = Text(row["verdict"], style=_STYLE.get(row["verdict"], ""))
        table.add_row(Text(row["check"]), Text(row["value"]), verdict, Text(row["advice"]))
    _print(table)


def show_values(title: str, rows: Mapping[str, object]) -> None:
    """Print names and values."""
    show_rows(title, ("", ""), [(name, str(value)) for name, value in rows.items()])


def show_rows(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under headings; without any heading the line for them is left out."""
    table = Table(title=title, title_justify="left", show_header=any(headings))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    _print(table)


def show_notes(notes: Iterable[str]) -> None:
    """Print the decisions that a reader took, one a line."""
    for note in notes:
        typer.echo(f"- {note}")


def _print(table: Table) -> None:
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    console.print(table)
