"""Reading a table that another process writes, from files that both map. No locks; the writer never waits.

    FOLDER/table                 header, uint64: magic, format, generation, dim, most rows, epoch
    FOLDER/values-EPOCH          float32 [most, dim], sparse
    FOLDER/keys-EPOCH            uint64 [most], sparse: the key of each row, 0 where free
    FOLDER/slots-EPOCH-BITS      2^BITS buckets (see `slots`); BITS is the header's generation
    FOLDER/.writer               locked by the writer

Nothing in them is an address. Growing slots are written to a new file, then the generation goes up; a load, or a writer
that comes anew, makes files of a new epoch, puts its header in place and closes the old one. Readers look at the
generation after each read, and read anew where it has changed. The files serve readers alone: a writer starts from a
snapshot, never from them, so what a killed one leaves does no harm, and readers go on with it until the next announces
its own. Only a row in whose middle it was killed cannot be read: that is a StoreError, after the reader's patience.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from mainstem.schema.errors import NotReady, StoreError
from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Floats
from mainstem.weights.blocks import map_file
from mainstem.weights.bodies import CLOSED, DIM, EPOCH, FORMAT, GENERATION, HEADER, MAGIC, MOST, VERSION
from mainstem.weights.reader import Reader, View
from mainstem.weights.table import Rows

__all__ = ["SharedReader"]


class SharedReader:
    """`find`, `gather` and `read` of the table in a folder, as `Table` has them. Any number of processes and threads.

    patience: seconds to wait for a writer in the middle of a row, or between two generations; then StoreError.
    Raises NotReady where the folder has no table yet: a writer announces it with its first rows, or when it has loaded.
    """

    def __init__(self, folder: Path, *, patience: float = 1.0) -> None:
        self.folder, self._patience = folder, patience
        self.dim = 0
        self._view = self._open()
        self._reader = Reader(self.dim, self._look, patience)

    def find(self, keys: Keys) -> Rows:
        """Row of each key [n]; -1 where it has none. It may have another one by the time it is gathered: use `read`."""
        return self._reader.find(keys)

    def gather(self, rows: Rows, out: Floats | None = None) -> Floats:
        """Copies of rows [n] -> float32 [n, dim]; -1 and free rows give zeros. Never torn; whose row it is now, if its
        key was deleted since it was found, only `read` can say."""
        return self._reader.gather(rows, out, self._most)

    def read(self, keys: Keys, out: Floats | None = None) -> Floats:
        """The rows of keys [n] -> float32 [n, dim], zeros where a key has none."""
        return self._reader.read(keys, out)

    def _look(self) -> View:
        if int(self._view.generation[0]) != self._view.bits:
            self._view = self._open()
        return self._view

    def _open(self) -> View:
        give_up = time.monotonic() + self._patience
        while True:
            try:
                view = self._map()
            except FileNotFoundError:
                # files were replaced between two steps; a header that stays without its files is damage
                view = None
            if view is not None:
                return view
            if time.monotonic() > give_up:
                raise StoreError(f"{self.folder}: the table's files do not come to fit; start its writer again")
            time.sleep(0.001)

    def _map(self) -> View | None:
        """The newest view; None while it is being replaced."""
        try:
            header = map_file(self.folder / HEADER)[: 8 * 6].view(np.uint64)
        except FileNotFoundError:
            raise NotReady(f"{self.folder} holds no table yet") from None
        if len(header) < 6 or (int(header[MAGIC]), int(header[VERSION])) != FORMAT:
            raise StoreError(f"{self.folder / HEADER} is no table of this format")
        bits, epoch = int(header[GENERATION]), int(header[EPOCH])
        if bits == CLOSED:
            return None
        dim, self._most = int(header[DIM]), int(header[MOST])
        if self.dim not in (0, dim):
            raise StoreError(f"{self.folder}: the table has dim {dim} now, and had {self.dim}: open it anew")
        self.dim = dim
        values = map_file(self.folder / f"values-{epoch:016x}")
        keys = map_file(self.folder / f"keys-{epoch:016x}")
        slots = map_file(self.folder / f"slots-{epoch:016x}-{bits}")
        nothing = np.zeros(self.dim, np.float32)
        if len(values) < 4 * self.dim * self._most or len(keys) < 8 * self._most or len(slots) < 64 << bits:
            raise StoreError(f"{self.folder}: the table's files are shorter than its header says")
        return View(
            slots=slots.ctypes.data,
            bits=bits,
            values=values.ctypes.data,
            row_keys=keys.ctypes.data,
            nothing=nothing.ctypes.data,
            width=4 * self.dim,
            checked=True,
            generation=header[GENERATION : GENERATION + 1],
            held=(header, values, keys, slots, nothing),
        )
