"""Other libraries' ways to get the same crops, each as its users would: the peers of the `data` benchmark."""

from __future__ import annotations

import functools
import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai import transforms as mt

from brainfoundry.benchmarks.crop_sides import MODALITIES, Cohort, Frame, Place, Side, chain, window
from brainfoundry.pretext.intensity import WINDOW


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class NnunetBlosc2(Side):
    """float32 in Blosc2 files as nnU-Net v2 keeps them; imitated, not imported.

    Preprocessed, cut to the foreground, Zstandard level 8, blocks that fit the first cache, chunks of about a
    patch, mapped into memory.
    """

    name = "nnunet_blosc2"
    needs = ("blosc2",)

    def __init__(self, cohort: Cohort, frame: Frame) -> None:
        super().__init__(cohort, frame)
        import blosc2

        self._open = functools.partial(blosc2.open, mode="r", mmap_mode="r", dparams={"nthreads": 1})
        self._boxes: dict[str, Place] = {}
        for subject in cohort.subjects:
            codes, self._boxes[subject] = self.box_codes(subject)
            path = self.folder() / f"{subject}.b2nd"
            if not path.exists():
                channels, *shape = codes.shape
                blosc2.asarray(
                    window(codes),
                    urlpath=str(path),
                    chunks=(channels, *(min(n, 64) for n in shape)),
                    blocks=(channels, *(min(n, m) for n, m in zip(shape, (8, 16, 16), strict=True))),
                    cparams={"codec": blosc2.Codec.ZSTD, "clevel": 8},
                )

    @property
    def bytes(self) -> int:
        return _size(self.folder())

    def crops(self, rows: Any) -> torch.Tensor:
        subject, places = self.frame.places(rows)
        stored = self._open(str(self.folder() / f"{subject}.b2nd"))
        box = self._boxes[subject]
        found = [self.frame.fill(p, box, lambda part: stored[(slice(None), *part)]) for p in places]
        return torch.from_numpy(np.stack(found))


class ZarrSharded(Side):
    """int16 in one zarr v3 array a subject: chunks of 32^3 in one shard, Blosc with Zstandard and shuffle."""

    name = "zarr"
    needs = ("zarr",)

    def __init__(self, cohort: Cohort, frame: Frame) -> None:
        super().__init__(cohort, frame)
        zarr: Any = importlib.import_module("zarr")
        codecs: Any = importlib.import_module("zarr.codecs")
        self._boxes: dict[str, Place] = {}
        self._arrays: dict[str, Any] = {}
        for subject in cohort.subjects:
            codes, self._boxes[subject] = self.box_codes(subject)
            path = self.folder() / f"{subject}.zarr"
            if not path.exists():
                array = zarr.create_array(
                    store=str(path),
                    shape=codes.shape,
                    dtype="int16",
                    chunks=(1, 32, 32, 32),
                    shards=(codes.shape[0], *(-(-n // 32) * 32 for n in codes.shape[1:])),
                    compressors=codecs.BloscCodec(cname="zstd", clevel=5, shuffle="shuffle", typesize=2),
                )
                array[:] = codes
            self._arrays[subject] = zarr.open_array(store=str(path), mode="r")

    @property
    def bytes(self) -> int:
        return _size(self.folder())

    def crops(self, rows: Any) -> torch.Tensor:
        subject, places = self.frame.places(rows)
        stored, box = self._arrays[subject], self._boxes[subject]
        found = [self.frame.fill(p, box, lambda part: window(stored[(slice(None), *part)])) for p in places]
        return torch.from_numpy(np.stack(found))


class _PlannedCrops(mt.RandomizableTransform, mt.MapTransform):
    """Stands where RandSpatialCropSamplesd stands, and cuts the crops of the plan."""

    def __init__(self) -> None:
        mt.RandomizableTransform.__init__(self)
        mt.MapTransform.__init__(self, "image")
        self.places: list[Place] = []

    def __call__(self, data: dict[str, Any]) -> list[torch.Tensor]:
        image = torch.as_tensor(data["image"])
        return [image[(slice(None), *place)].contiguous() for place in self.places]


class MonaiPersistent(Side):
    """MONAI's PersistentDataset: the chain's output up to the crop in files of torch.save."""

    name = "monai_persistent"
    slow = True

    def __init__(self, cohort: Cohort, frame: Frame) -> None:
        super().__init__(cohort, frame)
        self._cut = _PlannedCrops()
        self._numbers = {subject: i for i, subject in enumerate(cohort.subjects)}
        self._data = self._dataset([self.files(s) for s in cohort.subjects], chain(cohort.crop, self._cut))

    def _dataset(self, items: list[dict[str, str]], transform: mt.Compose) -> Any:
        from monai.data import PersistentDataset

        return PersistentDataset(items, transform, cache_dir=self.folder())

    @property
    def bytes(self) -> int:
        return _size(self.folder())

    def crops(self, rows: Any) -> torch.Tensor:
        subject, self._cut.places = self.frame.places(rows)
        found = [torch.as_tensor(crop) for crop in self._data[self._numbers[subject]]]
        return torch.stack(found)


class MonaiCache(MonaiPersistent):
    """MONAI's CacheDataset with its defaults: the chain's output in memory, copied at each visit."""

    name = "monai_cache"

    def _dataset(self, items: list[dict[str, str]], transform: mt.Compose) -> Any:
        from monai.data import CacheDataset

        return CacheDataset(items, transform, progress=False)

    @property
    def bytes(self) -> int:
        return sum(item["image"].nbytes for item in self._data._cache)


class TorchioQueue(Side):
    """TorchIO's Queue over .nii.gz: 2 patches a loaded volume, no worker processes."""

    name = "torchio_queue"
    needs = ("torchio",)
    slow = True

    def __init__(self, cohort: Cohort, frame: Frame) -> None:
        super().__init__(cohort, frame)
        tio: Any = importlib.import_module("torchio")
        low, high = WINDOW
        wanted = tuple(int(n) for n in frame.wanted)
        transform = tio.Compose(
            [
                tio.ToCanonical(),
                tio.Lambda(lambda x: ((x.float() - low) / (high - low)).clamp_(0, 1)),
                tio.CropOrPad(wanted, padding_mode=0),
            ]
        )

        class Planned(tio.data.sampler.sampler.PatchSampler):
            places: list[Place]

            def _generate_patches(self, subject: Any, num_patches: int | None = None) -> Iterator[Any]:
                for place in self.places:
                    yield self.extract_patch(subject, tuple(part.start for part in place))

        def subject(name: str) -> Any:
            return tio.Subject({m: tio.ScalarImage(path) for m, path in self.files(name).items()})

        self._tio, self._sampler = tio, Planned(cohort.crop)
        self._data = tio.SubjectsDataset([subject(s) for s in cohort.subjects], transform=transform)
        self._numbers = {s: i for i, s in enumerate(cohort.subjects)}

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.cohort.niigz.values())

    def crops(self, rows: Any) -> torch.Tensor:
        subject, self._sampler.places = self.frame.places(rows)
        queue = self._tio.Queue(
            self._data,
            max_length=2,
            samples_per_volume=2,
            sampler=self._sampler,
            subject_sampler=[self._numbers[subject]],
            shuffle_subjects=False,
            shuffle_patches=False,
        )
        found = []
        for _ in range(len(rows)):
            patch = queue[0]
            found.append(torch.cat([patch[m].data for m in MODALITIES]))
        return torch.stack(found)


class Mds(Side):
    """mosaicml-streaming: int16 foreground boxes in uncompressed MDS shards on the local disk."""

    name = "mds"
    needs = ("streaming",)

    def __init__(self, cohort: Cohort, frame: Frame) -> None:
        super().__init__(cohort, frame)
        streaming = _import_streaming()
        self._boxes: dict[str, Place] = {}
        self._numbers = {subject: i for i, subject in enumerate(cohort.subjects)}
        missing = not (self.folder() / "index.json").exists()
        codes = {}
        for subject in cohort.subjects:
            codes[subject], self._boxes[subject] = self.box_codes(subject)
        if missing:
            columns = {"subject": "str", "image": "ndarray:int16"}
            with streaming.MDSWriter(out=str(self.folder()), columns=columns) as out:
                for subject, image in codes.items():
                    out.write({"subject": subject, "image": image})
        self._data = streaming.LocalDataset(str(self.folder()))

    @property
    def bytes(self) -> int:
        return _size(self.folder())

    def crops(self, rows: Any) -> torch.Tensor:
        subject, places = self.frame.places(rows)
        sample = self._data[self._numbers[subject]]
        if sample["subject"] != subject:
            raise ValueError("samples come in another order than they were written")
        image, box = sample["image"], self._boxes[subject]
        found = [self.frame.fill(p, box, lambda part: window(image[(slice(None), *part)])) for p in places]
        return torch.from_numpy(np.stack(found))


def _import_streaming() -> Any:
    """mosaicml-streaming without its picture datasets, which need a torchvision that fits torch."""
    name = "streaming.vision"
    blank = name not in sys.modules
    if blank:
        sys.modules[name] = types.ModuleType(name)
    try:
        streaming = importlib.import_module("streaming")
    finally:
        if blank:
            sys.modules.pop(name, None)
    return streaming


PEERS: tuple[type[Side], ...] = (NnunetBlosc2, ZarrSharded, MonaiPersistent, MonaiCache, TorchioQueue, Mds)
