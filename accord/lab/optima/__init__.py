"""Every objective against its theory: trained in the enumerable world, compared with the closed form it should reach.

Where no closed form exists the claim is the property that replaces it, with the reason in its note. One file per
family, each with a dict `CLAIMS` from row to the generator of its own claims.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from accord.claims import Claim
from accord.lab.optima import (
    batchwise,
    combined,
    implicit_q,
    likelihood,
    listwise,
    logic,
    pairwise,
    pairwise_links,
    pointwise,
    policy_gradient,
    policy_gradient_online,
    reference_free,
    references,
    reward_model,
    robust,
    sampled,
    token_level,
)
from accord.lab.row_checks import gradient_claims, initial_loss_claims
from accord.objectives import OBJECTIVES

CLAIMS: dict[str, Callable[[], Iterator[Claim]]] = {
    **likelihood.CLAIMS,
    **pairwise.CLAIMS,
    **pairwise_links.CLAIMS,
    **reference_free.CLAIMS,
    **batchwise.CLAIMS,
    **pointwise.CLAIMS,
    **listwise.CLAIMS,
    **sampled.CLAIMS,
    **reward_model.CLAIMS,
    **robust.CLAIMS,
    **token_level.CLAIMS,
    **implicit_q.CLAIMS,
    **policy_gradient.CLAIMS,
    **policy_gradient_online.CLAIMS,
    **logic.CLAIMS,
}

OUTER: dict[str, Callable[[], Iterator[Claim]]] = {
    **combined.CLAIMS,
    **references.CLAIMS,
    **policy_gradient_online.OUTER,
}
"""Claims of what is no row: subject → generator."""


def objective_claims() -> list[Claim]:
    """Return the claims of every row of `OBJECTIVES`, in its order, then those of what is around a row."""
    return [*(claim for name in OBJECTIVES for claim in claims_of(name)), *outer_claims()]


def outer_claims() -> list[Claim]:
    """Return the claims of sums, references that move, outer loops and soups; each name starts with its subject."""
    return [replace(claim, name=f"{name}: {claim.name}") for name, claims in OUTER.items() for claim in claims()]


def claims_of(name: str) -> list[Claim]:
    """Return the claims of one row; each name starts with the row's."""
    spec = OBJECTIVES[name]
    claims = [*initial_loss_claims(spec), *gradient_claims(spec), *CLAIMS[name]()]
    return [replace(claim, name=f"{name}: {claim.name}") for claim in claims]
