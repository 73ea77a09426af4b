"""The base of every group of settings, and the kinds of number they hold."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, ConfigDict

Fraction = Annotated[float, Ge(0), Le(1)]
PositiveInt = Annotated[int, Gt(0)]
NonNegative = Annotated[float, Ge(0)]


class Section(BaseModel):
    """Base of every group of settings: nothing unknown, nothing changed after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
