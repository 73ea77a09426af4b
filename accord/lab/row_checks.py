"""What must hold for every row of `OBJECTIVES`, and random groups with whatever judgements a row reads.

Axes: P prompts, K responses per prompt.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from accord.claims import Claim
from accord.groups import ScoredGroups
from accord.objectives import Need, ObjectiveSpec

OPTIMUM_TOLERANCE = 1e-5  # nats; L-BFGS in float64 ends near 1e-7


def random_groups(
    needs: Collection[Need],
    *,
    seed: int,
    num_prompts: int = 3,
    num_responses: int = 4,
    dtype: torch.dtype = torch.float64,
) -> ScoredGroups:
    """Return groups with ragged lengths, padding slots, ties and unjudged responses; the same for the same seed.

    Every group has at least two real responses and one judgement of each kind in `needs`.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (num_prompts, num_responses)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)

    num_tokens_PK = torch.randint(1, 12, shape, generator=generator)
    is_valid_PK = uniform(0, 1) < 0.8
    is_valid_PK[:, :2] = True
    policy_logps_PK = -num_tokens_PK * uniform(0.1, 2.0)
    grade_PK = torch.randint(0, 3, shape, generator=generator)
    grade_PK[:, 0], grade_PK[:, 1] = 2, 0
    grade_gap_PKK = (grade_PK[:, :, None] - grade_PK[:, None, :]).to(dtype)
    is_judged_PK = uniform(0, 1) < 0.7
    is_judged_PK[:, :2] = True
    has_labels, has_ratings = Need.LABELS in needs, Need.RATINGS in needs
    return ScoredGroups(
        policy_logps_PK=policy_logps_PK,
        reference_logps_PK=policy_logps_PK + uniform(-3.0, 3.0),
        num_tokens_PK=num_tokens_PK,
        is_valid_PK=is_valid_PK,
        preferred_PKK=grade_gap_PKK > 0 if Need.PREFERENCES in needs else None,
        strength_PKK=grade_gap_PKK.clamp(min=0) if Need.STRENGTHS in needs else None,
        desirable_PK=grade_PK > 0 if has_labels else None,
        is_labelled_PK=is_judged_PK if has_labels else None,
        reward_PK=grade_PK.to(dtype) if has_ratings else None,
        is_rated_PK=is_judged_PK if has_ratings else None,
        mismatched_kl=torch.tensor(0.3, dtype=dtype) if Need.MISMATCHED_KL in needs else None,
    )


def initial_loss_claims(spec: ObjectiveSpec) -> Iterator[Claim]:
    """Claim the loss that the row promises at policy = reference; nothing where it depends on the data."""
    if spec.initial_loss is None:
        return
    expected = spec.initial_loss(**spec.defaults())
    if expected is None:
        return
    groups = random_groups(spec.needs, seed=0)
    still = replace(groups, reference_logps_PK=groups.policy_logps_PK)
    if groups.mismatched_kl is not None:
        still = replace(still, mismatched_kl=torch.zeros_like(groups.mismatched_kl))
    result = spec.fn(still)
    reached = (result.loss_P.sum() / result.denominators().sum()).item()
    yield Claim.equal("loss where policy = reference", expected=expected, reached=reached, tolerance=1e-12)


def gradient_claims(spec: ObjectiveSpec) -> Iterator[Claim]:
    """Compare autograd with central differences, entry by entry."""
    groups = random_groups(spec.needs | spec.reads, seed=1)

    def total(logps_PK: Tensor) -> Tensor:
        return spec.fn(replace(groups, policy_logps_PK=logps_PK)).loss_P.sum()

    logps_PK = groups.policy_logps_PK.requires_grad_()
    (gradient_PK,) = torch.autograd.grad(total(logps_PK), logps_PK)
    steps = 1e-5 * torch.eye(logps_PK.numel(), dtype=logps_PK.dtype).reshape(-1, *logps_PK.shape)
    with torch.no_grad():
        differences = torch.stack([(total(logps_PK + step) - total(logps_PK - step)) / 2e-5 for step in steps])
    yield equal_everywhere(
        "gradient = finite differences", gradient_PK, differences.reshape(gradient_PK.shape), tolerance=1e-6
    )


def equal_everywhere(
    name: str, expected: Tensor, reached: Tensor, *, tolerance: float = OPTIMUM_TOLERANCE, note: str = ""
) -> Claim:
    """Claim that two tensors agree; expected and reached are shown where they differ most (or where one is NaN)."""
    assert expected.shape == reached.shape, "a claim compares like with like"
    gaps = (expected - reached).abs().flatten()
    worst = int(torch.where(gaps.isnan(), torch.inf, gaps).argmax())
    return Claim.equal(
        name,
        expected=expected.flatten()[worst].item(),
        reached=reached.flatten()[worst].item(),
        tolerance=tolerance,
        note=note,
    )
