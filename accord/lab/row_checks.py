"""What must hold for every row of `OBJECTIVES`, and random groups with whatever judgements a row reads.

Axes: P prompts, K responses per prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from accord.claims import Claim
from accord.groups import ScoredGroups, ScoredSteps, ScoredTokens, Votes
from accord.objectives import Need, ObjectiveSpec

OPTIMUM_TOLERANCE = 1e-5  # nats; L-BFGS in float64 ends near 1e-7


def random_groups(
    needs: AbstractSet[Need],
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
    if Need.GOLD in needs:
        grade_PK[:, 0], grade_PK[:, 2], is_valid_PK[:, 2] = 3, 1, True
    grade_gap_PKK = (grade_PK[:, :, None] - grade_PK[:, None, :]).to(dtype)
    is_judged_PK = uniform(0, 1) < 0.7
    is_judged_PK[:, :2] = True
    has_labels, has_ratings = Need.LABELS in needs, Need.RATINGS in needs
    groups = ScoredGroups(
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
    groups = replace(groups, **_further_judgements(groups, needs, grade_gap_PKK, generator))
    if needs & _OF_TOKENS:
        groups = with_tokens(groups, random_tokens(groups, needs, generator))
    if Need.BATCH in needs:
        groups = replace(groups, batch=groups, place_P=torch.arange(num_prompts))
    return groups


_OF_TOKENS = {
    Need.TOKENS, Need.TOKEN_WEIGHTS, Need.EDITS, Need.LOG_SUM_SQ, Need.POSITION_KL, Need.CRITICAL, Need.Q_VALUES,
}  # fmt: skip


def _further_judgements(
    groups: ScoredGroups, needs: AbstractSet[Need], grade_gap_PKK: Tensor, generator: torch.Generator
) -> dict[str, Any]:
    """Return what is drawn only for rows that read it, so that the others see the same groups as ever."""
    (num_prompts, num_responses), dtype = groups.num_tokens_PK.shape, groups.policy_logps_PK.dtype

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)

    more: dict[str, Any] = {}
    if Need.WIN_FRACTIONS in needs:
        more["win_frac_PKK"] = torch.sigmoid(grade_gap_PKK)
        more["is_compared_PKK"] = ~torch.eye(num_responses, dtype=torch.bool).expand_as(grade_gap_PKK)
    if Need.VOTES in needs:
        better = torch.tensor([0, 0, 1]).expand(num_prompts, 3)
        more["votes"] = Votes(
            better_PC=better,
            worse_PC=1 - better,
            judge_PC=torch.arange(3).expand(num_prompts, 3),
            is_valid_PC=torch.tensor([True, True, False]).expand(num_prompts, 3),
        )
    if Need.STRATA in needs:
        more["stratum_P"] = torch.arange(num_prompts) % 2
        more["stratum_frac_P"] = torch.where(more["stratum_P"] == 0, 0.25, 0.75).to(dtype)
    if Need.BEHAVIOUR in needs:
        more["behaviour_logps_PK"] = groups.policy_logps_PK + 2 * uniform(num_prompts, num_responses) - 1
    if Need.PROMPT_EMBEDDINGS in needs:
        more["prompt_embedding_PE"] = uniform(num_prompts, 5) - 0.5
    if Need.DRAWS in needs:
        more["draw_seed_P"] = torch.randint(2**31, (num_prompts,), generator=generator)
    if Need.SCORES in needs:
        more["score_PK"] = 4 * uniform(num_prompts, num_responses) - 2
    if Need.PAIR_SCORES in needs:
        more["pair_score_PKK"] = 4 * uniform(num_prompts, num_responses, num_responses) - 2
    if Need.OPPONENTS in needs:
        more["is_own_PK"] = uniform(num_prompts, num_responses) < 0.5
        more["is_own_PK"][:, 0], more["is_own_PK"][:, 1] = True, False
    if needs & {Need.STEP_SCORES, Need.STEP_LABELS}:
        shape = (num_prompts, num_responses, 3)
        is_labelled_PKS = uniform(*shape) < 0.7
        is_labelled_PKS[:, :, 0] = True
        more["steps"] = ScoredSteps(
            score_PKS=4 * uniform(*shape) - 2, is_right_PKS=uniform(*shape) < 0.5, is_labelled_PKS=is_labelled_PKS
        )
    return more


def random_tokens(groups: ScoredGroups, needs: AbstractSet[Need], generator: torch.Generator) -> ScoredTokens:
    """Return tokens whose counts are those of the groups, with every by-product that `needs` names."""
    width = int(groups.num_tokens_PK.max())
    shape, dtype = (*groups.num_tokens_PK.shape, width), groups.policy_logps_PK.dtype
    is_trained_PKT = torch.arange(width) < groups.num_tokens_PK[:, :, None]

    def uniform(low: float, high: float) -> Tensor:
        drawn = low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)
        return torch.where(is_trained_PKT, drawn, 0.0)

    tokens = ScoredTokens(
        policy_logps_PKT=uniform(-2.0, -0.1),
        reference_logps_PKT=uniform(-2.0, -0.1),
        is_trained_PKT=is_trained_PKT,
        weight_PKT=uniform(0.2, 1.5) if Need.TOKEN_WEIGHTS in needs else None,
        is_kept_PKT=is_trained_PKT & (uniform(0, 1) < 0.6) if Need.EDITS in needs else None,
        critical_PKT=uniform(0, 1) if Need.CRITICAL in needs else None,
        log_sum_sq_PKT=uniform(-2.0, -0.1) if Need.LOG_SUM_SQ in needs else None,
        position_kl_PKT=uniform(0, 1) if Need.POSITION_KL in needs else None,
    )
    if Need.Q_VALUES in needs:
        tokens = replace(
            tokens,
            value_PKT=uniform(-1, 1),
            q_PKT2=torch.stack([uniform(-1, 1), uniform(-1, 1)], dim=-1),
            q_logps_PKT2=torch.stack([uniform(-2.0, -0.1), uniform(-2.0, -0.1)], dim=-1),
            target_q_PKT=uniform(-1, 1),
        )
    if Need.ADVANTAGES not in needs:
        return tokens
    # near enough that some ratios lie inside a clip of 0.2 and some outside, on both sides
    old_PKT = torch.where(is_trained_PKT, tokens.policy_logps_PKT + uniform(-0.4, 0.4), 0.0)
    has_values = Need.VALUES in needs
    return replace(
        tokens,
        old_logps_PKT=old_PKT,
        advantage_PKT=uniform(-1.5, 1.5),
        sampler_logps_PKT=old_PKT + uniform(-0.3, 0.3) if Need.SAMPLER_LOGPS in needs else None,
        entropy_PKT=uniform(0, 2) if Need.ENTROPY in needs else None,
        value_PKT=uniform(-1, 1) if has_values else None,
        old_value_PKT=uniform(-1, 1) if has_values else None,
        return_PKT=uniform(-1, 1) if has_values else None,
    )


def with_tokens(groups: ScoredGroups, tokens: ScoredTokens) -> ScoredGroups:
    """Return groups with these tokens, their summed log-probabilities made to agree."""

    def summed(value_PKT: Tensor) -> Tensor:
        return torch.where(tokens.is_trained_PKT, value_PKT, 0.0).sum(dim=2)

    reference_PKT = tokens.reference_logps_PKT
    return replace(
        groups,
        tokens=tokens,
        policy_logps_PK=summed(tokens.policy_logps_PKT),
        reference_logps_PK=groups.reference_logps_PK if reference_PKT is None else summed(reference_PKT),
    )


def at_reference(groups: ScoredGroups) -> ScoredGroups:
    """Return groups whose reference agrees with the policy; a reward model's start is a head of zeros."""
    if groups.score_PK is not None or groups.pair_score_PKK is not None or groups.steps is not None:
        return with_leaves(groups, {name: torch.zeros_like(value) for name, value in leaves(groups).items()})
    if groups.tokens is None:
        still = replace(groups, reference_logps_PK=groups.policy_logps_PK)
    else:
        tokens, position_kl_PKT = groups.tokens, groups.tokens.position_kl_PKT
        still = with_tokens(
            groups,
            replace(
                tokens,
                reference_logps_PKT=tokens.policy_logps_PKT,
                position_kl_PKT=None if position_kl_PKT is None else torch.zeros_like(position_kl_PKT),
            ),
        )
    return still if still.batch is None else replace(still, batch=replace(still, batch=None, place_P=None))


# What the gradient is taken of --------------------------------------------------------------------------------------


def leaves(groups: ScoredGroups) -> dict[str, Tensor]:
    """Return the tensors that carry gradient: a reward model's scores, else tokens, else summed log-probabilities."""
    found: dict[str, Tensor | None] = {"score_PK": groups.score_PK, "pair_score_PKK": groups.pair_score_PKK}
    if groups.steps is not None:
        found["steps.score_PKS"] = groups.steps.score_PKS
    if all(value is None for value in found.values()):
        found = {"policy_logps_PK": groups.policy_logps_PK}
        if groups.tokens is not None:
            found = {"tokens.policy_logps_PKT": groups.tokens.policy_logps_PKT}
            for name in ("position_kl_PKT", "value_PKT", "entropy_PKT", "q_PKT2", "q_logps_PKT2"):
                found[f"tokens.{name}"] = getattr(groups.tokens, name)
    return {name: value for name, value in found.items() if value is not None}


def with_leaves(groups: ScoredGroups, values: dict[str, Tensor]) -> ScoredGroups:
    """Return groups with other values of their leaves; sums over tokens follow."""
    for name, value in values.items():
        record, _, inner = name.partition(".")
        changed: Any = replace(getattr(groups, record), **{inner: value}) if inner else value
        groups = with_tokens(groups, changed) if record == "tokens" else replace(groups, **{record: changed})
    return groups


def initial_loss_claims(spec: ObjectiveSpec) -> Iterator[Claim]:
    """Claim the loss that the row promises at policy = reference; nothing where it depends on the data."""
    if spec.initial_loss is None:
        return
    expected = spec.initial_loss(**spec.defaults())
    if expected is None:
        return
    groups = random_groups(spec.needs, seed=0)
    if spec.state is not None:
        groups = replace(groups, state=spec.state.start(num_judges=3, num_strata=2, **spec.defaults()))
    still = at_reference(groups)
    if groups.mismatched_kl is not None:
        still = replace(still, mismatched_kl=torch.zeros_like(groups.mismatched_kl))
    result = spec.fn(still)
    reached = (result.loss_P.sum() / result.denominators().sum()).item()
    yield Claim.equal("loss where policy = reference", expected=expected, reached=reached, tolerance=1e-12)


def gradient_claims(spec: ObjectiveSpec) -> Iterator[Claim]:
    """Compare autograd with central differences, entry by entry."""
    groups = random_groups(spec.needs | spec.reads, seed=1)
    if spec.state is not None:
        groups = replace(groups, state=spec.state.start(num_judges=3, num_strata=2, **spec.defaults()))
    names, tensors = zip(*leaves(groups).items(), strict=True)
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    constants = HeldConstants() if spec.has_stop_gradient else nullcontext()

    def total(values: Tensor) -> Tensor:
        parts = values.split([tensor.numel() for tensor in tensors])
        shaped = [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
        with constants:
            return spec.fn(with_leaves(groups, dict(zip(names, shaped, strict=True)))).loss_P.sum()

    point = flat.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(total(point), point)
    steps = 1e-5 * torch.eye(len(flat), dtype=flat.dtype)
    with torch.no_grad():
        differences = torch.stack([(total(flat + step) - total(flat - step)) / 2e-5 for step in steps])
    tolerance = 1e-6 * max(1.0, float(gradient.abs().max()))  # a difference of large losses is rounded accordingly
    yield equal_everywhere("gradient = finite differences", gradient, differences, tolerance=tolerance)


class HeldConstants(TorchFunctionMode):
    """Hold what a function detaches at its values of the first call.

    sg[x] means a number that happens to equal x: a finite difference must not move it, as autograd does not. Enter it
    around each call of one function, which detaches the same things in the same order.
    """

    def __init__(self) -> None:
        super().__init__()
        self._held: list[Tensor] = []
        self._place = 0

    def __enter__(self) -> HeldConstants:
        self._place = 0
        return super().__enter__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is not torch.Tensor.detach:
            return found
        if self._place == len(self._held):
            self._held.append(found)
        self._place += 1
        return self._held[self._place - 1]


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
