"""Laws of opening a run folder: the trained network comes back, and a folder that is none is refused with a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from superst_monai.errors import RunError
from superst_monai.inference.run import load_run


@pytest.fixture
def folder(tmp_path: Path, make_run: Callable) -> Path:
    """A run folder of its own for each test, free to be damaged."""
    return make_run(tmp_path / "run", covariates={"section": ["C2", "C6"]})


def edit_config(folder: Path, **changes: object) -> None:
    """Change keys of the run's inference configuration."""
    file = folder / "configs" / "inference.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes))


def test_a_run_comes_back_whole(folder: Path) -> None:
    """Network, genes, resolution and levels are those that were written; the network is in evaluation mode."""
    run = load_run(folder)
    assert (run.genes[0], run.gene_ids[-1], run.mpp) == ("ACTB", "ENSG00006", 4.0)
    assert run.covariates == {"section": ["C2", "C6"]}
    assert run.record["state"] == "done"
    assert not run.network.training
    assert run.device == torch.device("cpu")
    state = torch.load(folder / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(value, state[name]) for name, value in run.network.state_dict().items())
    assert run.network.guide.encoder.heads[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_names_of_genes_that_look_like_missing_values_are_kept(tmp_path: Path, make_run: Callable) -> None:
    """A gene called NA stays a gene."""
    assert load_run(make_run(tmp_path / "run", genes=("NA", "nan"))).genes == ["NA", "nan"]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    """All that is missing is named."""
    with pytest.raises(RunError, match=r"must be a run folder, but has no run.json, genes.csv, configs/inference.yaml"):
        load_run(tmp_path)


def test_a_run_without_weights_is_not_ready(folder: Path) -> None:
    """Before the first validation there is nothing to predict with."""
    (folder / "models" / "model.pt").unlink()
    with pytest.raises(RunError, match="training has not reached its first validation"):
        load_run(folder)


def test_numbers_that_were_never_filled_in_are_named(folder: Path) -> None:
    """A configuration without numbers is that of the bundle."""
    edit_config(folder, mpp=None, depth=None)
    with pytest.raises(RunError, match=r"no value of depth, mpp; .*not the bundle without weights"):
        load_run(folder)


@pytest.mark.parametrize(("file", "text"), [("run.json", "{"), ("configs/inference.yaml", "a: [")])
def test_damaged_texts_are_refused(folder: Path, file: str, text: str) -> None:
    """A record or configuration that cannot be parsed is damaged."""
    (folder / file).write_text(text)
    with pytest.raises(RunError, match=r"inference.yaml or run.json of .* is damaged"):
        load_run(folder)


def test_numbers_that_make_no_network_are_refused(folder: Path) -> None:
    """A pyramid needs at least one level."""
    edit_config(folder, depth=0)
    with pytest.raises(RunError, match="must describe a network, but none can be built from it"):
        load_run(folder)


def test_weights_of_another_network_are_refused(folder: Path) -> None:
    """Weights must fit the numbers of the configuration."""
    edit_config(folder, width=8)
    with pytest.raises(RunError, match=r"model.pt does not fit configs/inference.yaml"):
        load_run(folder)


def test_a_truncated_file_of_weights_is_refused(folder: Path) -> None:
    """Half a file is no archive."""
    file = folder / "models" / "model.pt"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(RunError, match="damaged: 1000 bytes"):
        load_run(folder)


def test_pickled_objects_are_not_loaded(folder: Path) -> None:
    """A file that holds more than tensors is refused, and its code does not run."""
    torch.save({"path": Path("x")}, folder / "models" / "model.pt")
    with pytest.raises(RunError, match="must hold plain tensors and nothing else"):
        load_run(folder)


def test_weights_that_are_not_finite_are_refused(folder: Path) -> None:
    """NaN in the weights would be NaN in every map."""
    file = folder / "models" / "model.pt"
    state = torch.load(file, weights_only=True)
    state["generative.log_rate"][0] = torch.nan
    torch.save(state, file)
    with pytest.raises(RunError, match=r"1 of .* are not \(first: generative.log_rate\)"):
        load_run(folder)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("gene,gene_id\nA,1\nA,2\n", "2 rows for the 7 genes of the network; names that stand twice"),
        ("gene,id\n" + "".join(f"g{i},{i}\n" for i in range(7)), "no column gene_id"),
        ("name\nA\n", "must be a table with the columns gene, gene_id"),
        ("", "must be a table with the columns gene, gene_id"),
    ],
)
def test_genes_that_do_not_fit_are_refused(folder: Path, text: str, fault: str) -> None:
    """The table of genes has one row a gene of the network, and every fault is told."""
    (folder / "genes.csv").write_text(text)
    with pytest.raises(RunError, match=fault):
        load_run(folder)
