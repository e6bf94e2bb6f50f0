"""A shard set whose images show nothing: the same subjects, spectra and intensities, at random phases.

Pretraining on it is a control: weights warmed up on the statistics of the scans, without anatomy. Of each
session's foreground box, the Fourier phases of every modality (as deviation from the mean of its brain) are
shifted by one and the same random field (multivariate surrogates, Prichard and Theiler 1994): amplitudes
stay, and so does how the modalities relate at each frequency, while everything that has a place is lost.
Voxels outside the brain become background again, so its outline alone is left; those inside get back the
source's mean and standard deviation, in its codes (integers; quantised floats are coded anew). Masks of
lesions are left behind.

Subjects, sessions, splits, folds, few-shot recipe and demographics are the source's, and its fingerprints
stand in `fingerprints.parquet` instead of those of the scrambled scans: who is trained on here counts as seen
at every leak gate, by image, although the cohort has a name of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Any

import nibabel
import numpy as np
from scipy import fft

from brainfoundry.cohorts.manifest import ManifestMeta, Row, Scan, read_manifest
from brainfoundry.cohorts.nifti_header import N2_BYTES
from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.core.progress import progress
from brainfoundry.core.rng import key_of, uniform
from brainfoundry.store.changing import unwritable
from brainfoundry.store.commit import delete_leftovers, describe_set, write_tables
from brainfoundry.store.meta import (
    VERSION,
    ShardSetMeta,
    claim_uri,
    manifest_uri,
    meta_uri,
    shard_uri,
    sidecar_uri,
)
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.row import encode_row
from brainfoundry.store.shard_task import ConvertSpec
from brainfoundry.store.volume import Volume, decode_nifti
from brainfoundry.store.writer import ShardWriter

SUFFIX = "-scrambled"
"""Ends the name of the cohort."""
_NOISE = key_of("store.scramble")


def phase_field(seed: int, subject: str, session: str, shape: Sequence[int]) -> np.ndarray:
    """Random phases as factors of modulus 1, for `scipy.fft.rfftn` of a volume of `shape`.

    They are the phases of white noise, so that a real volume stays real; frequency 0 keeps its own, so that
    the mean stays.
    """
    number = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
    noise = fft.rfftn(uniform(seed, _NOISE, key_of(subject), key_of(session), number) - 0.5)
    modulus = np.abs(noise)
    field: np.ndarray = np.where(modulus > 0, noise / np.where(modulus > 0, modulus, 1.0), 1.0)
    field[0, 0, 0] = 1.0
    return field


def scramble(values_XYZ: np.ndarray, field: np.ndarray) -> np.ndarray:
    """A real volume of the same amplitude spectrum, its phases shifted by `field`: float64."""
    spectrum = fft.rfftn(values_XYZ.astype(np.float64, copy=False))
    found: np.ndarray = fft.irfftn(spectrum * field, s=values_XYZ.shape)
    return found


def scrambled_codes(codes_XYZ: np.ndarray, zero_code: float, field: np.ndarray) -> np.ndarray:
    """Codes of a scrambled volume, of the source's dtype and with its background, mean and spread.

    Args:
        codes_XYZ: of the foreground box.
    """
    zero = codes_XYZ.dtype.type(zero_code)
    inside = codes_XYZ != zero
    source = codes_XYZ[inside].astype(np.float64)
    mean = source.mean()
    # The brain against the background would outshine the tissues: the spectrum is that of the deviations from
    # the brain's mean.
    deviations = np.zeros(codes_XYZ.shape)
    deviations[inside] = source - mean
    shuffled = scramble(deviations, field)[inside]
    spread = shuffled.std()
    wanted = (shuffled - shuffled.mean()) * (source.std() / spread if spread else 0.0) + mean
    codes = np.full_like(codes_XYZ, zero)
    if codes_XYZ.dtype.kind == "i":
        limits = np.iinfo(codes_XYZ.dtype)
        wanted = np.clip(np.rint(wanted), limits.min, limits.max)
        beside = zero - 1 if zero == limits.max else zero + 1
    else:
        beside = np.nextafter(zero, codes_XYZ.dtype.type(np.inf))
    codes[inside] = wanted
    codes[inside & (codes == zero)] = beside  # brain that came out as background is brain all the same
    return codes


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What is being made: the same in every attempt."""

    source: ShardSet
    out: str
    seed: int

    def claim(self) -> dict[str, Any]:
        """What `convert.json` of the set says."""
        about = {"manifest_hash": self.source.meta.manifest_hash, "seed": self.seed}
        return {"version": VERSION, "scrambled": about}

    def hash(self, shard: int) -> str:
        """Of everything that decides a shard."""
        return hashlib.sha256(json.dumps([self.claim(), shard], sort_keys=True).encode()).hexdigest()


def scramble_set(source_uri: str, out_uri: str, *, seed: int = 0, threads: int | None = None) -> ShardSetMeta:
    """Make the scrambled counterpart of a shard set; one that was interrupted is gone on with.

    Args:
        out_uri: a folder of its own, local or remote.
        threads: shards in the making at once, each with one session in memory; None: all cores.

    Returns:
        The new set's description; of one that is finished already, as it is.

    Raises:
        DataError: no shard set there, something else in `out_uri`, or storage that cannot be written.
    """
    source = ShardSet.open(source_uri)
    job = _Job(source=source, out=files.absolute(out_uri), seed=seed)
    manifest = read_manifest(manifest_uri(source.uri))
    if manifest.hash != source.meta.manifest_hash:
        raise DataError(
            "manifest does not belong to this shardset.json",
            file=manifest_uri(source.uri),
            fix="restore the file",
        )
    files.check_writable(job.out)
    with unwritable(job.out):
        if _claimed(job):
            return ShardSetMeta.read(job.out)
    rows = source.index.select(
        ["subject", "session", "shard", "row", "box_lo", "box_hi", "scans"]
    ).to_pylist()
    prints = _fingerprints(source)
    shards = range(source.meta.shards)
    missing = [shard for shard in shards if not _finished(job, shard)]
    left = [row for row in rows if row["shard"] in missing]
    with (
        progress("scrambling", len(rows), "sessions") as bar,
        ThreadPoolExecutor(threads or os.cpu_count()) as pool,
    ):
        if len(left) < len(rows):
            bar.advance(len(rows) - len(left), "(done earlier)")
        futures = {}
        for shard in missing:
            mine = [row for row in left if row["shard"] == shard]
            futures[pool.submit(_scramble_shard, job, shard, mine, prints)] = len(mine)
        try:
            for future in as_completed(futures):
                future.result()
                bar.advance(futures[future])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise

    summaries = [files.read_json(sidecar_uri(job.out, shard)) for shard in shards]
    digests = {(o["subject"], o["session"]): o["scans"] for s in summaries for o in s["outcomes"]}
    with unwritable(job.out):
        spec = ConvertSpec(**source.meta.spec)
        meta = _manifest_meta(manifest.meta, job)
        of_set = [_manifest_row(row, meta.cohort, digests.get(row.key)) for row in manifest.rows()]
        tables = write_tables(job.out, of_set, meta, summaries, spec)
        made = describe_set(
            tables, meta, spec, intake_hash=source.meta.intake_hash, shards=source.meta.shards
        )
        delete_leftovers(job.out)
        files.write_json(meta_uri(job.out), made.to_dict())
    return made


def _claimed(job: _Job) -> bool:
    """Say in `convert.json` what is being made here; True where exactly that is finished already."""
    where = claim_uri(job.out)
    if files.exists(where):
        found = files.read_json(where)
        if not isinstance(found, dict) or {name: found.get(name) for name in job.claim()} != job.claim():
            raise DataError(
                "folder holds another shard set, or one scrambled from another source, or with another seed",
                file=job.out,
                fix="choose another folder, or delete this one",
            )
        return files.exists(meta_uri(job.out))
    if there := files.list_names(job.out):
        raise DataError(
            f"folder is not empty: {', '.join(there[:3])}", file=job.out, fix="choose a folder of its own"
        )
    files.write_json(where, job.claim())
    return False


def _finished(job: _Job, shard: int) -> bool:
    """Whether an earlier attempt finished this shard."""
    if not files.exists(sidecar_uri(job.out, shard)):
        return False
    summary = files.read_json(sidecar_uri(job.out, shard))
    fs, path = files.filesystem(shard_uri(job.out, shard))
    whole: bool = fs.get_file_info(path).size == summary.get("size")
    return whole and summary.get("task_hash") == job.hash(shard)


def _fingerprints(source: ShardSet) -> dict[tuple[str, str], dict[str, str]]:
    """(subject, session) -> modality -> fingerprint, hexadecimal."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in source.fingerprints().to_pylist():
        found.setdefault((row["subject"], row["session"]), {})[row["modality"]] = row["fingerprint"].hex()
    return found


def _scramble_shard(
    job: _Job,
    shard: int,
    rows: Sequence[Mapping[str, Any]],
    prints: Mapping[tuple[str, str], Mapping[str, str]],
) -> None:
    source = job.source
    outcomes = []
    with ShardWriter(job.out, shard) as writer:
        for row in rows:
            volumes = _volumes(job, row)
            encoded = encode_row(
                row["subject"],
                row["session"],
                volumes,
                files=[source.uri] * len(volumes),
                float_mode=source.meta.float_mode,
                modalities=source.meta.modalities,
            )
            key = row["subject"], row["session"]
            writer.add(replace(encoded, index=encoded.index | {"fingerprints": dict(prints.get(key, {}))}))
            outcomes.append(
                {
                    "subject": row["subject"], "session": row["session"], "reason": "", "detail": "",
                    "slices": encoded.index["slices"], "scans": [_scan(source, v).to_dict() for v in volumes],
                }
            )  # fmt: skip
        writer.commit(job.hash(shard), outcomes)


def _volumes(job: _Job, row: Mapping[str, Any]) -> list[Volume]:
    """The session's scans, scrambled; a modality it came without is left out, and so is the mask."""
    source = job.source
    lo, hi = row["box_lo"], row["box_hi"]
    box = tuple(slice(a, b) for a, b in zip(lo, hi, strict=True))
    field = phase_field(
        job.seed, row["subject"], row["session"], [b - a for a, b in zip(lo, hi, strict=True)]
    )
    affine = source.affine(row["shard"], row["row"])
    volumes = []
    for scan in row["scans"]:
        if scan["modality"] not in source.meta.modalities or not scan["present"]:
            continue
        codes = source.read_volume(row["shard"], row["row"], scan["modality"])
        codes = codes.astype(scan["code_dtype"], copy=True)
        zero, slope, inter = scan["zero_code"], scan["slope"], scan["inter"]
        if scan["coding"] == "affine":  # codes that span their whole range: as numbers, to be coded anew
            codes = (codes * slope + inter).astype(np.float32)
            zero, slope, inter = zero * slope + inter, 1.0, 0.0
        codes[box] = scrambled_codes(codes[box], zero, field)
        data = _nifti2(codes, affine, slope, inter)
        volumes.append(decode_nifti(data, modality=scan["modality"], file=source.uri, subject=row["subject"]))
    return volumes


def _nifti2(codes_XYZ: np.ndarray, affine: np.ndarray, slope: float, inter: float) -> bytes:
    """A NIfTI-2 file of codes: version 1 has no room for the precision of slope and inter."""
    header = nibabel.Nifti2Header()
    header.set_data_dtype(codes_XYZ.dtype)
    header.set_data_shape(codes_XYZ.shape)
    header.set_sform(affine, code=1)
    header.set_xyzt_units("mm")
    header["scl_slope"], header["scl_inter"] = slope, inter
    header["descrip"] = b"phases scrambled"
    no_extensions = bytes(4)
    header["magic"], header["vox_offset"] = header.single_magic, N2_BYTES + len(no_extensions)
    return header.binaryblock + no_extensions + codes_XYZ.tobytes(order="F")


def _scan(source: ShardSet, volume: Volume) -> Scan:
    """How the manifest names a scrambled scan: by the set it was made from."""
    return Scan(
        modality=volume.modality,
        uri=source.uri,
        shape=volume.header.shape,
        spacing=volume.header.spacing,
        orientation=volume.header.orientation,
        dtype=volume.header.dtype,
        size=volume.header.total_bytes,
        sha256=volume.sha256,
    )


def _manifest_meta(meta: ManifestMeta, job: _Job) -> ManifestMeta:
    source = job.source
    about = {"source": source.uri, "manifest_hash": source.meta.manifest_hash, "seed": job.seed}
    note = (
        "Fourier phases of every scan were replaced by random ones: a control, of no use as scans; "
        f"made of {meta.cohort}, manifest {source.meta.manifest_hash[:12]}, whose fingerprints it keeps"
    )
    return replace(
        meta,
        cohort=meta.cohort + SUFFIX,
        source=source.uri,
        rules=dict(meta.rules) | {"scrambled": about},
        notes=(*meta.notes, note),
        labels="",
    )


def _manifest_row(row: Row, cohort: str, scans: Sequence[Mapping[str, Any]] | None) -> Row:
    """The row of the scrambled set: the same person, other scans, no mask; excluded ones as they are."""
    if scans is None:
        return replace(row, cohort=cohort, label=None)
    return replace(row, cohort=cohort, label=None, scans=tuple(Scan.from_dict(scan) for scan in scans))
