"""The benchmark `infer`: equal outputs on both sides, counts of windows, arithmetic of its figures."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from brainfoundry.benchmarks import infer
from brainfoundry.cohorts.demo_files import nifti_bytes
from brainfoundry.core.errors import DataError
from brainfoundry.inference import WindowSpec
from brainfoundry.models import EncoderSpec, build_segmenter
from brainfoundry.training import checkpoint
from tests.training.labelled import make_labelled
from tests.training.test_checkpoint import card

WINDOW = (64, 32, 32)
SPEC = WindowSpec(window=WINDOW)
SHAPE = (96, 60, 48)
BOX = ((34, 5, 1), (94, 45, 31))  # 60 x 40 x 30


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four scans with the same brain in the middle, stored LPS as BraTS is, and a mask nobody reads."""
    folder = tmp_path_factory.mktemp("case_1")
    rng = np.random.default_rng(0)
    for name in ("flair", "t1ce", "t1", "t2", "seg"):
        values = np.zeros(SHAPE, np.int16)
        inside = tuple(slice(lo, hi) for lo, hi in zip(*BOX, strict=True))
        values[inside] = rng.integers(1, 1000, size=values[inside].shape)
        image = nifti_bytes(values[::-1, ::-1], np.diag([-1.0, -1.0, 1.0, 1.0]), code=1)
        (folder / f"case_1_{name}.nii.gz").write_bytes(gzip.compress(image, 1))
    return folder


@pytest.fixture(scope="module")
def sides() -> infer.Sides:
    return infer.Sides.build("nano", SPEC)


def test_figures_of_a_case(case: Path) -> None:
    lines: list[str] = []
    figures = infer.run(case, size="nano", window=WINDOW, repeats=1, whole=True, report=lines.append)
    # Windows of 64, 32, 32 every 32, 16, 16 voxels; two of them cover the box.
    assert figures["infer_windows_monai"] == figures["infer_windows_exact"] == 2 * 3 * 2
    assert figures["infer_windows_box"] == 1 * 2 * 1
    assert figures["infer_how"] == "8 windows x window count"
    assert figures["infer_max_rel_diff"] <= 1e-5
    assert (figures["infer_shape"], figures["infer_box"]) == ("96x60x48", "60x40x30")
    assert figures["infer_case"] == case.name and figures["infer_repeats"] == 1
    for name in ("infer_box_vs_monai", "infer_exact_vs_monai"):
        assert 0 < figures[f"{name}_min"] <= figures[name] <= figures[f"{name}_max"]
    assert figures["infer_box_vs_monai"] == pytest.approx(6 * figures["infer_exact_vs_monai"])
    assert figures["infer_whole_box_vs_monai"] == pytest.approx(
        figures["infer_whole_monai_cpu_s"] / figures["infer_whole_box_cpu_s"]
    )
    assert len(lines) == 1 + 1 + 2


def test_threads_are_put_back(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()

    def measure(*_: object) -> None:
        assert torch.get_num_threads() == before + 1
        raise DataError("stop")

    monkeypatch.setattr(infer, "_measure", measure)
    with pytest.raises(DataError, match="stop"):
        infer.run(case, size="nano", window=WINDOW, threads=before + 1)
    assert torch.get_num_threads() == before


def test_both_sides_give_equal_logits_and_the_box_equal_probabilities_where_it_reaches(
    sides: infer.Sides,
) -> None:
    shape = (96, 48, 33)  # the last window along W hangs over
    x_CDHW = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = sides.exact(x_CDHW[None]), sides.monai(x_CDHW[None])
    assert ours.shape == theirs.shape == (1, 3, *shape)
    assert infer.check_equal(ours, theirs) <= 1e-5
    # A box as large as the volume leaves nothing out.
    probabilities = sides.box((x_CDHW, ((0, 0, 0), shape)))
    np.testing.assert_allclose(probabilities, theirs.sigmoid()[0].numpy(), atol=1e-5)
    boxed = sides.box((x_CDHW, ((10, 8, 0), (74, 40, 32))))
    assert boxed[:, :10].max() == 0 and boxed[:, 10:74, 8:40, :32].min() > 0


def test_a_side_that_computes_something_else_is_seen(sides: infer.Sides) -> None:
    x = torch.randn(1, 4, *WINDOW, generator=torch.Generator().manual_seed(1))
    theirs = sides.monai(x)
    with pytest.raises(DataError, match="ours computes other logits than MONAI's: relative difference"):
        infer.check_equal(sides.exact(x).flip(-1), theirs)
    with pytest.raises(DataError, match="relative difference nan"):
        infer.check_equal(theirs * torch.nan, theirs)


def test_the_sides_have_their_own_attention_and_the_same_weights(sides: infer.Sides) -> None:
    theirs, ours = (type(network.swinViT.layers1[0]).__name__ for network in (sides.theirs, sides.ours))
    assert (theirs, ours) == ("BasicLayer", "SegmentStage")
    weights = sides.theirs.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in sides.ours.state_dict().items())


def test_ratios_are_medians_of_pairs_times_windows() -> None:
    pairs = [(1.0, 2.0), (2.0, 6.0), (1.0, 1.0)]  # theirs over ours: 2, 3, 1
    figures = infer.ratios(pairs, {"monai": 48, "exact": 48, "box": 12})
    assert figures == {
        "infer_box_vs_monai": 8, "infer_box_vs_monai_min": 4, "infer_box_vs_monai_max": 12,
        "infer_exact_vs_monai": 2, "infer_exact_vs_monai_min": 1, "infer_exact_vs_monai_max": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("box", "corner"),
    [
        (BOX, (0, 1, 0)),  # 96 x 48 x 48 about the voxel (64, 25, 16), as far as the volume reaches
        (((0, 0, 0), (4, 4, 4)), (0, 0, 0)),
        (((90, 50, 40), (96, 60, 48)), (0, 12, 0)),
    ],
)
def test_the_middle_is_two_windows_an_axis(box: infer.Box, corner: tuple[int, int, int]) -> None:
    volume = torch.arange(float(np.prod(SHAPE))).view(1, *SHAPE)
    part = infer.middle((volume, box), SPEC)
    assert part.shape == (1, 1, 96, 48, 48)
    assert part[0, 0, 0, 0, 0] == volume[(0, *corner)]
    counter = infer.Counter()
    infer.Sides(nn.Identity(), nn.Identity(), SPEC).monai(part, counter)
    assert counter.windows == 8


@pytest.mark.parametrize("extra", [None, "other_t1.nii.gz"])
def test_a_folder_that_is_not_one_case_is_refused(case: Path, tmp_path: Path, extra: str | None) -> None:
    assert [Path(path).name for path in infer.find_scans(case).values()] == [
        f"case_1_{kind}.nii.gz" for kind in ("flair", "t1ce", "t1", "t2")
    ]
    for kind in ("flair", "t1ce", "t1", "t2"):
        (tmp_path / f"x_{kind}.nii.gz").touch()
    if extra:
        (tmp_path / extra).touch()
    else:
        (tmp_path / "x_t1.nii.gz").unlink()
    with pytest.raises(DataError, match=rf"{2 if extra else 0} files are called \*_t1.nii.gz, not one"):
        infer.find_scans(tmp_path)


def test_masks_of_both_modes() -> None:
    x_CDHW = torch.zeros(1, *SHAPE)
    x_CDHW[:, 34:94, 5:45, 1:31] = 1

    def network(x_NCDHW: torch.Tensor) -> torch.Tensor:
        """The brain, nothing, everything: the last of which the box cuts off."""
        return torch.cat([x_NCDHW - 0.5, -torch.ones_like(x_NCDHW), torch.ones_like(x_NCDHW)], 1)

    (regions,) = infer.box_against_exact([network], [(x_CDHW, BOX)], SPEC)
    everything = 2 * 60 * 40 * 30 / (60 * 40 * 30 + 96 * 60 * 48)
    assert regions == [(1, True), (1, False), (pytest.approx(everything), True)]


def test_masks_of_a_checkpoint_on_a_shard_set(tmp_path: Path) -> None:
    shards = make_labelled(tmp_path)
    spec = EncoderSpec(size="nano", in_channels=2)
    torch.manual_seed(0)
    regions = {"name": "brats", "scheme": "brats2021", "regions": ["tc", "wt", "et"]}
    written = card(stage="finetune", encoder=spec.to_dict(), modalities=("T1w", "FLAIR"), task=regions)
    model = build_segmenter(spec, 3).state_dict()
    uri = checkpoint.save(str(tmp_path / "run"), written, model, {})
    lines: list[str] = []
    figures = infer.box_dice(uri, shards, subjects=2, split="train", report=lines.append)
    assert figures["infer_box_subjects"] == len(lines) == 2
    assert 0 < figures["infer_box_dice_lowest"] <= figures["infer_box_dice"] <= 1
    with pytest.raises(DataError, match="1 subjects of split test have voxels of every region, 3 are asked"):
        infer.box_dice(uri, shards)
    unknown = checkpoint.save(str(tmp_path / "other"), replace(written, modalities=("T1w", "T2w")), model, {})
    with pytest.raises(DataError, match="no scans of T2w"):
        infer.box_dice(unknown, shards, subjects=1)
