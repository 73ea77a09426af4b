"""What a rollout's rewards are worth, token by token: pure functions of a `RolloutBatch`, one row each.

An estimator is `fn(batch, *, setting=default, …) -> Advantages`. Settings, bounds and defaults are read off the
signature, as for objectives.
"""

from accord.objectives.advantages import baselines, returns
from accord.objectives.advantages.rewards import advance_entropy_coef, advance_kl_coef
from accord.objectives.advantages.spec import AdvantageSpec, RolloutState

__all__ = ["ADVANTAGES", "AdvantageSpec", "RolloutState", "advance_entropy_coef", "advance_kl_coef"]

ADVANTAGES: dict[str, AdvantageSpec] = {**baselines.ROWS, **returns.ROWS}
