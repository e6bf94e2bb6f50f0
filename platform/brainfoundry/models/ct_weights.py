"""A CT-pretrained Swin encoder (MONAI's `model_swinvit.pt`, Tang et al. 2022) as weights of ours.

    transfer(network, load_ct("model_swinvit.pt"), source_modalities=["CT"], ...)

The file's names differ from those of today's networks: a `module.` before each, `mlp.fc1` and `mlp.fc2` for
the two layers of a perceptron, no `swinViT.`. Its one input channel is CT.

Those weights were trained with MONAI before 1.5, whose patch merging took two neighbours twice and two never
(`swin.LegacyPatchMerging`). They mean what they meant only in a network of `merging="legacy"`; `NOTE` says so
beside every table of what was loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from brainfoundry.models.keys import KeysError, KeyTable, read_weights, unwrap
from brainfoundry.models.sizes import SIZES, EncoderSpec
from brainfoundry.models.swin import build_encoder

MERGING = "legacy"
NOTE = "trained with MONAI before 1.5: use --model.merging legacy, or the features are others"

_ENCODER = re.compile(r"(?:patch_embed|layers\d)\.")
_THIRD_STAGE = re.compile(r"layers3\.0\.blocks\.(\d+)\.")
_STEM = "patch_embed.proj.weight"
_PREFIX = "swinViT."
_RENAMED = {"mlp.fc1.": "mlp.linear1.", "mlp.fc2.": "mlp.linear2."}


def load_ct(uri: str) -> dict[str, Tensor]:
    """`from_ct` of a file on any storage.

    Raises:
        DataError: no such file.
        CheckpointError: no weights, or keys that do not fit.
    """
    return from_ct(read_weights(uri), source=uri)


def from_ct(state: Mapping[str, Any], *, source: str = "") -> dict[str, Tensor]:
    """The encoder of a CT-pretrained file under the names of our networks (`swinViT.*`).

    Args:
        state: what the file holds: its tensors by name, or a training checkpoint with `state_dict`. Heads
            (rotation, contrast, reconstruction) are left behind.
        source: the file, for the message.

    Raises:
        KeysError: a `CheckpointError` with the table of keys: it is no such encoder, or not a whole one.
    """
    weights = unwrap(state)
    found = {_renamed(name): tensor for name, tensor in weights.items()}
    encoder = {name: tensor for name, tensor in found.items() if _ENCODER.match(name)}
    spec = _spec(encoder)
    expected = build_encoder(spec).state_dict()
    table = KeyTable.of(encoder or found, expected)  # a file of something else is shown as it is
    if not table.fits:
        raise KeysError(
            f"the weights are not those of a Swin encoder ({spec.size})",
            table=table,
            file=source or None,
            fix="give a file in the key scheme of MONAI's model_swinvit.pt (module.layers1.0.blocks.0...)",
        )
    return {f"{_PREFIX}{name}": tensor for name, tensor in encoder.items()}


def _renamed(name: str) -> str:
    name = name.removeprefix(_PREFIX)
    for theirs, ours in _RENAMED.items():
        name = name.replace(theirs, ours)
    return name


def _spec(encoder: Mapping[str, Tensor]) -> EncoderSpec:
    """The encoder that the weights are most likely of; tiny, the published file's, where they do not tell."""
    stem = encoder.get(_STEM)
    features, channels = (stem.shape[0], stem.shape[1]) if stem is not None and stem.ndim == 5 else (0, 1)
    blocks = [int(match[1]) for match in map(_THIRD_STAGE.match, encoder) if match]
    depth = max(blocks, default=-1) + 1
    alike = [s.name for s in SIZES.values() if (s.feature_size, s.depths[2]) == (features, depth)]
    return EncoderSpec(size=alike[0] if alike else "tiny", in_channels=channels)
