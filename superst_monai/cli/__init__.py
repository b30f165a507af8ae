"""The command `superst`: parse and call, nothing else."""

from __future__ import annotations


def main() -> None:
    """Run the command line; the console entry point."""
    from superst_monai.cli.app import app

    app()
