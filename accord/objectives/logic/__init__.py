"""Losses as logic: formulas about a judged pair, the structures of known losses, and formulas compiled to losses."""

from accord.objectives.logic.compiled import ROWS as ROWS
