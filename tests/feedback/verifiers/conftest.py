"""Worker processes that a test started end with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from accord.feedback.verifiers import close_workers


@pytest.fixture(scope="session", autouse=True)
def no_workers_left() -> Iterator[None]:
    """End the workers of `math` after the last test."""
    yield
    close_workers()
