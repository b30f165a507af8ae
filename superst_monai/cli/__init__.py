"""The command `superst`: parse and call, nothing else."""

from __future__ import annotations

import os

HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""Environment variable by which torch asks Linux for pages of 2 MiB under tensors: a sixth of the time and of the
memory of a prediction on CPUs. It has to be there when torch is imported, and does nothing on other systems."""


def main() -> None:
    """Run the command line; the console entry point."""
    os.environ.setdefault(HUGE_PAGES, "1")
    from superst_monai.cli.app import app

    app()
