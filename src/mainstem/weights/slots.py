"""Compiled open addressing for a table of rows: one cache line holds five keys, their rows, and what readers check.

A bucket is one cache line of 64 bytes:

    0..39   five keys, uint64; 0 where free
    40..59  their rows, uint32
    60..63  meta, uint32: low 8 bits count the keys that found this bucket full and lie further on (255: for good);
            the other 24 are the version of the keys *at home* here, odd while one of them is written

A key's home is named by the top bits of `mix(key)`, so buckets follow the order of mixed keys, and growing reads and
writes memory in order. A full bucket sends a key to the next one. The count says when a search may stop, so deletion
leaves no tombstone, and slots are never rehashed but to grow (outbound counts:
Bronson & Shi 2019, "Open-sourcing F14").
Nothing moves between growths. So all that can happen to a key and its row changes the version of one bucket, which a
reader has at hand anyway: a sequence lock (Lameter 2005) that costs no further cache line. It would miss a change only
if exactly a multiple of 2^23 writes to one bucket fell into one read.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.ids import Keys
from mainstem.schema.keyrows import compiled, mix
from mainstem.weights.address import Int, equal8, fence_release, load32, lowest, prefetch, release32
from mainstem.weights.blocks import Block

__all__ = [
    "AHEAD",
    "PER_BUCKET",
    "Slots",
    "bits_for",
    "home_of",
    "lock",
    "next_bucket",
    "place",
    "probe",
    "row_of",
    "take_out",
    "unlock",
]

PER_BUCKET = 5
AHEAD = 16
"""Keys between the stages of a pipeline: enough for memory to answer, few enough to stay in the first cache."""

_FULL = 0.8
_LEAST = 3  # bits of the smallest table


def bits_for(count: int) -> int:
    """log2 of the buckets for `count` keys: slots are 0.8 full at most."""
    bits = _LEAST
    while count > _FULL * PER_BUCKET * (1 << bits):
        bits += 1
    return bits


@compiled
def home_of(slots: Int, bits: Int, key: np.uint64) -> Int:
    """Address of a key's home bucket."""
    return slots + (np.int64(mix(key) >> np.uint64(64 - bits)) << 6)


@compiled
def next_bucket(slots: Int, bits: Int, bucket: Int) -> Int:
    return slots + ((bucket - slots + 64) & ((np.int64(64) << bits) - 1))


@compiled
def probe(bucket: Int, key: np.uint64) -> Int:
    """Row of the key in this bucket, -1 where it is not here. One compare of the whole line and no branch: a wrong
    guess would cost more than all of it."""
    # the words after the keys cannot pass for one, and a sixth bit keeps `lowest` defined; it reads the meta in vain
    same = (equal8(bucket, np.int64(key)) & np.uint64(31)) | np.uint64(32)
    j = lowest(np.int64(same))
    row = np.int64(load32(bucket + 40 + 4 * j))
    return row if j < 5 else np.int64(-1)


@compiled
def row_of(slots: Int, bits: Int, home: Int, key: np.uint64) -> Int:
    """Row of a key whose home is known, -1 where it has none."""
    row = probe(home, key)
    bucket = home
    passed = 0
    while row < 0 and (load32(bucket + 60) & np.uint32(255)) != 0 and passed < (np.int64(1) << bits):
        bucket = next_bucket(slots, bits, bucket)
        row = probe(bucket, key)
        passed += 1
    return row


@compiled
def lock(home: Int) -> None:
    """The version becomes odd: readers of keys at home here wait."""
    release32(home + 60, np.int64(load32(home + 60)) + 256)
    fence_release()


@compiled
def unlock(home: Int) -> None:
    release32(home + 60, np.int64(load32(home + 60)) + 256)


@compiled
def place(words: NDArray[np.uint64], halves: NDArray[np.uint32], bits: Int, key: np.uint64, row: Int) -> None:
    """Put a key that is not there. words uint64 [buckets, 8] and halves uint32 [buckets, 16] are the same memory."""
    home = np.int64(mix(key) >> np.uint64(64 - bits))
    last = (np.int64(1) << bits) - 1
    halves[home, 15] += np.uint32(256)
    fence_release()
    bucket = home
    free = -1
    while free < 0:
        for j in range(5):
            if words[bucket, j] == np.uint64(0):
                free = j
                break
        if free < 0:
            if (halves[bucket, 15] & np.uint32(255)) != np.uint32(255):
                halves[bucket, 15] += np.uint32(1)
            bucket = (bucket + 1) & last
    halves[bucket, 10 + free] = np.uint32(row)
    fence_release()
    words[bucket, free] = key
    fence_release()
    halves[home, 15] += np.uint32(256)


@compiled
def take_out(words: NDArray[np.uint64], halves: NDArray[np.uint32], bits: Int, key: np.uint64) -> Int:
    """Take a key out; the row it had, -1 where it is not there."""
    home = np.int64(mix(key) >> np.uint64(64 - bits))
    last = (np.int64(1) << bits) - 1
    bucket = home
    passed = 0
    while True:
        for j in range(5):
            if words[bucket, j] == key:
                halves[home, 15] += np.uint32(256)
                fence_release()
                words[bucket, j] = np.uint64(0)
                back = home
                while back != bucket:
                    # a count that reached 255 has lost track of who lies further on: it stays
                    if (halves[back, 15] & np.uint32(255)) != np.uint32(255):
                        halves[back, 15] -= np.uint32(1)
                    back = (back + 1) & last
                fence_release()
                halves[home, 15] += np.uint32(256)
                return np.int64(halves[bucket, 10 + j])
        if (halves[bucket, 15] & np.uint32(255)) == np.uint32(0) or passed > last:
            return np.int64(-1)
        bucket = (bucket + 1) & last
        passed += 1


@compiled
def _place_all(words: NDArray[np.uint64], halves: NDArray[np.uint32], bits: Int, keys: Keys, first_row: Int) -> None:
    base = words.ctypes.data
    for i in range(len(keys) + AHEAD):
        if i < len(keys):
            prefetch(home_of(base, bits, keys[i]))
        if i >= AHEAD and keys[i - AHEAD] != np.uint64(0):
            place(words, halves, bits, keys[i - AHEAD], first_row + i - AHEAD)


@compiled
def _regrow(
    words: NDArray[np.uint64], halves: NDArray[np.uint32], bits: Int, old: NDArray[np.uint64], rows: NDArray[np.uint32]
) -> None:
    """Put all that the old buckets hold; their order is the order of homes, so memory is met in order."""
    for bucket in range(len(old)):
        for j in range(5):
            if old[bucket, j] != np.uint64(0):
                place(words, halves, bits, old[bucket, j], np.int64(rows[bucket, 10 + j]))


class Slots:
    """Buckets for keys and rows, in this process or in a file. `address` and `bits` are what compiled code takes."""

    def __init__(self, block: Block, bits: int) -> None:
        block.use(64 << bits)
        self.block, self.bits, self.address = block, bits, block.address
        self.words: NDArray[np.uint64] = block.bytes.view(np.uint64).reshape(-1, 8)
        self.halves: NDArray[np.uint32] = block.bytes.view(np.uint32).reshape(-1, 16)

    def fill(self, keys: Keys, first_row: int = 0) -> None:
        """Put keys [n], distinct (0 is skipped), with rows first_row, first_row + 1 ..."""
        _place_all(self.words, self.halves, self.bits, keys, first_row)

    def regrown(self, block: Block, bits: int) -> Slots:
        """The same keys and rows in more buckets; these stay as they are, for readers that are still in them."""
        grown = Slots(block, bits)
        _regrow(grown.words, grown.halves, bits, self.words, self.halves)
        return grown
