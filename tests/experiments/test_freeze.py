"""Two studies never write to one name: a study is held against what was first submitted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from brainfoundry.core.errors import ConfigError
from brainfoundry.experiments.freeze import freeze
from brainfoundry.experiments.spec import read_study
from tests.experiments.driven import OPTIONS, Waves, content, drive
from tests.experiments.trained import study_folder


def test_two_studies_writing_to_one_name(labelled_shards: str, tmp_path: Path, waves: Waves) -> None:
    drive(labelled_shards, tmp_path)
    other = {**OPTIONS, "optim.lr": 0.5}
    with pytest.raises(
        ConfigError, match=r"two studies writing to one name: mini .*finetune\.options\.optim\.lr"
    ):
        drive(labelled_shards, tmp_path, finetune={**content()["finetune"], "options": other})
    with pytest.raises(ConfigError, match="another name"):
        drive(labelled_shards, tmp_path, title="Another")
    smaller = {**content()["finetune"], "options": {**OPTIONS, "cluster.cpus_per_worker": 0.25}}
    drive(labelled_shards, tmp_path, finetune=smaller)  # what a run takes of the cluster is nobody's result
    assert len(waves.ran) == 2


def test_a_grid_may_grow_and_not_shrink(labelled_shards: str, tmp_path: Path, waves: Waves) -> None:
    study = study_folder(tmp_path, "mini")
    small = read_study(content())
    large = read_study(content(grid=[{"size": "nano", "init": ["scratch", "stage2"], "seed": [0, 1]}]))
    for spec in (small, small, large):
        freeze(study, spec, {"tiny": labelled_shards})
    frozen = yaml.safe_load((tmp_path / "mini" / "study.yaml").read_text())
    assert read_study(frozen["study"]) == large and len(frozen["history"]) == 1
    with pytest.raises(ConfigError, match=r"two studies writing to one name.*grid"):
        freeze(study, small, {"tiny": labelled_shards})


def test_another_cohort_is_another_study(labelled_shards: str, small_shards: str, tmp_path: Path) -> None:
    study = study_folder(tmp_path, "mini")
    freeze(study, read_study(content()), {"tiny": labelled_shards})
    with pytest.raises(ConfigError, match=r"manifests\.tiny"):
        freeze(study, read_study(content()), {"tiny": small_shards})


def test_other_weights_are_another_study(labelled_shards: str, tmp_path: Path) -> None:
    study, file = study_folder(tmp_path, "mini"), tmp_path / "ct.pt"
    spec = read_study(content(inits={"scratch": [], "ct": "ct"}, primary=None,
                              grid=[{"size": "nano", "init": ["scratch", "ct"]}]))  # fmt: skip
    cohorts = {"tiny": labelled_shards}
    file.write_bytes(b"weights")
    freeze(study, spec, cohorts, submitted=("mine.yaml",))  # its trials wait for the file
    frozen = yaml.safe_load((tmp_path / "mini" / "study.yaml").read_text())
    assert (frozen["submitted"], frozen["weights"]) == (["mine.yaml"], {})
    freeze(study, spec, cohorts, {"ct": str(file)})
    freeze(study, spec, cohorts)
    moved = file.rename(tmp_path / "moved.pt")
    freeze(study, spec, cohorts, {"ct": str(moved)})
    moved.write_bytes(b"other weights")
    with pytest.raises(ConfigError, match=r"two studies writing to one name: mini .*weights\.ct"):
        freeze(study, spec, cohorts, {"ct": str(moved)})


def test_a_part_of_a_study_names_the_cohorts_it_needs(
    labelled_shards: str, small_shards: str, tmp_path: Path
) -> None:
    study = study_folder(tmp_path, "mini")
    two = read_study(content(stages={"stage2": {**content()["stages"]["stage2"], "cohort": "other"}}))
    freeze(study, two, {"tiny": labelled_shards})  # --only init=scratch
    freeze(study, two, {"tiny": labelled_shards, "other": small_shards})
    moved = tmp_path / "moved"
    shutil.copytree(labelled_shards, moved)
    freeze(study, two, {"tiny": str(moved)})
    frozen = yaml.safe_load((tmp_path / "mini" / "study.yaml").read_text())
    assert frozen["cohorts"] == {"tiny": str(moved), "other": small_shards} and not frozen["history"]
    with pytest.raises(ConfigError, match=r"manifests\.other"):
        freeze(study, two, {"other": labelled_shards})
    with pytest.raises(ConfigError, match=r"no cohort tinny\. Fix: did you mean tiny"):
        freeze(study, two, {"tinny": labelled_shards})
