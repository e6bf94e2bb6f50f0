"""Intensity rules against hand-made values."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from monai.transforms import NormalizeIntensity

from brainfoundry.core.errors import ConfigError
from brainfoundry.pretext.intensity import inside_mask, normalise


def batch(
    codes_NCDHW: torch.Tensor,
    *,
    slope: list[list[float]],
    inter: list[list[float]],
    zero_code: list[list[float]],
    mean: list[list[float]],
    sd: list[list[float]],
    lo: list[list[int]] | None = None,
    hi: list[list[int]] | None = None,
    present: list[list[bool]] | None = None,
) -> SimpleNamespace:
    n, shape = codes_NCDHW.shape[0], list(codes_NCDHW.shape[2:])
    return SimpleNamespace(
        codes_NCDHW=codes_NCDHW,
        slope_NC=torch.tensor(slope),
        inter_NC=torch.tensor(inter),
        zero_code_NC=torch.tensor(zero_code),
        mean_NC=torch.tensor(mean),
        sd_NC=torch.tensor(sd),
        present_NC=torch.tensor(present or [[True] * codes_NCDHW.shape[1]] * n),
        inside_lo_N3=torch.tensor(lo or [[0, 0, 0]] * n, dtype=torch.int32),
        inside_hi_N3=torch.tensor(hi or [shape] * n, dtype=torch.int32),
    )


def test_zscore_uses_each_crops_and_modalitys_own_statistics() -> None:
    # Two modalities of one crop: plain integers, and codes shifted so that value 0 is code -100.
    codes = torch.tensor([[0, 10, 20, 40], [-100, -98, -90, -100]], dtype=torch.int16).view(1, 2, 1, 1, 4)
    given = batch(
        codes,
        slope=[[1.0, 0.5]],
        inter=[[0.0, 50.0]],
        zero_code=[[0.0, -100.0]],
        mean=[[20.0, 3.0]],
        sd=[[10.0, 2.0]],
    )
    x, saturated = normalise(given, "zscore_nonzero")
    assert x.dtype == torch.float32
    assert x[0, 0].flatten().tolist() == [0.0, -1.0, 0.0, 2.0]
    assert x[0, 1].flatten().tolist() == [0.0, -1.0, 1.0, 0.0]
    assert float(saturated) == 0.0
    assert torch.equal(given.codes_NCDHW, codes)


def test_zscore_gives_standard_scores() -> None:
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(-2000, 2000, (2, 1, 16, 16, 16), dtype=torch.int16, generator=generator)
    codes[:, :, :4] = 7
    slope, inter = 0.25, -7 * 0.25
    values = codes.float() * slope + inter
    stats = [values[i][codes[i] != 7] for i in range(2)]
    given = batch(
        codes,
        slope=[[slope]] * 2,
        inter=[[inter]] * 2,
        zero_code=[[7.0]] * 2,
        mean=[[float(v.mean())] for v in stats],
        sd=[[float(v.std())] for v in stats],
    )
    x, _ = normalise(given, "zscore_nonzero")
    for i in range(2):
        brain = x[i][codes[i] != 7]
        assert abs(float(brain.mean())) < 1e-4
        assert float(brain.std()) == pytest.approx(1.0, abs=1e-4)
        assert float(x[i][codes[i] == 7].abs().max()) == 0.0


def test_zscore_of_a_modality_without_contrast_stays_finite() -> None:
    codes = torch.tensor([0, 5, 5, 0], dtype=torch.int16).view(1, 1, 1, 1, 4)
    for mean, sd in ((5.0, 0.0), (float("nan"), float("nan"))):
        given = batch(codes, slope=[[1.0]], inter=[[0.0]], zero_code=[[0.0]], mean=[[mean]], sd=[[sd]])
        x, _ = normalise(given, "zscore_nonzero")
        assert torch.isfinite(x).all()


def test_zscore_crop_is_what_monai_makes_of_the_values_of_the_same_crop() -> None:
    generator = torch.Generator().manual_seed(4)
    codes = torch.randint(-2000, 2000, (3, 2, 12, 10, 8), dtype=torch.int16, generator=generator)
    codes[:, 0, :5], codes[:, 1, :, :3] = 7, -30  # background, and each channel's own code of it
    codes[1, 0] = 7  # no brain in this crop's channel
    codes[2, 1] = torch.where(codes[2, 1] == -30, -30, 90).to(torch.int16)  # brain without contrast
    slope, inter = torch.tensor([[0.25, 3.0]] * 3), torch.tensor([[-7 * 0.25, 90.0]] * 3)
    given = batch(
        codes,
        slope=slope.tolist(),
        inter=inter.tolist(),
        zero_code=[[7.0, -30.0]] * 3,
        mean=[[1e4, float("nan")]] * 3,  # the volume's: without influence
        sd=[[1e-3, 0.0]] * 3,
    )
    x, saturated = normalise(given, "zscore_crop")
    wide = (slice(None), slice(None), None, None, None)
    values = codes.float() * slope[wide] + inter[wide]
    monai = NormalizeIntensity(nonzero=True, channel_wise=True)
    expected = torch.stack([torch.as_tensor(monai(crop.clone())) for crop in values])
    torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-6)
    assert float(x[0].abs().max()) > 1.5 and not x[1, 0].any() and not x[2, 1].any()
    assert not x[values == 0].any()
    assert float(saturated) == 0.0 and x.dtype == torch.float32


def test_zscore_crop_knows_nothing_of_the_other_crops() -> None:
    generator = torch.Generator().manual_seed(5)
    codes = torch.randint(0, 900, (3, 2, 6, 6, 6), dtype=torch.int16, generator=generator)
    one = [[1.0, 1.0]]
    zero = [[0.0, 0.0]]

    def rule(codes: torch.Tensor) -> torch.Tensor:
        n = len(codes)
        return normalise(
            batch(codes, slope=one * n, inter=zero * n, zero_code=zero * n, mean=one * n, sd=one * n),
            "zscore_crop",
        )[0]

    assert torch.equal(rule(codes), torch.cat([rule(codes[i : i + 1]) for i in range(3)]))
    # So flips may come after it, though the released code's come before.
    torch.testing.assert_close(rule(codes.flip(2, 4)), rule(codes).flip(2, 4), rtol=1e-5, atol=1e-6)


def test_ct_window_maps_clips_and_counts() -> None:
    values = [-1500.0, -1000.0, -500.0, 0.0, 500.0, 1000.0, 1000.5, 4000.0]
    codes = torch.tensor(values).view(1, 1, 1, 1, 8)
    given = batch(codes, slope=[[1.0]], inter=[[0.0]], zero_code=[[0.0]], mean=[[1.0]], sd=[[1.0]])
    x, saturated = normalise(given, "ct_window")
    assert x.flatten().tolist() == [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert float(saturated) == pytest.approx(3 / 8)
    assert torch.equal(given.codes_NCDHW.flatten(), torch.tensor(values))


def test_ct_window_keeps_padding_at_zero_and_out_of_the_share() -> None:
    codes = torch.full((2, 1, 4, 2, 2), -30, dtype=torch.int16)  # background everywhere: 0.5 once scanned
    codes[0, 0, 1, 0, 0] = 3000
    given = batch(
        codes,
        slope=[[1.0]] * 2,
        inter=[[30.0]] * 2,
        zero_code=[[-30.0]] * 2,
        mean=[[1.0]] * 2,
        sd=[[1.0]] * 2,
        lo=[[1, 0, 0], [0, 0, 0]],
        hi=[[4, 2, 1], [0, 0, 0]],
    )
    x, saturated = normalise(given, "ct_window")
    assert float(x[0, 0, 1, 0, 0]) == 1.0
    assert x[0, 0, 2:, :, 0].flatten().tolist() == [0.5] * 4
    assert float(x[0, 0, 0].abs().max()) == 0.0 and float(x[0, 0, :, :, 1].abs().max()) == 0.0
    assert float(x[1].abs().max()) == 0.0  # this crop lies outside the scan altogether
    assert float(saturated) == pytest.approx(1 / 6)


@pytest.mark.parametrize("rule", ["zscore_nonzero", "zscore_crop", "ct_window"])
def test_rules_never_wait_for_the_device(rule: str) -> None:
    one = [[1.0]] * 2
    given = batch(
        torch.zeros(2, 1, 4, 4, 4, dtype=torch.int16), slope=one, inter=one, zero_code=one, mean=one, sd=one
    )
    # The meta device has no values: asking for one fails, and so does mixing in a tensor of the host.
    x, saturated = normalise(SimpleNamespace(**{k: v.to("meta") for k, v in vars(given).items()}), rule)
    assert x.device.type == saturated.device.type == "meta"
    assert x.shape == (2, 1, 4, 4, 4) and saturated.shape == ()


def test_inside_mask_is_the_half_open_box() -> None:
    mask = inside_mask(torch.tensor([[1, 0, 2]]), torch.tensor([[3, 2, 3]]), torch.Size([3, 3, 4]))
    assert mask.shape == (1, 1, 3, 3, 4)
    assert mask.nonzero()[:, 2:].tolist() == [[1, 0, 2], [1, 1, 2], [2, 0, 2], [2, 1, 2]]


def test_unknown_rule_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"intensity rule 'minmax' does not exist.*zscore_nonzero, zscore_crop, ct_window"
    ):
        normalise(SimpleNamespace(), "minmax")  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", ["zscore_nonzero", "zscore_crop", "ct_window"])
@pytest.mark.parametrize("statistic", [0.0, 50.0, float("nan")])
def test_an_absent_modality_is_exactly_zero_and_leaves_the_other_alone(rule: str, statistic: float) -> None:
    codes = torch.zeros(2, 2, 3, 3, 3, dtype=torch.int16)
    codes[:, 0] = torch.arange(27).reshape(3, 3, 3) * 100 - 500
    numbers = {"slope": [[1.0, 1.0]] * 2, "inter": [[0.0, 0.0]] * 2, "zero_code": [[0.0, 0.0]] * 2}
    given = batch(
        codes, **numbers, mean=[[9.0, statistic]] * 2, sd=[[3.0, statistic]] * 2, present=[[True, False]] * 2
    )
    x, saturated = normalise(given, rule)
    assert (x[:, 1].view(torch.int32) == 0).all()  # not even minus zero
    alone = batch(
        codes[:, :1], slope=[[1.0]] * 2, inter=[[0.0]] * 2, zero_code=[[0.0]] * 2, mean=[[9.0]] * 2,
        sd=[[3.0]] * 2,
    )  # fmt: skip
    expected, share = normalise(alone, rule)
    assert torch.equal(x[:, :1], expected)
    assert torch.equal(saturated, share)  # an absent channel's voxels are not counted among the scanned
    assert (float(saturated) > 0) == (rule == "ct_window")
