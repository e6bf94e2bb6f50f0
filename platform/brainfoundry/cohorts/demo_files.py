"""What the demo cohorts have in common: a folder made once, completed after an interruption, reused after.

A record at the folder's top, `demo.json`, holds the generator's version, the spec and, once the cohort is
finished, the size of every file. Another spec or another generator in the same folder is refused.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import nibabel
import numpy as np
import pyarrow.fs as pafs
import torch

from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.core.progress import progress

RECORD = "demo.json"


class Member(Protocol):
    """One made-up subject, as far as its files go."""

    def paths(self) -> Iterable[str]:
        """Where its files lie, relative to the cohort's folder."""
        ...


M = TypeVar("M", bound=Member)
# Writes those of a subject's files that are named: (root, seed, subject, relative paths). A plain function of
# a module, so that worker processes can import it.
Write = Callable[[str, int, M, set[str]], None]


@dataclass(frozen=True, kw_only=True)
class Done:
    """What there is: files in all and made by this call, bytes of all of them."""

    files: int
    made: int
    bytes: int


def complete(
    root: str,
    record: Mapping[str, Any],
    members: Sequence[M],
    write: Write[M],
    *,
    seed: int,
    extra: Mapping[str, Callable[[], bytes]],
    noun: str,
    workers: int | None = None,
) -> Done:
    """Make what is missing of a demo cohort.

    Args:
        root: folder on any storage, its own: empty, missing, or an earlier cohort of the same record.
        record: what tells this cohort from others: generator, spec.
        extra: further files at the top (tables), relative path -> how to make its bytes.
        noun: of the members, for people ("participants").
        workers: processes; default one a core, at most 8.

    Raises:
        DataError: the folder holds another cohort or other files, or cannot be written.
    """
    earlier = _check_folder(root, record)
    there = sizes(root)
    wanted = {path: member for member in members for path in member.paths()}
    # A file is there whole or not at all; its size is known, and compared, once the cohort was finished.
    missing = [p for p in wanted if p not in there or there[p] != earlier.get(p, there[p])]
    if missing or any(name not in there for name in extra) or not earlier:
        files.check_writable(root)
        unfinished = {**record, "sizes": {}}
        files.write_json(files.join(root, RECORD), unfinished)
        for name, make in extra.items():
            files.write_bytes(files.join(root, name), make())
        lacking: dict[int, tuple[M, set[str]]] = {}
        for path in missing:
            lacking.setdefault(id(wanted[path]), (wanted[path], set()))[1].add(path)
        _make(root, seed, list(lacking.values()), write, noun, workers)
        there = sizes(root)
        files.write_json(
            files.join(root, RECORD), {**record, "sizes": {path: there[path] for path in wanted}}
        )
    return Done(files=len(wanted), made=len(missing), bytes=sum(there[path] for path in wanted))


def sizes(root: str) -> dict[str, int]:
    """Relative path -> bytes of every file below a folder."""
    fs, top = files.filesystem(root)
    infos = fs.get_file_info(pafs.FileSelector(top, allow_not_found=True, recursive=True))
    return {
        info.path.removeprefix(top).lstrip("/"): info.size or 0
        for info in infos
        if info.type == pafs.FileType.File
    }


def _check_folder(root: str, record: Mapping[str, Any]) -> dict[str, int]:
    """Sizes of the files where an earlier call finished this very cohort, else {}; refuses other folders."""
    fix = "choose another folder, or delete this one"
    names = files.list_names(root)
    if RECORD not in names:
        if any(not name.startswith(".") for name in names):
            raise DataError("folder is not empty and holds no demo cohort", file=root, fix=fix)
        return {}
    earlier = files.read_json(files.join(root, RECORD))
    if not isinstance(earlier, dict) or {k: v for k, v in earlier.items() if k != "sizes"} != record:
        text = json.dumps(earlier.get("spec") if isinstance(earlier, dict) else None)
        raise DataError(f"folder holds a demo cohort of another spec: {text}", file=root, fix=fix)
    found: dict[str, int] = earlier.get("sizes", {})
    return found


def _make(
    root: str, seed: int, lacking: list[tuple[M, set[str]]], write: Write[M], noun: str, workers: int | None
) -> None:
    n = min(workers or min(os.cpu_count() or 1, 8), len(lacking))
    with progress(f"making {noun}", len(lacking), noun) as bar:
        if n <= 1:
            for member, paths in lacking:
                write(root, seed, member, paths)
                bar.advance()
            return
        # Spawned, not forked: torch and pyarrow hold threads that a fork would leave locked.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            n, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            futures = [pool.submit(write, root, seed, member, paths) for member, paths in lacking]
            try:
                for future in as_completed(futures):
                    future.result()
                    bar.advance()
            except BrokenProcessPool as error:
                fix = "run it again (what is done is kept) with fewer --workers"
                raise DataError("a worker process died, likely out of memory", file=root, fix=fix) from error
            finally:
                pool.shutdown(cancel_futures=True)


def nifti_bytes(image: np.ndarray, affine: np.ndarray, *, code: int = 4) -> bytes:
    """A NIfTI-1 file of a volume, in its own type.

    Args:
        code: of both forms; 4 is MNI152 space, 1 scanner space, 2 aligned to another scan.
    """
    made = nibabel.Nifti1Image(image, affine)
    made.header.set_qform(affine, code=code)
    made.header.set_sform(affine, code=code)
    made.header.set_xyzt_units("mm", "sec")
    return made.to_bytes()


def on_grid(
    volume: np.ndarray,
    first: tuple[int, int, int],
    flip: tuple[bool, bool, bool],
    shape: tuple[int, int, int],
) -> np.ndarray:
    """The volume on another grid of the same voxel size: flipped, shifted, cut, padded with 0.

    Args:
        first: where, on the new grid, the (flipped) volume's voxel 0 lies; may be negative.
    """
    turned = volume[tuple(slice(None, None, -1) if f else slice(None) for f in flip)]
    made = np.zeros(shape, volume.dtype)
    source, target = [], []
    for start, have, want in zip(first, volume.shape, shape, strict=True):
        low = max(start, 0)
        high = min(start + have, want)
        if high <= low:  # the volume lies beside the new grid
            return made
        target.append(slice(low, high))
        source.append(slice(low - start, high - start))
    made[tuple(target)] = turned[tuple(source)]
    return made


@dataclass(frozen=True, kw_only=True)
class CohortSummary:
    """What there is: kinds -> subjects, files in all and made by this call, bytes of all of them."""

    root: str
    kinds: dict[str, int]
    files: int
    made: int
    bytes: int
