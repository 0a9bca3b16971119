"""Open addressing on a device: buckets of 64 bytes hold five keys, their rows, and a count that ends a search.

The bucket is that of `weights.slots`, a cache line there and two sectors of 32 bytes here, which memory hands out
together:

    0..39   five keys; 0 where free
    40..59  their rows, int32
    60..63  how many keys found this bucket full and lie further on, int32

There is no version, as nobody reads beside a writer, and so the count has all bits and never sticks. A search goes on
from a full bucket only while the count says that some key did. A key that is deleted is taken off the counts that it
had passed, and leaves nothing behind. Buckets are 0.8 full at most, and between 0.4 and 0.8 as a rule.

Reads on a GPU are Triton kernels (`kernels`). Everything else here, and all of it without Triton, is torch: rounds over
the keys that are not settled yet. Keys that are put are sorted by bucket, and each takes the free place of its rank, so
no two can take the same one and the same calls make the same slots.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from mainstem.weights.device.words import mix_top

__all__ = ["DeviceSlots", "gather", "limit_of"]

_PER_BUCKET = 5
_FULL = 0.8
_CHUNK = 1 << 22  # keys at once: rounds take some 200 bytes for each


def limit_of(bits: int) -> int:
    """Keys that 2^bits buckets may hold."""
    return int(_FULL * _PER_BUCKET * (1 << bits))


class DeviceSlots:
    """Buckets for keys and rows. words int64 [buckets, 8] and halves int32 [buckets, 16] are the same memory.

    kernels: the module `kernels`, or None for torch alone.
    """

    def __init__(self, bits: int, device: torch.device, kernels: ModuleType | None = None) -> None:
        self.bits, self.device, self.kernels = bits, device, kernels
        self.words = torch.zeros((1 << bits, 8), dtype=torch.int64, device=device)
        self.halves = self.words.view(torch.int32)

    def find(self, keys: Tensor) -> Tensor:
        """Row of each key int64 [n]; -1 where it has none: int64 [n]."""
        if self.kernels is not None:
            found: Tensor = self.kernels.find(self.words, self.bits, keys)
            return found
        rows = torch.full_like(keys, -1)
        for start in range(0, len(keys), _CHUNK):
            bucket, place, _ = self.search(keys[start : start + _CHUNK])
            row = self.halves[bucket, 2 * _PER_BUCKET + place.clamp(min=0)].to(torch.int64)
            rows[start : start + _CHUNK] = torch.where(place < 0, -1, row)
        return rows

    def touch(self, keys: Tensor, seen: Tensor, now: int) -> Tensor:
        """`find`; rows that are found were seen at `now` or later: seen int32 [capacity]."""
        if self.kernels is not None:
            found: Tensor = self.kernels.touch(self.words, self.bits, keys, seen, now)
            return found
        rows = self.find(keys)
        held = rows[rows >= 0]
        seen[held] = seen[held].clamp(min=now)  # a row that is named twice gets the same number twice
        return rows

    def read(self, keys: Tensor, values: Tensor, out: Tensor) -> None:
        """The rows of keys int64 [n], of values float32 [capacity, dim], into out float32 [n, dim]; zeros where a key
        has none."""
        if self.kernels is not None:
            self.kernels.read(self.words, self.bits, keys, values, out)
        else:
            gather(values, self.find(keys), out)

    def search(self, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(bucket, place in it, buckets from home) of each key, int64 [n] each; the place is -1 where it is not there.
        In torch, on every device."""
        bucket = mix_top(keys, self.bits)
        place, passed = torch.full_like(keys, -1), torch.zeros_like(keys)
        open_ = torch.nonzero(keys)[:, 0]
        for _ in range(len(self.words)):
            if not len(open_):
                break
            at = bucket[open_]
            same = self.words[at, :_PER_BUCKET] == keys[open_, None]
            there = same.any(1)
            place[open_[there]] = same[there].to(torch.uint8).argmax(1)
            open_ = open_[~there & self._went_on(at)]
            bucket[open_] = (bucket[open_] + 1) & (len(self.words) - 1)
            passed[open_] += 1
        return bucket, place, passed

    def _went_on(self, bucket: Tensor) -> Tensor:
        """Whether some key lies further on than these buckets, which it found full."""
        return self.halves[bucket, 15] > 0

    def put(self, keys: Tensor, rows: Tensor) -> None:
        """Put keys int64 [n], distinct, not 0 and not there, with their rows int64 [n]. There must be room."""
        for start in range(0, len(keys), _CHUNK):
            self._put(keys[start : start + _CHUNK], rows[start : start + _CHUNK])

    def _put(self, keys: Tensor, rows: Tensor) -> None:
        bucket = mix_top(keys, self.bits)
        while len(keys):
            bucket, order = torch.sort(bucket, stable=True)
            keys, rows = keys[order], rows[order]
            count = torch.arange(len(keys), device=self.device)
            first = torch.ones(len(keys), dtype=torch.bool, device=self.device)
            first[1:] = bucket[1:] != bucket[:-1]
            rank = count - torch.where(first, count, 0).cummax(0).values
            # each takes the free place of its rank among those that want this bucket
            free = self.words[bucket, :_PER_BUCKET] == 0
            mine = free & (free.cumsum(1) == rank[:, None] + 1)
            fits = mine.any(1)
            at, place = bucket[fits], mine[fits].to(torch.uint8).argmax(1)
            self.words[at, place] = keys[fits]
            self.halves[at, 2 * _PER_BUCKET + place] = rows[fits].to(torch.int32)
            bucket, keys, rows = bucket[~fits], keys[~fits], rows[~fits]
            self._count(bucket, 1)
            bucket = (bucket + 1) & (len(self.words) - 1)

    def take_out(self, keys: Tensor) -> None:
        """Take keys int64 [n] out, distinct and there."""
        for start in range(0, len(keys), _CHUNK):
            bucket, place, passed = self.search(keys[start : start + _CHUNK])
            self.words[bucket, place] = 0
            back = bucket
            while len(back):
                on = passed > 0
                back, passed = (back[on] - 1) & (len(self.words) - 1), passed[on] - 1
                self._count(back, -1)

    def _count(self, buckets: Tensor, by: int) -> None:
        """Add to the counts of buckets, which may repeat."""
        places = (buckets, torch.full_like(buckets, 15))
        self.halves.index_put_(places, torch.full_like(buckets, by, dtype=torch.int32), accumulate=True)


def gather(values: Tensor, rows: Tensor, out: Tensor) -> None:
    """Rows int64 [n] of values float32 [capacity, dim] into out float32 [n, dim]; zeros for -1."""
    torch.index_select(values, 0, rows.clamp(min=0), out=out)
    out.masked_fill_((rows < 0)[:, None], 0.0)
