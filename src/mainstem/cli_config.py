"""What commands share: `--config`, and stderr, where people are told things."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console

from mainstem.schema.errors import MainstemError

if TYPE_CHECKING:
    from mainstem.schema.config import Config

__all__ = ["DEFAULT", "ConfigFile", "configuration", "err", "say"]

ConfigFile = Annotated[Path, Parameter(name=["--config", "-c"], help="The configuration; defaults apply without one.")]
DEFAULT = Path("mainstem.yaml")
err = Console(stderr=True)


def configuration(path: Path) -> Config:
    """What is in the file. Raises MainstemError where one that is named is not there."""
    from mainstem.schema.config_file import load

    if path != DEFAULT and not path.exists():
        raise MainstemError(f"there is no {path}; `mainstem init {path}` writes one")
    return load(path)


def say(text: str) -> None:
    """`text` on stderr as it is: paths and what files hold may look like rich's markup, and lines stay whole."""
    err.print(text, markup=False, highlight=False, soft_wrap=True)
