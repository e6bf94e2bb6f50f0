"""A whole prediction: its tables, going on where it was, refusing what is not its own; and on Ray."""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from brainfoundry.core import files
from brainfoundry.core.errors import ClusterError, ConfigError, DataError
from brainfoundry.prediction.cases import Case
from brainfoundry.prediction.config import PredictConfig
from brainfoundry.prediction.outputs import Outputs
from brainfoundry.prediction.predictor import Job, Outcome
from brainfoundry.prediction.run import Result, predict_all
from brainfoundry.prediction.sources import find_cases
from brainfoundry.prediction.spread import Executor, Fleet, fleet, inline, on_ray
from tests.prediction.builders import ATLAS_TASK, brain, job, put, put_case, save_checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An ATLAS network."""
    folder = tmp_path_factory.mktemp("run")
    return save_checkpoint(folder, modalities=("T1w",), task=ATLAS_TASK)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Three cases, of which one has no scan that can be read."""
    for number in (1, 2):
        put(tmp_path / "in" / f"p{number}_t1.nii.gz", brain(number))
    (tmp_path / "in" / "p3_t1.nii.gz").write_bytes(b"")
    return tmp_path / "in"


def predict(
    the_job: Job, scans: Path | str, executor: Executor = inline, *, overwrite: bool = False
) -> Result:
    outputs = Outputs(the_job.out, the_job.models, the_job.options)
    source = find_cases(PredictConfig(input=str(scans)), the_job.space.sources)
    outputs.prepare(source.uri, overwrite=overwrite)
    return predict_all(the_job, source.cases, executor)


class Counting:
    """Executor that notes who was predicted, and may stop like a killed process."""

    def __init__(self, stop_after: int = 99) -> None:
        self.seen: list[str] = []
        self._stop_after = stop_after

    def __call__(self, the_job: Job, cases: Sequence[Case], /) -> Iterator[Outcome]:
        for outcome in inline(the_job, cases):
            self.seen.append(outcome.case.subject)
            if len(self.seen) > self._stop_after:
                raise KeyboardInterrupt
            yield outcome


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(), delimiter="\t"))


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def test_tables_of_all_cases(run: str, scans: Path, tmp_path: Path) -> None:
    result = predict(job(tmp_path, run), scans)
    assert (result.predicted, result.before, len(result.failed)) == (2, 0, 1)
    out = tmp_path / "out"
    one, two, three = lines(out)
    assert [one["status"], two["status"], three["status"]] == ["predicted", "predicted", "failed"]
    assert one["mask"] == "sub-p1/anat/sub-p1_label-lesion_mask.nii.gz" and (out / one["mask"]).is_file()
    assert "file is empty" in three["error"] and three["id"] == "sub-p3"

    rows = table(out / "lesions.tsv")
    assert {row["subject"] for row in rows} == {"p1", "p2"} and {row["session"] for row in rows} == {"n/a"}
    of_one = [row for row in rows if row["subject"] == "p1"]
    assert one["lesions"] == {"lesion": len(of_one)} and len(of_one) == len(
        table(out / "sub-p1/anat/sub-p1_lesions.tsv")
    )
    assert sum(float(row["volume_mm3"]) for row in of_one) == pytest.approx(one["volume_mm3"]["lesion"])
    assert table(out / "dseg.tsv") == [{"index": "0", "name": "background"}, {"index": "1", "name": "lesion"}]

    about = json.loads((out / "dataset_description.json").read_text())
    assert about["DatasetType"] == "derivative" and about["BIDSVersion"]
    assert about["SourceDatasets"] == [{"URL": scans.as_uri()}]
    (made,) = about["GeneratedBy"]
    assert made["Name"] == "BrainFoundry" and len(made["Checkpoints"][0]["card_sha256"]) == 64


def test_a_second_run_does_what_is_missing(run: str, scans: Path, tmp_path: Path) -> None:
    the_job = job(tmp_path, run)
    with pytest.raises(KeyboardInterrupt):
        predict(the_job, scans, Counting(stop_after=1))
    done = {p: p.read_bytes() for p in (tmp_path / "out" / "sub-p1").rglob("*.*")}
    mark = tmp_path / "out/sub-p2/anat/sub-p2_label-lesion_mask.json"
    mark.unlink()  # killed just before the commit mark
    (mark.parent / f".{mark.name}.0123abcd.tmp").write_bytes(b"{")
    put(scans / "p3_t1.nii.gz", brain(3))
    again = Counting()
    result = predict(the_job, scans, again)
    assert again.seen == ["p2", "p3"] and (result.predicted, result.before) == (2, 1)
    assert done == {p: p.read_bytes() for p in (tmp_path / "out" / "sub-p1").rglob("*.*")}
    assert [line["status"] for line in lines(tmp_path / "out")] == ["predicted"] * 3
    assert {row["subject"] for row in table(tmp_path / "out" / "lesions.tsv")} == {"p1", "p2", "p3"}
    assert not list((tmp_path / "out").rglob("*.tmp"))
    nothing = Counting()
    assert predict(the_job, scans, nothing).before == 3 and nothing.seen == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"overlap": 0.25}, "overlap was 0.5 and is 0.25"),
        ({"flips": True}, "flips was False and is True"),
        ({"save_entropy": True}, "save_entropy was False and is True"),
        ({"window": (32, 64, 32)}, r"window was \[64, 32, 32\] and is \[32, 64, 32\]"),
    ],
)
def test_other_options_are_refused(
    run: str, scans: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    predict(job(tmp_path, run), scans)
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.*")}
    with pytest.raises(ConfigError, match=rf"masks of another prediction: {words}.*--overwrite"):
        predict(job(tmp_path, run, **options), scans)
    assert before == {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.*")}


def test_options_that_change_no_mask_may_change(run: str, scans: Path, tmp_path: Path) -> None:
    predict(job(tmp_path, run), scans)
    assert predict(job(tmp_path, run, batch=2, allow=("skull",)), scans).before == 2


def test_another_checkpoint_is_refused_or_replaces(run: str, scans: Path, tmp_path: Path) -> None:
    predict(job(tmp_path, run, save_probabilities=True), scans)
    own = tmp_path / "out" / "notes.txt"
    own.write_text("mine")
    other = save_checkpoint(tmp_path / "other", seed=7, modalities=("T1w",), task=ATLAS_TASK)
    with pytest.raises(ConfigError, match=f"it was made with {run}"):
        predict(job(tmp_path, other), scans)
    again = Counting()
    result = predict(job(tmp_path, other), scans, again, overwrite=True)
    assert (result.predicted, result.before) == (2, 0) and len(again.seen) == 3
    assert not list((tmp_path / "out").rglob("*probseg*")), "of the earlier prediction"
    assert own.read_text() == "mine"
    assert predict(job(tmp_path, other), scans).before == 2


def test_a_replacement_that_was_interrupted_goes_on(run: str, scans: Path, tmp_path: Path) -> None:
    predict(job(tmp_path, run), scans)
    new = job(tmp_path, run, threshold=0.3)
    with pytest.raises(KeyboardInterrupt):
        predict(new, scans, Counting(stop_after=1), overwrite=True)
    result = predict(new, scans)
    assert result.before >= 1 and result.before + result.predicted == 2
    assert {o.record["options"]["threshold"] for o in result.outcomes if o.record} == {0.3}


@pytest.mark.parametrize("name", ["notes.txt", "dataset_description.json", "sub-p1/anat/sub-p1_T1w.nii.gz"])
def test_a_folder_of_somebody_else_is_refused(run: str, scans: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text('{"Name": "mine", "GeneratedBy": [{"Name": "fMRIPrep"}]}')
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="the folder holds other files"):
            predict(job(tmp_path, run), scans, overwrite=overwrite)
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == [path]


def test_the_same_id_of_other_scans_is_not_taken_for_done(run: str, scans: Path, tmp_path: Path) -> None:
    the_job = job(tmp_path, run)
    predict(the_job, scans)
    put(tmp_path / "elsewhere" / "p1_t1.nii.gz", brain(9))
    result = predict(the_job, tmp_path / "elsewhere")
    (outcome,) = result.failed
    source = scans / "p1_t1.nii.gz"
    words = f"sub-p1 is already there, of another prediction: it was predicted from T1w {source}"
    assert words in outcome.error


def test_scans_that_changed_or_changed_places_are_not_taken_for_done(tmp_path: Path) -> None:
    the_job = job(tmp_path, save_checkpoint(tmp_path / "run"))
    folder = put_case(tmp_path / "in", "p1")
    predict(the_job, tmp_path / "in")
    cases = find_cases(PredictConfig(input=str(tmp_path / "in")), the_job.space.sources).cases
    outputs = Outputs(the_job.out, the_job.models, the_job.options)
    assert outputs.done(cases[0])
    kinds = {"T1w": "T1ce", "T1ce": "T1w"}
    swapped = [replace(s, modality=kinds.get(s.modality, s.modality)) for s in cases[0].scans]
    with pytest.raises(DataError, match=r"predicted from .*T1ce \S+p1_t1ce.nii.gz"):
        outputs.done(replace(cases[0], scans=tuple(swapped)))
    put(folder / "p1_t2.nii.gz", brain(77))
    (outcome,) = predict(the_job, tmp_path / "in").failed
    assert "its scans have changed since" in outcome.error and "--overwrite" in outcome.error


def test_a_mask_that_is_gone_is_made_again(run: str, scans: Path, tmp_path: Path) -> None:
    the_job = job(tmp_path, run)
    predict(the_job, scans)
    mask = tmp_path / "out/sub-p1/anat/sub-p1_label-lesion_mask.nii.gz"
    mask.unlink()
    result = predict(the_job, scans)
    assert (result.predicted, result.before) == (1, 1) and mask.is_file()


@pytest.mark.parametrize("text", ['{"Sources": []}', "[]"])
def test_a_json_of_somebody_else_costs_its_case(run: str, scans: Path, tmp_path: Path, text: str) -> None:
    the_job = job(tmp_path, run)
    predict(the_job, scans)
    mark = tmp_path / "out/sub-p1/anat/sub-p1_label-lesion_mask.json"
    mark.write_text(text)
    result = predict(the_job, scans)
    assert [o.case.subject for o in result.failed] == ["p1", "p3"] and result.before == 1
    assert "not a file of this job" in result.failed[0].error and mark.read_text() == text
    (scans / "p1_t1.nii.gz").unlink()
    assert predict(the_job, scans).before == 1  # nor does it disturb the tables of the others


def test_the_tables_are_of_every_case_in_the_folder(run: str, scans: Path, tmp_path: Path) -> None:
    the_job = job(tmp_path, run)
    predict(the_job, scans)
    put(tmp_path / "more" / "p0_t1.nii.gz", brain(8))
    result = predict(the_job, tmp_path / "more")
    assert (result.predicted, len(result.outcomes)) == (1, 1)
    out = tmp_path / "out"
    assert [line["id"] for line in lines(out)] == ["sub-p0", "sub-p1", "sub-p2"]
    assert {row["subject"] for row in table(out / "lesions.tsv")} == {"p0", "p1", "p2"}


def test_a_prediction_without_a_mask_does_not_hold_its_folder(run: str, tmp_path: Path) -> None:
    bad = tmp_path / "in" / "p1_t1.nii.gz"
    bad.parent.mkdir()
    bad.write_bytes(b"")
    assert len(predict(job(tmp_path, run), tmp_path / "in").failed) == 1
    put(bad, brain(1))
    result = predict(job(tmp_path, run, threshold=0.3), tmp_path / "in")
    assert result.predicted == 1
    about = json.loads((tmp_path / "out" / "dataset_description.json").read_text())
    assert about["GeneratedBy"][0]["Options"]["threshold"] == 0.3


@pytest.mark.parametrize("writes", [0, 1, 2, 3])
def test_a_folder_is_ours_from_its_first_file(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    the_job = job(tmp_path, run)
    outputs = Outputs(the_job.out, the_job.models, the_job.options)
    write, left = files.write_bytes, iter(range(writes))

    def killed(uri: str, data: bytes) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        write(uri, data)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(files, "write_bytes", killed)
        outputs.prepare(str(tmp_path), overwrite=False)
    outputs.prepare(str(tmp_path), overwrite=False)
    assert {p.name for p in Path(the_job.out).iterdir()} == {
        "dataset_description.json", ".bidsignore", "dseg.tsv",
    }  # fmt: skip


def test_a_case_put_there_from_another_prediction_is_not_replaced(
    run: str, scans: Path, tmp_path: Path
) -> None:
    predict(job(tmp_path / "other", run, threshold=0.3), scans)
    shutil.copytree(tmp_path / "other" / "out", tmp_path / "out")
    about = tmp_path / "out" / "dataset_description.json"
    about.write_text(about.read_text().replace('"threshold": 0.3', '"threshold": 0.5'))
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.nii.gz")}
    result = predict(job(tmp_path, run), scans)
    assert [o.case.subject for o in result.failed] == ["p1", "p2", "p3"]
    assert "of another prediction: threshold was 0.3 and is 0.5" in result.failed[0].error
    assert before == {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.nii.gz")}


def test_any_storage(run: str, scans: Path, tmp_path: Path) -> None:
    root = f"memory://{uuid.uuid4().hex}"
    for path in scans.iterdir():
        files.write_bytes(files.join(root, "in", path.name), path.read_bytes())
    copy = f"{sys.executable} -c 'import sys, shutil; shutil.copy(*sys.argv[1:])' {{input}} {{output}}"
    models = job(tmp_path, run).models
    options = PredictConfig(preprocess=copy).options((64, 32, 32))
    the_job = Job(models=models, options=options, out=files.join(root, "out"))
    result = predict(the_job, files.join(root, "in"))
    assert (result.predicted, len(result.failed)) == (2, 1), [o.error for o in result.failed]
    assert files.exists(files.join(root, "out/sub-p1/anat/sub-p1_label-lesion_mask.nii.gz"))
    assert predict(the_job, files.join(root, "in")).before == 2
    assert predict(the_job, files.join(root, "in"), overwrite=True).predicted == 2


# ---------------------------------------------------------------------------------------------------------
# On Ray


def test_on_ray_as_in_this_process(run: str, scans: Path, tmp_path: Path, ray_local: int) -> None:
    size = fleet(1, 3)
    assert size == Fleet(workers=1, cpus=ray_local, gpu=False) and str(size) == "1 worker, 4 CPUs each"
    here, there = job(tmp_path / "a", run), job(tmp_path / "b", run)
    predict(here, scans)
    result = predict(there, scans, on_ray(Fleet(workers=1, cpus=1, gpu=False)))
    assert (result.predicted, len(result.failed)) == (2, 1)
    masks = [{p.name: p.read_bytes() for p in (tmp_path / f).rglob("*.nii.gz")} for f in ("a", "b")]
    assert len(masks[0]) == 2 and masks[0] == masks[1]


def test_workers_fit_the_cluster(ray_local: int) -> None:
    assert fleet(None, 10) == Fleet(workers=1, cpus=4, gpu=False)
    assert fleet(2, 10) == Fleet(workers=2, cpus=2, gpu=False)
    assert fleet(4, 2) == Fleet(workers=2, cpus=1, gpu=False)
    with pytest.raises(ClusterError, match="5 workers were asked for, the cluster has CPUs for 4"):
        fleet(5, 10)


def test_half_precision_without_a_gpu_is_told_before_workers_start(run: str, tmp_path: Path) -> None:
    the_job = job(tmp_path, run, precision="fp16")
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        list(on_ray(Fleet(workers=1, cpus=1, gpu=False))(the_job, ()))


def test_a_worker_that_cannot_start_says_why(run: str, scans: Path, tmp_path: Path, ray_local: int) -> None:
    the_job = job(tmp_path, run)
    gone = replace(the_job, models=(replace(the_job.models[0], uri=str(tmp_path / "gone")),))
    with pytest.raises(ClusterError, match=r"Ray gave up: .*gone") as error:
        predict(gone, scans, on_ray(Fleet(workers=1, cpus=1, gpu=False)))
    assert "\x1b" not in error.value.problem


@pytest.mark.slow
def test_a_case_that_kills_its_worker_costs_itself_alone(run: str, tmp_path: Path, ray_local: int) -> None:
    for number in range(4):
        put(tmp_path / "in" / f"p{number}_t1.nii.gz", brain(number))
    kill = tmp_path / "kill.py"
    kill.write_text(
        "import os, shutil, signal, sys\n"
        "if 'p2_t1' in sys.argv[1]: os.kill(os.getppid(), signal.SIGKILL)\n"
        "shutil.copy(sys.argv[1], sys.argv[2])\n"
    )
    the_job = job(tmp_path, run, preprocess=f"{sys.executable} {kill} {{input}} {{output}}")
    result = predict(the_job, tmp_path / "in", on_ray(Fleet(workers=1, cpus=1, gpu=False)))
    (failed,) = result.failed
    assert failed.case.subject == "p2" and "the worker died over it" in failed.error
    assert result.predicted == 3


def test_brats_cases_in_folders(tmp_path: Path) -> None:
    uri = save_checkpoint(tmp_path / "run")
    put_case(tmp_path / "in", "p1")
    predict(job(tmp_path, uri), tmp_path / "in")
    names = [row["name"] for row in table(tmp_path / "out" / "dseg.tsv")]
    assert names == ["background", "TC+WT", "WT", "TC+WT+ET"]
    rows = table(tmp_path / "out" / "lesions.tsv")
    assert {row["region"] for row in rows} == {"tc", "wt", "et"}
    (line,) = lines(tmp_path / "out")
    assert line["lesions"] == {r: sum(row["region"] == r for row in rows) for r in ("tc", "wt", "et")}
