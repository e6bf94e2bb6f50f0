"""Which case and modality a file is, by its name alone."""

from __future__ import annotations

import pytest

from brainfoundry.core.errors import ConfigError
from brainfoundry.prediction.names import Named, Namer

WANTED = ("FLAIR", "T1ce", "T1w", "T2w")


@pytest.mark.parametrize(
    ("path", "subject", "modality"),
    [
        ("p1_flair.nii.gz", "p1", "FLAIR"),
        ("p1_T1ce.nii", "p1", "T1ce"),
        ("a/b/p1_t1.nii.gz", "p1", "T1w"),
        ("p1-t2.nii.gz", "p1", "T2w"),
        ("p1.T1w.nii.gz", "p1", "T1w"),
        ("sub-01_ses-2_FLAIR.nii.gz", "sub-01_ses-2", "FLAIR"),
        ("my_t1_patient_t2_flair.nii.gz", "my_t1_patient", "FLAIR"),
        ("case 7/t1ce.nii.gz", "case 7", "T1ce"),
        ("BraTS-GLI-00001-000-t2f.nii.gz", "BraTS-GLI-00001-000", "FLAIR"),
    ],
)
def test_usual_names(path: str, subject: str, modality: str) -> None:
    assert Namer(WANTED).read(path.split("/")) == Named(subject, "", modality)


@pytest.mark.parametrize(
    "path", ["p1_seg.nii.gz", "flair.nii.gz", "p1.nii.gz", "p1_0000.nii.gz", "p1t1.nii.gz"]
)
def test_names_that_do_not_tell(path: str) -> None:
    assert Namer(WANTED).read(path.split("/")) is None


def test_channels_say_what_numbers_mean() -> None:
    namer = Namer(WANTED, channels=("0000=FLAIR", "0001=T1ce"))
    assert namer.read(("x", "BRATS_001_0001.nii.gz")) == Named("BRATS_001", "", "T1ce")
    assert namer.read(("BRATS_001_0002.nii.gz",)) is None


def test_a_modality_of_another_name_is_its_own_kind() -> None:
    assert Namer(("PD",)).read(("p1_pd.nii.gz",)) == Named("p1", "", "PD")


@pytest.mark.parametrize(
    ("pattern", "path", "found"),
    [
        ("{subject}_{modality}.nii.gz", "deep/er/p_1_t1.nii.gz", Named("p_1", "", "T1w")),
        ("{subject}/{session}/{modality}*.nii.gz", "p1/v2/flair_final.nii.gz", Named("p1", "v2", "FLAIR")),
        ("{subject}/{subject}+{modality}.nii", "p1/p1+t2.nii.gz", Named("p1", "", "T2w")),
        ("{subject}/{subject}+{modality}.nii", "p1/p2+t2.nii.gz", None),
        ("{subject}_{modality}.nii.gz", "p1_seg.nii.gz", None),
        ("scan.{subject}.{modality}", "scanX1Xt1.nii.gz", None),  # a dot is a dot
    ],
)
def test_patterns(pattern: str, path: str, found: Named | None) -> None:
    assert Namer(WANTED, pattern).read(path.split("/")) == found


def test_a_pattern_needs_no_modality_where_there_is_one() -> None:
    assert Namer(("T1w",), "{subject}.nii.gz").read(("p1.nii.gz",)) == Named("p1", "", "T1w")


@pytest.mark.parametrize(
    ("pattern", "channels", "words"),
    [
        ("{subject}.nii.gz", (), "does not say where subject and modality stand"),
        ("{modality}.nii.gz", (), "does not say where subject"),
        ("{subject}_{kind}.nii.gz", (), "--pattern has {kind}, known are {subject}, {session}, {modality}"),
        ("", ("0000",), "no channel: '0000'"),
        ("", ("=FLAIR",), "no channel"),
    ],
)
def test_what_makes_no_sense(pattern: str, channels: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Namer(WANTED, pattern, channels)
