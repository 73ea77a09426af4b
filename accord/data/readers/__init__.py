"""Readers of the formats of the ecosystem and of Accord's own."""
