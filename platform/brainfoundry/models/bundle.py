"""A folder in the layout of MONAI's Model Zoo, such as `brats_mri_segmentation`, read and not run.

    bundle = read_bundle("brats_mri_segmentation")
    bundle.modalities       # ("T1ce", "T1w", "T2w", "FLAIR"): the channels by our names, in its order

Of its configuration only the definition of the network is used: a class of `monai.networks.nets` with plain
values, or with references to plain values. Its expressions and imports are never evaluated.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from monai.bundle import ConfigParser
from torch import Tensor, nn

from brainfoundry.core import files
from brainfoundry.core.errors import CheckpointError, ConfigError, DataError
from brainfoundry.models.families import load_family
from brainfoundry.models.families.bundle import TARGET, definition_of
from brainfoundry.models.keys import KeysError, KeyTable, read_weights

CONFIGS = ("configs/inference.json", "configs/inference.yaml", "configs/inference.yml")
METADATA = "configs/metadata.json"
WEIGHTS = "models/model.pt"
NETWORK = "network_def"

_MODALITIES = {
    "t1": "T1w", "t1w": "T1w", "t1n": "T1w",
    "t1c": "T1ce", "t1ce": "T1ce", "t1gd": "T1ce",
    "t2": "T2w", "t2w": "T2w",
    "flair": "FLAIR", "t2flair": "FLAIR", "t2f": "FLAIR",
}  # fmt: skip
_REGIONS = {
    "tumorcore": "tc", "tc": "tc",
    "wholetumor": "wt", "wt": "wt",
    "enhancingtumor": "et", "enhancingtumorcore": "et", "et": "et",
}  # fmt: skip
"""What bundles call channels and maps (letters and digits in lower case), and what we call them."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What a bundle is, and its weights."""

    uri: str
    name: str
    """Of its folder."""
    network: dict[str, Any]
    """`_target_` and arguments: the option `network` of the family `bundle`."""
    modalities: tuple[str, ...]
    """Input channels by our names, in its order."""
    regions: tuple[str, ...]
    """Output maps by our names, in its order."""
    window: tuple[int, int, int] | None
    """Of its own sliding window, where it names one."""
    version: str
    monai_version: str
    trained_on: str
    """The data source that it states."""
    weights: dict[str, Tensor]
    weights_sha256: str

    def build(self) -> nn.Module:
        """The network with the bundle's weights."""
        network = _fresh(self.network, len(self.modalities), len(self.regions))
        network.load_state_dict(self.weights)
        return network


def read_bundle(uri: str) -> Bundle:
    """Read a bundle's folder.

    Raises:
        DataError: a file of it is missing or cannot be read.
        CheckpointError: channels, maps, intensities or a network that are not understood; keys of weights
            that do not fit (`KeysError`, with their table).
    """
    uri = files.absolute(uri)
    config_uri, config = _config(uri)
    metadata_uri = files.join(uri, *METADATA.split("/"))
    metadata = _mapping(files.read_json(metadata_uri), metadata_uri)
    modalities = _named(metadata, ("inputs", "image"), _MODALITIES, metadata_uri)
    regions = _named(metadata, ("outputs", "pred"), _REGIONS, metadata_uri)
    _check_intensity(config, config_uri)
    try:
        network = definition_of(_network(config, config_uri))
        fresh = _fresh(network, len(modalities), len(regions))
    except ConfigError as error:
        raise CheckpointError(error.problem, file=config_uri, fix=error.fix) from error
    weights_uri = files.join(uri, *WEIGHTS.split("/"))
    weights = read_weights(weights_uri)
    table = KeyTable.of(weights, fresh.state_dict())
    if not table.fits:
        raise KeysError(
            f"the bundle's weights are not those of its network ({network[TARGET]})",
            table=table, file=weights_uri, fix="use the weights and the configuration of one version",
        )  # fmt: skip
    return Bundle(
        uri=uri,
        name=uri.rpartition("/")[2],
        network=network,
        modalities=modalities,
        regions=regions,
        window=_window(config),
        version=str(metadata.get("version", "")),
        monai_version=str(metadata.get("monai_version", "")),
        trained_on=str(metadata.get("data_source", "")),
        weights=weights,
        weights_sha256=hashlib.sha256(files.read_bytes(weights_uri)).hexdigest(),
    )


def _fresh(network: Mapping[str, Any], in_channels: int, out_channels: int) -> nn.Module:
    return load_family("bundle").make(in_channels, out_channels, (), network=dict(network))


def _config(uri: str) -> tuple[str, dict[str, Any]]:
    """Where the configuration of inference lies, and what is in it."""
    for name in CONFIGS:
        where = files.join(uri, *name.split("/"))
        if not files.exists(where):
            continue
        data = files.read_bytes(where)
        try:
            content = json.loads(data) if name.endswith(".json") else yaml.safe_load(data)
        except (ValueError, yaml.YAMLError) as error:
            raise DataError(f"cannot be read: {error}", file=where, fix="restore the file") from error
        return where, _mapping(content, where)
    raise DataError(
        "no bundle of MONAI's Model Zoo here: it has no configuration of its inference",
        file=uri,
        fix=f"give the folder that holds {CONFIGS[0]}, {METADATA} and {WEIGHTS}",
    )


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError("it holds no named fields", file=where, fix="restore the file")
    return value


def _network(config: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """`network_def`, its references to plain values of the configuration resolved by MONAI's parser, which is
    shown nothing else."""
    definition = config.get(NETWORK)
    if not isinstance(definition, Mapping):
        raise CheckpointError(f"it defines no network ({NETWORK})", file=where, fix="use a bundle that does")
    for text in _texts(definition):
        if re.search("[$%]", text):
            raise CheckpointError(
                f"{NETWORK} holds the expression {text!r}, which is not evaluated", file=where,
                fix="write the value itself into it",
            )  # fmt: skip
    plain = {key: value for key, value in config.items() if _is_plain(value)}
    parser = ConfigParser({**plain, NETWORK: dict(definition)}, globals=False)
    try:
        resolved = parser.get_parsed_content(NETWORK, instantiate=False, eval_expr=False).get_config()
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{NETWORK} refers to what is no plain value of the configuration: {error}", file=where,
            fix="write the values themselves into it",
        ) from error  # fmt: skip
    return _mapping(resolved, where)


def _texts(value: Any) -> Iterator[str]:
    """All text in a value of JSON, names of fields left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _is_plain(value: Any) -> bool:
    """A number, or text that MONAI's parser does not read as a macro, reference or expression; or a list."""
    return not isinstance(value, Mapping) and not any(re.search("[$@%]", text) for text in _texts(value))


def _named(
    metadata: Mapping[str, Any], path: tuple[str, str], names: Mapping[str, str], where: str
) -> tuple[str, ...]:
    """What the metadata calls the channels of an input or output, in order, by our names."""
    found: Any = metadata.get("network_data_format", {})
    for key in (*path, "channel_def"):
        found = found.get(key, {}) if isinstance(found, Mapping) else {}
    if not isinstance(found, Mapping) or sorted(map(str, found)) != sorted(map(str, range(len(found)))):
        found = {}
    theirs = [str(found[key]) for key in sorted(found, key=int)]
    ours = [names.get(re.sub("[^a-z0-9]", "", name.lower()), "") for name in theirs]
    if not ours or "" in ours or len(set(ours)) < len(ours):
        raise CheckpointError(
            f"the channels of {'.'.join(path)} are {', '.join(theirs) or 'not named'}", file=where,
            fix=f"name each in channel_def, by number, as one of {', '.join(names)}",
        )  # fmt: skip
    return tuple(ours)


def _check_intensity(config: Mapping[str, Any], where: str) -> None:
    """Refuse a network that was shown other intensities than our rule `zscore_nonzero` makes."""
    steps = config.get("preprocessing", {})
    steps = steps.get("transforms", []) if isinstance(steps, Mapping) else []
    for step in steps:
        if not isinstance(step, Mapping) or not str(step.get(TARGET)).endswith("NormalizeIntensityd"):
            continue
        if step.get("nonzero") is True and step.get("channel_wise") is True:
            return
    raise CheckpointError(
        "its preprocessing does not z-score the non-zero voxels of each channel (NormalizeIntensityd, "
        "nonzero, channel_wise)",
        file=where, fix="only bundles that were trained that way can be imported",
    )  # fmt: skip


def _window(config: Mapping[str, Any]) -> tuple[int, int, int] | None:
    inferer = config.get("inferer")
    roi = inferer.get("roi_size") if isinstance(inferer, Mapping) else None
    if isinstance(roi, list) and len(roi) == 3 and all(type(side) is int and side > 0 for side in roi):
        return (roi[0], roi[1], roi[2])
    return None
