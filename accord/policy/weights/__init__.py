"""Arithmetic on weights: averages, extrapolations, merged adapters."""
