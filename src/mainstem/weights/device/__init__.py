"""The collisionless table on an accelerator: `DeviceTable` (docs/tables.md, "On a GPU")."""

from mainstem.weights.device.table import DeviceTable

__all__ = ["DeviceTable"]
