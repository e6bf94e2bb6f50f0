"""Best checkpoints as registered models in MLflow: with the network's signature and its card.

    mlflow.pyfunc.load_model("models:/study-table9-stage1+2-share5/1").predict(x)  # NCDHW -> NRDHW

The input is what the network saw in training: crops after its intensity rule, channels in the card's order
(`metadata.card`). Whole scans with their geometry are `jobs/predict.py`'s.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from brainfoundry.core import files
from brainfoundry.experiments.mlflow_view import connect_mlflow
from brainfoundry.training.checkpoint import read_card
from brainfoundry.training.volumes import load_segmenter

if TYPE_CHECKING:
    from brainfoundry.training.card import Card

log = logging.getLogger("brainfoundry.experiments")

_FOLDER = "model"
_CARD = ("stage", "size", "modalities", "feeds", "intensity", "spacing_mm", "orientation", "space", "crop",
         "task", "run", "step", "manifest_hash", "leaks")  # fmt: skip
"""Fields of the card that a model's page shows; the whole card is beside the weights."""


class CropModel:
    """What `mlflow.pyfunc` calls: logits to probabilities on the CPU."""

    def __init__(self, folder: str) -> None:
        self._network, self.card = load_segmenter(folder)

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> np.ndarray:
        """Probabilities (N, R, D, H, W), float32, of crops (N, C, D, H, W)."""
        x_NCDHW = torch.from_numpy(np.ascontiguousarray(model_input, dtype=np.float32))
        with torch.inference_mode():
            return self._network(x_NCDHW).sigmoid().numpy()


def _load_pyfunc(path: str) -> CropModel:
    """MLflow's entry point (`loader_module`)."""
    return CropModel(path)


def register(uri: str, run_id: str, name: str, checkpoint: str, tags: Mapping[str, str]) -> str | None:
    """A fine-tuned checkpoint as the newest version of a registered model; None where MLflow refuses.

    Registered once a checkpoint: a second call finds the version it made.

    Args:
        uri: tracking URI, resolved; the registry is the same.
        run_id: the trial's MLflow run.
        name: of the model, such as `study-table9-stage1+2-share5`.
        checkpoint: URI of a step-... folder.
        tags: of the version (its point on the axes, its score).

    Returns:
        `models:/NAME/VERSION`.
    """
    try:
        return _register(uri, run_id, name, checkpoint, tags)
    except Exception as error:  # whatever the network or the server answers
        log.warning("MLflow does not take the model of %s: %s", checkpoint, error)
        return None


def _register(uri: str, run_id: str, name: str, checkpoint: str, tags: Mapping[str, str]) -> str:
    client = connect_mlflow(uri)
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.run_id == run_id and version.tags.get("checkpoint") == checkpoint:
            return f"models:/{name}/{version.version}"
    with tempfile.TemporaryDirectory(prefix="brainfoundry-") as temporary:
        client.log_artifacts(run_id, _save(checkpoint, temporary), _FOLDER)
    source = f"{client.get_run(run_id).info.artifact_uri}/{_FOLDER}"
    made = client.create_model_version(name, source, run_id, tags={"checkpoint": checkpoint, **tags})
    return f"models:/{name}/{made.version}"


def _save(checkpoint: str, temporary: str) -> str:
    """The checkpoint without its training state as an MLflow model in a folder below `temporary`."""
    from mlflow import pyfunc

    card = read_card(checkpoint)
    weights = Path(temporary, "checkpoint")
    weights.mkdir()
    for file in files.list_names(checkpoint):
        uri = files.join(checkpoint, file)
        if file in ("model.safetensors", "card.json"):
            (weights / file).write_bytes(files.read_bytes(uri))
    folder = str(Path(temporary, _FOLDER))
    pyfunc.save_model(
        folder, loader_module=__name__, data_path=str(weights), signature=_signature(card),
        pip_requirements=[f"brainfoundry=={metadata.version('brainfoundry')}"],
        metadata={"card": {field: _plain(getattr(card, field)) for field in _CARD}},
    )  # fmt: skip
    return folder


def _signature(card: Card) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    def crops(channels: int) -> Schema:
        return Schema([TensorSpec(np.dtype(np.float32), (-1, channels, -1, -1, -1))])

    return ModelSignature(inputs=crops(len(card.modalities)), outputs=crops(len(card.task["regions"])))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
