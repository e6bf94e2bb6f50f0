"""A MONAI bundle as a checkpoint of ours, so that evaluation and prediction treat it like any other.

Its card says what it must be shown (modalities in its order, intensity rule, voxel size) and how to build it
(family `bundle`). It has no table of the scans its weights have seen, because nobody has one: the leak gate
refuses it, unless told to go on.
"""

from __future__ import annotations

from brainfoundry.core import files
from brainfoundry.core.errors import CheckpointError, ConfigError
from brainfoundry.models.bundle import Bundle
from brainfoundry.models.crops import STRIDE
from brainfoundry.tasks import load_task
from brainfoundry.training import checkpoint
from brainfoundry.training.card import Card

TASK = "brats"
INTENSITY = "zscore_nonzero"
"""What `read_bundle` makes sure of."""
SPACE = "SRI24"
"""Template of all BraTS scans, skull-stripped (`cohorts.brats`)."""
_WINDOW = (128, 128, 128)
"""Where the bundle names none."""


def import_bundle(
    bundle: Bundle,
    run: str,
    *,
    scheme: str,
    spacing_mm: float | None = 1.0,
    window: tuple[int, int, int] | None = None,
) -> str:
    """Write RUN/checkpoints/step-00000000 of a bundle; returns its URI.

    Args:
        run: folder of the run to be.
        scheme: label scheme of the masks that it predicts and is scored on.
        spacing_mm: voxel size it was trained at; None: the scans' own, for cohorts prepared without one.
        window: None: the bundle's own, each side rounded up to a multiple of 32.

    Raises:
        ConfigError: a scheme that the task does not know, or a run that is there already.
        CheckpointError: maps that are not the task's, in its order.
    """
    task = load_task(TASK)
    task.check_scheme(scheme)
    regions = tuple(region.name for region in task.regions)
    if bundle.regions != regions:
        raise CheckpointError(
            f"the bundle's maps are {', '.join(bundle.regions)}, the task's {', '.join(regions)}",
            file=bundle.uri,
            fix="use a bundle with these maps in this order",
        )
    run = files.absolute(run)
    folder = files.join(run, "checkpoints")
    if checkpoint.list_steps(folder):
        raise ConfigError("there is a run already", file=run, fix="give another --out, or delete it")
    sides = window or bundle.window or _WINDOW
    card = Card(
        stage="finetune",
        size=bundle.network["_target_"],
        modalities=bundle.modalities,
        merging="",
        encoder={},
        family="bundle",
        family_options={"network": bundle.network},
        objective="segmentation",
        objective_config={},
        intensity=INTENSITY,
        crop=tuple(-(-side // STRIDE) * STRIDE for side in sides),  # type: ignore[arg-type]
        patch=1,
        frame="box",
        spacing_mm=spacing_mm,
        orientation="RAS",
        space=SPACE,
        skull_stripped=True,
        manifest_hash="",
        plan_hash="",
        step=0,
        steps=0,
        run=run.rpartition("/")[2],
        task={"name": TASK, "scheme": scheme, "regions": list(regions)},
        init={
            "bundle": bundle.name,
            "version": bundle.version,
            "monai_version": bundle.monai_version,
            "trained_on": bundle.trained_on,
            "weights_sha256": bundle.weights_sha256,
        },
    )
    model = {name: tensor.contiguous() for name, tensor in bundle.weights.items()}
    return checkpoint.save(folder, card, model, {})
