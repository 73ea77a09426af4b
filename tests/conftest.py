"""What every test shares: one thread for tiny models, and the real data where it lies beside the repository."""

from __future__ import annotations

import os
from pathlib import Path

import jaxtyping
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tiny models are slower with more
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


SHAPES_CHECKED = ("objectives", "properties", "policy", "rollouts", "run", "test_every_objective.py", "test_train.py")


@pytest.fixture(autouse=True)
def shapes_are_checked_where_rows_are_tested(request: pytest.FixtureRequest):
    """Every call of a row has its arrays' shapes checked there; elsewhere, again and again, that would say no more."""
    first = request.path.relative_to(Path(__file__).parent).parts[0]
    jaxtyping.config.update("jaxtyping_disable", first not in SHAPES_CHECKED)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the repository; tests that need it are skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real data sets are not there ({folder.name}/ beside the repository)")
    return folder
