"""Every row learns a bandit whose best response is known, and the same bits come out twice."""

from dataclasses import replace

import pytest
import torch

from accord.groups import ScoredGroups, ScoredTokens, Votes
from accord.objectives import OBJECTIVES, Need, ObjectiveSpec
from accord.run.scored import OF_TOKENS

NUM_RESPONSES, BEST = 4, 2
STEPS, LEARNING_RATE = 150, 0.3
ENOUGH = 0.9  # probability of the best response at the end; it starts at 1/4


def judged_bandit(spec: ObjectiveSpec) -> ScoredGroups:
    """One prompt, four responses of equal length, the best of them judged so in every way the row can read."""
    is_best_PK = (torch.arange(NUM_RESPONSES) == BEST)[None]
    preferred_PKK = is_best_PK[:, :, None] & ~is_best_PK[:, None, :]
    read = spec.needs | spec.reads
    if Need.GOLD in read:  # the others are compared, too: the first of them is the second best
        preferred_PKK = (
            preferred_PKK | torch.ones(NUM_RESPONSES, NUM_RESPONSES).triu(1).bool() & ~is_best_PK[:, None, :]
        )
    uniform = torch.full((1, NUM_RESPONSES), 1 / NUM_RESPONSES, dtype=torch.float64).log()
    return ScoredGroups(
        policy_logps_PK=uniform,
        reference_logps_PK=uniform if spec.reference else None,  # a row that says it needs none gets none
        num_tokens_PK=torch.full((1, NUM_RESPONSES), 2),
        is_valid_PK=torch.ones(1, NUM_RESPONSES, dtype=torch.bool),
        preferred_PKK=preferred_PKK if Need.PREFERENCES in read else None,
        strength_PKK=preferred_PKK.double() if Need.STRENGTHS in read else None,
        desirable_PK=is_best_PK if Need.LABELS in read else None,
        is_labelled_PK=torch.ones_like(is_best_PK) if Need.LABELS in read else None,
        reward_PK=is_best_PK.double() if Need.RATINGS in read else None,
        is_rated_PK=torch.ones_like(is_best_PK) if Need.RATINGS in read else None,
        win_frac_PKK=0.5 + 0.5 * (preferred_PKK.double() - preferred_PKK.double().transpose(1, 2))
        if Need.WIN_FRACTIONS in read
        else None,
        is_compared_PKK=preferred_PKK | preferred_PKK.transpose(1, 2) if Need.WIN_FRACTIONS in read else None,
        votes=votes_for_the_best() if Need.VOTES in read else None,
        stratum_P=torch.zeros(1, dtype=torch.long) if Need.STRATA in read else None,
        stratum_frac_P=torch.ones(1, dtype=torch.float64) if Need.STRATA in read else None,
        is_own_PK=is_best_PK if Need.OPPONENTS in read else None,
    )


def votes_for_the_best() -> Votes:
    """One judge, who preferred the best response to each of the others."""
    others = torch.tensor([[index for index in range(NUM_RESPONSES) if index != BEST]])
    return Votes(
        better_PC=torch.full_like(others, BEST),
        worse_PC=others,
        judge_PC=torch.zeros_like(others),
        is_valid_PC=torch.ones_like(others, dtype=torch.bool),
    )


def in_two_tokens(logps_PK: torch.Tensor, reference_PK: torch.Tensor | None) -> ScoredTokens:
    """Each response as two equal halves that share nothing with the others'; both further models are undecided."""
    is_trained_PKT = torch.ones(1, NUM_RESPONSES, 2, dtype=torch.bool)
    halves_PKT = (logps_PK / 2)[..., None].expand_as(is_trained_PKT)
    halves_of_reference_PKT = None if reference_PK is None else (reference_PK / 2)[..., None].expand_as(is_trained_PKT)
    uniform_PK = torch.full_like(logps_PK, 1 / NUM_RESPONSES)
    kl = (uniform_PK * (uniform_PK.log() - logps_PK)).sum()
    return ScoredTokens(
        policy_logps_PKT=halves_PKT,
        reference_logps_PKT=halves_of_reference_PKT,
        is_trained_PKT=is_trained_PKT,
        weight_PKT=torch.ones_like(halves_PKT),
        is_kept_PKT=~is_trained_PKT,
        critical_PKT=torch.full_like(halves_PKT, 0.5),
        log_sum_sq_PKT=torch.logsumexp(2 * logps_PK, dim=1).detach().expand_as(is_trained_PKT) / 2,
        position_kl_PKT=kl.expand_as(is_trained_PKT) / 2,
        # heads that know nothing
        value_PKT=torch.zeros_like(halves_PKT),
        q_PKT2=torch.zeros(*halves_PKT.shape, 2, dtype=halves_PKT.dtype),
        q_logps_PKT2=torch.zeros(*halves_PKT.shape, 2, dtype=halves_PKT.dtype),
        target_q_PKT=torch.zeros_like(halves_PKT),
        # as sampled a moment ago: the reward of the best less the mean reward
        old_logps_PKT=halves_PKT.detach(),
        advantage_PKT=((torch.arange(NUM_RESPONSES) == BEST).double() - 1 / NUM_RESPONSES)[None, :, None].expand_as(
            is_trained_PKT
        ),
    )


def learn(spec: ObjectiveSpec) -> torch.Tensor:
    """Train one logit per response with Adam and return the log-probabilities."""
    groups = judged_bandit(spec)
    logits_PK = torch.zeros(1, NUM_RESPONSES, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([logits_PK], lr=LEARNING_RATE)
    state = spec.state.start(num_judges=1, num_strata=1, **spec.defaults()) if spec.state else None
    for step in range(STEPS):
        logps_PK = logits_PK.log_softmax(dim=-1)
        seeds = torch.tensor([step]) if Need.DRAWS in spec.needs else None
        scored = replace(groups, policy_logps_PK=logps_PK, draw_seed_P=seeds, state=state)
        if spec.needs & OF_TOKENS:
            scored = replace(scored, tokens=in_two_tokens(logps_PK, groups.reference_logps_PK))
        if Need.MISMATCHED_KL in spec.needs:
            kl = (logps_PK.exp() * scored.log_ratio_PK).sum().detach()
            scored = replace(scored, mismatched_kl=kl.clamp(min=0.0))
        if Need.BATCH in spec.needs:
            scored = replace(
                scored,
                batch=replace(scored, policy_logps_PK=logps_PK.detach()),
                place_P=torch.zeros(1, dtype=torch.long),
            )
        result = spec.fn(scored)
        if spec.state and result.state_sums:
            state = spec.state.advance(state, dict(result.state_sums), **spec.defaults())
        optimiser.zero_grad()
        (result.loss_P.sum() / result.denominators().sum()).backward()
        optimiser.step()
    return logits_PK.detach().log_softmax(dim=-1)[0]


@pytest.mark.parametrize("name", [name for name, spec in OBJECTIVES.items() if spec.family != "reward_model"])
def test_the_best_response_wins_and_twice_the_same(name):
    first, second = learn(OBJECTIVES[name]), learn(OBJECTIVES[name])
    assert (first[BEST].exp().item() > ENOUGH) == OBJECTIVES[name].learns_from_reference
    assert torch.equal(first, second)
