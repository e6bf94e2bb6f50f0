"""Small bundles in the layout of MONAI's Model Zoo, with real networks in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from monai.networks.nets import SegResNet

# The Zoo's own names and order of brats_mri_segmentation.
CHANNELS = ("T1c", "T1", "T2", "FLAIR")
MAPS = ("Tumor core", "Whole tumor", "Enhancing tumor")


def arguments(channels: int, filters: int = 8) -> dict[str, Any]:
    """Of the bundle's SegResNet, shallower."""
    return {
        "blocks_down": [1, 1, 1], "blocks_up": [1, 1], "init_filters": filters, "in_channels": channels,
        "out_channels": 3, "dropout_prob": 0.2,
    }  # fmt: skip


def inference(channels: int, **changes: Any) -> dict[str, Any]:
    """What the Zoo's configs/inference.json holds, as far as it could trip a reader: imports, expressions,
    references, components. `changes` replace top-level entries."""
    config = {
        "imports": ["$import glob", "$import a_package_that_nobody_has"],
        "bundle_root": ".",
        "ckpt_dir": "$@bundle_root + '/models'",
        "test_datalist": "$monai.data.load_decathlon_datalist(@bundle_root + '/datalist.json')",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "amp": True,
        "network_def": {"_target_": "SegResNet", **arguments(channels)},
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True, "channel_wise": True},
            ],
        },
        "dataset": {"_target_": "Dataset", "data": "@test_datalist", "transform": "@preprocessing"},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [60, 32, 32], "overlap": 0.5},
    }
    return config | changes


def metadata(channels: tuple[str, ...], maps: tuple[str, ...] = MAPS) -> dict[str, Any]:
    """What the Zoo's configs/metadata.json holds, as far as it is read."""

    def numbered(names: tuple[str, ...]) -> dict[str, Any]:
        return {"num_channels": len(names), "channel_def": {str(i): name for i, name in enumerate(names)}}

    return {
        "version": "0.5.2",
        "monai_version": "1.4.0",
        "data_source": "https://www.med.upenn.edu/sbia/brats2018/data.html",
        "network_data_format": {"inputs": {"image": numbered(channels)}, "outputs": {"pred": numbered(maps)}},
    }


def put_bundle(
    folder: Path,
    channels: tuple[str, ...] = CHANNELS,
    maps: tuple[str, ...] = MAPS,
    *,
    suffix: str = "json",
    **changes: Any,
) -> SegResNet:
    """Write a bundle; the network whose weights are in it."""
    torch.manual_seed(3)
    network = SegResNet(**arguments(len(channels))).eval()
    config = inference(len(channels), **changes)
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    text = json.dumps(config) if suffix == "json" else yaml.safe_dump(config)
    (folder / "configs" / f"inference.{suffix}").write_text(text)
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata(channels, maps)))
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return network
