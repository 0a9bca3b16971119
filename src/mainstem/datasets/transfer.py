"""Fetching a data set from its public address into the cache folder."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO

from mainstem.datasets.dataset import Dataset, Download, cache_folder
from mainstem.schema.errors import DatasetError

__all__ = ["Progress", "download"]

Progress = Callable[[int, int], None]
"""Called with (done, in all); where a server does not say how much there is, in all is what is done."""

_CHUNK = 1 << 16
_TIMEOUT = 30.0


def download(dataset: Dataset, progress: Progress | None = None, folder: Path | None = None) -> Path:
    """Fetch and unpack `dataset` into `folder` (its cache folder if None), verified; the folder.

    Nothing is put there before all of it is fetched and verified. `progress` counts bytes. Raises
    DatasetError saying what to do.
    """
    target = folder or cache_folder(dataset.name)
    if not dataset.downloads:
        raise DatasetError(f"{dataset.title} has no address to download from; {dataset.how()}")
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".get-") as scratch:
        kept: list[Path] = []
        before = 0
        for source in dataset.downloads:
            path = _fetch(source, Path(scratch), before, progress)
            before += path.stat().st_size
            kept += _unpack(path, source, Path(scratch)) if source.unpack else [path]
        for path in kept:
            shutil.move(path, target / path.name)
    return target


def _fetch(download: Download, folder: Path, before: int, progress: Progress | None) -> Path:
    path = folder / PurePosixPath(download.url).name
    algorithm, _, expected = download.digest.partition(":")
    digest = hashlib.new(algorithm or "sha256", usedforsecurity=False)
    try:
        with urllib.request.urlopen(download.url, timeout=_TIMEOUT) as answer, path.open("wb") as file:
            length = answer.headers.get("Content-Length")
            total, done = int(length) if length else None, 0
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                if progress:
                    progress(before + done, before + max(done, total or 0))
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise DatasetError(
            f"{download.url} cannot be fetched: {error}; check the network, then run it again"
        ) from error
    if total is not None and done != total:
        raise DatasetError(f"{download.url} broke off after {done:,} of {total:,} bytes; run it again")
    if expected and digest.hexdigest() != expected:
        raise DatasetError(
            f"{download.url} is not the file it should be: its {algorithm} is {digest.hexdigest()}, not {expected}; "
            "run it again, and if it stays so, the publisher has changed the file"
        )
    return path


def _unpack(archive: Path, download: Download, folder: Path) -> list[Path]:
    """The wanted members, by file name alone: no path of the archive is ever followed."""
    kept = []
    try:
        with zipfile.ZipFile(archive) as members:
            by_name = {PurePosixPath(name).name: name for name in members.namelist() if not name.endswith("/")}
            for wanted in download.unpack:
                if wanted not in by_name:
                    raise DatasetError(f"{download.url} holds no {wanted}; the publisher has changed the file")
                source: IO[bytes]
                with members.open(by_name[wanted]) as source, (folder / wanted).open("wb") as file:
                    shutil.copyfileobj(source, file)
                kept.append(folder / wanted)
    except zipfile.BadZipFile as error:
        raise DatasetError(f"{download.url} is not a zip file: {error}; run it again") from error
    return kept
