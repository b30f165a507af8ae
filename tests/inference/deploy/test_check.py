"""Laws of the check of a run folder: a sound one passes, and whatever is broken is named, all at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from superst_monai.data.section import Section
from superst_monai.engines.run_folder import bundle_folder, versions
from superst_monai.errors import RunError
from superst_monai.inference.calibration import Calibration, to_json
from superst_monai.inference.deploy.check import Finding, check_run, require_sound
from superst_monai.inference.deploy.metadata import metadata_faults
from superst_monai.inference.field_store import save_field
from superst_monai.inference.run import load_run
from superst_monai.inference.section_field import SectionField
from superst_monai.model.domain import Domain
from superst_monai.model.field import FieldGrid

CHECKS = "files configs numbers record metadata genes weights network domain calibration colours fields"


def change(path: Path, edit: Callable[[dict], Any]) -> None:
    """Edit a JSON or YAML file in place."""
    read, write = (json.loads, json.dumps) if path.suffix == ".json" else (yaml.safe_load, yaml.safe_dump)
    content = read(path.read_text())
    edit(content)
    path.write_text(write(content))


@pytest.fixture
def sound(tmp_path: Path, make_run: Callable[..., Path], section: Section) -> Path:
    """A run folder as training leaves it, with domain and one field."""
    path = make_run(tmp_path / "run")

    def fit(about: dict) -> None:
        for tensor in (
            about["network_data_format"]["inputs"]["image"],
            about["network_data_format"]["outputs"]["pred"],
        ):
            tensor["spatial_shape"] = ["4*n", "4*n"]
        pred = about["network_data_format"]["outputs"]["pred"]
        pred |= {"num_channels": 4, "channel_def": {str(k): f"metagene {k + 1}" for k in range(4)}}

    change(path / "configs" / "metadata.json", fit)
    sections = [{"name": name, "path": "/gone", "sha256": letter * 64} for name, letter in (("C2", "a"), ("C6", "b"))]
    record = {"seed": 0, "genes": 7, "sections": sections, "versions": versions(), "started": "2026-01-01T00:00:00"}
    change(path / "run.json", lambda known: known.update(record))
    run = load_run(path)
    law = Domain([0.0] * 4, np.eye(4).tolist(), 1.0, 99)
    (path / "domain.json").write_text(law.to_json(run.weights_sha256))
    grid, zeros = FieldGrid(0.0, 0.0, 50.0, 2, 3), np.zeros((5, 2, 3), np.float32)
    genes = np.zeros(7, np.float32)
    save_field(run, section, SectionField(grid, zeros, zeros + 1, zeros[:, 0, 0], np.tile(genes, (4, 1)), genes))
    return path


def faults_of(findings: list[Finding]) -> list[str]:
    """All faults, with the name of their check."""
    return [f"{finding.check}: {fault}" for finding in findings for fault in finding.faults]


def test_a_sound_run_passes_every_check(sound: Path) -> None:
    """Nothing is wrong, every check was made, and they say what they saw."""
    findings = {finding.check: finding for finding in check_run(sound)}
    assert faults_of(list(findings.values())) == []
    assert " ".join(findings) == CHECKS
    found = {name: findings[name].found for name in ("genes", "fields", "domain", "record", "network")}
    assert found == {
        "genes": "7",
        "fields": "1",
        "domain": "of 99 blocks",
        "record": "done, 2 section(s)",
        "network": "verify_net_in_out passes",
    }
    assert {findings[name].verdict for name in ("metadata", "record", "domain", "fields")} == {"ok"}
    assert findings["calibration"].notes == ["intervals are as modelled"]
    require_sound(sound, list(findings.values()))


def test_the_bundle_without_weights_keeps_the_rules_of_metadata() -> None:
    """What is shipped fits the network that it describes, and not another."""
    about = json.loads((bundle_folder() / "configs" / "metadata.json").read_text())
    assert metadata_faults(about, depth=5, n_metagenes=12) == []
    faults = metadata_faults(about, depth=4, n_metagenes=11)
    assert {fault.partition(" must ")[0] for fault in faults} == {
        "inputs.image.spatial_shape",
        "outputs.pred.num_channels",
        "outputs.pred.spatial_shape",
        "outputs.pred.channel_def",
    }


def pred(about: dict) -> dict:
    """The output in the metadata."""
    return about["network_data_format"]["outputs"]["pred"]


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (lambda a: a.pop("task"), "task is missing"),
        (lambda a: a.update(version=1), "version must be str, got int"),
        (lambda a: a.update(intended_use=""), "intended_use is empty"),
        (lambda a: a.update(version="9.9.9"), "changelog must tell of version 9.9.9, it has 0.1.0"),
        (lambda a: a["network_data_format"]["inputs"].pop("image"), "network_data_format.inputs.image is missing"),
        (lambda a: pred(a).update(num_channels=True), "outputs.pred.num_channels must be int, got bool"),
        (lambda a: pred(a).pop("modality"), "outputs.pred.modality is missing"),
        (
            lambda a: pred(a).update(dtype="float64"),
            "outputs.pred.dtype must be float32, as of the network, got float64",
        ),
        (lambda a: pred(a)["channel_def"].pop("3"), "outputs.pred.channel_def must name channels 0 to 11, one each"),
    ],
)
def test_a_broken_rule_of_metadata_is_named(edit: Callable[[dict], Any], fault: str) -> None:
    """A key that is missing, empty, of another kind, or not the network's."""
    about = json.loads((bundle_folder() / "configs" / "metadata.json").read_text())
    edit(about)
    assert fault in metadata_faults(about, depth=5, n_metagenes=12)
    assert metadata_faults([about], depth=5, n_metagenes=12) == ["must be an object, got list"]


def test_all_faults_are_told_at_once(sound: Path) -> None:
    """Files, configurations, metadata, genes, record and weights are judged beside each other."""
    (sound / "LICENSE").unlink()
    (sound / "docs" / "README.md").write_text("")
    (sound / "configs" / "train.yaml").write_text("a: [")
    change(sound / "configs" / "evaluate.yaml", lambda keys: keys.pop("run"))
    (sound / "configs" / "logging.conf").write_text("[loggers]\n")
    change(sound / "configs" / "metadata.json", lambda about: about.pop("authors"))
    lines = (sound / "genes.csv").read_text().splitlines()
    (sound / "genes.csv").write_text("\n".join(lines[:-1]) + "\n")
    change(sound / "run.json", lambda record: record["sections"][1].update(sha256="b"))
    (sound / "models" / "model.pt").write_bytes(b"not weights")
    findings = check_run(sound)
    faults = faults_of(findings)
    told = "\n".join(faults)
    for part in (
        "files: no LICENSE",
        "files: no docs/README.md",
        "configs: train.yaml cannot be read",
        "configs: evaluate.yaml has no run",
        "configs: logging.conf has no [handlers]",
        "metadata: authors is missing",
        "6 rows for the 7 genes of the network",
        "record: run.json has no hash of counts and image of section C6",
        "model.pt is damaged: 11 bytes that are no archive of tensors",
    ):
        assert part in told
    assert len(faults) == 9
    with pytest.raises(
        RunError,
        match=r"must be a sound bundle, but has 9 fault\(s\): files: no docs/README.md; files: no LICENSE; .*Restore",
    ):
        require_sound(sound, findings)


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("depth", "$__import__('os').getpid()", "depth of inference.yaml must be a whole number above 0"),
        ("norm", ["batch", {"eps": "$1e-5"}], "norm, act and covariates of inference.yaml must be plain values"),
        ("network_def", {"_target_": "os.getcwd"}, "network_def of inference.yaml is not that of the bundle"),
        ("mpp", "4", "mpp of inference.yaml must be a positive number, got 4"),
    ],
)
def test_nothing_of_the_folder_is_evaluated(sound: Path, key: str, value: Any, fault: str) -> None:
    """A value that MONAI would evaluate is a fault, and what needs it is left alone."""
    change(sound / "configs" / "inference.yaml", lambda config: config.update({key: value}))
    findings = check_run(sound)
    assert f"numbers: {fault}" in "\n".join(faults_of(findings))
    assert "network" not in {finding.check for finding in findings}


def test_weights_that_are_no_plain_tensors_are_refused(sound: Path) -> None:
    """An object in the weights is not unpickled; the network and what belongs to it are left alone."""
    torch.save({"a": Path("x")}, sound / "models" / "model.pt")
    findings = check_run(sound)
    assert [fault.partition(" (")[0] for fault in faults_of(findings)] == [
        f"weights: {sound}/models/model.pt must hold plain tensors and nothing else"
    ]
    assert findings[-1].check == "weights"


def test_a_record_of_another_network_is_refused(sound: Path) -> None:
    """Resolution, number of sections and of genes are compared; an unfinished training and other versions are noted."""
    change(
        sound / "run.json",
        lambda record: record.update(
            mpp=4.0,
            state="running",
            genes=8,
            sections=record["sections"][:1],
            versions={"numpy": "1.0", "no-such": "2"},
        ),
    )
    findings = {finding.check: finding for finding in check_run(sound)}
    assert findings["record"].faults == ["run.json tells of 1 sections, inference.yaml of 2"]
    assert findings["genes"].faults == ["run.json tells of 8 genes, genes.csv of 7"]
    assert findings["record"].notes == [
        f"was trained with numpy 1.0, here is {np.__version__}",
        "was trained with no-such 2, here is none",
        "the training has not ended",
    ]
    change(sound / "run.json", lambda record: record.update(mpp=5.0, sections="C2"))
    faults = next(finding.faults for finding in check_run(sound) if finding.check == "record")
    assert faults == ["run.json has no sections", "run.json says 5.0 um per pixel, inference.yaml 4.0"]


def test_fields_and_domain_of_other_networks_are_found(sound: Path) -> None:
    """A damaged field, one of other sizes, and a domain that is damaged or of other weights."""
    (sound / "fields" / "B.pt").write_bytes(b"x")
    other = torch.load(sound / "fields" / "C2.pt", weights_only=True) | {"rate_effect": torch.zeros(3)}
    torch.save(other, sound / "fields" / "C.pt")
    (sound / "domain.json").write_text("{")
    findings = {finding.check: finding for finding in check_run(sound)}
    damaged, sizes = findings["fields"].faults
    assert damaged.startswith(f"{sound}/fields/B.pt must hold the field of a section, but cannot be read")
    wanted = "C.pt must be of 4 metagenes and 7 genes, got a field of 4 metagenes with effects (3,); fit it again"
    assert sizes == f"{wanted} with superst fit-section"
    assert findings["domain"].faults[0].startswith("domain.json is damaged")
    (sound / "domain.json").write_text(Domain([0.0] * 4, np.eye(4).tolist(), 1.0, 99).to_json("0" * 64))
    findings = {finding.check: finding for finding in check_run(sound)}
    assert (findings["domain"].verdict, findings["domain"].found) == ("note", "of other weights")
    (sound / "domain.json").unlink()
    assert next(f.found for f in check_run(sound) if f.check == "domain") == "none"


def test_a_recalibration_is_shown(sound: Path) -> None:
    """Its factor of each mode; that of other weights counts as none."""
    share = {"top100": 0.8, "all": 0.85}
    known = {"histology": Calibration(1.25, 40, share, share)}
    for digest, found in ((load_run(sound).weights_sha256, "histology 1.25"), ("0" * 64, "none")):
        (sound / "calibration.json").write_text(to_json(known, digest))
        assert next(f.found for f in check_run(sound) if f.check == "calibration") == found


def test_unreadable_metadata_and_network_faults_are_told(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What MONAI's own check says is passed on; metadata that are no JSON are a fault of their own."""

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("output channel number `3` doesn't match: `4`.")

    monkeypatch.setattr("superst_monai.inference.deploy.check.verify_net_in_out", refuse)
    assert faults_of(check_run(sound)) == ["network: verify_net_in_out: output channel number `3` doesn't match: `4`."]
    (sound / "configs" / "metadata.json").write_text("{")
    assert faults_of(check_run(sound))[0].startswith("metadata: metadata.json cannot be read")


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    """There is nothing to look at."""
    with pytest.raises(RunError, match=r"must be a run folder, but has no run\.json"):
        check_run(tmp_path)
