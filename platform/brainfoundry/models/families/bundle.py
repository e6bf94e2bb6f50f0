"""A network as a MONAI bundle defines it: what `jobs/import_bundle.py` writes onto a checkpoint's card.

Its one option, `network`, is the bundle's own definition: `_target_`, the class, and its arguments. Nothing
but a segmentation network of `monai.networks.nets` is ever made of it, and no expression is evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monai.networks import nets
from torch import nn

from brainfoundry.core.errors import ConfigError
from brainfoundry.models.families.base import Family

NETWORKS = ("AttentionUnet", "BasicUNet", "DynUNet", "SegResNet", "UNet", "UNETR", "VNet")
"""Classes that map a volume to logits of its size. Others of `monai.networks.nets` give several tensors,
fetch weights from the internet when they are made, or (SwinUNETR) make something else of the same weights
since MONAI 1.5."""
TARGET = "_target_"
_MODULE = "monai.networks.nets"
_COMMENT = "_desc_"


def definition_of(network: Mapping[str, Any]) -> dict[str, Any]:
    """A bundle's definition of its network, held against what may be built: `_target_` and plain arguments.

    Raises:
        ConfigError: another class, or an argument that is an expression or another component.
    """
    target = str(network.get(TARGET, ""))
    module, _, name = target.rpartition(".")
    if name not in NETWORKS or (module != "" and not f"{module}.".startswith(f"{_MODULE}.")):
        raise ConfigError(
            f"the bundle's network is {target or 'nothing'!r}",
            fix=f"only these of {_MODULE} are built: {', '.join(NETWORKS)}",
        )
    arguments = {key: value for key, value in network.items() if key not in (TARGET, _COMMENT)}
    for key, value in arguments.items():
        if key.startswith("_") or not _is_plain(value):
            raise ConfigError(
                f"argument {key} of the bundle's network is {value!r}",
                fix="write plain values into the bundle's network_def: expressions and components are not "
                "evaluated",
            )
    return {TARGET: name, **arguments}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return TARGET not in value and all(_is_plain(inner) for inner in value.values())
    if isinstance(value, list | tuple):
        return all(_is_plain(inner) for inner in value)
    if isinstance(value, str):
        return not value.startswith(("$", "@", "%"))
    return value is None or isinstance(value, bool | int | float)


def make(
    in_channels: int, out_channels: int, crop: tuple[int, int, int], *, network: dict[str, Any]
) -> nn.Module:
    """The network of a definition, whose channels must be those asked for."""
    if not network:
        raise ConfigError(
            "family bundle needs the definition of a network",
            fix="import a bundle with jobs/import_bundle.py, which writes it onto the card",
        )
    definition = definition_of(network)
    name = definition.pop(TARGET)
    for what, asked in (("in_channels", in_channels), ("out_channels", out_channels)):
        if definition.get(what) != asked:
            raise ConfigError(
                f"the bundle's network has {what} {definition.get(what)}, and {asked} are asked for",
                fix="use the modalities and the task of the bundle",
            )
    try:
        built: nn.Module = getattr(nets, name)(**definition)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"MONAI cannot make the bundle's {name}: {error}", fix="check network_def in its configuration"
        ) from error
    return built


FAMILY = Family(
    name="bundle",
    title="MONAI bundle",
    multiple=8,
    make=make,
    options={"network": {}},
)
