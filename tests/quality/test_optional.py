"""What the user said they meant is no fault: modalities that may be missing, the run that counts."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

from brainfoundry.cohorts.manifest import Manifest, read_manifest, write_manifest
from brainfoundry.quality.sources import Choice, inspection_of
from brainfoundry.quality.verify import of_intake, of_shard_set, verify
from brainfoundry.store.convert import convert, inline
from brainfoundry.store.shard_task import ConvertSpec
from tests.quality.builders import SLICES, cohort, session
from tests.store.builders import brain, nifti


def gappy(folder: Path, optional: list[str]) -> Manifest:
    """Four sessions, the second without its FLAIR."""
    sessions = [session(n) for n in range(4)]
    del sessions[1].images["FLAIR"]
    manifest = cohort(folder / "files", sessions)
    rules = {**manifest.meta.rules, "optional_modalities": optional}
    uri = str(folder / "optional.parquet")
    write_manifest(uri, manifest.rows(), replace(manifest.meta, rules=rules))
    return read_manifest(uri)


def test_files(tmp_path: Path) -> None:
    done = verify(of_intake(gappy(tmp_path, ["FLAIR"]), "here"))
    assert done.findings == () and (done.sessions, done.scans) == (4, 7)
    strict = verify(of_intake(gappy(tmp_path / "strict", []), "here"))
    assert [(f.code, f.modality) for f in strict.findings] == [("missing_scan", "FLAIR")]


def test_shards(tmp_path: Path) -> None:
    manifest, out = gappy(tmp_path, ["FLAIR"]), str(tmp_path / "out")
    convert(manifest, out, ConvertSpec(min_slices=SLICES, rows_per_shard=4), executor=inline)
    inspection = of_shard_set(out)
    done = verify(inspection)
    assert done.findings == () and (done.sessions, done.scans) == (4, 7)
    json.dumps([facts.to_dict() for facts in done.facts], allow_nan=False)  # nothing was made of zeros
    other = inspection.targets[0].row
    lying = replace(inspection.targets[1], row=replace(inspection.targets[1].row, scans=other.scans))
    told = verify(replace(inspection, targets=(lying,)))
    assert ("damaged_shard", "FLAIR") in {(f.code, f.modality) for f in told.findings}


def test_one_of_two_runs(tmp_path: Path) -> None:
    anat = tmp_path / "sub-01" / "anat"
    anat.mkdir(parents=True)
    for run in (1, 2):
        data = gzip.compress(nifti(brain(run)), 1)
        (anat / f"sub-01_run-{run}_T1w.nii.gz").write_bytes(data)
    asked = {"source": str(tmp_path), "cohort": "bids", "min_slices": 1}
    both = inspection_of(**asked)
    assert not both.targets and "duplicate" in str(both.findings)
    one = inspection_of(**asked, choice=Choice(run=1))
    assert len(one.targets) == 1 and not one.findings
