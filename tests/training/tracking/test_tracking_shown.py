"""What people look at: pictures, progress, Ray's gauges, tags."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainfoundry.training.tracking import tags
from brainfoundry.training.tracking.figures import loss_figure, reconstruction_figure
from brainfoundry.training.tracking.progress import TrainingProgress, duration
from brainfoundry.training.tracking.ray_metrics import RayMetrics, metric_name


def pixels(png: bytes) -> np.ndarray:
    from matplotlib.image import imread

    return imread(io.BytesIO(png), format="png")[..., :3]


def crops(
    n: int = 1, c: int = 1, size: tuple[int, int, int] = (24, 16, 16), seed: int = 0
) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, c, *size)).astype(np.float32)
    return {"input": x, "cut": x.copy(), "rebuilt": x * 0.5}


# Pictures.


def test_loss_figure_draws_every_loss_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.axes

    drawn: dict[str, list[float]] = {}
    real = matplotlib.axes.Axes.plot

    def plot(self: Any, x: Any, y: Any, *args: Any, **more: Any) -> Any:
        drawn[more.get("label", "lr")] = list(y)
        return real(self, x, y, *args, **more)

    monkeypatch.setattr(matplotlib.axes.Axes, "plot", plot)
    older = [{"step": s, "train/total": 9.0 - s, "train/rotation": 1.0} for s in (1, 2, 3)]
    newer = [
        {"step": 3, "train/total": -1.0, "train/lr": 1e-4, "speed/crops_per_s": 5.0},
        {"step": 4, "train/total": 5.0, "train/grad_norm": 77.0, "train/saturated": 0.5, "val/total": 6.0},
    ]
    png = loss_figure(older, newer, title="demo")
    assert drawn == {
        "total": [8.0, 7.0, 6.0, 5.0],  # of step 3 the first value
        "total, held out": [6.0],
        "rotation": [1.0, 1.0, 1.0],
        "lr": [1e-4],
    }
    assert pixels(png).shape[0] > 300


@pytest.mark.parametrize(
    "rows",
    [[], [{"step": 1.0}], [{"step": 1, "train/total": math.nan}, {"step": 2, "train/total": math.inf}]],
)
def test_loss_figure_of_little(rows: list[dict[str, float]]) -> None:
    assert loss_figure(rows, title="demo").startswith(b"\x89PNG")


def test_reconstruction_figure_shows_the_middle_planes_in_one_window(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.axes

    shown: list[tuple[np.ndarray, float, float]] = []
    real = matplotlib.axes.Axes.imshow

    def imshow(self: Any, picture: np.ndarray, **more: Any) -> Any:
        shown.append((picture, more["vmin"], more["vmax"]))
        assert more["origin"] == "lower"  # upwards is up
        return real(self, picture, **more)

    monkeypatch.setattr(matplotlib.axes.Axes, "imshow", imshow)
    volumes = crops(n=3, c=2, size=(24, 16, 8))
    volumes["cut"] = volumes["cut"] + 1000.0
    png = reconstruction_figure(volumes, ("T1w", "FLAIR"), step=12, title="demo", samples=2)
    assert len(shown) == 2 * 2 * 3 * 3  # samples, modalities, rows, planes
    x = volumes["input"]
    planes = [x[0, 0, 12].T, x[0, 0, :, 8].T, x[0, 0, :, :, 4].T]
    for (picture, _, _), plane in zip(shown[:3], planes, strict=True):
        np.testing.assert_array_equal(picture, plane)
    np.testing.assert_array_equal(shown[3][0], planes[0] + 1000.0)
    low, high = np.percentile(x[0, 0], (0.5, 99.5))
    for _, vmin, vmax in shown[:9]:  # one window for the three rows, from the input alone
        assert (vmin, vmax) == pytest.approx((low, high))
    assert shown[9][1:] != shown[0][1:]
    assert 0.05 < pixels(png).mean() < 0.99


def test_reconstruction_figure_of_odd_volumes() -> None:
    volumes = crops()
    volumes["input"][:] = 3.0
    assert reconstruction_figure(volumes, ("T1w",), step=1).startswith(b"\x89PNG")
    volumes["rebuilt"][:] = np.nan
    volumes["input"][:] = np.nan
    assert reconstruction_figure(volumes, ("T1w",), step=1).startswith(b"\x89PNG")


def test_reconstruction_figure_refuses_what_does_not_fit() -> None:
    volumes = crops(c=2)
    with pytest.raises(ValueError, match=r"must be \(N, 1, D, H, W\), all alike; they are \[\(1, 2, 24"):
        reconstruction_figure(volumes, ("T1w",), step=1)
    with pytest.raises(ValueError, match=r"\(0,\)\]"):
        reconstruction_figure({k: volumes[k] for k in ("input", "cut")}, ("T1w", "FLAIR"), step=1)


def test_figures_do_not_touch_pyplot() -> None:
    """pyplot has global state and may want a display; a training thread must not."""
    code = (
        "import sys; from brainfoundry.training.tracking.figures import loss_figure; "
        "assert 'matplotlib' not in sys.modules; loss_figure([], title=''); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# Progress.


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_lines_come_now_and_then() -> None:
    now, out = [0.0], io.StringIO()
    with TrainingProgress("demo", 100, start=20, every_s=10, stream=out, clock=lambda: now[0]) as shown:
        for step in range(21, 101):
            now[0] += 1.0
            shown.update(step, {"train/total": 3.25, "train/lr": 6e-6, "speed/crops_per_s": 12.5, "x": 1.0})
    lines = out.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "demo: step 21/100",
        *(f"demo: step {s}/100" for s in (31, 41, 51, 61, 71, 81, 91)),
        "demo: step 100/100",
    ]
    assert lines[1] == "demo: step 31/100, loss 3.25, lr 6e-06, crops/s 12.5, 11 s so far, 1 min 09 s left"
    assert lines[-1].endswith("1 min 20 s so far")


def test_progress_bar_on_a_terminal() -> None:
    out = Terminal()
    with TrainingProgress("demo", 10, stream=out) as shown:
        shown.update(10, {"train/total": 3.25})
    assert "10/10" in out.getvalue() and "loss 3.25" in out.getvalue()


def test_progress_before_the_first_step() -> None:
    out = io.StringIO()
    with TrainingProgress("demo", 10, start=5, stream=out) as shown:
        shown.update(5, {})
        shown.update(4, {})
    assert out.getvalue() == "demo: step 5/10, 0 s so far\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (7260, "2 h 01 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# Ray.


def test_gauges_carry_the_names_tags_and_newest_values(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    import ray.util.metrics

    made: dict[str, Any] = {}

    class Gauge:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            assert name not in made, "a gauge is made once"
            made[name] = self
            self.tag_keys, self.values = tag_keys, list[float]()

        def set_default_tags(self, default: dict[str, str]) -> None:
            self.default = default

        def set(self, value: float) -> None:
            self.values.append(value)

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray.util.metrics, "Gauge", Gauge)
    metrics = RayMetrics(run="demo", size="nano", stage="pretrain-1", rank=0)
    metrics.set({"train/total": 2.0, "speed/crops_per_s": 3.0})
    metrics.set({"train/total": 1.0})
    assert {name: g.values for name, g in made.items()} == {
        "brainfoundry_train_total": [2.0, 1.0],
        "brainfoundry_speed_crops_per_s": [3.0],
    }
    gauge = made["brainfoundry_train_total"]
    assert gauge.default == {"run": "demo", "size": "nano", "stage": "pretrain-1", "rank": "0"}
    assert set(gauge.tag_keys) == set(gauge.default)


def test_gauge_names_are_what_ray_takes() -> None:
    from ray.util.metrics import _is_invalid_metric_name

    for key in ("train/total", "a:b", "1st", "ä b%"):
        assert ":" not in metric_name(key) and not _is_invalid_metric_name(metric_name(key))


def test_gauges_in_a_real_ray_session(ray_local: int, caplog: pytest.LogCaptureFixture) -> None:
    metrics = RayMetrics(run="demo", size="nano", stage="pretrain-1", rank=0)
    metrics.set({"train/total": 2.0, "train/lr": 1e-4})
    metrics.set({"train/total": math.nan})
    assert set(metrics._gauges) == {"brainfoundry_train_total", "brainfoundry_train_lr"}
    assert not caplog.records
    assert tags.ray_tags()["ray_job_id"].isalnum()


def test_outside_ray_nothing_happens_and_ray_is_not_imported() -> None:
    code = (
        "import sys; from brainfoundry.training.tracking.ray_metrics import RayMetrics; "
        "from brainfoundry.training.tracking.tags import ray_tags; "
        "RayMetrics(run='a', size='b', stage='c', rank=0).set({'x': 1.0}); assert ray_tags() == {}; "
        "assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# Tags.


def test_git_tags_of_a_checkout(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        done = subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True, capture_output=True)
        return done.stdout.decode().strip()

    assert tags.git_tags(tmp_path) == {}
    git("init", "-q")
    assert tags.git_tags(tmp_path) == {}  # nothing committed yet
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")
    clean = {"git_commit": commit, "mlflow.source.git.commit": commit, "git_dirty": "false"}
    assert tags.git_tags(tmp_path) == clean
    (tmp_path / "a").write_text("2")
    assert tags.git_tags(tmp_path) == {**clean, "git_dirty": "true"}
    (tmp_path / "inside").mkdir()
    assert tags.git_tags(tmp_path / "inside") == {}  # another project's checkout around an installation


def test_a_driver_may_hand_its_commit_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAINFOUNDRY_GIT_COMMIT", "abc")
    monkeypatch.setenv("BRAINFOUNDRY_GIT_DIRTY", "true")
    found = tags.git_tags()
    assert (found["git_commit"], found["git_dirty"]) == ("abc", "true")


def test_versions() -> None:
    import torch

    found = tags.version_tags()
    assert (
        found["version_torch"] == torch.__version__.split("+")[0]
        or found["version_torch"] == torch.__version__
    )
    assert {"version_python", "version_monai", "version_ray", "version_mlflow"} <= set(found)


def test_submission_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert tags.submission_id() is None
    given = {"runtime_env": {}, "metadata": {"job_submission_id": "raysubmit_x", "job_name": "raysubmit_x"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(given))
    assert tags.submission_id() == "raysubmit_x"
    assert tags.run_tags()["ray_submission_id"] == "raysubmit_x"
    for damaged in ("{", "[]", '{"metadata": 3}'):
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", damaged)
        assert tags.submission_id() is None
