"""Tables for other programs: CSV (one line a value) and LaTeX (booktabs)."""

from __future__ import annotations

import csv
import io
import math
import re

from brainfoundry.experiments.report.cells import (
    MINUS,
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

CSV_HEADER = (
    "table",
    "row",
    "column",
    "kind",
    "value",
    "low",
    "high",
    "n",
    "draws",
    "sd",
    "better_than_comparator",
    "note",
    "command",
)
_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    "\N{NO-BREAK SPACE}": "~",
    MINUS: "$-$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "–": "--",
    "—": "---",
    "→": r"$\to$",
    "³": r"$^{3}$",
    "·": r"$\cdot$",
    "…": r"\ldots{}",
    "α": r"$\alpha$",
}
_SPECIAL = re.compile("|".join(map(re.escape, _TEX)))
LATEX_HINT = "% needs \\usepackage{booktabs,graphicx} and \\usepackage[T1]{fontenc}"


def to_csv(table: Table) -> bytes:
    """One line a value: measured and published apart, missing ones with their command; full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for line in table.lines():
        for cell, kind in line.cells:
            values = _values(cell, kind)
            if values is not None:
                writer.writerow([table.name, cell.row, cell.column, *values])
    return text.getvalue().encode()


def _values(cell: Cell, kind: Kind) -> list[str] | None:
    """The columns of a line behind table, row and column; None where the cell says nothing."""
    note = "; ".join(notes_of(cell, kind))
    if kind == "published":
        return [PUBLISHED, cell.published, *[""] * 6, note, ""] if cell.published else None
    if cell.measured is None:
        return ["missing", *[""] * 7, note, cell.command] if cell.missing else None
    if isinstance(cell.measured, str):
        return ["measured", cell.measured, *[""] * 6, note, cell.command]
    e = cell.measured
    numbers = [_exact(e.value), _exact(e.low), _exact(e.high), str(e.n), str(e.draws), _exact(e.sd)]
    return ["measured", *numbers, "yes" if e.better else "", note, cell.command]


def _exact(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def to_latex(table: Table) -> str:
    """A `table` environment in the style of booktabs: published lines in italics, footnotes below."""
    columns = "l" + "l" * len(table.columns)
    notes = table.footnotes()
    head = " & ".join(latex(text) for text in (table.corner, *table.columns))
    body = []
    for i, line in enumerate(table.lines()):
        if i and line.kind == "measured" and _is_block(table):
            body.append(r"\addlinespace[2pt]")
        body.append(_latex_line(line, table, notes))
        body += _latex_details(line, table)
    below = [
        *(f"\\textsuperscript{{{m}}}~{latex(note)}" for note, m in notes.items()),
        *map(latex, table.notes),
    ]
    return "\n".join(
        [
            LATEX_HINT,
            r"\begin{table}[htbp]",
            r"\centering\small\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{latex(table.title)}}}\label{{tab:{table.name}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            rf"{head} \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            *(
                [
                    r"\par\smallskip",
                    r"\begin{minipage}{\linewidth}\footnotesize",
                    *(f"{text}\\par" for text in below),
                    r"\end{minipage}",
                ]
                if below
                else []
            ),
            r"\end{table}",
            "",
        ]
    )


def latex(text: str) -> str:
    """Text with all that LaTeX reads as a command made harmless."""
    return _SPECIAL.sub(lambda found: _TEX[found.group()], text)


def _is_block(table: Table) -> bool:
    """Whether rows take several lines, so that some space must keep them apart."""
    return any(isinstance(cell.measured, Estimate) or cell.published for cell in table.cells)


def _latex_line(line: Line, table: Table, notes: dict[str, str]) -> str:
    shown = []
    for cell, kind in line.cells:
        text = latex(main_text(cell, kind, table.digits))
        if kind == "published" and cell.published:
            text = rf"\textit{{{text}}}"
        elif isinstance(cell.measured, Estimate) and cell.measured.better:
            text = rf"\textbf{{{text}}}"
        elif cell.missing:
            text = rf"\textsf{{{text}}}"
        marks = ",".join(sorted(notes[note] for note in notes_of(cell, kind)))
        shown.append(text + (rf"\textsuperscript{{{marks}}}" if marks else ""))
    name = latex(line.row) if line.kind == "measured" else rf"\textit{{{latex(line.row)}, {PUBLISHED}}}"
    return " & ".join([name, *shown]) + r" \\"


def _latex_details(line: Line, table: Table) -> list[str]:
    told = [details(cell, kind, table.digits) for cell, kind in line.cells]
    rows = []
    for i in range(max(map(len, told), default=0)):
        texts = [rf"{{\scriptsize {latex(lines[i])}}}" if i < len(lines) else "" for lines in told]
        rows.append(" & ".join(["", *texts]) + r" \\")
    return rows
