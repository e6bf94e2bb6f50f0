"""A Python that has something called nnunetv2, which answers as nnU-Net does and computes nothing."""

from __future__ import annotations

import sys
from pathlib import Path

VERSION = "9.9"

_PLAN = """
import os, pathlib, sys
def plan_and_preprocess_entry():
    note = pathlib.Path(os.environ["nnUNet_raw"]).parent / "calls.txt"
    with note.open("a") as calls:
        print("plan", *sys.argv[1:], file=calls)
    for step in (1, 2):
        print(f" {step}/2 [00:01<00:00]")
"""

_TRAIN = """
import json, os, pathlib, signal, subprocess, sys, time
def run_training_entry():
    folder = pathlib.Path(os.environ["nnUNet_raw"]).parent
    with (folder / "calls.txt").open("a") as calls:
        print("train", *sys.argv[1:], os.environ["BRAINFOUNDRY_NNUNET"], file=calls)
    (dataset,) = (folder / "raw").iterdir()
    out = folder / "results" / dataset.name / "BrainFoundryTrainer__nnUNetPlans__3d_fullres" / "fold_0"
    out.mkdir(parents=True, exist_ok=True)
    attempt = len(list(out.glob("training_log_*.txt")))
    (out / f"training_log_{attempt}.txt").write_text("")
    steps = json.loads(os.environ["BRAINFOUNDRY_NNUNET"])["steps"]
    print(f"brainfoundry step {steps} loss 0.5000", flush=True)
    if (folder / "hang").exists():
        (folder / "pid").write_text(str(os.getpid()))
        time.sleep(600)
    if (folder / "killed").exists():
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        os.kill(os.getpid(), signal.SIGKILL)
    if (folder / "crash").exists():
        sys.exit("RuntimeError: no memory left")
    losses = [{"step": steps, "name": name, "value": 0.5} for name in ("train/total", "val/total")]
    (out / "checkpoint_final.pth").write_text("weights")
    (out / "summary.json").write_text(json.dumps(
        {"steps": steps, "parameters": 12, "seconds": 36.0, "gpu": None, "losses": losses}))
"""

_PREDICT = """
import os, pathlib, sys
import nibabel, numpy
def predict_entry_point():
    folder = pathlib.Path(os.environ["nnUNet_raw"]).parent
    with (folder / "calls.txt").open("a") as calls:
        print("predict", *sys.argv[1:], file=calls)
    (dataset,) = (folder / "raw").iterdir()
    out = folder / "predictions"
    out.mkdir(exist_ok=True)
    for path in sorted((dataset / "imagesTs").glob("*_0000.nii.gz")):
        case = path.name.removesuffix("_0000.nii.gz")
        if not (out / f"{case}.nii.gz").exists():
            image = nibabel.load(path)
            mask = (image.get_fdata() > 0).astype(numpy.uint8)
            nibabel.save(nibabel.Nifti1Image(mask, image.affine), out / f"{case}.nii.gz")
            print(f"done with {case}")
"""


def make_python(folder: Path, *, installed: bool = True, trainers: bool = True) -> str:
    """A command that is this Python with a stand-in of nnunetv2, and of torch where that is imported.

    Args:
        installed: False: it has no nnunetv2.
        trainers: False: an old one, which takes no trainer of others.
    """
    packages = folder / "packages"
    modules = {
        "torch.py": "class cuda:\n    is_available = staticmethod(lambda: False)\n",
    }
    if installed:
        modules |= {
            "nnunetv2/__init__.py": "",
            "nnunetv2/paths.py": "nnUNet_extTrainer = None\n" if trainers else "",
            "nnunetv2/experiment_planning/plan_and_preprocess_entrypoints.py": _PLAN,
            "nnunetv2/run/run_training.py": _TRAIN,
            "nnunetv2/inference/predict_from_raw_data.py": _PREDICT,
            "nnunetv2-9.9.dist-info/METADATA": f"Metadata-Version: 2.1\nName: nnunetv2\nVersion: {VERSION}\n",
        }
    for name, text in modules.items():
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).write_text(text)
    python = folder / "python"
    python.write_text(
        f'#!/bin/sh\nPYTHONPATH="{packages}${{PYTHONPATH:+:$PYTHONPATH}}" exec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o755)
    return str(python)
