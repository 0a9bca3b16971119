"""Mainstem: one log, one model, every canvas. Start reading at `mainstem.loop`."""

__version__ = "0.1.0"
