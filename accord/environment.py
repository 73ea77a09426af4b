"""What a result was made with: versions of everything that can change it, and the platform. Nothing is imported."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

VERSIONED = ("accord", "torch", "transformers", "tokenizers", "peft", "accelerate", "datasets", "numpy", "pyarrow")


def describe_environment() -> dict[str, Any]:
    """Return versions, read from package metadata, and platform, for the manifest of a run."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {"versions": versions, "platform": platform.platform(), "machine": platform.machine()}
