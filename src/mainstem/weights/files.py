"""Where weights rest: whole objects by name, in a local folder or behind any fsspec URL.

    put "main/v-1/dense.safetensors"   local: .new-1f3a -> written, fsync -> renamed -> folder fsync
                                       object store: one upload; other protocols: .new-1f3a -> renamed

Objects are immutable: `put` refuses a name that is taken. Names are parts joined by `/`; who uses this module makes
them from checked parts. Errors of every kind of store are OSError (FileNotFoundError, FileExistsError).
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

import msgspec

from mainstem.schema.errors import ConfigError, MissingExtra, StoreError

__all__ = ["TEMPORARY", "FileSum", "Files", "FsspecFiles", "LocalFiles", "Part", "open_files", "summed"]

Part = bytes | bytearray | memoryview
_Result = TypeVar("_Result")

TEMPORARY = ".new-"
"""How names begin that are being written: never an object; left over where a writer was killed."""

_CHUNK = 1 << 25
# Protocols whose uploads come into sight whole or not at all: they need no temporary name, and know no rename.
_WHOLE_PUTS = {"memory", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "tos"}


class FileSum(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file holds: SHA-256 in hex, and its length."""

    sha256: str
    bytes: int

    @classmethod
    def of(cls, data: Part) -> FileSum:
        """That of `data`."""
        return cls(hashlib.sha256(data).hexdigest(), len(data))


class Files(Protocol):
    """Whole objects by name. Every method raises OSError where the store cannot be used now."""

    def put(self, name: str, parts: Iterable[Part]) -> FileSum:
        """Write a new object whole: after a crash it is there with all its bytes, or absent. Durable on return.

        Raises FileExistsError where the name is taken; two who put one name at once are kept apart by `lock` alone.
        """
        ...

    def get(self, name: str, most: int) -> bytearray:
        """All bytes. Raises FileNotFoundError, and StoreError (reading nothing) where there are more than `most`."""
        ...

    def digest(self, name: str) -> FileSum:
        """What the object holds, read in pieces. Raises FileNotFoundError."""
        ...

    def list(self, folder: str) -> list[str]:
        """Names directly in `folder`, of objects and of folders, in order; none where it is absent."""
        ...

    def exists(self, name: str) -> bool:
        """Is there such an object?"""
        ...

    def delete(self, *names: str) -> None:
        """Remove objects, or folders with all in them; what is absent is left so."""
        ...

    def lock(self, name: str, held: str, wait: float = 0.0) -> AbstractContextManager[None]:
        """Be the only one inside, among all processes and threads; StoreError where that takes over `wait` s: `held`,
        and the number of the process that is inside.

        Holds in local folders only: elsewhere one writer per line is the user's duty.
        """
        ...


class LocalFiles:
    """A folder of this machine (or a file system mounted on it that knows rename, fsync and flock)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, name: str, parts: Iterable[Part]) -> FileSum:
        path = self.root / name
        if path.exists():
            raise FileExistsError(17, "is there already", name)
        _make(path.parent)
        temporary = path.parent / f"{TEMPORARY}{os.urandom(8).hex()}"
        try:
            with temporary.open("xb") as file:
                written = _pour(parts, file.write)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _flush(path.parent)
        return written

    def get(self, name: str, most: int) -> bytearray:
        with (self.root / name).open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            _bounded(name, size, most)
            data = bytearray(size)
            view, done = memoryview(data), 0
            while done < size and (count := file.readinto(view[done:])):
                done += count
        return data if done == size else data[:done]

    def digest(self, name: str) -> FileSum:
        with (self.root / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            return FileSum(digest.hexdigest(), file.tell())

    def list(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(self.root / folder))
        except FileNotFoundError:
            return []

    def exists(self, name: str) -> bool:
        return (self.root / name).is_file()

    def delete(self, *names: str) -> None:
        folders = set()
        for name in names:
            path = self.root / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            folders.add(path.parent)
        for folder in folders:
            if folder.is_dir():
                _flush(folder)

    @contextmanager
    def lock(self, name: str, held: str, wait: float = 0.0) -> Iterator[None]:
        path = self.root / name
        _make(path.parent)
        until = time.monotonic() + wait
        with path.open("ab") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= until:
                        raise StoreError(f"{held}{_inside(path)}") from None
                    time.sleep(0.005)
            file.truncate(0)
            file.write(b"%d" % os.getpid())
            file.flush()
            yield


class FsspecFiles:
    """Objects behind an fsspec file system, one call at a time. There is no lock: one writer per line is a duty."""

    def __init__(self, connect: Callable[[], tuple[Any, str]]) -> None:
        """connect: gives a file system of its own and the root within it; called again after every failure."""
        self._connect = connect
        file_system, root = connect()
        self._fs: Any | None = file_system
        self.root = root.rstrip("/")
        protocol = file_system.protocol
        self._whole_puts = bool(_WHOLE_PUTS.intersection([protocol] if isinstance(protocol, str) else protocol))
        # the connection of FTP, SFTP and their like carries one command at a time
        self._turn = threading.RLock()

    def put(self, name: str, parts: Iterable[Part]) -> FileSum:
        path = self._path(name)
        if self.exists(name):
            raise FileExistsError(17, "is there already", name)

        def upload(fs: Any) -> FileSum:
            if self._whole_puts:
                return self._upload(fs, path, parts)
            folder = path.rpartition("/")[0]
            fs.makedirs(folder, exist_ok=True)
            temporary = f"{folder}/{TEMPORARY}{os.urandom(8).hex()}"
            written = self._upload(fs, temporary, parts)
            fs.mv(temporary, path)
            return written

        return self._call(name, upload)

    def _upload(self, fs: Any, path: str, parts: Iterable[Part]) -> FileSum:
        held: list[Part] = []
        size = 0
        parts = iter(parts)
        for part in parts:
            held.append(part)
            size += len(part)
            if size >= _CHUNK:
                break
        else:  # small: one request
            data = b"".join(held)
            fs.pipe_file(path, data)
            return FileSum.of(data)
        with fs.open(path, "wb") as file:
            return _pour(_chain(held, parts), file.write)

    def get(self, name: str, most: int) -> bytearray:
        path = self._path(name)

        def download(fs: Any) -> bytearray:
            size = int(fs.info(path)["size"])
            _bounded(name, size, most)
            data = bytearray(size)
            done = 0
            while done < size:
                piece = fs.cat_file(path, start=done, end=min(done + _CHUNK, size))
                if not piece:
                    break
                data[done : done + len(piece)] = piece
                done += len(piece)
            return data if done == size else data[:done]

        return self._call(name, download)

    def digest(self, name: str) -> FileSum:
        path = self._path(name)

        def read(fs: Any) -> FileSum:
            size = int(fs.info(path)["size"])
            pieces = (fs.cat_file(path, start=at, end=min(at + _CHUNK, size)) for at in range(0, size, _CHUNK))
            return summed(pieces)

        return self._call(name, read)

    def list(self, folder: str) -> list[str]:
        path = self._path(folder)

        def names(fs: Any) -> list[str]:
            found = {str(entry).rstrip("/").rpartition("/")[2] for entry in fs.ls(path, detail=False)}
            return sorted(found - {"", path.rpartition("/")[2]})

        try:
            return self._call(folder, names)
        except FileNotFoundError:
            return []

    def exists(self, name: str) -> bool:
        try:
            found = self._call(name, lambda fs: fs.info(self._path(name)))
        except FileNotFoundError:
            return False
        return bool(found["type"] == "file")

    def delete(self, *names: str) -> None:
        def remove(fs: Any, path: str) -> None:
            if fs.info(path)["type"] == "file":
                fs.rm_file(path)
            else:
                fs.rm(path, recursive=True)

        for name in names:
            with suppress(FileNotFoundError):
                self._call(name, partial(remove, path=self._path(name)))

    def lock(self, name: str, held: str, wait: float = 0.0) -> AbstractContextManager[None]:
        return nullcontext()

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _call(self, name: str, action: Callable[[Any], _Result]) -> _Result:
        with self._turn:
            try:
                if self._fs is None:
                    self._fs = self._connect()[0]
                self._fs.invalidate_cache()  # listings that fsspec remembers would hide what others wrote
                return action(self._fs)
            except (FileNotFoundError, FileExistsError, StoreError):
                raise
            except Exception as error:  # each protocol's library has errors of its own; here they are all OSError
                self._fs = None  # a broken connection stays broken
                raise OSError(5, f"{type(error).__name__}: {error}", name) from error


def open_files(url: str) -> Files:
    """Files at a plain path, `file:///absolute/path`, `file:relative/path` or any URL that fsspec knows.

    Raises ConfigError where the URL is wrong, MissingExtra where the package that speaks its protocol is absent.
    """
    parts = urlsplit(url)
    if "://" in url and parts.scheme != "file":
        return _open_remote(url, parts.scheme)
    if parts.scheme not in ("", "file") or parts.netloc not in ("", "localhost"):
        raise ConfigError(f"storage.weights: {url!r} is not known; write file:///path/to/folder, or s3://bucket/path")
    path = unquote(parts.path) if parts.scheme else url
    if not path:
        raise ConfigError(f"storage.weights: {url!r} names no folder; write file:///path/to/folder")
    return LocalFiles(Path(path))


def _open_remote(url: str, scheme: str) -> FsspecFiles:
    if "::" in url:
        raise ConfigError(f"storage.weights: {url!r} is a chain; name the store itself, its copies would hide changes")
    try:
        fsspec = importlib.import_module("fsspec.core")
        # an instance of its own: a shared one would share its connection with other threads
        files = FsspecFiles(partial(fsspec.url_to_fs, url, skip_instance_cache=True))
    except ImportError as error:
        raise MissingExtra("remote", f"storage.weights: {scheme}:// ({error})") from error
    except ValueError as error:
        raise ConfigError(f"storage.weights: {scheme}:// cannot be opened: {error}") from error
    except OSError as error:
        raise StoreError(f"storage.weights: {scheme}:// cannot be reached: {error}") from error
    if not files.root:
        raise ConfigError(f"storage.weights: {scheme}:// needs a path, as in {scheme}://place/weights")
    return files


def summed(parts: Iterable[Part]) -> FileSum:
    """What a file of these parts would hold."""
    return _pour(parts, lambda part: None)


def _pour(parts: Iterable[Part], write: Callable[[Part], object]) -> FileSum:
    digest, size = hashlib.sha256(), 0
    for part in parts:
        digest.update(part)
        write(part)
        size += len(part)
    return FileSum(digest.hexdigest(), size)


def _chain(first: Iterable[Part], rest: Iterable[Part]) -> Iterator[Part]:
    yield from first
    yield from rest


def _bounded(name: str, size: int, most: int) -> None:
    if size > most:
        raise StoreError(f"{name} is damaged: it has {size} bytes, and {most} at most were expected")


def _inside(lock: Path) -> str:
    """Which process holds a lock, in words; nothing where that is not written yet."""
    number = lock.read_bytes()[:20]
    if not number.isdigit():
        return ""
    return " (a thread of this process)" if int(number) == os.getpid() else f" (process {int(number)})"


def _make(folder: Path) -> None:
    """Make a folder and those above it, their names durable."""
    if folder.is_dir():
        return
    _make(folder.parent)
    folder.mkdir(exist_ok=True)
    _flush(folder.parent)


def _flush(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
