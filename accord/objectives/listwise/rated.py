"""Objectives of K rated or compared responses: a target distribution from ratings, or win rates to regress on.

Axes: P prompts, K responses per prompt. Notation in formulas: u(y) = log π(y|x) − log π_ref(y|x), s = β u, q the
softmax of ratings over a temperature, sums over the rated responses of a group, nats throughout. A rating of one
response alone says nothing here: groups need two.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt
from jaxtyping import Bool, Float
from torch import Tensor

from accord.groups import ObjectiveResult, ScoredGroups
from accord.objectives._ops import given_ratings, group_losses, log_ratios, squared_link
from accord.objectives.spec import Need, ObjectiveSpec


def info_nca(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.01,
    alpha: Annotated[float, Gt(0)] = 1.0,
) -> ObjectiveResult:
    """Classify by softmax which response is best, with soft labels from the ratings (InfoNCA).

    Formula: −Σ_i q_i log softmax(s)_i, q = softmax(r/α), s = β u.
    Gradient: ∂/∂log π(y_i) = −β (q_i − softmax(s)_i). Loss log K at policy = reference.
    Optimum: s_i = log q_i + const = r_i/α + const; least value the entropy of q.
    Use: when responses carry ratings on a scale that means something; α small is `rnce` with the best-rated response.
    Limits: the constant is free, so all likelihoods may fall together (`nca` fixes it); equal ratings are a judgement
    too and pull the scores together; one rated response is not counted; K = 2 is DPO with a soft label. The paper's α
    is a temperature as here; the released code holds its inverse.
    Source: Chen et al. 2024, arXiv:2402.05369.

    >>> import torch
    >>> rated = ScoredGroups(
    ...     policy_logps_PK=torch.tensor([[1.0, 0.2, -0.5]]), reference_logps_PK=torch.zeros(1, 3),
    ...     num_tokens_PK=torch.ones(1, 3, dtype=torch.long), is_valid_PK=torch.ones(1, 3, dtype=torch.bool),
    ...     reward_PK=torch.tensor([[3.0, 1.0, 0.0]]), is_rated_PK=torch.ones(1, 3, dtype=torch.bool),
    ... )
    >>> round(info_nca(rated, beta=1.0).loss_P.item(), 6)  # 0.514295 + 0.8 q_1 + 1.5 q_2, q = softmax(3, 1, 0)
    0.668666
    """
    is_used_PK, log_target_PK = _targets(groups, alpha)
    implicit_reward_PK = beta * log_ratios(groups)
    loss_PK = -log_target_PK.exp() * _log_softmax(implicit_reward_PK, is_used_PK)
    return _sum_over_rated(groups, is_used_PK, loss_PK, implicit_reward_PK)


def nca(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.01,
    alpha: Annotated[float, Gt(0)] = 1.0,
) -> ObjectiveResult:
    """Tell each response from noise, in proportion to the soft labels of the ratings, in absolute terms (NCA).

    Formula: −Σ_i [q_i log σ(s_i) + (1/K) log σ(−s_i)], q = softmax(r/α), s = β u, K the rated responses of the group.
    Gradient: ∂/∂log π(y_i) = −β (q_i σ(−s_i) − σ(s_i)/K). Loss 2 log 2 at policy = reference.
    Optimum: e^(s_i) = K q_i, self-normalised: the mean of e^s is one.
    Use: when `info_nca` or DPO let the likelihood of good responses fall: a response with q_i > 1/K is raised for sure.
    Limits: a rating of all equal pulls every s to 0; one rated response is not counted; the pair form is `nca_pair`.
    Released settings use α near 0 (one-hot labels).
    Source: Chen et al. 2024, arXiv:2402.05369.

    >>> import torch
    >>> rated = ScoredGroups(
    ...     policy_logps_PK=torch.tensor([[1.0, 0.2, -0.5]]), reference_logps_PK=torch.zeros(1, 3),
    ...     num_tokens_PK=torch.ones(1, 3, dtype=torch.long), is_valid_PK=torch.ones(1, 3, dtype=torch.bool),
    ...     reward_PK=torch.tensor([[3.0, 1.0, 0.0]]), is_rated_PK=torch.ones(1, 3, dtype=torch.bool),
    ... )
    >>> round(nca(rated, beta=1.0).loss_P.item(), 6)  # Σ q_i log(1 + e^−s_i) + (1/3) Σ log(1 + e^s_i)
    1.23538
    """
    is_used_PK, log_target_PK = _targets(groups, alpha)
    implicit_reward_PK = beta * log_ratios(groups)
    noise_P1 = 1.0 / is_used_PK.to(log_target_PK.dtype).sum(dim=1, keepdim=True).clamp(min=1)
    loss_PK = -log_target_PK.exp() * F.logsigmoid(implicit_reward_PK) - noise_P1 * F.logsigmoid(-implicit_reward_PK)
    return _sum_over_rated(groups, is_used_PK, loss_PK, implicit_reward_PK)


def exo_rw(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    reward_temperature: Annotated[float, Gt(0)] = 0.1,
) -> ObjectiveResult:
    """Bring the softmax of implicit rewards to that of the ratings by the reverse KL, which seeks modes (EXO).

    Formula: KL(softmax(s) ‖ q), s = β u, q = softmax(r/`reward_temperature`).
    Gradient: ∂/∂log π(y_i) = β p_i (log(p_i/q_i) − KL), p = softmax(s).
    Optimum: softmax(s) = q, value 0; so u = r/(β · reward_temperature) + const.
    Use: with ratings, where the policy cannot match all of q and should rather be right about the best.
    Limits: the gradient vanishes where p_i is 0, so a good response that the policy has given up stays lost (`dpo_rw`,
    the forward KL, does not); equal ratings pull the scores together; one rated response is not counted.
    Source: Ji et al. 2024, arXiv:2402.00856.

    >>> import torch
    >>> rated = ScoredGroups(
    ...     policy_logps_PK=torch.tensor([[1.0, 0.2, -0.5]]), reference_logps_PK=torch.zeros(1, 3),
    ...     num_tokens_PK=torch.ones(1, 3, dtype=torch.long), is_valid_PK=torch.ones(1, 3, dtype=torch.bool),
    ...     reward_PK=torch.tensor([[3.0, 1.0, 0.0]]), is_rated_PK=torch.ones(1, 3, dtype=torch.bool),
    ... )
    >>> round(exo_rw(rated, beta=1.0, reward_temperature=1.0).loss_P.item(), 6)  # Σ p log(p/q)
    0.178069
    """
    is_used_PK, log_target_PK = _targets(groups, reward_temperature)
    implicit_reward_PK = beta * log_ratios(groups)
    log_share_PK = _log_softmax(implicit_reward_PK, is_used_PK)
    loss_PK = log_share_PK.exp() * (log_share_PK - log_target_PK)
    return _sum_over_rated(groups, is_used_PK, loss_PK, implicit_reward_PK)


def dpo_rw(
    groups: ScoredGroups,
    *,
    beta: Annotated[float, Gt(0)] = 0.1,
    reward_temperature: Annotated[float, Gt(0)] = 0.1,
) -> ObjectiveResult:
    """Bring the softmax of implicit rewards to that of the ratings by the forward KL, as DPO does for pairs (DPO-rw).

    Formula: KL(q ‖ softmax(s)), s = β u, q = softmax(r/`reward_temperature`): `info_nca` less the entropy of q.
    Gradient: ∂/∂log π(y_i) = −β (q_i − softmax(s)_i).
    Optimum: softmax(s) = q, value 0; so u = r/(β · reward_temperature) + const.
    Use: beside `exo_rw`, whose target it shares: covers all of q where that seeks its modes.
    Limits: as `info_nca`: the level of s is free; equal ratings pull the scores together; one rated response is not
    counted.
    Source: the baseline of Ji et al. 2024, arXiv:2402.00856.

    >>> import torch
    >>> rated = ScoredGroups(
    ...     policy_logps_PK=torch.tensor([[1.0, 0.2]]), reference_logps_PK=torch.zeros(1, 2),
    ...     num_tokens_PK=torch.ones(1, 2, dtype=torch.long), is_valid_PK=torch.ones(1, 2, dtype=torch.bool),
    ...     reward_PK=torch.tensor([[1.0, 0.2]]), is_rated_PK=torch.ones(1, 2, dtype=torch.bool),
    ... )
    >>> dpo_rw(rated, beta=1.0, reward_temperature=1.0).loss_P.item()  # s = r: the shares agree
    0.0
    """
    is_used_PK, log_target_PK = _targets(groups, reward_temperature)
    implicit_reward_PK = beta * log_ratios(groups)
    loss_PK = log_target_PK.exp() * (log_target_PK - _log_softmax(implicit_reward_PK, is_used_PK))
    return _sum_over_rated(groups, is_used_PK, loss_PK, implicit_reward_PK)


def sppo(groups: ScoredGroups, *, eta: Annotated[float, Gt(0)] = 10.0) -> ObjectiveResult:
    """Regress each log-ratio on how often the response beats the others of its group (SPPO).

    Formula: Σ_i (u_i − η (P_i − 1/2))², P_i the mean, over the responses it was compared with, of the fraction of
    judges who prefer it.
    Gradient: ∂/∂log π(y_i) = 2 (u_i − η (P_i − 1/2)).
    Optimum: u_i = η (P_i − 1/2) where the policy can satisfy all at once, that is Σ π_ref e^u = 1 permits; over all
    responses of a normalised policy, u_i − η (P_i − 1/2) is proportional to π(y_i).
    Use: for self-play rounds with a preference model that need not be transitive; the reference is the round's start.
    Limits: takes win fractions, made from several judges' comparisons and rankings, or 0, 1/2, 1 from ratings; a tie is
    1/2; a response nobody compared takes no part, and P_i leaves out the response itself, so that a hard pair has P = 1
    and 0 as in `sppo_hard`; the published runs use η = 1000 with small steps; log Z is taken as η/2; a sum over
    responses, so larger groups weigh more.
    Source: Wu et al. 2024, arXiv:2405.00675.

    >>> import torch
    >>> pair = ScoredGroups(
    ...     policy_logps_PK=torch.tensor([[-12.0, -15.0]]), reference_logps_PK=torch.tensor([[-13.0, -14.5]]),
    ...     num_tokens_PK=torch.tensor([[10, 12]]), is_valid_PK=torch.ones(1, 2, dtype=torch.bool),
    ...     win_frac_PKK=torch.tensor([[[0.5, 1.0], [0.0, 0.5]]]),
    ...     is_compared_PKK=torch.tensor([[[False, True], [True, False]]]),
    ... )
    >>> sppo(pair, eta=10.0).loss_P.item()  # (1 − 5)² + (−0.5 + 5)²
    36.25
    """
    assert groups.win_frac_PKK is not None, "the spec declares that sppo needs win fractions"
    assert groups.is_compared_PKK is not None, "the spec declares that sppo needs win fractions"
    is_valid_PK, log_ratio_PK = groups.is_valid_PK, log_ratios(groups)
    is_used_PKK = groups.is_compared_PKK & is_valid_PK[:, :, None] & is_valid_PK[:, None, :]
    num_others_PK = is_used_PKK.sum(dim=2)
    win_frac_PK = torch.where(is_used_PKK, groups.win_frac_PKK, 0.0).sum(dim=2) / num_others_PK.clamp(min=1)
    loss_PK = squared_link(log_ratio_PK, eta * (win_frac_PK - 0.5))
    is_used_PK = num_others_PK > 0
    loss_P = torch.where(is_used_PK, loss_PK, 0.0).sum(dim=1)
    return group_losses(groups, is_used_PK.any(dim=1), loss_P, log_ratio_PK)


# Parts ---------------------------------------------------------------------------------------------------------------


def _targets(groups: ScoredGroups, temperature: float) -> tuple[Bool[Tensor, "P K"], Float[Tensor, "P K"]]:
    """Return the rated responses of groups that have two of them, and the log-softmax of ratings over a temperature."""
    is_rated_PK, reward_PK = given_ratings(groups)
    is_used_PK = is_rated_PK & (is_rated_PK.sum(dim=1, keepdim=True) > 1)
    return is_used_PK, _log_softmax(reward_PK / temperature, is_used_PK)


def _log_softmax(score_PK: Float[Tensor, "P K"], is_used_PK: Bool[Tensor, "P K"]) -> Float[Tensor, "P K"]:
    """Return the log-softmax over the used responses; some finite number in the other slots."""
    lowest = torch.finfo(score_PK.dtype).min / 4  # its share is exactly 0, and differences of two stay finite
    return torch.where(is_used_PK, score_PK, lowest).log_softmax(dim=1)


def _sum_over_rated(
    groups: ScoredGroups, is_used_PK: Bool[Tensor, "P K"], loss_PK: Float[Tensor, "P K"],
    implicit_reward_PK: Float[Tensor, "P K"],
) -> ObjectiveResult:  # fmt: skip
    loss_P = torch.where(is_used_PK, loss_PK, 0.0).sum(dim=1)
    return group_losses(groups, is_used_PK.any(dim=1), loss_P, implicit_reward_PK)


ROWS: dict[str, ObjectiveSpec] = {
    "info_nca": ObjectiveSpec(
        fn=info_nca,
        family="listwise",
        needs=frozenset({Need.RATINGS}),
        reference=True,
        is_difference_only=True,
        proof="optimum",
        implicit_reward="β·log(π/π_ref)",
        paper="Chen et al. 2024, arXiv:2402.05369",
    ),
    "nca": ObjectiveSpec(
        fn=nca,
        family="listwise",
        needs=frozenset({Need.RATINGS}),
        reference=True,
        initial_loss=lambda **_: 2 * math.log(2.0),
        proof="optimum",
        implicit_reward="β·log(π/π_ref)",
        paper="Chen et al. 2024, arXiv:2402.05369",
    ),
    "exo_rw": ObjectiveSpec(
        fn=exo_rw,
        family="listwise",
        needs=frozenset({Need.RATINGS}),
        reference=True,
        is_difference_only=True,
        proof="optimum",
        implicit_reward="β·log(π/π_ref)",
        paper="Ji et al. 2024, arXiv:2402.00856",
    ),
    "dpo_rw": ObjectiveSpec(
        fn=dpo_rw,
        family="listwise",
        needs=frozenset({Need.RATINGS}),
        reference=True,
        is_difference_only=True,
        proof="optimum",
        implicit_reward="β·log(π/π_ref)",
        paper="Ji et al. 2024, arXiv:2402.00856",
    ),
    "sppo": ObjectiveSpec(
        fn=sppo,
        family="listwise",
        needs=frozenset({Need.WIN_FRACTIONS}),
        reference=True,
        proof="optimum",
        implicit_reward="log(π/π_ref)",
        paper="Wu et al. 2024, arXiv:2405.00675",
    ),
}
