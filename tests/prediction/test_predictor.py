"""One case to its files: the numbers, the geometry to the bit, and what a bad case costs."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from brainfoundry.core.errors import ConfigError
from brainfoundry.inference import entropy, load_case, predict_probabilities
from brainfoundry.prediction.cases import Case
from brainfoundry.prediction.config import PredictConfig
from brainfoundry.prediction.predictor import Job, Outcome, Predictor
from brainfoundry.prediction.sources import find_cases
from brainfoundry.store.convert import convert, inline
from brainfoundry.store.shard_task import ConvertSpec
from brainfoundry.tasks import load_task
from brainfoundry.training.volumes import load_segmenter
from tests.prediction.builders import AFFINE, ATLAS_TASK, brain, job, put, put_case, save_checkpoint
from tests.quality.builders import SLICES, cohort, session


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A BraTS network."""
    return save_checkpoint(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def t1_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An ATLAS network."""
    folder = tmp_path_factory.mktemp("t1")
    return save_checkpoint(folder, modalities=("T1w",), task=ATLAS_TASK)


def cases(root: Path, the_job: Job, **options: Any) -> tuple[Case, ...]:
    return find_cases(PredictConfig(input=str(root), **options), the_job.space.sources).cases


def predict(the_job: Job, *some: Case) -> list[Outcome]:
    predictor = Predictor(the_job)
    return [predictor(case) for case in some]


def data(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]


def test_maps_and_labels_are_those_of_the_network(run: str, tmp_path: Path) -> None:
    put_case(tmp_path / "in", "p1")
    the_job = job(tmp_path, run, save_probabilities=True, save_entropy=True, flips=True, overlap=0.25)
    (case,) = cases(tmp_path / "in", the_job)
    (outcome,) = predict(the_job, case)
    assert outcome.error == "" and outcome.record is not None

    network, _ = load_segmenter(run)
    scans = {s.modality: s.uri for s in case.scans}
    volume = load_case(scans, the_job.space, subject="p1")
    maps = predict_probabilities(
        [network], volume.x_CDHW, volume.box, the_job.window_spec(), device="cpu", flips=True
    )
    labels = load_task("brats").to_labels(maps > 0.5, "brats2021")
    anat = tmp_path / "out" / "sub-p1" / "anat"
    # Files are LPS, maps RAS.
    assert np.array_equal(data(anat / "sub-p1_desc-brainfoundry_dseg.nii.gz")[::-1, ::-1], labels)
    for name, one in zip(("TC", "WT", "ET"), maps, strict=True):
        assert np.array_equal(data(anat / f"sub-p1_label-{name}_probseg.nii.gz")[::-1, ::-1], one)
    assert np.array_equal(data(anat / "sub-p1_desc-entropy_map.nii.gz")[::-1, ::-1], entropy(maps))
    lesions = load_task("brats").lesion_table(labels, volume.reference.affine, "brats2021")
    rows = (anat / "sub-p1_lesions.tsv").read_text().splitlines()
    assert rows[0].split("\t") == ["region", "lesion", "voxels", "volume_mm3", "x_mm", "y_mm", "z_mm"]
    assert len(rows) - 1 == len(lesions) > 0
    first, want = rows[1].split("\t"), lesions[0]
    assert first[:3] == [want["region"], "1", str(want["voxels"])]
    assert [float(v) for v in first[4:]] == [round(mm, 2) for mm in want["centroid_mm"]]


def test_the_mask_lies_on_the_scan_to_the_bit(t1_run: str, tmp_path: Path) -> None:
    affine = np.array([[0.0, -0.9, 0.1, 3], [1.1, 0, 0, -20.3], [0.05, 0, 1.2, 7], [0, 0, 0, 1]])
    path = put(tmp_path / "in" / "p1_t1.nii.gz", brain(1), affine)
    the_job = job(tmp_path, t1_run)
    (outcome,) = predict(the_job, *cases(tmp_path / "in", the_job))
    assert outcome.record is not None, outcome.error
    mask = tmp_path / "out" / "sub-p1" / "anat" / "sub-p1_label-lesion_mask.nii.gz"
    source, result = (nibabel.load(p).header for p in (path, mask))  # type: ignore[attr-defined]
    for name in (
        "pixdim",
        "qform_code",
        "sform_code",
        "quatern_b",
        "qoffset_x",
        "srow_x",
        "srow_y",
        "srow_z",
        "dim",
    ):
        assert np.array_equal(source[name], result[name]), name
    assert result.get_data_dtype() == np.uint8 and set(np.unique(data(mask))) <= {0, 1}
    raw = mask.read_bytes()
    assert raw[4:8] == bytes(4), "a time in the gzip header"


def test_masks_are_equal_to_the_byte(run: str, tmp_path: Path) -> None:
    put_case(tmp_path / "in", "p1")
    files = []
    for name in ("a", "b"):
        the_job = job(tmp_path / name, run, save_probabilities=True)
        predict(the_job, *cases(tmp_path / "in", the_job))
        files.append({p.name: p.read_bytes() for p in (tmp_path / name).rglob("*.nii.gz")})
    assert len(files[0]) == 4 and files[0] == files[1]


def test_an_ensemble_is_the_mean_of_its_members(tmp_path: Path) -> None:
    put_case(tmp_path / "in", "p1")
    uris = [save_checkpoint(tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    maps = []
    for number, chosen in enumerate((uris[:1], uris[1:], uris)):
        the_job = job(tmp_path / f"o{number}", tuple(chosen), save_probabilities=True)
        (outcome,) = predict(the_job, *cases(tmp_path / "in", the_job))
        assert outcome.record is not None and len(outcome.record["checkpoints"]) == len(chosen)
        maps.append(data(next((tmp_path / f"o{number}").rglob("*label-WT_probseg.nii.gz"))))
    assert np.abs(maps[0] - maps[1]).max() > 0.01
    np.testing.assert_allclose(maps[2], (maps[0] + maps[1]) / 2, atol=1e-6)


def test_the_json_says_what_was_done(run: str, tmp_path: Path) -> None:
    put_case(tmp_path / "in", "BraTS_1")
    the_job = job(tmp_path, run, threshold=0.4)
    (outcome,) = predict(the_job, *cases(tmp_path / "in", the_job))
    mark = tmp_path / "out" / "sub-BraTS1" / "anat" / "sub-BraTS1_desc-brainfoundry_dseg.json"
    record = json.loads(mark.read_text())
    assert record == outcome.record
    assert record["subject"] == "BraTS_1" and record["options"]["threshold"] == 0.4
    assert record["labels"] == {"1": "TC+WT", "2": "WT", "4": "TC+WT+ET"}
    assert record["scans"]["T1ce"].endswith("BraTS_1_t1ce.nii.gz") and record["precision"] == "fp32"
    assert record["checkpoints"][0]["card_sha256"] == the_job.models[0].sha256
    assert any("padded" in note for note in record["notes"])
    assert all((tmp_path / "out" / name).is_file() for name in record["files"])
    assert (
        sum(r["volume_mm3"] for r in record["lesions"] if r["region"] == "wt") == record["volume_mm3"]["wt"]
    )


def test_a_bad_case_costs_its_line_and_leaves_nothing(run: str, tmp_path: Path) -> None:
    for number in range(4):
        put_case(tmp_path / "in", f"p{number}", seed=number)
    (tmp_path / "in/p0/p0_t2.nii.gz").unlink()
    cut = tmp_path / "in/p1/p1_t1.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-2000])
    put(tmp_path / "in/p2/p2_t1.nii.gz", brain(3), AFFINE * [[2], [2], [2], [1]])
    the_job = job(tmp_path, run)
    found = predict(the_job, *cases(tmp_path / "in", the_job))
    for outcome, words in zip(found, ("no T2w", "cut short", "lie on different grids", ""), strict=True):
        assert words in outcome.error and bool(outcome.error) == bool(words)
        assert "\n" not in outcome.error
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["sub-p3"]


def test_an_unexpected_error_costs_one_line_too(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put_case(tmp_path / "in", "p1")
    the_job = job(tmp_path, run)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("something\nodd")

    monkeypatch.setattr("brainfoundry.prediction.predictor.predict_probabilities", broken)
    (outcome,) = predict(the_job, *cases(tmp_path / "in", the_job))
    assert outcome.error.startswith("prediction failed: RuntimeError: something odd [subject p1]")
    assert "report this; the traceback is in the worker's log" in outcome.error
    said = capsys.readouterr().err
    assert "Traceback" in said and "in broken" in said


def test_too_little_gpu_memory_names_what_to_change(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_case(tmp_path / "in", "p1")
    predictor = Predictor(job(tmp_path, run, batch=4))

    def full(x_NCDHW: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(predictor, "networks", [full])
    outcome = predictor(cases(tmp_path / "in", predictor.job)[0])
    assert "out of GPU memory" in outcome.error and "--batch (now 4)" in outcome.error


def test_headers_without_orientation_are_refused_or_assumed(t1_run: str, tmp_path: Path) -> None:
    path = put(tmp_path / "in" / "p1_t1.nii.gz", brain(1), qform_code=0, sform_code=0)
    the_job = job(tmp_path, t1_run)
    (case,) = cases(tmp_path / "in", the_job)
    (outcome,) = predict(the_job, case)
    assert "qform_code and sform_code are 0" in outcome.error and "--assume-orientation" in outcome.error
    (outcome,) = predict(job(tmp_path, t1_run, assume_orientation="RAS"), case)
    assert outcome.record is not None
    assert f"{path}: header says nothing of orientation; axes are taken for RAS" in outcome.record["notes"]


def test_a_resampled_prediction_comes_back_to_the_scan(tmp_path: Path) -> None:
    uri = save_checkpoint(tmp_path / "run", modalities=("T1w",), task=ATLAS_TASK, spacing_mm=1.5)
    put(tmp_path / "in" / "p1_t1.nii.gz", brain(1))
    the_job = job(tmp_path, uri, save_probabilities=True)
    (outcome,) = predict(the_job, *cases(tmp_path / "in", the_job))
    assert outcome.record is not None, outcome.error
    maps = data(next((tmp_path / "out").rglob("*probseg.nii.gz")))
    mask = data(next((tmp_path / "out").rglob("*mask.nii.gz")))
    assert maps.shape == mask.shape == brain(1).shape
    assert np.array_equal(mask, maps > 0.5)


@pytest.mark.parametrize("spacing_mm", [2.0, 1.5])
def test_the_rim_of_a_resampled_brain_is_predicted(tmp_path: Path, spacing_mm: float) -> None:
    """A network that marks everything marks every voxel of the foreground, in a box as over the whole."""
    uri = save_checkpoint(tmp_path / "run", modalities=("T1w",), task=ATLAS_TASK, spacing_mm=spacing_mm)
    put(tmp_path / "in" / "p1_t1.nii.gz", brain(1))
    for mode in ("box", "exact"):
        predictor = Predictor(job(tmp_path / mode, uri, mode=mode))
        predictor.networks = [lambda x_NCDHW: torch.full_like(x_NCDHW, 9.0)]  # type: ignore[list-item]
        outcome = predictor(cases(tmp_path / "in", predictor.job)[0])
        assert outcome.error == ""
        mask = data(next((tmp_path / mode).rglob("*mask.nii.gz")))
        assert (mask[brain(1) != 0] == 1).all(), mode


def test_preprocessed_scans_and_their_grid(t1_run: str, tmp_path: Path) -> None:
    put(tmp_path / "in" / "p1_t1.nii.gz", brain(1))
    crop = tmp_path / "crop.py"
    crop.write_text(
        "import sys, nibabel\nimage = nibabel.load(sys.argv[1])\n"
        "if len(sys.argv) > 3: sys.exit(sys.argv[3])\n"
        "nibabel.save(image.slicer[2:38, :, 4:], sys.argv[2])\n"
    )
    command = f"{sys.executable} {crop} {{input}} {{output}}"
    the_job = job(tmp_path, t1_run, preprocess=command)
    (case,) = cases(tmp_path / "in", the_job)
    (outcome,) = predict(the_job, case)
    assert outcome.record is not None, outcome.error
    assert "scans were preprocessed: masks lie on the grid of the command's output" in outcome.record["notes"]
    mask = nibabel.load(next((tmp_path / "out").rglob("*mask.nii.gz")))  # type: ignore[attr-defined]
    want = nibabel.load(tmp_path / "in" / "p1_t1.nii.gz").slicer[2:38, :, 4:]  # type: ignore[attr-defined]
    assert mask.shape == (36, 44, 32) and np.array_equal(mask.affine, want.affine)
    assert outcome.record["scans"] == {"T1w": str(tmp_path / "in" / "p1_t1.nii.gz")}

    (outcome,) = predict(job(tmp_path, t1_run, preprocess=f"{command} broken"), case)
    assert "--preprocess ended with exit status 1: broken" in outcome.error


def test_scans_in_zips_and_shard_sets_give_the_masks_of_their_files(tmp_path: Path) -> None:
    uri = save_checkpoint(tmp_path / "run", modalities=("T1w", "FLAIR"), space="MNI152", skull_stripped=True)
    manifest = cohort(tmp_path / "files", [session(n) for n in range(2)])
    convert(manifest, str(tmp_path / "set"), ConvertSpec(min_slices=SLICES), executor=inline)
    masks = {}
    for name, root in (("files", tmp_path / "files" / "manifest.parquet"), ("set", tmp_path / "set")):
        the_job = job(tmp_path / name, uri)
        found = predict(the_job, cases(root, the_job)[0])
        assert found[0].record is not None, found[0].error
        masks[name] = next((tmp_path / name / "out").rglob("*dseg.nii.gz")).read_bytes()
    assert masks["files"] == masks["set"]

    (case, _) = cases(tmp_path / "files" / "manifest.parquet", the_job)
    packed, scans = tmp_path / "scans.zip", []
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for scan in case.scans:
            archive.write(scan.uri, f"in/{scan.modality}.nii.gz")
        for scan in case.scans:
            info = archive.getinfo(f"in/{scan.modality}.nii.gz")
            scans.append(replace(scan, uri=str(packed), member=info.filename, crc32=info.CRC))
    the_job = job(tmp_path / "zip", uri)
    zipped = replace(case, scans=tuple(scans))
    (outcome,) = predict(the_job, zipped)
    assert outcome.record is not None, outcome.error
    assert next((tmp_path / "zip").rglob("*dseg.nii.gz")).read_bytes() == masks["files"]
    assert outcome.record["scans"]["T1w"] == f"{packed}:in/T1w.nii.gz"

    changed = replace(zipped, scans=(replace(scans[0], crc32=1), scans[1]))
    (outcome,) = predict(the_job, changed)
    assert "file has changed since the intake" in outcome.error and "scans.zip:in/" in outcome.error


def test_cases_at_once_do_not_disturb_each_other(run: str, tmp_path: Path) -> None:
    for number in range(3):
        put_case(tmp_path / "in", f"p{number}", seed=number)
    apart, together = job(tmp_path / "a", run), job(tmp_path / "t", run)
    some = cases(tmp_path / "in", apart)
    predict(apart, *some)
    predictor = Predictor(together)
    threads = [threading.Thread(target=predictor, args=(case,)) for case in some]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / f).rglob("*.nii.gz")} for f in ("a", "t"))
    assert len(one) == 3 and one == two


def test_half_precision_needs_a_gpu(run: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        Predictor(job(tmp_path, run, precision="fp16"), torch.device("cpu"))
    put_case(tmp_path / "in", "p1")
    the_job = job(tmp_path, run, precision="bf16", save_probabilities=True)
    (outcome,) = predict(the_job, *cases(tmp_path / "in", the_job))
    assert outcome.record is not None and outcome.record["precision"] == "bf16"


def test_a_compressed_scan_may_be_called_nii(t1_run: str, tmp_path: Path) -> None:
    path = put(tmp_path / "p1_t1.nii.gz", brain(1))
    (tmp_path / "in").mkdir()
    shutil.copy(path, tmp_path / "in" / "p1_t1.nii")
    the_job = job(tmp_path, t1_run)
    (outcome,) = predict(the_job, *cases(tmp_path / "in", the_job))
    assert outcome.error == ""
    mask = next((tmp_path / "out").rglob("*mask.nii.gz"))
    assert gzip.decompress(mask.read_bytes())[:4] == (348).to_bytes(4, "little")
