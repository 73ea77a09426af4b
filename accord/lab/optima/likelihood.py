"""Claims of imitation: what the likelihood objectives reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from accord.claims import Claim
from accord.lab.enumerable import Policy, build_world, demonstrations, tree_at_reference
from accord.lab.optima._training import train
from accord.lab.row_checks import OPTIMUM_TOLERANCE, equal_everywhere
from accord.objectives import OBJECTIVES


def _sft_claims() -> Iterator[Claim]:
    world = build_world()
    data_frac_PK = (world.reward_PK + world.reference_logps_PK).softmax(dim=-1)

    def fitted(reduction: str) -> tuple[Policy, float]:
        policy = tree_at_reference(world)
        return policy, train(
            policy,
            lambda logps_PK: demonstrations(world, logps_PK, data_frac_PK),
            lambda groups: OBJECTIVES["sft"].fn(groups, reduction=reduction),
        )

    policy, loss = fitted("token")
    yield equal_everywhere("token mean reaches the data distribution", data_frac_PK.log(), policy.logps_PK())
    entropy = -(data_frac_PK * data_frac_PK.log()).sum()
    yield Claim.equal(
        "loss at the optimum = entropy per token of the data",
        expected=(entropy / (data_frac_PK * world.num_tokens_K).sum()).item(),
        reached=loss,
        tolerance=OPTIMUM_TOLERANCE,
    )
    policy, _ = fitted("sequence")
    tilted_PK = (data_frac_PK / world.num_tokens_K).log().log_softmax(dim=-1)
    yield equal_everywhere(
        "sequence mean reaches data/length", tilted_PK, policy.logps_PK(), note="it over-weights short responses"
    )


CLAIMS: dict[str, Callable[[], Iterator[Claim]]] = {"sft": _sft_claims}
