"""Folder of one experiment: settings that are pinned, steps that are done once, and a result of figure, table and JSON.

An experiment that is broken off is started again with the same settings and goes on with the step it was in.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from superst_monai.analysis.files import make_folder, write_json, write_whole
from superst_monai.analysis.overlay import save_figure
from superst_monai.data.section import Section
from superst_monai.data.slide import Slide
from superst_monai.data.store import write_section
from superst_monai.engines.run_folder import RunFolder
from superst_monai.engines.workflow import train
from superst_monai.errors import RunError
from superst_monai.inference.colours_fit import fit_colours
from superst_monai.inference.field_store import fit_training_fields, load_prior
from superst_monai.inference.maps import Maps, open_maps
from superst_monai.inference.run import load_run
from superst_monai.inference.slide_map import predict
from superst_monai.inference.unfinished import unfinished_folder

Show = Callable[[str, float, float], None]
"""Progress: name of the step under way, its share done, seconds spent in it."""


class ExperimentFolder:
    """Folder of one experiment.

    `settings.json`, `sections/`, `runs/`, `maps/`, `parts/` (numbers of finished steps), and at the end the result:
    `NAME.json`, `NAME.csv` and `NAME.png`.

    Args:
        out: the folder, new, empty, or of the same experiment with the same settings.
        name: of the experiment.
        settings: whatever its numbers follow from, as JSON knows it.
        show: progress of the long steps.

    Raises:
        RunError: the folder holds something else, or the experiment with other settings.
    """

    def __init__(self, out: Path | str, name: str, settings: Mapping[str, Any], *, show: Show | None = None) -> None:
        """Make the folder, or check that it may be continued."""
        self.path = make_folder(out)
        self.name = name
        self._show = show
        content = json.loads(json.dumps({"experiment": name, **settings}))
        pinned = self.path / "settings.json"
        if not pinned.exists():
            if any(self.path.iterdir()):
                raise RunError(f"{self.path} must be new, empty or an experiment's folder; name another --out.")
            write_json(pinned, content)
            return
        known = json.loads(pinned.read_text())
        other = [
            f"{key} was {known.get(key)}, got {content.get(key)}"
            for key in sorted(known.keys() | content.keys())
            if known.get(key) != content.get(key)
        ]
        if other:
            raise RunError(f"{self.path} holds an experiment whose {'; '.join(other)}; name another --out.")

    def section(self, name: str, make: Callable[[], Section]) -> Path:
        """The stored section `sections/NAME.zarr`, made if it is not there."""
        store = make_folder(self.path / "sections") / f"{name}.zarr"
        if not store.exists():
            write_section(make(), store)
        return store

    def run(self, name: str, sections: Sequence[Path | str], **arguments: Any) -> Path:
        """The finished run `runs/NAME`; trained, or trained on, if it is not. `arguments` as of `workflow.train`."""
        folder = self.path / "runs" / name
        record = folder / "run.json"
        if record.exists() and json.loads(record.read_text())["state"] == "done":
            return folder
        begun = record.exists() and RunFolder(folder, resume=True).last_checkpoint() is not None
        if begun:
            return train([], folder, resume=True, show=self._step(f"training {name}"))
        shutil.rmtree(folder, ignore_errors=True)
        return train(sections, folder, show=self._step(f"training {name}"), **arguments)

    def fit_fields(self, run: Path) -> None:
        """Fit second reading and fields of a run on its training sections, if it has not all fields."""
        if load_prior(load_run(run)) is None:
            fit_colours(run, tell=lambda _: None)
            fit_training_fields(run, show=self._step(f"fitting fields of {run.name}"))

    def maps(self, name: str, run: Path, source: Section | Slide, **arguments: Any) -> Maps:
        """The posterior maps `maps/NAME.zarr`, drawn if they are not there. `arguments` as of `slide_map.predict`."""
        store = make_folder(self.path / "maps") / f"{name}.zarr"
        if not store.exists():
            resume = unfinished_folder(store).exists()
            show = self._step(f"predicting {name}")
            predict(load_run(run), source, store, resume=resume, show=show, tell=lambda _: None, **arguments)
        return open_maps(store)

    def forget_maps(self, name: str) -> None:
        """Remove `maps/NAME.zarr` once its numbers are a part."""
        shutil.rmtree(self.path / "maps" / f"{name}.zarr", ignore_errors=True)

    def part(self, name: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The numbers `parts/NAME.json`, computed if they are not there."""
        file = make_folder(self.path / "parts") / f"{name}.json"
        if not file.exists():
            write_json(file, compute())
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    def finish(self, summary: Mapping[str, Any], table: pd.DataFrame, figure: Figure) -> dict[str, Any]:
        """Write the result and return the content of `NAME.json`: experiment, settings and summary."""
        settings = json.loads((self.path / "settings.json").read_text())
        write_whole(self.path / f"{self.name}.csv", lambda part: table.to_csv(part, index=False))
        save_figure(figure, self.path / f"{self.name}.png")
        result = {"experiment": self.name, "settings": settings, **summary}
        write_json(self.path / f"{self.name}.json", result)
        return result

    def _step(self, name: str) -> Callable[..., None] | None:
        """Progress of one step, as `train` and `predict` tell it."""
        show = self._show
        return None if show is None else lambda share, seconds, *_: show(name, share, seconds)
