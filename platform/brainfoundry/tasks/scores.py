"""Scores of many subjects: one table, its summary with intervals, and the policies the numbers rest on."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from brainfoundry.core import files
from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.tasks.intervals import HALL, LEVEL, mean_interval

_KEY = "brainfoundry"
_ID = ("subject", "session")
_CONSTANT = ("threshold", "empty_policy")
"""Policies that stand in every row, so that rows of several tables can be told apart."""
_SMALLER_IS_BETTER = ("hd95", "lesion_hd95", "volume_diff", "lesion_count_diff")


def higher_is_better(metric: str) -> bool:
    """Whether more of a metric is better: of overlaps yes, of distances and differences no."""
    return not metric.startswith(_SMALLER_IS_BETTER)


def bounds_of(metric: str) -> tuple[float, float]:
    """The least and the greatest value that a metric can have: 0 and 1 for overlaps, else 0 and infinity."""
    return 0.0, 1.0 if higher_is_better(metric) else math.inf


_INTERVAL = f"{100 * LEVEL:g} % over subjects, {HALL}; failures too rare to be among them are not covered"
_WIDEST = 1_000
"""Columns of text that a printed table may take."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One metric over all rows where it is defined; NaN where nothing is.

    Args:
        rows: all there are.
        defined: those with a value; all that follows is of them.
        sd: with n - 1, as pandas `describe` (the official ATLAS aggregate).
        q1: quartiles and median, interpolated linearly.
        low: lower end of the 95 % interval of the mean over subjects (`intervals.py`); NaN with fewer than
            two of them.
    """

    metric: str
    rows: int
    defined: int
    mean: float
    low: float
    high: float
    sd: float
    minimum: float
    q1: float
    median: float
    q3: float
    maximum: float


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One subject's value of one metric."""

    subject: str
    session: str
    value: float


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreTable:
    """Metrics by row (a subject and session); made by `of`.

    Args:
        keys: (subject, session) of each row.
        metrics: names of the columns.
        values: float64 (rows, metrics); NaN = undefined.
        policies: what the numbers rest on (`Task.policies()`); `threshold` and `empty_policy` at least.
    """

    keys: tuple[tuple[str, str], ...]
    metrics: tuple[str, ...]
    values: np.ndarray
    policies: Mapping[str, str]

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]], policies: Mapping[str, str]) -> ScoreTable:
        """The table of rows: `subject`, `session` ("" where there is none) and the metrics of `Task.score`.

        Raises:
            DataError: no row, two of one session, or rows with different metrics.
            ConfigError: policies that leave open the threshold or the rule for empty regions.
        """
        rows = list(rows)
        for policy in _CONSTANT:
            if policy not in policies:
                raise ConfigError(f"scores without the policy '{policy}'", fix="pass the task's policies()")
        if not rows:
            raise DataError("there are no scores", fix="score at least one subject")
        metrics = tuple(name for name in rows[0] if name not in _ID)
        keys: dict[tuple[str, str], None] = {}
        for row in rows:
            odd = sorted(row.keys() ^ {*metrics, *_ID})
            if odd:
                problem = f"{odd[0]} is not in the scores of all subjects"
                raise DataError(problem, subject=row.get("subject"), fix="score all subjects alike")
            key = str(row["subject"]), str(row["session"])
            if key in keys:
                problem = f"session '{key[1]}' was scored twice"
                raise DataError(problem, subject=key[0], fix="drop one of its rows")
            keys[key] = None
        values = np.array([[float(row[name]) for name in metrics] for row in rows])
        return cls(keys=tuple(keys), metrics=metrics, values=values, policies=dict(policies))

    def column(self, metric: str) -> np.ndarray:
        """The values of one metric, in the order of the rows.

        Raises:
            ConfigError: there is no such metric; the message lists those there are.
        """
        if metric not in self.metrics:
            raise ConfigError(f"no metric '{metric}'", fix=f"choose one of {', '.join(self.metrics)}")
        return self.values[:, self.metrics.index(metric)]

    def means(self) -> dict[str, float]:
        """Mean of each metric over the rows where it is defined; without those defined nowhere."""
        columns = {name: self.values[:, index] for index, name in enumerate(self.metrics)}
        defined = {name: values[~np.isnan(values)] for name, values in columns.items()}
        return {name: float(values.mean()) for name, values in defined.items() if values.size}

    def summary(self) -> list[Summary]:
        """Every metric in short."""
        found = []
        _, owner = np.unique([subject for subject, _ in self.keys], return_inverse=True)
        for index, metric in enumerate(self.metrics):
            values = self.values[:, index]
            values = values[~np.isnan(values)]
            low, high = self._interval(metric, owner)
            five = np.percentile(values, (0, 25, 50, 75, 100)) if values.size else np.full(5, math.nan)
            found.append(
                Summary(
                    metric=metric,
                    rows=len(self.keys),
                    defined=values.size,
                    mean=float(values.mean()) if values.size else math.nan,
                    low=low,
                    high=high,
                    sd=float(values.std(ddof=1)) if values.size > 1 else math.nan,
                    **dict(zip(("minimum", "q1", "median", "q3", "maximum"), map(float, five), strict=True)),
                )
            )
        return found

    def _interval(self, metric: str, owner: np.ndarray) -> tuple[float, float]:
        """Ends of the interval of a metric's mean. Subjects are independent, their sessions are not.

        Where some have more sessions than others, the mean is a ratio of two sums over subjects; what each
        adds to it, linearised, has that mean and its spread.

        Args:
            owner: the number of each row's subject.
        """
        values = self.column(metric)
        defined = ~np.isnan(values)
        count_s = np.bincount(owner, weights=defined)
        sum_s = np.bincount(owner, weights=np.where(defined, values, 0.0))
        count_s, sum_s = count_s[count_s > 0], sum_s[count_s > 0]
        if count_s.size < 2:
            return math.nan, math.nan
        mean = sum_s.sum() / count_s.sum()
        found = mean_interval(mean + (sum_s - mean * count_s) / count_s.mean(), bounds=bounds_of(metric))
        return found.low, found.high

    def worst_and_best(self, metric: str, n: int = 5) -> tuple[list[Scored], list[Scored]]:
        """The `n` worst rows, worst first, and the `n` best, best first; undefined ones are neither."""
        values = self.column(metric)
        sign = 1.0 if higher_is_better(metric) else -1.0
        defined = [index for index in range(len(values)) if not math.isnan(values[index])]

        def first(direction: float) -> list[Scored]:
            order = sorted(defined, key=lambda index: (direction * values[index], self.keys[index]))
            return [
                Scored(subject=self.keys[i][0], session=self.keys[i][1], value=float(values[i]))
                for i in order[:n]
            ]

        return first(sign), first(-sign)

    def policy_lines(self) -> list[str]:
        """What the numbers rest on, for people, one policy a line."""
        return [f"{name}: {text}" for name, text in {**self.policies, "interval": _INTERVAL}.items()]

    def to_arrow(self) -> pa.Table:
        """`subject, session`, the metrics (null = undefined), and the two constant policies."""
        columns: dict[str, Any] = {
            name: pa.array([key[i] for key in self.keys], pa.string()) for i, name in enumerate(_ID)
        }
        for index, metric in enumerate(self.metrics):
            columns[metric] = pa.array(self.values[:, index], pa.float64(), from_pandas=True)
        for policy in _CONSTANT:
            columns[policy] = pa.array([self.policies[policy]] * len(self.keys), pa.string())
        return pa.table(columns)

    def to_csv(self, uri: str) -> str:
        """Write the rows, and beside them a JSON file with all policies and the summary.

        Returns:
            The URI of the JSON file: that of the CSV file, ending in `.json`.
        """
        text = io.StringIO()
        table = self.to_arrow()
        writer = csv.DictWriter(text, table.column_names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table.to_pylist())
        files.write_bytes(uri, text.getvalue().encode())
        beside = f"{uri.removesuffix('.csv')}.json"
        summary = [
            {name: None if isinstance(x, float) and math.isnan(x) else x for name, x in asdict(line).items()}
            for line in self.summary()
        ]
        files.write_json(beside, {"policies": dict(self.policies), "interval": _INTERVAL, "summary": summary})
        return beside

    def to_parquet(self, uri: str) -> None:
        """Write the rows; all policies are in the schema's metadata, as JSON under `brainfoundry`."""
        sink = io.BytesIO()
        about = json.dumps({"policies": dict(self.policies)})
        pq.write_table(self.to_arrow().replace_schema_metadata({_KEY: about}), sink, compression="zstd")
        files.write_bytes(uri, sink.getvalue())

    @classmethod
    def from_parquet(cls, uri: str) -> ScoreTable:
        """What `to_parquet` wrote.

        Raises:
            DataError: the file is missing, damaged, or something else.
        """
        try:
            table = pq.read_table(io.BytesIO(files.read_bytes(uri)))
        except pa.ArrowInvalid as error:
            raise DataError(f"damaged table: {error}", file=uri, fix="score the subjects again") from error
        about = json.loads((table.schema.metadata or {}).get(_KEY.encode(), b"{}"))
        if not set(_ID) <= set(table.column_names) or "policies" not in about:
            raise DataError("not a table of scores", file=uri, fix="score the subjects again")
        metrics = tuple(name for name in table.column_names if name not in (*_ID, *_CONSTANT))
        columns = [table[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in metrics]
        return cls(
            keys=tuple(zip(*(table[name].to_pylist() for name in _ID), strict=True)),
            metrics=metrics,
            values=np.stack(columns, axis=1) if columns else np.zeros((table.num_rows, 0)),
            policies=about["policies"],
        )

    def print_table(self, title: str = "scores", *, console: Console | None = None) -> None:
        """Print the summary, and the policies below it."""
        table = Table(title=f"{title}: {len(self.keys):,} rows", title_justify="left")
        heads = ("metric", "n", "mean", "95 % interval", "sd", "min", "q1", "median", "q3", "max")
        for head in heads:
            table.add_column(head, justify="left" if head == "metric" else "right", no_wrap=True)
        for line in self.summary():
            rest = (line.sd, line.minimum, line.q1, line.median, line.q3, line.maximum)
            interval = "-" if math.isnan(line.low) else f"{_short(line.low)} to {_short(line.high)}"
            table.add_row(line.metric, f"{line.defined:,}", _short(line.mean), interval, *map(_short, rest))
        console = console or Console()
        # Names and numbers whole, however narrow the terminal is, and where there is none.
        table.width = console.measure(table, options=console.options.update(max_width=_WIDEST)).maximum
        console.print(table, crop=False)
        for policy in self.policy_lines():
            console.print(f"- {policy}", markup=False, highlight=False, soft_wrap=True)


def per_subject(table: ScoreTable, metric: str) -> dict[str, float]:
    """A metric by subject: the mean over the sessions in which it is defined, NaN where there is none."""
    values: dict[str, list[float]] = defaultdict(list)
    for (subject, _), value in zip(table.keys, table.column(metric).tolist(), strict=True):
        values[subject] += [] if math.isnan(value) else [value]
    return {subject: sum(found) / len(found) if found else math.nan for subject, found in values.items()}


def _short(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"
