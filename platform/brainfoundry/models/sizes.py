"""The sizes of the network, and the specification of an encoder that a checkpoint's card carries.

Beware of two sets of names. The paper's Tiny, Small and Big (Table 2) are called "Micro", "Tini/Tiny" and
"Small" in the released code and its file names, told apart there by the depth of the third stage (D2, D6,
D18). BrainFoundry uses the paper's names throughout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from brainfoundry.core.errors import ConfigError

Merging = Literal["legacy", "current"]
Attention = Literal["monai", "segments"]


@dataclass(frozen=True, kw_only=True)
class Size:
    """Dimensions of one member of the family.

    Attributes:
        name: the paper's name in lower case; `nano` is ours, for CPUs and tests.
        released_as: what the authors' released code calls it ("" where it does not exist there).
        feature_size: channels after the patch embedding; doubles at each of the four stages.
        depths: transformer blocks of the four stages.
        heads: attention heads of the four stages.
        window: side of an attention window, in tokens.
        crop: the crop (voxels) that it is meant to be pretrained with.
    """

    name: str
    released_as: str
    feature_size: int
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    window: int
    crop: tuple[int, int, int]

    @property
    def bottleneck_features(self) -> int:
        """Channels K of the bottleneck: the feature size doubled by each of four mergings."""
        return 16 * self.feature_size


def _paper(name: str, released_as: str, third_depth: int) -> Size:
    # Paper section 1.2 and Table 2: only the depth of the third stage differs between the published sizes.
    return Size(
        name=name,
        released_as=released_as,
        feature_size=48,
        depths=(2, 2, third_depth, 2),
        heads=(3, 6, 12, 24),
        window=7,
        crop=(96, 96, 96),
    )


SIZES: dict[str, Size] = {
    "nano": Size(
        name="nano",
        released_as="",
        feature_size=12,
        depths=(2, 2, 2, 2),
        heads=(3, 6, 12, 24),
        window=4,
        crop=(64, 32, 32),
    ),
    "tiny": _paper("tiny", "Micro, D2", 2),
    "small": _paper("small", "Tini, Tiny, D6", 6),
    "big": _paper("big", "Small, D18", 18),
}
"""Every size by name, smallest first."""


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """Everything needed to build an encoder again; part of every checkpoint's card.

    Raises:
        ConfigError: a field has a value that no encoder can have.
    """

    size: str = "tiny"
    """nano, tiny, small or big (paper, Table 2)."""
    in_channels: int = 1
    """Modalities stacked as channels."""
    merging: Merging = "current"
    """Patch merging: `current` takes each of the 8 neighbours once (MONAI 1.5 and later), `legacy` is the
    order of MONAI 1.4 and earlier, with which all published BrainSegFounder and SwinUNETR weights were
    trained."""
    drop_rate: float = 0.0
    """Dropout after the patch embedding and in the multilayer perceptrons, 0 to 1."""
    attention_drop_rate: float = 0.0
    """Dropout of the attention weights, 0 to 1."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block (earlier ones rise linearly from 0), 0 to below 1."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, the same results."""
    attention: Attention = "monai"
    """Implementation of window attention: MONAI's, or `segments`, which is faster on a CPU and MONAI's
    elsewhere. It never changes parameters or, beyond rounding, results."""

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ConfigError(f"size '{self.size}' does not exist", fix=f"choose one of {', '.join(SIZES)}")
        if (
            isinstance(self.in_channels, bool)
            or not isinstance(self.in_channels, int)
            or self.in_channels < 1
        ):
            raise ConfigError(
                f"in_channels is {self.in_channels!r}", fix="give the number of modalities, 1 or more"
            )
        for name, choices in (("merging", get_args(Merging)), ("attention", get_args(Attention))):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"{name} '{getattr(self, name)}' does not exist",
                    fix=f"choose one of {', '.join(choices)}",
                )
        for name in ("drop_rate", "attention_drop_rate", "drop_path_rate"):
            rate = getattr(self, name)
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
                raise ConfigError(f"{name} is {rate!r}", fix="give a share from 0 to below 1")

    @property
    def dimensions(self) -> Size:
        """The `Size` that the name stands for."""
        return SIZES[self.size]

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EncoderSpec:
        """The inverse of `to_dict`; fields that are missing take their defaults.

        Raises:
            ConfigError: an unknown field or an impossible value.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigError(
                f"encoder field {', '.join(unknown)} does not exist",
                fix=f"use only {', '.join(known)}; a newer version of BrainFoundry may have written this",
            )
        return cls(**values)

    def identity(self) -> dict[str, Any]:
        """The fields on which it depends what a set of weights computes: two encoders with equal identities
        can exchange weights, whatever their drop rates, checkpointing or attention implementation."""
        return {"size": self.size, "in_channels": self.in_channels, "merging": self.merging}
