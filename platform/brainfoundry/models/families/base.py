"""What a family is, how its options are checked, and how one is found by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from brainfoundry.core.errors import ConfigError
from brainfoundry.core.plugins import Plugins


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture, in any size that its options give it.

    An implementation is a file `brainfoundry/models/families/<name>.py` with an instance as its attribute
    `FAMILY`.

    Args:
        name: of the file.
        title: for tables and pages.
        multiple: crops and windows are multiples of it, along each axis.
        make: builds the network: `make(in_channels, out_channels, crop, **options)`.
        options: every option and its default. A whole number is 1 or more, a fraction a share.
        min_cells: cells of the deepest grid (a crop's sides divided by `multiple`) that it needs: 2 where
            that grid is normalised over its voxels.
        fixed_crop: the network holds one learnt vector a place, so that windows must be the crop.
    """

    name: str
    title: str
    multiple: int
    make: Callable[..., nn.Module]
    options: Mapping[str, Any] = field(default_factory=dict)
    min_cells: int = 1
    fixed_crop: bool = False

    def settle(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """All options: those given, checked, and the defaults of the rest.

        Raises:
            ConfigError: no such option, or a value of the wrong type or out of range.
        """
        settled = dict(self.options)
        for name, value in options.items():
            if name not in settled:
                close = difflib.get_close_matches(str(name), settled, n=1)
                there = f"its options are {', '.join(settled)}" if settled else "it has none"
                raise ConfigError(
                    f"family {self.name} has no option {name!r}",
                    fix=f"did you mean {close[0]}?" if close else there,
                )
            settled[name] = self._checked(name, value)
        return settled

    def _checked(self, name: str, value: Any) -> Any:
        default = self.options[name]
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not type(default):
            raise ConfigError(
                f"option {name} of family {self.name} is {value!r}", fix=f"give a value like {default!r}"
            )
        if type(value) is int and value < 1:
            raise ConfigError(f"option {name} of family {self.name} is {value}", fix="give 1 or more")
        if type(value) is float and not 0 <= value < 1:
            raise ConfigError(
                f"option {name} of family {self.name} is {value}", fix="give a share from 0 to below 1"
            )
        return value

    def check_crop(self, crop: Sequence[int]) -> tuple[int, int, int]:
        """The crop as a tuple, if the network can take it.

        Raises:
            ConfigError: naming what would do.
        """
        if len(crop) != 3 or any(type(side) is not int or side < 1 for side in crop):
            raise ConfigError(
                f"crop {list(crop)} is not three whole numbers", fix="give three sides in voxels, as 96 96 96"
            )
        sides = (crop[0], crop[1], crop[2])
        nearest = [max(1, round(side / self.multiple)) * self.multiple for side in sides]
        if list(sides) != nearest:
            raise ConfigError(
                f"crop {shown(sides)}: {self.name} needs sides that are multiples of {self.multiple} voxels",
                fix=f"the nearest valid size is {shown(nearest)}",
            )
        cells = sides[0] * sides[1] * sides[2] // self.multiple**3
        if cells < self.min_cells:
            nearest[0] *= self.min_cells
            raise ConfigError(
                f"crop {shown(sides)}: the deepest grid of {self.name} would have {cells} cell, and it is "
                "normalised over its cells",
                fix=f"take a larger one, such as {shown(nearest)}",
            )
        return sides

    def build(
        self,
        in_channels: int,
        out_channels: int,
        crop: Sequence[int],
        options: Mapping[str, Any] | None = None,
    ) -> nn.Module:
        """A fresh network: crops (N, in_channels, D, H, W) to logits (N, out_channels, D, H, W).

        Args:
            crop: sides in voxels, which a network of fixed crop is built for.
            options: those that are not at their defaults.

        Raises:
            ConfigError: channels, a crop or options that no such network can have.
        """
        for what, count in (("in_channels", in_channels), ("out_channels", out_channels)):
            if type(count) is not int or count < 1:
                raise ConfigError(f"{what} is {count!r}", fix="give a number of channels, 1 or more")
        sides = self.check_crop(crop)
        network = self.make(in_channels, out_channels, sides, **self.settle(options or {}))
        if self.fixed_crop:
            network.register_forward_pre_hook(OneCrop(self.name, sides))
        return network


@dataclass(frozen=True)
class OneCrop:
    """Refuses what a network of fixed crop was not built for (a hook, called before `forward`)."""

    family: str
    crop: tuple[int, int, int]

    def __call__(self, network: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        given = tuple(int(side) for side in inputs[0].shape[2:])
        if given != self.crop:
            raise ConfigError(
                f"{self.family} was built for crops of {shown(self.crop)}, and is shown {shown(given)}: it "
                "holds one learnt vector a place",
                fix=f"choose windows of {shown(self.crop)}",
            )


def shown(crop: Sequence[int]) -> str:
    """Such as 96x96x96."""
    return "x".join(map(str, crop))


def heads_divide(family: str, embed: int, heads: int) -> None:
    """Refuse (ConfigError) features that do not share out evenly between attention heads."""
    if embed % heads:
        raise ConfigError(
            f"family {family}: {embed} features do not divide between {heads} heads",
            fix="make embed a multiple of heads",
        )


_FAMILIES = Plugins[Family](
    package="brainfoundry.models.families", attribute="FAMILY", what="network family",
    accepts=lambda found: isinstance(found, Family),
)  # fmt: skip


def family_names() -> tuple[str, ...]:
    """Names of the families that are there, in order."""
    return tuple(_FAMILIES.names())


def load_family(name: str) -> Family:
    """The `FAMILY` of the file `brainfoundry/models/families/<name>.py`.

    Raises:
        ConfigError: there is no such file, or no family in it; the message lists those that are there.
    """
    return _FAMILIES.load(name)
