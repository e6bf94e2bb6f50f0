"""A page that also holds a study's tables: measured, published and missing cells told apart."""

from __future__ import annotations

import html
from collections.abc import Sequence

from brainfoundry.experiments.report.cells import (
    PUBLISHED,
    Cell,
    Estimate,
    Kind,
    Line,
    Table,
    details,
    main_text,
    notes_of,
)  # fmt: skip
from brainfoundry.reports.page import Page

_STYLE = """
.answer{font-size:1.25rem;line-height:1.4;max-width:60rem;border-left:4px solid #0072b2;
padding:.2rem 0 .2rem 1rem;
 margin:1rem 0 1.4rem}
.screen{display:flex;flex-wrap:wrap;gap:1.5rem 2.5rem;align-items:flex-start}
.screen>div{flex:1 1 30rem}
.screen figure{flex:0 1 29rem;margin:0}
.cells td,.cells th{padding:.3rem .7rem .3rem 0;white-space:nowrap}
.cells thead th{white-space:normal;min-width:4rem;max-width:10rem}
.cells tbody td{border-bottom:none}
.cells tbody tr.first td{border-top:1px solid #d5dade}
.cells tbody tr:first-child td{border-top:none}
.cells td.r{white-space:normal;max-width:19rem;min-width:11rem}
.cells .d{display:block;font-size:.78rem;color:#56616b;line-height:1.3}
.cells td.s{white-space:nowrap}
.cells td.f{white-space:normal;max-width:16rem}
.cells tr.published td,.cells td.p{font-style:italic;color:#6b5b4a;background:#faf6ef}
.cells .missing{color:#9a3412;border:1px dashed #c2814f;border-radius:3px;padding:0 .3rem;font-size:.85rem}
.cells sup{font-size:.7em;font-style:normal}
.notes{font-size:.86rem;color:#3f4951;list-style:none;padding:0;margin:-.8rem 0 1.4rem}
.notes li{max-width:60rem}
details{margin:0 0 1.4rem;max-width:100%}
summary{cursor:pointer;color:#9a3412;font-size:.92rem}
pre{font-size:.8rem;background:#f4f6f7;padding:.7rem .9rem;overflow-x:auto;line-height:1.5}
"""


_SHORT = 32
"""Letters of a row's name that are never broken over lines."""


class StudyPage(Page):
    """`Page` with the tables of a study."""

    def first_screen(
        self, question: str, answer: str, cautions: Sequence[str], image: bytes, caption: str
    ) -> None:
        """What was asked and what came out, with a figure beside it.

        Args:
            image: PNG, JPEG or SVG; b"" for none.
        """
        self.raw('<div class="screen"><div>')
        self.text(question)
        self.raw(f'<p class="answer">{html.escape(answer)}</p>')
        self.items(cautions)
        self.raw("</div>")
        if image:
            self.figure(image, caption)
        self.raw("</div>")

    def cells(self, table: Table) -> None:
        """A table with its footnotes, and the commands that fill what is missing folded up below it."""
        notes = table.footnotes()
        head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in (table.corner, *table.columns))
        body = "\n".join(_line(line, table, notes) for line in table.lines())
        self.raw(
            f'<div class="wide"><table class="cells"><caption>{html.escape(table.title)}</caption>'
            f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
        )
        below = [f"<sup>{mark}</sup> {html.escape(note)}" for note, mark in notes.items()]
        below += [html.escape(note) for note in table.notes]
        if below:
            self.raw('<ul class="notes">' + "".join(f"<li>{line}</li>" for line in below) + "</ul>")
        missing = table.missing()
        if missing:
            count = sum(map(len, missing.values()))
            what = "1 cell is" if count == 1 else f"{count} cells are"
            self.commands(f"{what} missing or rest on a part of the trials: what fills them", list(missing))

    def commands(self, summary: str, lines: Sequence[str]) -> None:
        """Lines for a shell, folded up."""
        text = html.escape("\n".join(lines))
        self.raw(f"<details><summary>{html.escape(summary)}</summary><pre>{text}</pre></details>")

    def html(self) -> str:
        """The whole page."""
        return super().html().replace("</style>", f"{_STYLE}</style>", 1)


def _line(line: Line, table: Table, notes: dict[str, str]) -> str:
    cells = "".join(_cell(cell, kind, table, notes) for cell, kind in line.cells)
    name = html.escape(line.row)
    whole = " s" if len(line.row) <= _SHORT else ""
    if line.kind == "published":
        return f'<tr class="published"><td class="r">{PUBLISHED}: {name}</td>{cells}</tr>'
    return f'<tr class="first"><td class="r{whole}">{name}</td>{cells}</tr>'


def _cell(cell: Cell, kind: Kind, table: Table, notes: dict[str, str]) -> str:
    text = html.escape(main_text(cell, kind, table.digits))
    if kind == "measured" and cell.missing:
        text = f'<span class="missing">{text}</span>'
    elif kind == "measured" and isinstance(cell.measured, Estimate) and cell.measured.better:
        text = f"<strong>{text}</strong>"
    marks = ",".join(sorted(notes[note] for note in notes_of(cell, kind)))
    raised = f"<sup>{marks}</sup>" if marks else ""
    small = "".join(
        f'<span class="d">{html.escape(line)}</span>' for line in details(cell, kind, table.digits)
    )
    mark = ' class="f"' if isinstance(cell.measured, str) else ' class="p"' if kind == "published" else ""
    return f"<td{mark}>{text}{raised}{small}</td>"
