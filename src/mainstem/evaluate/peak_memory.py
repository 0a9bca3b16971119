"""The most memory that this process held during a stretch of work."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

__all__ = ["PeakMemory"]

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """`with PeakMemory() as memory: ...`, then `memory.gib`: the peak of resident memory meanwhile, with what was
    there before; None where the system does not tell of a stretch alone (it takes Linux)."""

    def __init__(self) -> None:
        self.gib: float | None = None

    def __enter__(self) -> PeakMemory:
        self._told = _reset()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._told:
            self.gib = _peak_kib() / 2**20


def _reset() -> bool:
    try:
        _RESET.write_text("5")  # proc(5): sets the peak back to what is resident now
    except OSError:
        return False
    return True


def _peak_kib() -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1])
