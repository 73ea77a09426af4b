"""Claims of objectives of single labelled responses."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from accord.claims import Claim
from accord.lab.enumerable import build_world, labels, tree_at_reference
from accord.lab.optima._training import BETA, descend
from accord.lab.row_checks import equal_everywhere
from accord.objectives import OBJECTIVES


def _kto_claims() -> Iterator[Claim]:
    world = build_world(num_prompts=3)
    weights = {"desirable_weight": 1.0, "undesirable_weight": 1.5}
    up_frac_PK = world.desirable_frac_PK
    pull_PK = 1.5 * (1 - up_frac_PK) - up_frac_PK  # λ_U (1 − p) − λ_D p: positive lowers the response

    def loss(logps_PK: Tensor) -> Tensor:
        kl = (logps_PK.exp() * (logps_PK - world.reference_logps_PK)).sum(dim=1).mean().detach()
        population = labels(world, logps_PK, kl.clamp(min=0.0))
        return population.mean(OBJECTIVES["kto"].fn(population.groups, beta=BETA, **weights))

    start_PK = world.reference_logps_PK.clone().requires_grad_()
    (gradient_PK,) = torch.autograd.grad(loss(start_PK), start_PK)
    yield equal_everywhere(
        "first step: each response moves with β/4 (λ_D p − λ_U (1 − p))",
        BETA / 4 * pull_PK / pull_PK.numel(),
        gradient_PK,
        tolerance=1e-9,
    )
    policy = tree_at_reference(world)
    descend(policy, loss)
    note = "the loss is bounded and each term is monotone in u, so no finite optimum exists"
    yield Claim.at_least(
        "loss stays above mean min(λ_D p, λ_U (1 − p))",
        bound=torch.minimum(up_frac_PK, 1.5 * (1 - up_frac_PK)).mean().item(),
        reached=loss(policy.logps_PK()).item(),
        note=note,
    )
    gained_PK = policy.logps_PK().exp() - world.reference_logps_PK.exp()
    gain = torch.where(pull_PK < 0, gained_PK, 0.0).sum(dim=1).mean().item()
    yield Claim.at_least("responses with λ_D p > λ_U (1 − p) gain probability", bound=0.1, reached=gain, note=note)


CLAIMS: dict[str, Callable[[], Iterator[Claim]]] = {"kto": _kto_claims}
