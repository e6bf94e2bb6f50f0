"""What the paper says of its cohorts: Fig. 3, Table 7 and the sizes of Table 1, with their misprints."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files as package_files

SOURCE = "Cox et al., BrainSegFounder, Medical Image Analysis 2024"
ENTIRE, COHORT = "Entire UK Biobank", "40K cohort"

FIG3_NOTES = (
    "The paper's Fig. 3 says that the last step left out participants with fewer than 100 slices. On UK "
    "Biobank's 182x218x182 grid every header passes that rule; the notebook released with the paper reaches "
    "41,400 (39,504 to train, 1,896 held out) by files that are missing.",
    "That notebook counts 43,367 participants with both scans, the figure 43,369; the paper's Table 3 gives "
    "43,369 as the subjects of stage 1, its text 41,400.",
)
TABLE7_NOTES = (
    'The paper prints the first bands as "<=45" and "45-49", which overlap; here the first is read as <45.',
    "For the entire UK Biobank the paper's columns of age and of sex each sum to 502,410, not to 502,309: "
    "the 101 unanswered are counted on top. Its ethnicity, and all of the 40K cohort, sums correctly.",
    "The paper prints 0.7 % for Black in the 40K cohort; 268 of 41,400 are 0.6 %.",
    "The paper's 40K cohort, called generally healthy, holds 42 participants with brain tumours.",
    "The paper's groups of ethnicity count Chinese (code 5 of field 21000) with Asian; so does this table.",
)


@cache
def _rows() -> tuple[tuple[str, str, str, int], ...]:
    text = (package_files("brainfoundry.reports") / "data" / "paper_cohort.csv").read_text()
    return tuple(
        (row["table"], row["row"], row["column"], int(row["value"]))
        for row in csv.DictReader(text.splitlines())
    )


def fig3() -> dict[str, int]:
    """Steps of the paper's Fig. 3, in order -> participants (the last: volumes)."""
    return {row: value for table, row, _, value in _rows() if table == "fig3"}


def table7(column: str) -> dict[str, int]:
    """Rows of the paper's Table 7 as printed -> participants, of the column `ENTIRE` or `COHORT`."""
    return {row: value for table, row, name, value in _rows() if (table, name) == ("7", column)}


def subjects() -> dict[str, int]:
    """Cohort -> subjects (the paper's Table 1)."""
    return {column: value for table, row, column, value in _rows() if (table, row) == ("1", "subjects")}
