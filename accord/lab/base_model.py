"""Where the text world's base model is: the folder shipped with the package."""

from __future__ import annotations

from pathlib import Path


def base_model_folder() -> Path:
    """Return the folder of the shipped base model, in Hugging Face format."""
    return Path(__file__).parent / "base"
