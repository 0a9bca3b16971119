"""What a table promises, over a plain dictionary: the oracle of the fast one. Slow and short on purpose."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from mainstem.weights.family import Adagrad, Family, RowwiseAdagrad

WORD = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
LOOKS = 8


def mix(x: int) -> int:
    """splitmix64's finaliser."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    return x ^ (x >> 31)


def first_values(key: int, seed: int, scale: float, dim: int) -> np.ndarray:
    """A new row: uniform in (-scale, scale)."""
    state = mix(key ^ mix((seed + GOLDEN) & WORD))
    units = [(mix((state + (c + 1) * GOLDEN) & WORD) >> 40) / 2**24 for c in range(dim)]
    return np.array([(2 * unit - 1) * scale for unit in units], np.float32)


def chance(key: int, seed: int, number: int) -> float:
    """The draw of admission."""
    salt = (mix(mix(seed ^ 0x5851F42D4C957F2D) + number & WORD)) & WORD
    return (mix(key ^ salt) >> 11) / 2**53


@dataclass
class Row:
    values: np.ndarray
    family: int
    seen: int = 0
    squares: np.ndarray = field(default_factory=lambda: np.zeros(1))


class OracleTable:
    """key -> Row, with the rules of admission, expiry and capacity. Times in ms; sights are counted exactly."""

    def __init__(self, dim: int, families: tuple[Family, ...], seed: int, cells: int) -> None:
        self.dim, self.families, self.seed, self.window = dim, families, seed, cells // 2
        self.rows: dict[int, Row] = {}
        self.sights: dict[int, int] = {}
        self.counted = self.draws = 0
        self.hands = [0] * (1 + len(families))
        self.touched: set[int] = set()
        self.gone: set[int] = set()

    def find_or_create(self, keys: list[int], family: int, time: int, sights: list[int]) -> None:
        rule, now = self.families[family], time // 1000
        named = {key for key in keys if key in self.rows}
        for key in named:
            self.rows[key].seen = max(self.rows[key].seen, now)
        fresh: dict[int, int] = {}
        for key, times in zip(keys, sights, strict=True):
            if key and key not in self.rows:
                fresh[key] = fresh.get(key, 0) + times
        if not fresh:
            return
        admitted = self._admitted(fresh, rule)
        while rule.capacity is not None and admitted:
            held = sum(row.family == family for row in self.rows.values())
            if held + len(admitted) <= rule.capacity:
                break
            if not self._evict(family, named):
                admitted = admitted[: max(0, rule.capacity - held)]
        for key in admitted:
            self.rows[key] = Row(first_values(key, self.seed, rule.scale, self.dim), family, now)
            self.touched.add(key)

    def _admitted(self, fresh: dict[int, int], rule: Family) -> list[int]:
        earning = dict(fresh)
        if rule.admit_after > 1:
            for key, times in fresh.items():
                before = self.sights.get(key, 0)
                earning[key] = len([s for s in range(before + 1, before + times + 1) if s >= rule.admit_after])
                self.sights[key] = min(255, before + times)
                self.counted += times
                while self.counted >= self.window:
                    self.counted -= self.window
                    self.sights = {seen: count // 2 for seen, count in self.sights.items()}
        if rule.admit_probability == 1:
            return [key for key in fresh if earning[key]]
        self.draws += 1
        p = rule.admit_probability
        return [key for key in fresh if chance(key, self.seed, self.draws) < 1 - (1 - p) ** earning[key]]

    def _next(self, hand: int, most: int, wanted: list[int]) -> list[int]:
        """The next keys of `wanted` in the order of their mixed bits, at most one round."""
        order = sorted(wanted, key=lambda key: (mix(key) < self.hands[hand], mix(key)))[:most]
        if order:
            self.hands[hand] = (mix(order[-1]) + 1) & WORD
        return order

    def _evict(self, family: int, named: set[int]) -> bool:
        wanted = [key for key, row in self.rows.items() if row.family == family and key not in named]
        looked = self._next(1 + family, LOOKS, wanted)
        if looked:
            self.delete([min(looked, key=lambda key: self.rows[key].seen)])
        return bool(looked)

    def delete(self, keys: list[int]) -> int:
        held = {key for key in keys if key in self.rows}
        for key in held:
            del self.rows[key]
            self.touched.discard(key)
        self.gone |= held
        return len(held)

    def sweep(self, time: int, most: int) -> int:
        expired = []
        for key in self._next(0, most, list(self.rows)):
            row = self.rows[key]
            row.seen = row.seen or time // 1000
            expire = self.families[row.family].expire
            if expire is not None and time // 1000 - row.seen > math.ceil(expire / 1000):
                expired.append(key)
        return self.delete(expired)

    def write(self, keys: list[int], values: np.ndarray, family: int) -> None:
        for key, row in zip(keys, values, strict=True):
            self.rows.setdefault(key, Row(row, family)).values = row.copy()
            self.touched.add(key)

    def update(self, keys: list[int], gradients: np.ndarray, rate: float) -> None:
        summed: dict[int, np.ndarray] = {}
        for key, gradient in zip(keys, gradients, strict=True):
            if key in self.rows:
                summed[key] = summed.get(key, 0) + gradient
        for key, gradient in summed.items():
            row = self.rows[key]
            optimizer = self.families[row.family].optimizer
            assert isinstance(optimizer, RowwiseAdagrad | Adagrad)
            square = gradient**2 if isinstance(optimizer, Adagrad) else (gradient**2).mean()
            row.squares = row.squares + square
            row.values = row.values - rate * gradient / (np.sqrt(row.squares) + optimizer.epsilon)
            self.touched.add(key)

    def take_changes(self) -> tuple[list[int], list[int]]:
        touched, deleted = sorted(self.touched), sorted(self.gone - self.rows.keys())
        self.touched, self.gone = set(), set()
        return touched, deleted
