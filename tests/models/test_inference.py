"""Every attention site of 24 model types is rewritten, and the numbers obey the exactness rule, padding included."""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import flex_inductor


def support(name: str):
    """A helper module beside this file (pytest imports by path, so there is no package)."""
    key = f"models_{name}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, Path(__file__).with_name(f"{name}.py"))
        sys.modules[key] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[key]
