"""Every row learns a bandit whose best response is known, and the same bits come out twice."""

from dataclasses import replace

import pytest
import torch

from accord.groups import ScoredGroups
from accord.objectives import OBJECTIVES, Need, ObjectiveSpec

NUM_RESPONSES, BEST = 4, 2
STEPS, LEARNING_RATE = 150, 0.3
ENOUGH = 0.9  # probability of the best response at the end; it starts at 1/4


def judged_bandit(spec: ObjectiveSpec) -> ScoredGroups:
    """One prompt, four responses of equal length, the best of them judged so in every way the row can read."""
    is_best_PK = (torch.arange(NUM_RESPONSES) == BEST)[None]
    preferred_PKK = is_best_PK[:, :, None] & ~is_best_PK[:, None, :]
    read = spec.needs | spec.reads
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
    )


def learn(spec: ObjectiveSpec) -> torch.Tensor:
    """Train one logit per response with Adam and return the log-probabilities."""
    groups = judged_bandit(spec)
    logits_PK = torch.zeros(1, NUM_RESPONSES, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([logits_PK], lr=LEARNING_RATE)
    for _ in range(STEPS):
        logps_PK = logits_PK.log_softmax(dim=-1)
        scored = replace(groups, policy_logps_PK=logps_PK)
        if Need.MISMATCHED_KL in spec.needs:
            kl = (logps_PK.exp() * scored.log_ratio_PK).sum().detach()
            scored = replace(scored, mismatched_kl=kl.clamp(min=0.0))
        result = spec.fn(scored)
        optimiser.zero_grad()
        (result.loss_P.sum() / result.denominators().sum()).backward()
        optimiser.step()
    return logits_PK.detach().log_softmax(dim=-1)[0]


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_the_best_response_wins_and_twice_the_same(name):
    first, second = learn(OBJECTIVES[name]), learn(OBJECTIVES[name])
    assert first[BEST].exp().item() > ENOUGH
    assert torch.equal(first, second)
