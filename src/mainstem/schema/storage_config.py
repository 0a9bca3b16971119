"""The section `storage` of the configuration."""

from __future__ import annotations

from pydantic import ValidationInfo, field_validator

from mainstem.schema.section import Section

__all__ = ["StorageConfig"]

_SCHEMES = {
    "log": ("sqlite", "memory"), "history": ("file",), "state": ("lmdb", "memory"), "weights": ("file",),
    "text": ("file", "memory"),
}  # fmt: skip


class StorageConfig(Section):
    """Where things rest. `{data}` stands for the data directory."""

    log: str = "sqlite:///{data}/log.sqlite"
    history: str = "file:///{data}/history"
    state: str = "lmdb:///{data}/state"
    weights: str = "file:///{data}/weights"
    """A local folder, or any URL that fsspec knows (s3://bucket/folder, with mainstem[remote] and its package)."""
    text: str = "file:///{data}/text"
    """Text vectors, which can be made again; nothing without `model.text.encoder`."""

    @field_validator("log", "history", "state", "weights", "text")
    @classmethod
    def _scheme_is_known(cls, url: str, info: ValidationInfo) -> str:
        scheme, slashes, _ = url.partition("://")
        if str(info.field_name) == "weights" and slashes and scheme:
            return url  # any URL that fsspec knows; whether it does is told when it is opened
        allowed = _SCHEMES[str(info.field_name)]
        if not slashes or scheme not in allowed:
            raise ValueError(
                f"{url!r} is no URL of a kind known here; allowed: {', '.join(f'{s}://' for s in allowed)}"
            )
        return url
