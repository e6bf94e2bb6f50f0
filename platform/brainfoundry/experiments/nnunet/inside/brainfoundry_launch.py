"""Run one of nnU-Net's commands, and end with whoever started it.

    python brainfoundry_launch.py probe
    python brainfoundry_launch.py nnUNetv2_train OPTIONS

The functions behind the commands are called: where an environment keeps its scripts does not matter.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import signal
import sys
import threading

COMMANDS = {
    "nnUNetv2_plan_and_preprocess": (
        "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints",
        "plan_and_preprocess_entry",
    ),
    "nnUNetv2_train": ("nnunetv2.run.run_training", "run_training_entry"),
    "nnUNetv2_predict": ("nnunetv2.inference.predict_from_raw_data", "predict_entry_point"),
}


def main() -> None:
    command, *rest = sys.argv[1:]
    if command == "probe":
        print(json.dumps(probe()))
        return
    threading.Thread(target=end_with_parent, daemon=True).start()
    module, function = COMMANDS[command]
    sys.argv = [command, *rest]
    getattr(importlib.import_module(module), function)()


def end_with_parent() -> None:
    """Kill this process and its workers once the other end of stdin is closed: the parent is gone.

    nnU-Net's augmentation workers outlive a process that is killed.
    """
    while os.read(0, 1024):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def probe() -> dict[str, object]:
    """What this environment has: version of nnunetv2 (None: not installed), own trainers, CUDA."""
    if importlib.util.find_spec("nnunetv2") is None:
        return {"version": None}
    paths = importlib.import_module("nnunetv2.paths")
    torch = importlib.import_module("torch")
    return {
        "version": importlib.metadata.version("nnunetv2"),
        "trainers": hasattr(paths, "nnUNet_extTrainer"),
        "cuda": torch.cuda.is_available(),
    }


if __name__ == "__main__":
    main()
