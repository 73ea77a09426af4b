"""Claims of weighted sums of objectives."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from accord.claims import Claim
from accord.lab.enumerable import build_world, comparisons, tree_at_reference
from accord.lab.optima._training import BETA, chain_differences, chain_rater_frac, log_ratio, train
from accord.lab.row_checks import equal_everywhere, gradient_claims, random_groups
from accord.objectives import OBJECTIVES, Need
from accord.objectives.combined import weighted_sum


def _sum_claims() -> Iterator[Claim]:
    groups = random_groups({Need.PREFERENCES}, seed=11)
    base = (1.0, {"beta": BETA})
    for mean, row in (("mean", "rpo_irpo"), ("sum", "rpo_reg")):
        spec = weighted_sum({"dpo": base, "chosen_nll": (0.3, {"normalisation": mean})})
        yield equal_everywhere(
            f"dpo + α chosen_nll ({mean}) = {row}",
            OBJECTIVES[row].fn(groups, beta=BETA, nll_weight=0.3).loss_P,
            spec.fn(groups).loss_P,
            tolerance=1e-12,
        )
    yield from gradient_claims(spec)
    world = build_world(bradley_terry=False)
    policy = tree_at_reference(world)
    spec = weighted_sum({"ipo_sum": (1.0, {"tau": 0.5}), "ipo": (3.0, {"tau": 1.0})})
    train(policy, lambda logps_PK: comparisons(world, logps_PK, world.chain()), spec.fn)
    # Σ w (D ∓ 1/(2τ))² under raters is least at (2p − 1) × the weighted mean of the targets 1/(2τ)
    yield equal_everywhere(
        "ipo at two τ: D = (2p − 1) × the weighted mean of the targets",
        (2 * chain_rater_frac(world) - 1) * (1.0 / (2 * 0.5) + 3.0 / (2 * 1.0)) / 4.0,
        chain_differences(log_ratio(world, policy)),
    )


CLAIMS: dict[str, Callable[[], Iterator[Claim]]] = {"sum": _sum_claims}
