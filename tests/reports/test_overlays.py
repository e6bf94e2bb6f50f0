"""Overlays: the subject's left is on the left, each colour is there when it should be, and scale is true."""

from __future__ import annotations

import io
import math
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from brainfoundry.reports import overlays
from brainfoundry.reports.overlays import (
    AGREED,
    DIFFERENCE,
    FALSE,
    LABEL_COLOURS,
    MISSED,
    OTHER,
    difference,
    overlay_figure,
    score_text,
)

SHAPE = (40, 48, 36)
LABELS = {1: "lesion"}
ROWS = ("sagittal", "coronal", "axial")
CORNERS = [(0.3, 0.3, 0.7), (0.7, 0.3, 0.3), (0.3, 0.7, 0.3)]


def brain(shape=SHAPE) -> np.ndarray:
    """An ellipsoid of tissue, darker inside, in the middle of nothing."""
    axes = np.meshgrid(*(2.5 * (np.arange(n) + 0.5) / n - 1.25 for n in shape), indexing="ij")
    distance = sum(x**2 for x in axes)
    return np.where(distance < 1, 60 + 40 * distance, 0.0)


def block(at, shape=SHAPE, *, half: int = 2, value: int = 1) -> np.ndarray:
    """A cube of a label around a place, in shares of the axes."""
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(int(a * n) - half, int(a * n) + half + 1) for a, n in zip(at, shape, strict=True))] = (
        value
    )
    return mask


def draw(image, truth, prediction, *, spacing=(1.0, 1.0, 1.0), labels=LABELS, title="", scores=None) -> bytes:
    return overlay_figure(
        image, truth, prediction, spacing_mm=spacing, labels=labels, title=title, scores=scores
    )


def pixels(png: bytes) -> np.ndarray:
    from matplotlib.image import imread

    assert png.startswith(b"\x89PNG")
    return (imread(io.BytesIO(png))[..., :3] * 255).round().astype(np.uint8)


def panels(png: bytes, columns: int = 4) -> list[dict[str, np.ndarray]]:
    """Columns of the figure, each the panels of the three planes, found by their black edges."""
    picture, found = pixels(png), []
    for i in range(columns):
        left = overlays._LEFT + i * (overlays._COLUMN + overlays._GAP)
        strip = picture[:, left : left + overlays._COLUMN]
        black = (strip[:, :3] == 0).all(axis=(1, 2))
        edges = np.flatnonzero(np.diff(np.r_[False, black, False].astype(int)))
        runs = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 100]
        assert len(runs) == 3
        found.append({name: strip[a:b] for name, (a, b) in zip(ROWS, runs, strict=True)})
    return found


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour.removeprefix("#")))


def has(column: dict[str, np.ndarray], colour: str) -> bool:
    return any((panel == rgb(colour)).all(axis=2).any() for panel in column.values())


@pytest.fixture
def written(monkeypatch) -> list[tuple[str, float, float]]:
    """Every text of the figures drawn in a test, with its place in pixels from the top left."""
    found: list[tuple[str, float, float]] = []
    write = overlays._Sheet.write

    def record(self, text, x, y, **style) -> None:
        found.append((text, x, y))
        write(self, text, x, y, **style)

    monkeypatch.setattr(overlays._Sheet, "write", record)
    return found


@pytest.mark.parametrize("corner", CORNERS)
def test_what_lies_where_is_shown_there(corner) -> None:
    image, spot = brain(), block(corner)
    image[spot > 0] = 1000.0
    scan = panels(draw(image, spot, spot))[0]
    right, front, top = (share > 0.5 for share in corner)
    for plane, (across, up) in zip(ROWS, ((front, top), (right, top), (right, front)), strict=True):
        panel = scan[plane]
        inner = np.zeros(panel.shape[:2], bool)
        inner[25:-25, 25:-25] = True  # not the letters at the edges
        inner[-50:, :120] = False  # nor the scale bar
        y, x = np.nonzero(inner & (panel[..., 0] > 200))
        assert x.size
        assert (x.mean() > panel.shape[1] / 2) == across, plane
        assert (y.mean() < panel.shape[0] / 2) == up, plane


def test_letters_name_the_ends(written) -> None:
    draw(brain(), block((0.5, 0.5, 0.5)), block((0.5, 0.5, 0.5)))
    letters = [entry for entry in written if entry[0] in {"L", "R", "P", "A", "I", "S"}]
    assert len(letters) == 4 * 12
    for i, (left, right, bottom, top) in enumerate(["PAIS"] * 4 + ["LRIS"] * 4 + ["LRPA"] * 4):
        of_panel = {text: (x, y) for text, x, y in letters[4 * i : 4 * i + 4]}
        assert set(of_panel) == {left, right, bottom, top}
        assert of_panel[left][0] < of_panel[top][0] < of_panel[right][0]
        assert of_panel[top][1] < of_panel[left][1] < of_panel[bottom][1]
    assert any("subject's left (L) is shown on the left" in text for text, _, _ in written)


MIDDLE, ASIDE = block((0.5, 0.5, 0.5)), block((0.65, 0.5, 0.5))
NOTHING = np.zeros(SHAPE, np.uint8)


@pytest.mark.parametrize(
    ("truth", "prediction", "expected"),
    [
        (MIDDLE, NOTHING, {MISSED}),
        (NOTHING, MIDDLE, {FALSE}),
        (MIDDLE, MIDDLE, {AGREED}),
        (MIDDLE, 2 * MIDDLE, {OTHER}),
        (MIDDLE, ASIDE, {MISSED, FALSE}),
        (MIDDLE, MIDDLE | ASIDE, {AGREED, FALSE}),
        (MIDDLE | ASIDE, 2 * MIDDLE, {OTHER, MISSED}),
        (NOTHING, NOTHING, set()),
    ],
)
def test_colours_of_the_difference(truth, prediction, expected) -> None:
    scan, true, predicted, differing = panels(draw(brain(), truth, prediction, labels={1: "a", 2: "b"}))
    assert {code for code, (_, colour) in DIFFERENCE.items() if has(differing, colour)} == expected
    for column, labels in ((scan, NOTHING), (true, truth), (predicted, prediction)):
        assert [has(column, colour) for colour in LABEL_COLOURS] == [n in labels for n in range(1, 8)]
    assert (scan["axial"][..., 0] == scan["axial"][..., 1]).all(), "the scan alone has no colour"


def test_anatomy_shows_through() -> None:
    image = brain()
    image[:20] *= 0.5
    big = block((0.5, 0.5, 0.5), half=10)
    panel = panels(draw(image, big, big))[1]["axial"]
    middle = panel[panel.shape[0] // 2]
    left, right = middle[len(middle) // 2 - 25].astype(int), middle[len(middle) // 2 + 25].astype(int)
    assert left[0] > left[2] + 20 and right[0] > right[2] + 20, "both in the label's colour"
    assert right.sum() > left.sum() + 60, "and one lighter than the other, as the scan is"


def test_the_legend_gives_names_volumes_and_scores(written) -> None:
    labels = {1: "necrotic core", 2: "oedema"}
    truth, prediction = MIDDLE.copy(), 2 * ASIDE
    prediction[0, 0, 0] = 7
    scores = {"dice": 0.91234, "hd95": math.nan}
    draw(brain(), truth, prediction, spacing=(2, 1, 4), labels=labels, scores=scores)
    texts = [text for text, _, _ in written]
    codes = difference(truth, prediction)
    for code, (name, _) in DIFFERENCE.items():
        assert f"{name}, {(codes == code).sum() * 8 / 1000:.1f} ml" in texts
    for text in ("necrotic core", "oedema", "label 7", "dice", "0.912", "hd95", "–"):
        assert text in texts
    written.clear()
    draw(brain(), MIDDLE, ASIDE)
    texts = [text for text, _, _ in written]
    assert not any("other label" in text for text in texts), "masks of one label have none"
    assert "Scores" not in texts


def test_without_truth(written) -> None:
    png = draw(brain(), None, MIDDLE, scores={"volume_ml": 1.5})
    width = overlays._LEFT + 2 * (overlays._COLUMN + overlays._GAP)
    assert pixels(png).shape[1] == width
    scan, predicted = panels(png, columns=2)
    assert has(predicted, LABEL_COLOURS[0]) and not has(scan, LABEL_COLOURS[0])
    texts = {text for text, _, _ in written}
    assert {"scan", "prediction", "volume_ml", "1.500"} <= texts
    assert not texts & {"truth", "difference"}


def test_planes_go_where_most_of_the_lesion_is(written) -> None:
    truth = np.zeros(SHAPE, np.uint8)
    truth[10:13, 20:25, 8:10] = 1  # slices alike: the middle one
    truth[30, 30, 30] = 1
    draw(brain(), truth, NOTHING)
    places = [text for text, _, _ in written if text.startswith("slice")]
    assert places == ["slice 12 of 40 from left", "slice 23 of 48 from back", "slice 10 of 36 from bottom"]


def test_without_a_lesion_they_go_through_the_middle_of_the_brain(written) -> None:
    image = np.zeros(SHAPE)
    image[4:14, 10:40, 16:36] = brain((10, 30, 20))
    draw(image, NOTHING, NOTHING)
    places = [int(text.split()[1]) for text, _, _ in written if text.startswith("slice")]
    assert places == pytest.approx([9, 25, 26], abs=4)  # the margin ends where the volume ends


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 3.0), (2.0, 0.5, 1.0)])
def test_a_ball_is_round(spacing) -> None:
    image = brain(tuple(round(60 / mm) for mm in spacing))
    empty = np.zeros(image.shape, np.uint8)
    sizes = []
    for panel in panels(draw(image, empty, empty, spacing=spacing))[0].values():
        y, x = (n // 2 + 12 for n in panel.shape[:2])  # lines close by the middle, that miss the letters
        sizes += [np.ptp(np.flatnonzero(line > 128)) for line in (panel[y, :, 0], panel[:, x, 0])]
    assert min(sizes) > 150
    assert max(sizes) - min(sizes) <= 4, "one scale, along every axis"


@pytest.mark.parametrize(("mm", "bar"), [(4.0, ["5 cm"]), (1.0, ["1 cm"]), (0.1, [])])
def test_the_scale_bar_fits(mm, bar, written) -> None:
    assert len(panels(draw(brain(), NOTHING, NOTHING, spacing=(mm,) * 3))) == 4
    assert [text for text, _, _ in written if text.endswith(" cm")] == bar


def test_a_normalised_scan_keeps_a_dark_background() -> None:
    tissue, shades = brain() > 0, np.random.default_rng(0).normal(size=SHAPE)
    panel = panels(draw(np.where(tissue, shades, 0).astype(np.float32), NOTHING, NOTHING))[0]["axial"]
    middle = panel.shape[1] // 2
    assert not panel[30:36, middle - 90 : middle - 60].any(), "0 is background, though it is a middle grey"
    assert 60 < panel[100:-100, middle - 30 : middle + 30].mean() < 200


@pytest.mark.parametrize("image", [np.zeros(SHAPE), np.full(SHAPE, 3.0), np.full(SHAPE, np.nan), brain() > 0])
def test_scans_with_nothing_to_see(image) -> None:
    image = image.copy()
    assert has(panels(draw(image, MIDDLE, MIDDLE))[3], DIFFERENCE[AGREED][1])


def test_voxels_that_are_no_numbers() -> None:
    image = brain()
    image[18:22, 22:26, 16:20] = np.nan
    image[20, 30, 18] = np.inf
    scan = panels(draw(image, NOTHING, NOTHING))[0]["axial"]
    assert (scan > 128).mean() > 0.1, "the rest is seen as ever"


@pytest.mark.parametrize("title", ["$\\frac{1}$ & <b>\ntwo", "x" * 500])
def test_any_title(title, written) -> None:
    png = draw(brain(), MIDDLE, MIDDLE, title=title, labels={1: title}, scores={title: 1.0})
    assert len(panels(png)) == 4
    assert written[0][0] == title.replace("\n", " ") or re.fullmatch("x{50,110}…", written[0][0])


def test_the_same_everywhere_and_no_global_figure() -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    image = brain()
    once = draw(image, MIDDLE, ASIDE, title="one")
    with ThreadPoolExecutor(2) as pool:
        others = list(pool.map(lambda _: draw(image, MIDDLE, ASIDE, title="one"), range(2)))
    assert others == [once] * 2
    assert plt.get_fignums() == before


def test_mistakes_of_the_caller() -> None:
    with pytest.raises(
        ValueError, match=r"\(D, H, W\), all alike; they are \[\(40, 48, 36\), \(40, 48, 35\)\]"
    ):
        draw(brain(), None, NOTHING[..., 1:])
    with pytest.raises(ValueError, match="all alike"):
        draw(brain(), MIDDLE[1:], NOTHING)
    with pytest.raises(ValueError, match="all alike"):
        draw(brain()[0], None, NOTHING[0])
    for spacing in ((1, 1), (1, 1, 0), (1, 1, math.nan)):
        with pytest.raises(ValueError, match="three lengths above 0"):
            draw(brain(), None, NOTHING, spacing=spacing)


MAPS = arrays.arrays(np.uint8, (2, 3, 2), elements=st.integers(0, 4))


@settings(deadline=None)
@given(MAPS, MAPS)
def test_every_voxel_has_one_difference(truth, prediction) -> None:
    codes = difference(truth, prediction)
    for t, p, code in zip(truth.flat, prediction.flat, codes.flat, strict=True):
        if not t or not p:
            assert code == (MISSED if t else FALSE if p else 0)
        else:
            assert code == (AGREED if t == p else OTHER)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.91251, "0.913"),
        (1.0, "1"),
        (0.0, "0"),
        (3.1623, "3.162"),
        (12.37, "12.4"),
        (374.0, "374"),
        (15200.0, "15,200"),
        (-1.5, "-1.500"),
        (math.nan, "–"),
        (math.inf, "inf"),
        (np.float64(0.5), "0.500"),
    ],
)
def test_numbers(value, text) -> None:
    assert score_text(value) == text
