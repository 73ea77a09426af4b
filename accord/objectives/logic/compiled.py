"""A user's own formula as a loss: the row `dpa_logic`. Axes: P prompts, K responses per prompt."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor

from accord.groups import ObjectiveResult, ScoredGroups
from accord.objectives._ops import judged_pairs, mean_over_pairs, soft_label_link, squared_link
from accord.objectives.logic.forms import Link
from accord.objectives.logic.structure import Structure
from accord.objectives.spec import Need, ObjectiveSpec

_MAX_LOGP = -1e-6  # nats: 1 − p of a probability closer to 1 than this is not resolved in float32


def dpa_logic(
    groups: ScoredGroups,
    *,
    formula: str = "M_l >> M_w",
    condition: str = "M_w | M_l",
    both: str = "False",
    link: Link = "logistic",
    normalisation: Literal["mean", "sum"] = "mean",
    beta: Annotated[float, Gt(0)] = 1.0,
) -> ObjectiveResult:
    """Learn from judged pairs by a loss compiled from a logical formula about them (DPA logic).

    Formula: ρ = log p((P ∨ PA) ∧ PC) − log p((¬P ∨ PA) ∧ PC) with P = `formula`, PC = `condition`, PA = `both`; the
    loss is −log σ(β ρ) ("logistic"), (ρ − 1/(2β))² ("squared") or max(0, β − ρ) ("hinge"). M_w, M_l, R_w, R_l hold with
    the probability of the better or worse response under policy or reference: exp(log π/|y|) ("mean") or exp(log π).
    Gradient: through ρ, by automatic differentiation of the weighted model counts in log space.
    Optimum: "logistic": ρ = logit(p)/β where raters prefer the first with probability p, if ρ changes sign with the
    order of the pair; a structure that entails another has nowhere the smaller loss.
    Use: to try a loss nobody has named, or to see what a named one says: `accord methods NAME --logic`.
    Limits: sums of log-probabilities make 1 − p so nearly 1 that structures which differ only there coincide; p is held
    below exp(−1e-6); four propositions, hence at most 16 rows of the truth table.
    Source: Richardson, Srikumar and Sabharwal 2024, arXiv:2412.17696, weighted model counting of preference structures.

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(torch.tensor([[0.3, 0.2]]).log(), reference_logps_P2=torch.tensor([[-1.0, -1.0]]))
    >>> round(dpa_logic(pair, formula="M_l >> M_w", condition="M_w | M_l", both="M_w & M_l").loss_P.item(), 6)  # a/b
    0.510826
    """
    structure = Structure(formula, condition, both)
    structure.check()
    pairs_PKK = judged_pairs(groups)
    policy_PK = _logps(groups, groups.policy_logps_PK, normalisation)
    sides: dict[str, Tensor] = {"M_w": policy_PK[:, :, None], "M_l": policy_PK[:, None, :]}
    if {"R_w", "R_l"} & set(structure.names):
        assert groups.reference_logps_PK is not None, "the row declares a reference"
        reference_PK = _logps(groups, groups.reference_logps_PK, normalisation)
        sides |= {"R_w": reference_PK[:, :, None], "R_l": reference_PK[:, None, :]}
    logps = {
        name: torch.where(pairs_PKK, value.expand(pairs_PKK.shape), -1.0).clamp(max=_MAX_LOGP)
        for name, value in sides.items()
    }
    log_odds_PKK = structure.log_odds(logps)
    match link:
        case "logistic":
            loss_PKK = soft_label_link(beta * log_odds_PKK)
        case "squared":
            loss_PKK = squared_link(log_odds_PKK, target=0.5 / beta)
        case "hinge":
            loss_PKK = (beta - log_odds_PKK).clamp(min=0)
    return mean_over_pairs(groups, pairs_PKK, loss_PKK, policy_PK)


def _logps(
    groups: ScoredGroups, logps_PK: Float[Tensor, "P K"], normalisation: Literal["mean", "sum"]
) -> Float[Tensor, "P K"]:
    valid_PK = torch.where(groups.is_valid_PK, logps_PK, 0.0)
    return valid_PK / groups.num_tokens_PK.clamp(min=1) if normalisation == "mean" else valid_PK


def _check(*, formula: str, condition: str, both: str, **_: object) -> None:
    Structure(formula, condition, both).check()


ROWS: dict[str, ObjectiveSpec] = {
    "dpa_logic": ObjectiveSpec(
        fn=dpa_logic,
        family="pairwise",
        needs=frozenset({Need.PREFERENCES}),
        reference=True,  # a formula may mention it
        check=_check,
        proof="identity",
        implicit_reward="log π(y|x)/|y|, or summed",
        paper="Richardson et al. 2024, arXiv:2412.17696",
    ),
}
