"""The page of an evaluation: its numbers, its order, nothing fetched, all names escaped."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from brainfoundry.reports import evaluation
from brainfoundry.reports.evaluation import Picture, evaluation_page, metric_figure
from brainfoundry.reports.overlays import overlay_figure
from tests.browser import render
from tests.reports.test_page import Walk, png

NAN = math.nan


def subject(name: str, dice: float, *, session: str = "", hd95: float = 5.0) -> dict[str, object]:
    return {"subject": name, "session": session, "dice_wt_challenge": 0.0, "dice_wt": dice, "hd95_wt": hd95}


def summary(metric: str, mean: float, **changes: float) -> dict[str, object]:
    known = {"rows": 4, "defined": 3, "low": mean - 0.1, "high": mean + 0.1, "sd": 0.05, "median": mean}
    return {"metric": metric, "mean": mean, **known, **changes}


SUBJECTS = [subject("b", 0.9), subject("d", NAN, hd95=NAN), subject("a", 0.25), subject("c", 1.0, hd95=12.34)]
SUMMARY = [
    summary("dice_wt", 0.7167),
    summary("hd95_wt", NAN, low=NAN, high=NAN, sd=NAN, median=NAN, defined=0),
]
POLICIES = ["threshold: 0.5", "empty_policy: excluded"]


def page(**changes) -> str:
    given = {
        "title": "fold 0", "lead": "step 120", "summary_rows": SUMMARY, "policy_lines": POLICIES,
        "subjects": SUBJECTS, "sort_by": "dice_wt",
    }  # fmt: skip
    return evaluation_page(**{**given, **changes})


def walk(text: str) -> Walk:
    found = Walk()
    found.feed(text)
    return found


def tables(text: str) -> list[list[list[str]]]:
    """The cells of every table, by row."""
    return [
        [walk(row).cells for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)]
        for table in re.findall(r"<table>.*?</table>", text, re.DOTALL)
    ]


def test_scores_and_what_they_rest_on() -> None:
    text = page()
    heads, *rows = tables(text)[0]
    assert heads == ["metric", "mean", "95 % interval", "sd", "median", "n"]
    assert rows == [
        ["dice_wt", "0.717", "0.617 to 0.817", "0.050", "0.717", "3"],
        ["hd95_wt", "–", "–", "–", "–", "0"],
    ]
    assert "Over 4 sessions" in text
    after = text.split("</table></div>")[1]
    assert after.strip().startswith("<ul><li>threshold: 0.5</li><li>empty_policy: excluded</li></ul>")


def test_every_subject_the_lowest_first_and_undefined_last() -> None:
    text = page()
    heads, *rows = tables(text)[1]
    assert heads == ["subject", "dice_wt", "hd95_wt", "dice_wt_challenge"]
    assert rows == [
        ["a", "0.250", "5", "0"],
        ["b", "0.900", "5", "0"],
        ["c", "1", "12.3", "0"],
        ["d", "–", "–", "0"],
    ]
    assert "A dash is a metric that is not defined" in text
    with_sessions = tables(page(subjects=[subject("a", 0.5, session="2"), subject("a", 0.4)]))[1]
    assert [row[:3] for row in with_sessions] == [
        ["subject", "session", "dice_wt"], ["a", "", "0.400"], ["a", "2", "0.500"],
    ]  # fmt: skip


def test_pictures_by_rank() -> None:
    ranks = [("best", 90), ("worst", 50), ("median", 70), ("worst", 51)]
    pictures = [Picture(subject=f"s{n}", caption=f"Dice 0.{n}", png=png(n, n), rank=r) for r, n in ranks]
    text = page(pictures=pictures, histogram=False)
    found = re.findall(r"<h3>(\w+)</h3>|<figcaption>([^<]*)</figcaption>", text)
    assert [a or b for a, b in found] == [
        "Worst", "s50: Dice 0.50", "s51: Dice 0.51", "Median", "s70: Dice 0.70", "Best", "s90: Dice 0.90",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="rank 'first' of a picture: worst, median, best"):
        Picture(subject="s", caption="", png=b"", rank="first")


def test_without_pictures_figure_or_subjects() -> None:
    assert "<img" not in page(histogram=False) and "look at" not in page()
    nobody = page(subjects=[], summary_rows=[])
    assert "Nobody was scored" in nobody and "<img" not in nobody
    assert "<img" not in page(
        subjects=[{"subject": "a", "session": "", "volume_diff": 3.0}], sort_by="volume_diff"
    )
    with pytest.raises(ValueError, match="'dice' is not a metric of every subject"):
        page(sort_by="dice")


def test_everything_is_escaped_and_nothing_is_fetched() -> None:
    bad = "<script src=http://x.invalid>'\"&"
    picture = Picture(subject=bad, caption=bad, png=png(), rank="worst")
    text = page(
        title=bad, lead=bad, policy_lines=[bad], notes=[bad], pictures=[picture],
        subjects=[subject(bad, 0.5)], summary_rows=[summary(bad, 0.5)],
    )  # fmt: skip
    elements = walk(text).elements
    assert not {"script", "link", "iframe", "a", "object"} & {tag for tag, _ in elements}
    sources = [attrs["src"] for _, attrs in elements if "src" in attrs]
    assert len(sources) == 2 and all(src.startswith("data:image/png;base64,") for src in sources)
    assert bad in walk(text).cells


@pytest.fixture
def drawn(monkeypatch):
    """The figures made in a test."""
    figures, new_figure = [], evaluation.new_figure

    def keep(*args, **options):
        figures.append(new_figure(*args, **options))
        return figures[-1]

    monkeypatch.setattr(evaluation, "new_figure", keep)
    return figures


def test_the_figure_shows_every_value(drawn) -> None:
    names = ["dice_wt", "hd95_wt"]
    assert metric_figure(SUBJECTS, names).startswith(b"\x89PNG")
    (axes,) = drawn[0].axes
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == [f"{name}\nn = 3\n1 undefined" for name in names]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [sorted(line.get_ydata()) for line in dots] == [[0.25, 0.9, 1.0], [5.0, 5.0, 12.34]]
    for i, line in enumerate(dots):
        assert all(abs(x - i) <= 0.25 for x in line.get_xdata()) and len(set(line.get_xdata())) == 3
    means = [float(line.get_ydata()[0]) for line in axes.lines if line.get_marker() == "D"]
    assert means == pytest.approx([np.mean([0.25, 0.9, 1.0]), np.mean([5, 5, 12.34])])
    assert axes.get_ylim()[1] > 12.34


def test_the_figure_of_shares_has_their_whole_range(drawn) -> None:
    metric_figure([subject("a", 0.8), subject("b", 0.9)], ["dice_wt"])
    low, high = drawn[0].axes[0].get_ylim()
    assert low < 0 and 1 < high < 1.1


@pytest.mark.parametrize("rows", [[], [subject("a", NAN)]])
def test_the_figure_of_nothing_says_so(rows, drawn) -> None:
    metric_figure(rows, ["dice_wt"])
    assert [text.get_text() for text in drawn[0].axes[0].texts] == ["no values"]


def scan() -> tuple[np.ndarray, np.ndarray]:
    """A noisy head of a real scan's size, and a lesion in it."""
    x, y, z = np.meshgrid(*(np.linspace(-1.4, 1.4, n) for n in (120, 140, 110)), indexing="ij")
    noise = np.random.default_rng(0).normal(0, 6, x.shape)
    image = np.where(x**2 + y**2 + z**2 < 1, 100 + 20 * np.sin(9 * x) * np.cos(9 * y) + noise, 0)
    lesion = (x - 0.3) ** 2 + y**2 + (z - 0.2) ** 2 < 0.06
    return image.astype(np.float32), lesion.astype(np.uint8)


@pytest.mark.parametrize("width", [1280, 600])
def test_in_a_browser(tmp_path, width) -> None:
    image, lesion = scan()
    picture = overlay_figure(
        image, lesion, np.roll(lesion, 4, axis=1), spacing_mm=(1.5, 1.5, 1.5), labels={1: "lesion"}, title="s"
    )
    ranks = ("worst", "worst", "worst", "best", "best", "best")
    text = page(pictures=[Picture(subject="s", caption="c", png=picture, rank=rank) for rank in ranks])
    assert len(text) < 3_000_000
    file = tmp_path / "evaluation.html"
    file.write_text(text)
    shown = render(file, tmp_path / "page.png", size=(width, 3000))
    assert not shown.requests, shown.requests
    assert len(shown.images) == 7 and shown.width <= width
    for natural_width, natural_height, w, h in shown.images:
        assert natural_width > 400 and w / h == pytest.approx(natural_width / natural_height, rel=0.02)
    if width == 1280:
        assert shown.images[1][0] == shown.images[1][2], "pictures of four columns are shown unscaled"
