"""What a model marked, over the scan: three planes, beside the truth and what lies between the two.

A row a plane, a column a view: the scan alone, the truth, the prediction, their difference. The convention is
neurological, as in every picture of this project: the subject's left is shown on the left.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from brainfoundry.cohorts.fingerprint import background_of
from brainfoundry.reports.drawing import INK, SOFT, new_figure

MISSED, FALSE, AGREED, OTHER = 1, 2, 3, 4
# Okabe and Ito's colours. Those of the difference differ in lightness too, so that they stay apart in every
# kind of colour blindness; the first three labels have colours of their own.
DIFFERENCE = {
    MISSED: ("missed", "#d55e00"),
    FALSE: ("false positive", "#f0e442"),
    AGREED: ("agreed", "#0072b2"),
    OTHER: ("other label", "#cc79a7"),
}
LABEL_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#0072b2")

# Each cuts across one axis: towards the right, the front, the top.
_PLANES = ("sagittal", "coronal", "axial")
_ENDS, _STARTS = ("LR", "PA", "IS"), ("left", "back", "bottom")
_CONVENTION = "Neurological convention: the subject's left (L) is shown on the left. One scale throughout."

# In pixels. Four columns are as wide as a page of `reports.page`, which shows them unscaled.
_DPI = 128  # a power of two, so that a figure's size is that many pixels exactly
_COLUMN, _GAP, _LEFT = 276, 4, 48
_SHORTEST, _TALLEST = 170, 290
_HEAD, _LINE, _SWATCH = 82, 21, 12
_MARGIN_MM = 9.0
_OPACITY = 0.6
_GREYS = 52  # of 256: the eye misses none, and the file is a quarter smaller


@dataclass(frozen=True)
class _View:
    """A column: its heading, and the codes over the scan with their colours."""

    heading: str
    codes_DHW: np.ndarray | None = None
    palette: Mapping[int, str] | None = None


@dataclass(frozen=True)
class _Block:
    """A part of the legend: its heading, and texts with their colours."""

    heading: str
    entries: list[tuple[str, str]]


def overlay_figure(
    image_DHW: np.ndarray,
    truth_DHW: np.ndarray | None,
    prediction_DHW: np.ndarray,
    *,
    spacing_mm: Sequence[float],
    labels: Mapping[int, str],
    title: str,
    scores: Mapping[str, float] | None = None,
) -> bytes:
    """PNG of the planes that cut most of the lesion: the true one, else the predicted one, else mid-brain.

    Args:
        image_DHW: the scan, in RAS axis order (D towards the right, H to the front, W upwards); any unit.
        truth_DHW: its label map; None where nobody knows: then only the scan and the prediction are shown.
        prediction_DHW: the predicted label map.
        spacing_mm: between voxels, along the three axes.
        labels: label -> name, for the legend.
        title: heading, whose scan this is.
        scores: metric -> value, listed below; NaN is a dash.

    Raises:
        ValueError: volumes that are not three-dimensional and of one shape, or an impossible spacing.
    """
    given = [np.asarray(v) for v in (image_DHW, prediction_DHW, truth_DHW) if v is not None]
    image, prediction, shapes = given[0], given[1], [v.shape for v in given]
    truth = given[2] if len(given) == 3 else None
    if image.ndim != 3 or 0 in image.shape or len(set(shapes)) > 1:
        raise ValueError(f"image, prediction and truth must be (D, H, W), all alike; they are {shapes}")
    if len(spacing_mm) != 3 or not all(0 < mm < math.inf for mm in spacing_mm):
        raise ValueError(f"spacing_mm must be three lengths above 0; it is {tuple(spacing_mm)}")
    colours = _label_colours(labels, given[1:])
    views = [_View("scan"), _View("prediction", prediction, colours)]
    legend = [_Block("Labels", [(labels.get(n, f"label {n}"), colour) for n, colour in colours.items()])]
    marked = prediction > 0
    if truth is not None:
        marked |= truth > 0
        codes = difference(truth, prediction)
        views.insert(1, _View("truth", truth, colours))
        views.append(_View("difference", codes, {code: colour for code, (_, colour) in DIFFERENCE.items()}))
        ml = np.bincount(codes.ravel(), minlength=len(DIFFERENCE) + 1) * math.prod(spacing_mm) / 1000
        shown = [code for code in DIFFERENCE if code != OTHER or len(colours) > 1]
        told = [(f"{DIFFERENCE[code][0]}, {ml[code]:,.1f} ml", DIFFERENCE[code][1]) for code in shown]
        legend.append(_Block("Difference, whole volume", told))
    grey, brain = _windowed(image)
    box = _box(brain | marked, spacing_mm)
    at = None if truth is None else _fullest(truth > 0)
    at = at or _fullest(marked) or tuple((part.start + part.stop) // 2 for part in box)
    scale, rows = _panels(grey, views, box, at, spacing_mm)
    places = [
        f"slice {i + 1} of {n} from {side}" for i, n, side in zip(at, image.shape, _STARTS, strict=True)
    ]
    return _draw(rows, places, scale, [view.heading for view in views], legend, title, scores or {})


def difference(truth_DHW: np.ndarray, prediction_DHW: np.ndarray) -> np.ndarray:
    """uint8, 0 where both are background, else `MISSED`, `FALSE`, `AGREED` or `OTHER`.

    `OTHER` is lesion in both, under two labels; maps of one label have none.
    """
    true, predicted = truth_DHW > 0, prediction_DHW > 0
    codes = np.where(truth_DHW == prediction_DHW, AGREED, OTHER).astype(np.uint8)
    codes[~predicted] = MISSED
    codes[~true] = FALSE
    codes[~(true | predicted)] = 0
    return codes


def score_text(value: float) -> str:
    """A metric as shown: whole numbers plainly, others to three decimals (one from 10 on), NaN as a dash."""
    if math.isnan(value):
        return "–"
    if math.isinf(value) or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


def _label_colours(labels: Mapping[int, str], maps: Sequence[np.ndarray]) -> dict[int, str]:
    """Of every label that has a name or occurs, in order."""
    found = {n for volume in maps for n in np.flatnonzero(np.bincount(volume.ravel())).tolist()}
    known = sorted((found | set(labels)) - {0})
    return {n: LABEL_COLOURS[i % len(LABEL_COLOURS)] for i, n in enumerate(known)}


def _windowed(image_DHW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scan from 0 (background, and dark) to 1, and which voxels are clearly not background."""
    values = image_DHW.astype(np.float32)
    background = float(background_of(values))
    values[~np.isfinite(values)] = background
    inside = values != background
    sample = values[inside]
    sample = sample[:: max(1, sample.size // 100_000)]
    if not sample.size:
        return np.zeros_like(values), inside
    low, high = (float(v) for v in np.percentile(sample, (1, 99.5)))
    if high <= low:
        low, high = min(low, background), max(high, background)
    grey = np.clip((values - low) / (high - low), 0, 1)
    grey[~inside] = 0  # a normalised scan's background lies among its tissues
    faint = 0.1 * float(np.percentile(np.abs(sample - background), 99))
    return grey, np.abs(values - background) > faint


def _box(mask_DHW: np.ndarray, spacing_mm: Sequence[float]) -> tuple[slice, ...]:
    """The smallest box around a mask and a margin; the whole volume where the mask is empty."""
    found = ndimage.find_objects(mask_DHW.astype(np.uint8))
    if not found:
        return tuple(slice(0, n) for n in mask_DHW.shape)
    margins = [round(_MARGIN_MM / mm) for mm in spacing_mm]
    return tuple(
        slice(max(0, part.start - m), min(n, part.stop + m))
        for part, m, n in zip(found[0], margins, mask_DHW.shape, strict=True)
    )


def _fullest(mask_DHW: np.ndarray) -> tuple[int, ...] | None:
    """Along every axis the slice with most of a mask, the middle one of several alike."""
    if not mask_DHW.any():
        return None
    counts = [mask_DHW.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
    best = [np.flatnonzero(line == line.max()) for line in counts]
    return tuple(int(slices[len(slices) // 2]) for slices in best)


def _panels(
    grey_DHW: np.ndarray,
    views: Sequence[_View],
    box: tuple[slice, ...],
    at: tuple[int, ...],
    spacing_mm: Sequence[float],
) -> tuple[float, list[list[np.ndarray]]]:
    """Pixels a millimetre, the same everywhere, and pictures, (height, width, 3) uint8, by plane and view."""
    mm = [(part.stop - part.start) * one for part, one in zip(box, spacing_mm, strict=True)]
    scale = min(_COLUMN / max(mm[0], mm[1]), _TALLEST / max(mm[1], mm[2]))
    size = [max(1, round(length * scale)) for length in mm]
    rows = []
    for axis in range(3):
        cut = tuple(at[a] if a == axis else box[a] for a in range(3))
        across, up = (a for a in range(3) if a != axis)
        shape = (size[across], size[up])
        plane = np.rint(_stretched(grey_DHW[cut], shape, order=1) * (_GREYS - 1)) / (_GREYS - 1)
        picture = np.repeat((255 * plane).astype(np.uint8)[..., None], 3, axis=2)
        row = []
        for view in views:
            panel = picture.copy()
            if view.codes_DHW is not None and view.palette is not None:
                _paint(panel, _stretched(view.codes_DHW[cut], shape, order=0), view.palette)
            row.append(panel.swapaxes(0, 1)[::-1])  # up is up, or to the front
        rows.append(row)
    return scale, rows


def _stretched(plane: np.ndarray, shape: tuple[int, int], *, order: int) -> np.ndarray:
    zoom = [to / n for to, n in zip(shape, plane.shape, strict=True)]
    stretched: np.ndarray = ndimage.zoom(plane, zoom, order=order, mode="nearest", grid_mode=True)
    return stretched


def _paint(picture: np.ndarray, codes: np.ndarray, palette: Mapping[int, str]) -> None:
    """Every code a translucent area with an opaque border, in place."""
    for code, colour in palette.items():
        mask = codes == code
        rgb = np.array(_rgb(colour), np.float32)
        grey = picture[mask] / np.float32(255)
        # The scan is dimmed under a colour, which would else fade to white on a bright lesion; and the colour
        # follows the scan, so that anatomy shows.
        picture[mask] = (1 - _OPACITY) * 200 * grey + _OPACITY * rgb * (0.6 + 0.4 * grey)
        picture[mask & ~ndimage.binary_erosion(mask, border_value=1)] = rgb


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


class _Sheet:
    """A white page in pixels, counted from its top left corner: pictures below, text above them."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self._height = width, height
        self._canvas = np.full((height, width, 3), 255, np.uint8)
        self._figure = new_figure(width / _DPI, height / _DPI, layout=None)
        self._figure.dpi = _DPI

    def fill(self, x: int, y: int, width: int, height: int, colour: str) -> None:
        """A rectangle."""
        self._canvas[y : y + height, x : x + width] = _rgb(colour)

    def panel(self, picture: np.ndarray, x: int, y: int, height: int, axis: int) -> None:
        """A plane in the middle of a black column, with the letters of its four ends."""
        self.fill(x, y, _COLUMN, height, "#000000")
        tall, wide = picture.shape[:2]
        left, top = x + (_COLUMN - wide) // 2, y + (height - tall) // 2
        self._canvas[top : top + tall, left : left + wide] = picture
        across, up = (ends for a, ends in enumerate(_ENDS) if a != axis)
        for letter, dx in ((across[0], 9), (across[1], _COLUMN - 9)):
            self.write(letter, x + dx, y + height / 2, ha="center", color="white", on_picture=True)
        for letter, dy in ((up[1], 10), (up[0], height - 10)):
            self.write(letter, x + _COLUMN / 2, y + dy, ha="center", color="white", on_picture=True)

    def write(self, text: str, x: float, y: float, *, on_picture: bool = False, **style: Any) -> None:
        """A line of text, its middle at the height y."""
        from matplotlib.patheffects import withStroke

        style = {"color": INK, "fontsize": 8, "va": "center", "parse_math": False, **style}
        if on_picture:
            style["path_effects"] = [withStroke(linewidth=2, foreground="black")]
        self._figure.text(x / self.width, 1 - y / self._height, text, **style)

    def png(self) -> bytes:
        """The page."""
        self._figure.figimage(self._canvas, origin="upper")
        sink = io.BytesIO()
        self._figure.savefig(sink, format="png", dpi=_DPI, pil_kwargs={"compress_level": 9})
        return sink.getvalue()


def _draw(
    rows: Sequence[Sequence[np.ndarray]],
    places: Sequence[str],
    scale: float,
    headings: Sequence[str],
    legend: Sequence[_Block],
    title: str,
    scores: Mapping[str, float],
) -> bytes:
    heights = [max(_SHORTEST, row[0].shape[0]) for row in rows]
    lefts = [_LEFT + i * (_COLUMN + _GAP) for i in range(len(headings))]
    free = lefts[len(legend) :]  # columns with room for scores below them
    deep = math.ceil(len(scores) / len(free))
    foot = _HEAD + sum(heights) + _GAP * len(rows)
    lines = 2 + max(deep, *(len(block.entries) for block in legend))
    sheet = _Sheet(lefts[-1] + _COLUMN + _GAP, foot + _LINE * lines)
    sheet.write(_shortened(title, sheet.width // 12), 6, 14, fontsize=10, weight="bold")
    sheet.write(_CONVENTION, 6, 38, fontsize=7.5, color=SOFT)
    for heading, left in zip(headings, lefts, strict=True):
        sheet.write(heading, left + _COLUMN / 2, _HEAD - 13, ha="center", fontsize=9)
    top = _HEAD
    for axis, (row, tall) in enumerate(zip(rows, heights, strict=True)):
        middle = top + tall / 2
        sheet.write(_PLANES[axis], 14, middle, ha="center", rotation=90, fontsize=9)
        sheet.write(places[axis], 34, middle, ha="center", rotation=90, fontsize=7.5, color=SOFT)
        for picture, left in zip(row, lefts, strict=True):
            sheet.panel(picture, left, top, tall, axis)
        top += tall + _GAP
    cm = next((n for n in (5, 1) if 10 * n * scale < _COLUMN * 0.7), 0)
    if cm:  # of a whole head 5; of a crop 1, or none
        sheet.fill(_LEFT + 10, top - 20, round(10 * cm * scale), 3, "#ffffff")
        sheet.write(f"{cm} cm", _LEFT + 10, top - 34, color="white", on_picture=True)
    for block, left in zip(legend, lefts, strict=False):
        sheet.write(block.heading, left, foot + _LINE, weight="bold")
        for i, (text, colour) in enumerate(block.entries):
            y = foot + _LINE * (i + 2)
            sheet.fill(left, y - _SWATCH // 2, _SWATCH, _SWATCH, colour)
            sheet.write(_shortened(text, 30), left + _SWATCH + 8, y)
    if scores:
        sheet.write("Scores", free[0], foot + _LINE, weight="bold")
    for i, (name, value) in enumerate(scores.items()):
        left, y = free[i // deep], foot + _LINE * (i % deep + 2)
        sheet.write(_shortened(name, 25), left, y)
        sheet.write(score_text(value), left + _COLUMN - 30, y, ha="right")
    return sheet.png()


def _shortened(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"
