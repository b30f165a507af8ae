"""The spots that the training of a run withheld, found again in its sections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from superst_monai.data.section import Section
from superst_monai.data.store import read_section
from superst_monai.engines.holdout import withheld_spots
from superst_monai.inference.run import Run


def training_sections(run: Run) -> list[tuple[Section, list[NDArray[np.int64]]]] | str:
    """The sections of the training and the rows of the blocks of spots withheld of each; or why they are not known.

    Raises:
        SuperstError: a section cannot be read.
    """
    config = run.path / "configs" / "train.yaml"
    given: dict[str, Any] = dict(yaml.safe_load(config.read_text())) if config.is_file() else {}
    share, known = float(given.get("val_share") or 0.0), run.record.get("sections", [])
    if not share or not known:
        return "the training withheld no spots (--val-share)"
    gone = [entry["name"] for entry in known if not (entry["path"] and Path(entry["path"]).is_dir())]
    if gone:
        return f"{', '.join(gone)} of the training cannot be found"
    sections = [read_section(entry["path"]) for entry in known]
    xy_um = [section.spots[["x_um", "y_um"]].to_numpy(np.float64) for section in sections]
    blocks = withheld_spots(xy_um, share, seed=int(run.record["seed"]))
    before = [(entry["spots"], n) for entry, n in zip(known, run.record["held_out_spots"], strict=True)]
    if before != [(section.n_spots, sum(map(len, found))) for section, found in zip(sections, blocks, strict=True)]:
        return "the sections have other spots than in the training"
    return list(zip(sections, blocks, strict=True))
