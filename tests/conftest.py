"""Puts this folder on the import path, so that tests share `tiny`; keeps the hub out of every test."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
