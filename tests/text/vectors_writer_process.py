"""Puts vectors into a file until it is killed, saying before each write what it is about to write."""

import sys
from pathlib import Path

import numpy as np

from mainstem.text.vectors import VectorFile

DIM = 2000


def vector(key: int) -> np.ndarray:
    return np.full(DIM, key % 1000, np.float32)


if __name__ == "__main__":
    file = VectorFile(Path(sys.argv[1]), DIM, "v1")
    key = len(file)
    while True:
        keys = np.arange(key + 1, key + 51, dtype=np.uint64)
        file.put(keys, np.array([vector(one) for one in keys.tolist()]))
        key += 50
        print(key, flush=True)
