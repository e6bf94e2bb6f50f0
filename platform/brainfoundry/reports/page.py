"""One self-contained HTML page: text, tables and figures in a single file that opens anywhere, offline.

Everything given is escaped. There is no script and no link to anything outside: figures are embedded as data,
and a content security policy forbids the browser to fetch whatever might have slipped in.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence

Cell = str | int | float | None

_NUMBER = re.compile(
    r"[-+−]?[<>≤≥]?\s?\d[\d,]*(\.\d+)?(e[-+]?\d+)?\s?(%|s|ms|mm|MB|GB)?"  # 1,234  <5  0.07  12.5 %
    r"(\s?\([<>≤≥]?\s?\d[\d,.]*\s?%?\))?",  # ... and a share or a second count behind it
    re.IGNORECASE,
)
_NO_VALUE = {"", "-", "–", "—"}
_KINDS = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg"}

_STYLE = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{margin:0 auto;padding:2rem 1.5rem 4rem;max-width:76rem;background:#fff;color:#1d2329;
 font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:1.8rem;line-height:1.2;margin:0 0 .3rem}
h2{font-size:1.3rem;line-height:1.25;margin:2.6rem 0 .6rem;padding-top:.8rem;border-top:1px solid #d5dade}
h3{font-size:1.05rem;margin:1.6rem 0 .4rem}
p,li{max-width:52rem}
p{margin:.5rem 0;overflow-wrap:anywhere}
.lead{color:#56616b;margin:0 0 1rem}
.wide{overflow-x:auto;margin:1rem 0 1.4rem}
table{border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding:0 0 .4rem}
th,td{padding:.28rem .9rem .28rem 0;text-align:left;vertical-align:top}
th+th,td+td{padding-left:.6rem}
thead th{border-top:2px solid #1d2329;border-bottom:1px solid #1d2329;vertical-align:bottom}
tbody td{border-bottom:1px solid #e6e9ec}
tbody tr:last-child td{border-bottom:2px solid #1d2329}
.n{text-align:right;white-space:nowrap}
figure{margin:1.2rem 0 1.6rem;break-inside:avoid}
figure img{display:block;max-width:100%;height:auto}
figcaption{font-size:.9rem;color:#3f4951;margin-top:.4rem;max-width:52rem}
.row{display:flex;flex-wrap:wrap;gap:1.2rem;align-items:flex-start}
.row figure{margin:0 0 .6rem;max-width:29rem}
footer{margin-top:3rem;color:#56616b;font-size:.85rem}
@media print{body{max-width:none;padding:0;font-size:10pt}h2,h3,caption{break-after:avoid}
 thead{display:table-header-group}tr{break-inside:avoid}.wide{overflow:visible}}
"""


class Page:
    """A page, built from top to bottom.

    Args:
        title: heading of the page and name of its window.
        lead: one line below it: what this is about.

    Example:
        >>> page = Page("Cohort", lead="12 participants")
        >>> page.heading("Who is in it")
        >>> page.table(["group", "n"], [["train", 10], ["val", 2]], caption="Splits")
        >>> text = page.html()
    """

    def __init__(self, title: str, *, lead: str = "") -> None:
        self._title, self._lead = title, lead
        self._parts: list[str] = []

    def raw(self, markup: str) -> None:
        """HTML as it is: the caller has escaped what was given to it."""
        self._parts.append(markup)

    def heading(self, text: str, *, level: int = 2) -> None:
        """Begin a section (level 2) or a part of one (level 3)."""
        if level not in (2, 3):
            raise ValueError(f"heading level {level}: 2 or 3")
        self._parts.append(f"<h{level}>{_escape(text)}</h{level}>")

    def text(self, *paragraphs: str) -> None:
        """Paragraphs of plain text."""
        self._parts += [f"<p>{_escape(paragraph)}</p>" for paragraph in paragraphs]

    def items(self, lines: Sequence[str]) -> None:
        """A list of points; nothing where there are none."""
        if lines:
            self._parts.append("<ul>" + "".join(f"<li>{_escape(line)}</li>" for line in lines) + "</ul>")

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[Cell]], *, caption: str = "") -> None:
        """A table. Columns that hold nothing but numbers are aligned to the right; None is an empty cell.

        Raises:
            ValueError: a row of another length than the headers.
        """
        texts = [[_cell(cell) for cell in row] for row in rows]
        if any(len(row) != len(headers) for row in texts):
            raise ValueError(f"a row does not have the {len(headers)} cells of the headers")
        right = [_is_numeric([row[i] for row in texts]) for i in range(len(headers))]
        marks = [' class="n"' if numeric else "" for numeric in right]
        head = "".join(f'<th scope="col"{m}>{_escape(h)}</th>' for h, m in zip(headers, marks, strict=True))
        body = "".join(
            "<tr>" + "".join(f"<td{m}>{_escape(t)}</td>" for t, m in zip(row, marks, strict=True)) + "</tr>\n"
            for row in texts
        )
        named = f"<caption>{_escape(caption)}</caption>" if caption else ""
        self._parts.append(
            f'<div class="wide"><table>{named}<thead><tr>{head}</tr></thead>\n'
            f"<tbody>{body}</tbody></table></div>"
        )

    def figure(self, image: bytes, caption: str = "", *, alt: str = "", width: int | None = None) -> None:
        """A PNG, JPEG or SVG picture with its caption.

        Args:
            alt: what it shows, for those who cannot see it; default: the caption.
            width: CSS pixels; default: its own size, at most the page's.

        Raises:
            ValueError: bytes of another kind of file.
        """
        self._parts.append(_figure(image, caption, alt, width))

    def figures(self, images: Sequence[tuple[bytes, str]], *, width: int | None = None) -> None:
        """Small pictures side by side, each (bytes, caption); they wrap where the page ends."""
        inner = "".join(_figure(image, caption, "", width) for image, caption in images)
        self._parts.append(f'<div class="row">{inner}</div>')

    def html(self) -> str:
        """The whole page."""
        lead = f'<p class="lead">{_escape(self._lead)}</p>\n' if self._lead else ""
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{_escape(self._title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
            f"<h1>{_escape(self._title)}</h1>\n{lead}"
            + "\n".join(self._parts)
            + "\n<footer>Made by BrainFoundry. This file holds everything it shows.</footer>\n"
            + "</body>\n</html>\n"
        )


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


def _cell(value: Cell) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.6g}" if isinstance(value, float) else str(value)


def _is_numeric(column: Sequence[str]) -> bool:
    cells = [text.strip() for text in column if text.strip() not in _NO_VALUE]
    return bool(cells) and all(_NUMBER.fullmatch(text) for text in cells)


def _figure(image: bytes, caption: str, alt: str, width: int | None) -> str:
    kind = next((name for start, name in _KINDS.items() if image.startswith(start)), "")
    if not kind:
        if b"<svg" not in image[:2000]:
            raise ValueError("a figure is PNG, JPEG or SVG")
        kind = "svg+xml"  # as an image, not inline: a script or link inside it stays dead
    data = base64.b64encode(image).decode()
    size = f' width="{width}"' if width else ""
    named = f"<figcaption>{_escape(caption)}</figcaption>" if caption else ""
    image_tag = f'<img src="data:image/{kind};base64,{data}" alt="{_escape(alt or caption)}"{size}>'
    return f"<figure>{image_tag}{named}</figure>"
