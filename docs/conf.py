"""Sphinx settings; `make docs` builds with warnings as errors."""

from __future__ import annotations

project = "Accord"
author = "the Accord contributors"
copyright = "Apache-2.0"
html_title = "Accord"

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
myst_heading_anchors = 3
