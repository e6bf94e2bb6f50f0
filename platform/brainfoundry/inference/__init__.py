"""From a case's files to probabilities and back: whole volumes, sliding windows, exactly invertible geometry.

    case = load_case({"T1w": "t1.nii.gz", "FLAIR": "flair.nii.gz"}, space, subject="s01")
    spec = WindowSpec(window=(128, 128, 128))
    maps = predict_probabilities([network], case.x_CDHW, case.box, spec, device="cuda")
    labels = task.to_labels(case.to_scan_grid(maps) > 0.5, scheme)
    data = case.restore_labels(labels)                                 # the bytes of a NIfTI file

Pure: networks and volumes in, arrays and bytes out; `training` validates with it, `prediction` runs it.

Shape legend: N windows, C channels, R regions, D H W the axes of a RAS volume.
"""

from brainfoundry.inference.geometry import CaseVolume, Space, load_case
from brainfoundry.inference.volume import brain_box, entropy, predict_probabilities
from brainfoundry.inference.windows import WindowSpec, sliding_window, window_starts

__all__ = [
    "CaseVolume",
    "Space",
    "WindowSpec",
    "brain_box",
    "entropy",
    "load_case",
    "predict_probabilities",
    "sliding_window",
    "window_starts",
]
