"""The intake of any cohort: every verdict from headers alone, and nothing lost."""

from __future__ import annotations

import gzip
from pathlib import Path

import fsspec
import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfoundry.cohorts.exclusions import REASONS
from brainfoundry.cohorts.folder import Folder, HeaderReader
from brainfoundry.cohorts.intake import (
    Found,
    Gathering,
    IntakeRules,
    exclusions_of,
    judge_cohort,
    require_eligible,
)
from brainfoundry.cohorts.left_out import LeftOut
from brainfoundry.cohorts.manifest import Manifest, ManifestMeta, Row
from brainfoundry.core.errors import ConfigError, DataError

from .builders import AFFINE, nifti_gz
from .layouts import put

TWO = ("T1w", "FLAIR")


def judged(root: Path, found: list[Found], rules: IntakeRules | None = None, **options) -> Manifest:
    rules = rules or IntakeRules(modalities=TWO)
    meta = ManifestMeta(
        cohort="any", modalities=rules.modalities, template_space="", skull_stripped=True, source=str(root),
        labels="binary",
    )  # fmt: skip
    return judge_cohort(found, str(root.parent / "manifest.parquet"), meta, rules, **options)


def session(root: Path, subject: str = "s1", session: str = "", *, who=None, **data: bytes | None) -> Found:
    """A session with files of these names; None leaves one out."""
    whole: dict[str, bytes | None] = {"T1w": nifti_gz(), "FLAIR": nifti_gz(), "label": nifti_gz(dtype="u1")}
    paths = {
        name: (str(put(root / f"{subject}{session}{name}.nii.gz", content)),)
        for name, content in {**whole, **data}.items()
        if content is not None
    }
    labels = paths.pop("label", ())
    return Found(subject=subject, session=session, images=paths, labels=labels, **(who or {}))


def only(root: Path, found: Found, rules: IntakeRules | None = None, **options) -> Row:
    (row,) = judged(root, [found], rules, **options).rows()
    return row


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "cohort"
    folder.mkdir()
    return folder


def test_a_whole_session_is_included_with_its_identity(root) -> None:
    who = {"age": 61.5, "sex": "F", "site": "R001"}
    row = only(root, session(root, session="2", who=who))
    assert (row.key, row.cohort, row.verdict, row.detail) == (("s1", "2"), "any", "included", "")
    assert (row.age, row.sex, row.site) == (61.5, "F", "R001")
    assert [scan.modality for scan in row.scans] == ["T1w", "FLAIR"]
    assert row.label is not None and (row.label.modality, row.label.dtype) == ("label", "uint8")
    for scan, name in zip((*row.scans, row.label), (*TWO, "label"), strict=True):
        path = root / f"s12{name}.nii.gz"
        assert (scan.uri, scan.member, scan.shape) == (str(path), "", (2, 2, 100))
        assert scan.size == path.stat().st_size
        assert scan.mtime == pytest.approx(path.stat().st_mtime, abs=1e-5)


BAD = {
    "4D": (nifti_gz((2, 2, 100, 2)), "unsupported_image", "image is 4D"),
    "complex": (nifti_gz(dtype=np.complex64), "unsupported_image", "complex"),
    "html": (b"<html>" * 100, "not_nifti", "not a NIfTI file"),
    "empty": (b"", "not_nifti", "empty"),
    "cut": (nifti_gz()[:60], "unreadable_archive", "ends within its first bytes"),
    "damaged": (nifti_gz()[:10] + b"\xff" * 300, "unreadable_archive", "damaged within"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("where", ["T1w", "FLAIR", "label"])
def test_a_bad_file_costs_one_row_and_says_why(root, name, where) -> None:
    data, reason, words = BAD[name]
    found = [session(root, "s0"), session(root, "s1", **{where: data}), session(root, "s2")]
    rows = list(judged(root, found).rows())
    assert [row.reason for row in rows] == ["", reason, ""]
    detail = rows[1].detail
    assert words in detail and detail.startswith(f"{where}: ") and f"s1{where}.nii.gz" in detail
    assert (rows[1].label is None) is (where == "label") and "\n" not in detail


def test_missing_pieces(root) -> None:
    found = [session(root, "s1", FLAIR=None), session(root, "s2", label=None)]
    one, two = judged(root, found).rows()
    assert (one.reason, one.detail) == ("missing_modality", "FLAIR: no file")
    assert (two.reason, two.detail) == ("missing_label", "the session has no lesion mask")
    optional = judged(root, [*found, session(root, "s3")], IntakeRules(modalities=TWO, labels="optional"))
    assert [row.reason for row in optional.rows()] == ["missing_modality", "", ""]
    assert optional.meta.labels == "binary"
    assert "1 of the included sessions have no lesion mask" in optional.meta.notes
    none = judged(root, [found[1]], IntakeRules(modalities=TWO, labels="optional"))
    assert none.meta.labels == "" and none.meta.notes[-1].startswith("no session has a lesion mask")
    ignored = judged(root, [session(root, "s4", label=b"junk")], IntakeRules(modalities=TWO, labels="ignore"))
    assert [(row.reason, row.label) for row in ignored.rows()] == [("", None)]


def test_duplicates(root) -> None:
    first = session(root, "s1")
    again = str(put(root / "again" / "s1T1w.nii.gz"))
    other = str(put(root / "again" / "mask.nii.gz", nifti_gz(dtype="f4")))
    twice = Found(subject="s1", session="", images={**first.images, "T1w": (*first.images["T1w"], again)},
                  labels=first.labels)  # fmt: skip
    row = only(root, twice)
    assert row.reason == "duplicate" and "T1w: 2 files, of equal size" in row.detail
    assert again in row.detail and "Fix: keep one of them" in row.detail and len(row.scans) == 3
    masks = Found(subject="s1", session="", images=first.images, labels=(*first.labels, other))
    row = only(root, masks)
    assert row.reason == "duplicate" and "label: 2 files, which differ" in row.detail and row.label is None


def moved(mm: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[1, 3] += mm
    return affine


@pytest.mark.parametrize("shift", [0.0, 0.005, 0.02, 2.0])
def test_grids_must_agree_within_the_tolerance(root, shift) -> None:
    for where, reason in (("FLAIR", "grid_mismatch"), ("label", "label_grid_mismatch")):
        data = nifti_gz(affine=moved(shift))
        row = only(root, session(root, **{where: data}))
        assert row.reason == (reason if shift > 0.01 else "")
        if row.reason:
            assert f"T1w and {where} lie on different grids: corners up to {shift:.3g} mm" in row.detail
        loose = IntakeRules(modalities=TWO, grid_tolerance_mm=3)
        assert only(root, session(root, **{where: data}), loose).included


def test_shapes_and_rotations_must_agree(root) -> None:
    row = only(root, session(root, FLAIR=nifti_gz((2, 3, 100)), label=nifti_gz((3, 3, 100))))
    assert row.reason == "grid_mismatch"
    assert "T1w and FLAIR lie on different grids: 2x2x100 and 2x3x100 voxels" in row.detail
    assert "T1w and label lie on different grids: 2x2x100 and 3x3x100 voxels" in row.detail
    turned = AFFINE.copy()  # by 0.02 degrees: nothing at the origin, 0.035 mm at the other end of 100 slices
    turned[1, 2] = np.deg2rad(0.02)
    assert only(root, session(root, label=nifti_gz(affine=turned))).reason == "label_grid_mismatch"


@settings(deadline=None, max_examples=15)
@given(order=st.permutations([0, 1, 2]), signs=st.tuples(*[st.sampled_from([1, -1])] * 3))
def test_one_grid_in_any_storage_order(tmp_path_factory, order, signs) -> None:
    root = tmp_path_factory.mktemp("orient") / "cohort"
    image = nibabel.Nifti1Image(np.zeros((3, 4, 100), np.int16), AFFINE)
    ornt = np.array([[axis, sign] for axis, sign in zip(order, signs, strict=True)], float)
    stored = image.as_reoriented(ornt)
    data = gzip.compress(image.to_bytes()), gzip.compress(stored.to_bytes())
    row = only(root, session(root, T1w=data[0], FLAIR=data[1], label=data[1]))
    assert row.included, row.detail
    flair = row.scans[1]
    assert flair.shape == stored.shape and flair.orientation == "".join(nibabel.aff2axcodes(stored.affine))
    few = IntakeRules(modalities=TWO, min_slices=101)
    assert "T1w: 100 axial slices, fewer than 101" in only(root, session(root, T1w=data[1]), few).detail


def test_the_first_reason_counts_and_all_are_told(root) -> None:
    found = session(root, FLAIR=None, T1w=nifti_gz((2, 2, 50)), label=nifti_gz((2, 2, 51)))
    row = only(root, found)
    assert row.reason == "missing_modality"
    for words in ("FLAIR: no file; ", "50x", "51 voxels", "T1w: 50 axial slices, fewer than 100"):
        assert words.replace("50x", "2x2x50") in row.detail
    row = only(root, session(root, T1w=b"junk", label=None))
    assert row.reason == "missing_label" and "not a NIfTI file" in row.detail
    assert row.detail.startswith("the session has no lesion mask; T1w: ")


def test_lists_of_the_users(root) -> None:
    found = [session(root, f"s{i}", who={"age": 50.0 + i}) for i in range(4)]
    found.append(session(root, "s4", FLAIR=None))
    lists = LeftOut(withdrawn=frozenset({"s1", "x"}), brain_tumours=frozenset({"s1", "s2", "s4"}))
    Path(found[1].images["T1w"][0]).unlink()  # of somebody withdrawn nothing is read
    manifest = judged(root, found, left_out=lists)
    rows = {row.subject: row for row in manifest.rows()}
    assert [rows[f"s{i}"].reason for i in range(5)] == [
        "", "withdrawn", "brain_tumour", "", "brain_tumour",
    ]  # fmt: skip
    gone = rows["s1"]
    assert (gone.scans, gone.label, gone.age, gone.sex, gone.site) == ((), None, None, None, None)
    assert rows["s2"].age == 52.0 and len(rows["s2"].scans) == 2 and "FLAIR: no file" in rows["s4"].detail
    assert manifest.meta.rules["withdrawn_ids"] == 2 and manifest.meta.rules["brain_tumour_ids"] == 3
    assert "1 of the 2 ids of the withdrawal list are of nobody here" in manifest.meta.notes
    counts = {line.reason: line.sessions for line in exclusions_of(manifest)}
    assert counts["withdrawn"] == 1 and counts["brain_tumour"] == 2


def test_the_table_has_a_line_for_a_list_that_met_nobody(root) -> None:
    found = [session(root)]
    lists = LeftOut(withdrawn=frozenset({"x"}), brain_tumours=frozenset({"y"}))
    lines = exclusions_of(judged(root, found, left_out=lists))
    assert [line.reason for line in lines][:3] == ["assessed", "withdrawn", "brain_tumour"]
    assert lines[-1].reason == "included" and lines[1].sessions == 0
    assert "withdrawn" not in {line.reason for line in exclusions_of(judged(root, found))}


def test_nobody_eligible(root) -> None:
    manifest = judged(root, [session(root, f"s{i}", FLAIR=None) for i in range(2)])
    with pytest.raises(DataError, match="all 2 sessions are excluded, 2 because a requested modality"):
        require_eligible(manifest)


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        ({"modalities": ()}, "modalities is empty"),
        ({"modalities": ("T1w", "T1w")}, "repeats one"),
        ({"modalities": ("label",)}, "'label' is no modality"),
        ({"modalities": TWO, "min_slices": -1}, "cannot be negative"),
    ],
)
def test_rules_that_make_no_sense(rules, problem) -> None:
    with pytest.raises(ConfigError, match=problem):
        IntakeRules(**rules)


def test_the_manifest_does_not_depend_on_order_threads_or_batches(root) -> None:
    found = [session(root, f"s{i:02d}", session=str(i % 2)) for i in range(12)]
    found.append(session(root, "s05", session="9", T1w=b"junk"))
    hashes = {
        judged(root, order, threads=threads, batch=batch).hash
        for order, threads, batch in ((found, 1, 1), (found[::-1], 4, 5), (found[3:] + found[:3], 16, 256))
    }
    assert len(hashes) == 1


def test_uncompressed_files_whatever_their_name(root) -> None:
    plain = gzip.decompress(nifti_gz())
    assert only(root, session(root, T1w=plain)).included
    short = session(root, T1w=plain[:500])
    assert only(root, short).reason == "unreadable_archive"


def test_files_that_went_away(root) -> None:
    found = session(root)
    path = Path(found.images["T1w"][0])
    path.unlink()
    row = only(root, found)
    assert row.reason == "unreadable_archive" and "file is gone since it was listed" in row.detail
    path.symlink_to(root / "annex")
    row = only(root, found)
    assert row.reason == "unreadable_archive" and "link points nowhere" in row.detail
    assert "Fix: fetch its content (datalad get" in row.detail
    path.unlink()
    path.mkdir()
    assert only(root, found).reason == "unreadable_archive"


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_damage_costs_a_verdict_not_the_intake(tmp_path_factory, data) -> None:
    root = tmp_path_factory.mktemp("fuzz") / "cohort"
    raw = bytearray(data.draw(st.sampled_from([nifti_gz(), gzip.decompress(nifti_gz())])))
    for _ in range(data.draw(st.integers(0, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.just(len(raw)) | st.integers(0, len(raw)))]
    where = data.draw(st.sampled_from(["T1w", "label"]))
    whole, row = judged(root, [session(root, "s0"), session(root, "s1", **{where: bytes(raw)})]).rows()
    assert whole.included
    assert row.included or (row.reason in REASONS and row.detail and "\n" not in row.detail)


def test_a_folder_lists_links_once_and_hidden_ones_never(root) -> None:
    put(root / "a" / "x.nii.gz")
    put(root / "a" / "y.nii")
    put(root / "a" / "z.txt")
    put(root / "a" / "._x.nii.gz")
    put(root / ".git" / "w.nii.gz")
    (root / "a" / "circle").symlink_to(root)
    (root / "b").symlink_to(root / "a")
    (root / "broken.nii.gz").symlink_to(root / "nowhere")
    listed = sorted(parts[-1] for parts in Folder(str(root)).images())
    assert listed == ["broken.nii.gz", "x.nii.gz", "y.nii"]
    assert [*Folder(str(root)).images(lambda parts: False)] == [("broken.nii.gz",)]
    with pytest.raises(DataError, match=r"no such folder.*nowhere.*Fix: give the folder that holds scans"):
        Folder(str(root / "nowhere"), "scans")


def test_names_and_links_that_cannot_be_read_cost_themselves_only(root) -> None:
    put(root / "a" / "x.nii.gz")
    try:
        (root / "b\udcfc").mkdir()  # a Latin-1 umlaut, as old drives have them
    except (OSError, UnicodeEncodeError):
        pytest.skip("this file system takes UTF-8 names only")
    put(root / "b\udcfc" / "y.nii.gz")
    (root / "self.nii.gz").symlink_to(root / "self.nii.gz")
    folder = Folder(str(root))
    assert sorted(folder.images()) == [("a", "x.nii.gz"), ("self.nii.gz",)]
    assert folder.unreadable_names == 1
    found = Found(subject="s1", session="", images={"T1w": (str(root / "self.nii.gz"),)})
    row = only(root, found, IntakeRules(modalities=("T1w",), labels="ignore"))
    assert row.reason == "unreadable_archive"


def test_remote_storage(root) -> None:
    put(root / "a" / "s1T1w.nii.gz")
    put(root / ".hidden" / "s1T1w.nii.gz")
    memory = fsspec.filesystem("memory")
    memory.put(str(root), "/intake-cohort", recursive=True)
    folder = Folder("memory://intake-cohort")
    assert list(folder.images()) == [("a", "s1T1w.nii.gz")]
    uri = folder.uri_of(("a", "s1T1w.nii.gz"))
    assert uri == "memory://intake-cohort/a/s1T1w.nii.gz"
    for source in (folder.uri, "memory://elsewhere"):
        assert HeaderReader(source).probe(uri, "T1w", "s1").scan.shape == (2, 2, 100)


def test_gathering_is_in_manifest_order() -> None:
    gathering = Gathering()
    for subject, visit, name, uri in (
        ("b", "", "T1w", "2"), ("a", "2", "T1w", "4"), ("a", "10", "label", "3"), ("b", "", "T1w", "1"),
    ):  # fmt: skip
        gathering.add(subject, visit, name, uri)
    found = list(gathering.found())
    assert [(f.subject, f.session, dict(f.images), f.labels) for f in found] == [
        ("a", "10", {}, ("3",)), ("a", "2", {"T1w": ("4",)}, ()), ("b", "", {"T1w": ("1", "2")}, ()),
    ]  # fmt: skip
    assert len(gathering) == 3
