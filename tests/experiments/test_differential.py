"""Lists are ranked as told and compared with the reference as told; metagenes have no order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.stats import ranksums

from superst_monai.analysis.differential import differential
from superst_monai.analysis.evaluation import lognorm
from superst_monai.data.store import read_section
from superst_monai.errors import RunError
from superst_monai.experiments.differential import overlaps, rank_test, read_genes, run_differential, spots_in
from superst_monai.experiments.effort import Effort
from superst_monai.inference.maps import Maps, open_maps
from superst_monai.transforms.labels import draw_section

Done = tuple[Path, dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def done(stores: dict[str, Path], effort: Effort, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The experiment on section A: its left half against the rest; even genes are higher there."""
    folder = tmp_path_factory.mktemp("differential")
    ring = [[8, 8], [40, 8], [40, 88], [8, 88], [8, 8]]
    left = {
        "type": "Feature",
        "properties": {"objectType": "annotation", "classification": {"name": "left"}},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }
    regions, genes = folder / "A.geojson", folder / "genes.txt"
    regions.write_text(json.dumps({"type": "FeatureCollection", "features": [left]}))
    genes.write_text("# higher on the left\nG0\nG2\n\nG4\nG4\nUNKNOWN\n")
    arguments: dict[str, Any] = {
        "sections": [stores["A"]],
        "regions": [regions],
        "reference": genes,
        "of": "left",
        "effort": effort,
    }
    return folder / "out", run_differential(folder / "out", **arguments), arguments


def masks(maps: Maps) -> tuple[np.ndarray, np.ndarray]:
    """The left half and the rest of the tissue of section A."""
    left = np.zeros(maps.shape, np.bool_)
    left[8:88, 8:40] = True
    return left, maps.tissue & ~left


def test_the_rank_test_is_the_rank_sum_test() -> None:
    """Against scipy's rank sums gene by gene, on log-normalised counts, without ties; and the order of their scores."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(200, (40, 300)) * 1000 + np.arange(300)  # wide enough for no ties
    first = np.arange(40) < 15
    table = rank_test(sparse.csc_matrix(counts), (first, ~first))
    values = lognorm(counts)
    scores = [ranksums(values[first, g], values[~first, g]) for g in range(300)]
    np.testing.assert_allclose(table["p"], [s.pvalue for s in scores], rtol=1e-6)
    np.testing.assert_array_equal(np.argsort(table["auc"]), np.argsort([s.statistic for s in scores]))
    higher = np.mean(values[first, 7][:, None] > values[~first, 7][None])
    assert table.loc[7, "auc"] == pytest.approx(higher)


def test_overlaps_are_counted_set_by_set() -> None:
    """Against plain sets."""
    order, reference = list("abcdefgh"), list("bdx")
    sizes = np.array([1, 2, 3, 8])
    wanted = [len(set(order[:n]) & set(reference)) for n in sizes]
    np.testing.assert_array_equal(overlaps(order, reference, sizes), wanted)


def test_spots_belong_to_the_region_that_holds_half_of_them(stores: dict[str, Path]) -> None:
    """None is in both; a spot that neither holds is in none."""
    section = read_section(stores["A"])
    label = draw_section(section, section.mpp, section.tissue.shape)
    one, other = (np.zeros(section.tissue.shape, np.bool_) for _ in range(2))
    one[:, :30], other[:, 20:45] = True, True
    found = spots_in(section, label, (one, other))
    share = [np.array([mask[label == s].mean() for s in range(1, section.n_spots + 1)]) for mask in (one, other)]
    np.testing.assert_array_equal(found[0], share[0] >= 0.5)
    np.testing.assert_array_equal(found[1], (share[1] >= 0.5) & (share[0] < 0.5))
    assert found[0].any()
    assert found[1].any()
    assert not (found[0] | found[1]).all()


def test_lists_are_ranked_by_how_surely_a_gene_is_higher(done: Done, stores: dict[str, Path]) -> None:
    """The model's by the signed inverse coefficient of variation, the spots' by the rank sum; numbers of both."""
    out, result, _ = done
    table = pd.read_csv(out / "differential.csv").set_index("gene")
    maps, section = open_maps(out / "maps/A.zarr"), read_section(stores["A"])
    found = differential([maps], [masks(maps)])
    score = np.sign(found["log2_fold_change"]) * found["inverse_cv"]
    np.testing.assert_allclose(table["signed_inverse_cv"], score[table.index], rtol=1e-6)
    assert list(table.index) == list(score.sort_values(ascending=False).index)
    assert list(table["superst_rank"]) == list(range(1, 13))
    label = maps.spot_label(section)
    groups = spots_in(section, label, masks(maps))
    assert result["spots"] == [int(group.sum()) for group in groups]
    values = lognorm(section.counts[:, section.genes.index.get_indexer(table.index)].toarray())
    for gene, column in zip(table.index, values.T, strict=True):
        one, other = column[groups[0]], column[groups[1]]
        more = (one[:, None] > other).mean() + 0.5 * (one[:, None] == other).mean()
        assert table.loc[gene, "spots_auc"] == pytest.approx(more)
    order = table["spots_auc"].to_numpy()[np.argsort(table["spots_rank"])]
    assert (np.diff(order) <= 0).all()
    assert set(table.index[table["spots_rank"] <= 6]) == {f"G{i}" for i in range(0, 12, 2)}


def test_agreement_is_that_of_the_ranked_lists(done: Done) -> None:
    """Overlap over set sizes, chance, and what of the reference was measured."""
    out, result, _ = done
    table = pd.read_csv(out / "differential.csv")
    assert result["reference_measured"] == [g for g in table["gene"] if g in {"G0", "G2", "G4"}]
    assert result["reference_missing"] == ["UNKNOWN"]
    assert result["set_size"] == list(range(1, 13))
    for method in ("superst", "spots"):
        order = table.sort_values(f"{method}_rank")["gene"].tolist()
        wanted = [len(set(order[:n]) & {"G0", "G2", "G4"}) for n in range(1, 13)]
        assert result["overlap"][method] == wanted
    np.testing.assert_allclose(result["overlap_by_chance"], np.arange(1, 13) * 3 / 12)
    assert "Of the first 3 genes that are higher in left" in result["finding"]
    assert (out / "differential.png").stat().st_size > 10_000


def test_permuting_metagenes_changes_no_ranking(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of metagenes is nowhere in the result."""
    out, _, _ = done
    before, after = open_maps(out / "maps/A.zarr"), open_maps(out / "maps/A.zarr")
    order = np.arange(after.n_metagenes)[::-1]
    plain = after.size_of
    after.log_rate = after.log_rate[:, order]
    monkeypatch.setattr(after, "size_of", lambda *a, **k: plain(*a, **k)[..., order])
    one, other = (differential([maps], [masks(before)]) for maps in (before, after))
    pd.testing.assert_frame_equal(one, other.loc[one.index], rtol=1e-5)


@pytest.mark.usefixtures("no_training")
def test_resuming_trains_nothing_again(done: Done) -> None:
    """The result is the same; another region is another experiment."""
    out, result, arguments = done
    assert run_differential(out, **arguments) == result
    with pytest.raises(RunError, match="whose of was left, got right"):
        run_differential(out, **(arguments | {"of": "right"}))


def test_a_reference_must_name_genes(done: Done, tmp_path: Path) -> None:
    """An empty or binary file, and one of other names than those measured."""
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    with pytest.raises(RunError, match="names none"):
        read_genes(tmp_path / "empty.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\xff")
    with pytest.raises(RunError, match="must be a text file of genes"):
        read_genes(tmp_path / "binary.txt")
    (tmp_path / "other.txt").write_text("ENS1\nENS2\n")
    _, _, arguments = done
    with pytest.raises(RunError, match=r"none of its 2 \(ENS1, ENS2 ...\) is among the 12 of A"):
        run_differential(tmp_path / "out", **(arguments | {"reference": tmp_path / "other.txt"}))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_training")
def test_both_regions_must_hold_spots(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    """A region between the spots has pixels to predict, but no spot to test."""
    out, _, arguments = done
    monkeypatch.setattr(
        "superst_monai.experiments.differential.spots_in", lambda s, *_: [np.zeros(s.n_spots, bool)] * 2
    )
    with pytest.raises(RunError, match="both regions must hold spots, at least half of each, but they hold 0 and 0"):
        run_differential(out, **arguments)
