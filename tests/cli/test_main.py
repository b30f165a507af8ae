"""The entry point of `superst`."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from superst_monai.cli import HUGE_PAGES, main


@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("0", "0")])
def test_huge_pages_are_asked_for_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, stand_in: Callable[..., None], before: str | None, after: str
) -> None:
    """The variable is there before the application, and with it torch, is imported."""
    monkeypatch.setenv(HUGE_PAGES, before or "")
    if before is None:
        monkeypatch.delenv(HUGE_PAGES)
    seen: list[str | None] = []
    stand_in("superst_monai.cli.app", app=lambda: seen.append(os.environ.get(HUGE_PAGES)))
    main()
    assert seen == [after]
