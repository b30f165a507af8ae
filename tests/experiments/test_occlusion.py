"""What is hidden is exactly the tiles drawn, and only the image that is trained on hides them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from superst_monai.data.section import Section
from superst_monai.data.store import read_section
from superst_monai.errors import RunError
from superst_monai.experiments.effort import Effort
from superst_monai.experiments.occlusion import draw_tiles, hide_tiles, run_occlusion
from superst_monai.experiments.withheld_spots import KINDS, SCORES, draw_withheld, score_spots
from superst_monai.inference.maps import open_maps
from superst_monai.transforms.balance import section_glass
from superst_monai.transforms.labels import draw_section

MakeSection = Callable[..., Section]
Done = tuple[Path, dict[str, Any]]
SETTINGS: dict[str, Any] = {"shares": (0.5,), "grid": 12, "withheld": 0.6, "seed": 1}


@pytest.fixture(scope="module")
def done(stores: dict[str, Path], effort: Effort, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The experiment on section A, one repeat."""
    out = tmp_path_factory.mktemp("occlusion") / "out"
    return out, run_occlusion(out, [stores["A"]], effort=replace(effort, repeats=1), **SETTINGS)


def rng() -> np.random.Generator:
    """The tiles of section A in the experiment."""
    return np.random.default_rng((1, 0, 0, 1))


def test_tiles_are_a_share_of_the_grid() -> None:
    """Whole tiles of one side; their number is the share; a smaller share hides a part of a larger one."""
    found = {share: draw_tiles((50, 100), share, rng(), grid=20) for share in (0.0, 0.25, 0.5, 1.0)}
    assert not found[0.0].any()
    assert found[1.0].all()
    tiles = found[0.25].reshape(10, 5, 20, 5)
    assert (tiles.all((1, 3)) == tiles.any((1, 3))).all()
    assert tiles.all((1, 3)).sum() == 50
    assert not (found[0.25] & ~found[0.5]).any()
    assert draw_tiles((30, 400), 0.5, rng()).sum() == pytest.approx(6000, abs=100)  # 4 px a tile, the last row is cut


def test_hidden_pixels_are_exactly_the_mask(make_section: MakeSection) -> None:
    """They have the mean colour of the tissue, all others what they had; the glass keeps its colour."""
    section = make_section()
    hidden = draw_tiles(section.tissue.shape, 0.5, rng(), grid=12)
    occluded = hide_tiles(section, 0.5, rng(), grid=12)
    colour = section.image[section.tissue].astype(float).mean(axis=0)
    assert np.abs(occluded.image[hidden] - colour).max() <= 0.5
    np.testing.assert_array_equal(occluded.image[~hidden], section.image[~hidden])
    np.testing.assert_array_equal(occluded.tissue, section.tissue)
    assert occluded.counts is section.counts
    glass, seen = (section_glass(s.image, s.tissue) for s in (section, occluded))
    np.testing.assert_allclose(seen, glass, atol=2)


def test_the_image_trained_on_is_hidden_and_the_unaltered_one_is_not(done: Done, stores: dict[str, Path]) -> None:
    """The store of a share differs from that of 0 in the tiles alone."""
    out, _ = done
    plain, hidden = (read_section(out / f"sections/0-{level}-0.zarr") for level in ("0", "0.5"))
    np.testing.assert_array_equal(plain.image, read_section(stores["A"]).image)
    mask = draw_tiles(plain.tissue.shape, 0.5, rng(), grid=12)
    differs = (plain.image != hidden.image).any(axis=-1)
    assert not differs[~mask].any()
    assert differs[mask].mean() > 0.9
    np.testing.assert_array_equal(plain.counts.toarray(), hidden.counts.toarray())


def test_hidden_and_visible_spots_are_scored_apart(done: Done, stores: dict[str, Path]) -> None:
    """Of all withheld spots, those with half of their pixels hidden and the rest; both models on the same spots."""
    out, result = done
    section = read_section(stores["A"])
    withheld = draw_withheld(section.n_spots, 0.6, np.random.default_rng((1, 0, 0, 0)))
    mask = draw_tiles(section.tissue.shape, 0.5, rng(), grid=12)
    label = draw_section(section, section.mpp, section.tissue.shape)
    share = np.array([mask[label == spot].mean() for spot in range(1, section.n_spots + 1)])
    parts = {"all": withheld, "hidden": withheld & (share >= 0.5), "visible": withheld & (share < 0.5)}
    table = pd.read_csv(out / "occlusion.csv")
    for part, judged in parts.items():
        assert judged.sum() >= 5
        for kind in KINDS:
            rows = table[(table["part"] == part) & (table["kind"] == kind) & (table["level"] == 0.5)].set_index("gene")
            assert (rows["spots"] == judged.sum()).all()
            for level, suffix in (("0.5", ""), ("0", "_unaltered")):
                wanted = score_spots(open_maps(out / f"maps/0-{level}-A-{kind}.zarr"), section, judged)
                wanted = wanted.set_index("gene").loc[rows.index]
                for score in SCORES:
                    np.testing.assert_allclose(rows[score + suffix], wanted[score], rtol=1e-9)
    assert {(row["part"], row["level"]) for row in result["levels"]} == {
        ("all", 0.0),
        *((part, 0.5) for part in parts),
    }
    assert "With 50 % of the tiles hidden" in result["finding"]
    assert (out / "occlusion.png").stat().st_size > 10_000


@pytest.mark.usefixtures("no_training")
def test_resuming_trains_nothing_again(done: Done, stores: dict[str, Path], effort: Effort) -> None:
    """The result is the same."""
    out, result = done
    assert run_occlusion(out, [stores["A"]], effort=replace(effort, repeats=1), **SETTINGS) == result


def test_impossible_tiles_are_refused(stores: dict[str, Path], tmp_path: Path) -> None:
    """All faults at once."""
    with pytest.raises(RunError, match=r"shares must be in \(0, 1\], each once .*got 1.5; grid must be at least 1"):
        run_occlusion(tmp_path / "out", [stores["A"]], shares=(1.5,), grid=0)
