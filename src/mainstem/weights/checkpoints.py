"""The state of a training run as arrays and JSON: no pickle, so a checkpoint can be read but never runs code.

A checkpoint is a snapshot (of a line of its own, say `main-training`) whose tensors hold what `flatten` took
out of optimizers and random generators, and whose extras hold the rest:

    arrays, tree = flatten({"step": 40, "optimizer": optimizer.state_dict(), "random": random_states(generator)})
    snapshots.save("main-training", arrays, {"rows": table}, SnapshotMeta(extras={"state": tree}))
    ...
    state = unflatten(snapshot.tensors, snapshot.manifest.extras["state"])
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mainstem.schema.errors import StoreError
from mainstem.weights.table import Arrays

__all__ = ["flatten", "random_states", "restore_random", "unflatten"]

_SMALL = 1 << 53  # ints beyond this, like the state of a generator, travel as text


def flatten(state: Any, prefix: str = "state") -> tuple[dict[str, NDArray[Any]], Any]:
    """Nested dicts (keys int or str), lists, tuples, numbers, texts, None, arrays and tensors -> (arrays, JSON tree).

    Exact: `unflatten` gives equal values of the same types. Raises TypeError naming the path of anything else.
    """
    arrays: dict[str, NDArray[Any]] = {}
    return arrays, _pack(state, prefix, arrays)


def unflatten(arrays: Arrays, tree: Any) -> Any:
    """Inverse of `flatten`. Raises StoreError where the tree does not fit the arrays."""
    try:
        return _unpack(tree, arrays)
    except (KeyError, ValueError, TypeError) as error:
        raise StoreError(f"a checkpoint's tree does not fit its arrays: {error!r}") from error


def random_states(generator: np.random.Generator | None = None) -> dict[str, Any]:
    """The states of Python's, torch's and one numpy generator, for `flatten`; the GPU's too where one was used."""
    states: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states["cuda"] = torch.cuda.get_rng_state()
    if generator is not None:
        states["numpy"] = dict(generator.bit_generator.state)
    return states


def restore_random(states: Mapping[str, Any], generator: np.random.Generator | None = None) -> None:
    """Set the generators back to what `random_states` saw. Raises StoreError where `generator`'s state is missing."""
    if (generator is not None) != ("numpy" in states):
        raise StoreError("the checkpoint holds a numpy generator's state and none was passed, or the reverse")
    random.setstate(states["python"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    if generator is not None:
        generator.bit_generator.state = states["numpy"]


def _pack(value: Any, path: str, arrays: dict[str, NDArray[Any]]) -> Any:
    # bool before int: True is an int
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return value if abs(value) < _SMALL else {"int": str(value)}
    if isinstance(value, float):
        return {"float": repr(value)} if not math.isfinite(value) or value.is_integer() else float(value)
    if isinstance(value, torch.Tensor):
        return {"tensor": _keep(value.detach().cpu().numpy(), path, arrays)}
    if isinstance(value, np.ndarray):
        return {"array": _keep(value, path, arrays)}
    if isinstance(value, Mapping):
        pairs = []
        for key, item in value.items():
            if isinstance(key, bool) or not isinstance(key, int | str):
                raise TypeError(f"{path}: a key must be int or str, not {key!r}")
            pairs.append([key, _pack(item, f"{path}.{key}", arrays)])
        return {"dict": pairs}
    if isinstance(value, list | tuple):
        items = [_pack(item, f"{path}.{i}", arrays) for i, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    raise TypeError(f"{path}: a checkpoint cannot hold a {type(value).__name__}")


def _keep(array: NDArray[Any], path: str, arrays: dict[str, NDArray[Any]]) -> str:
    name = f"{path}#{len(arrays)}"  # numbered: a key may hold dots, so paths alone could meet
    arrays[name] = array.copy()
    return name


def _unpack(tree: Any, arrays: Arrays) -> Any:
    if isinstance(tree, list):
        return [_unpack(item, arrays) for item in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, body),) = tree.items()
    if kind == "dict":
        return {key: _unpack(item, arrays) for key, item in body}
    if kind == "tuple":
        return tuple(_unpack(item, arrays) for item in body)
    if kind == "int":
        return int(body)
    if kind == "float":
        return float(body)
    if kind == "array":
        return np.array(arrays[body])
    if kind == "tensor":
        return torch.from_numpy(np.array(arrays[body]))
    raise ValueError(f"unknown kind {kind!r}")
