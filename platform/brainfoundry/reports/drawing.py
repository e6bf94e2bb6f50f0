"""Figures as bytes: matplotlib's object interface, no display, no global state, the same bytes every time."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, SOFT, FILL = "#1d2329", "#5d6973", "#f1f4f6"
COLOURS = ("#2f6f9f", "#d98032", "#4f9a6b", "#8a6bb0")


def new_figure(width: float, height: float, *, layout: str | None = "constrained") -> Figure:
    """An empty figure of a size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)  # type: ignore[arg-type]
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure) -> tuple[bytes, bytes]:
    """(PNG, SVG) of a figure; the SVG's letters are outlines, so that it looks the same everywhere."""
    from matplotlib import rc_context

    png, svg = io.BytesIO(), io.BytesIO()
    with rc_context({"svg.hashsalt": "brainfoundry", "svg.fonttype": "path"}):
        figure.savefig(png, format="png", dpi=160, facecolor="white")
        figure.savefig(svg, format="svg", facecolor="white", metadata={"Date": None})
    return png.getvalue(), svg.getvalue()
