"""Responses token by token: the record that token-level objectives see, and what has to be computed for it."""
