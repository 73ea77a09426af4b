"""Demonstrations whose likelihood is raised beside the objective: the pretraining mix of PPO-ptx."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from accord.config import AlignConfig
from accord.data import encode_groups, load_groups
from accord.data.batching import epoch_batches
from accord.data.tokens import TokenGroup
from accord.errors import DataError
from accord.objectives import OBJECTIVES
from accord.policy.judgements import preferences
from accord.policy.policy import Policy
from accord.records import Group, Label
from accord.run.data import rendering
from accord.run.scored import Scoring


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Batches of demonstrations, taken in turn, and their weight γ: L + γ · the mean loss per token of `sft`.

    Source: Ouyang et al. 2022, arXiv:2203.02155, eq. 2 (there a sum over sequences, with γ = 27.8).
    """

    scoring: Scoring
    batches: Sequence[Sequence[TokenGroup]]
    weight: float

    def batch_at(self, step: int) -> Sequence[TokenGroup]:
        """Return the demonstrations of a step."""
        return self.batches[step % len(self.batches)]

    def scale(self, batch: Sequence[TokenGroup], count: float) -> float:
        """Return what the summed loss is multiplied by, where the sum of all gradients is divided by `count` later."""
        num_tokens = sum(response.num_trained for group in batch for response in group.responses)
        return self.weight * count / max(1, num_tokens)


def load_beside(config: AlignConfig, policy: Policy) -> Beside | None:
    """Return the demonstrations that the settings name. Raises DataError where none of them can be trained on."""
    mix, train = config.pretraining, config.train
    if mix.path is None:
        return None
    groups = load_groups(mix.path).groups
    shown = [found for group in groups if (found := _demonstrations(group)) is not None]
    limit = getattr(policy.causal_lm.config.get_text_config(), "max_position_embeddings", None)
    longest = min((n for n in (config.data.max_tokens, limit) if isinstance(n, int)), default=None)
    encoded = list(encode_groups(shown, policy.tokenizer, max_tokens=longest, **rendering(config)).groups)
    if not encoded:
        raise DataError(f"pretraining.path={mix.path}: none of {len(groups)} rows can be trained on")
    size = min(mix.batch_size or train.batch_size, len(encoded))
    order = epoch_batches(encoded, size, window=1, seed=train.seed, epoch=0)
    spec = OBJECTIVES["sft"]
    scoring = Scoring(
        policy=policy, spec=spec, settings=spec.defaults(), reference=None, seed=train.seed,
        temperature=1.0,  # demonstrations were not drawn at the temperature of the rollouts
    )  # fmt: skip
    return Beside(
        scoring=scoring, batches=[[encoded[place] for place in places] for places in order], weight=mix.weight
    )  # fmt: skip


def _demonstrations(group: Group) -> Group | None:
    """Return the responses that no judgement speaks against, as `sft` chooses them; None where there are none."""
    refused = {worse for _, worse in preferences(group.judgements)}
    refused |= {
        judgement.response
        for judgement in group.judgements
        if isinstance(judgement, Label) and judgement.step is None and not judgement.is_desirable
    }
    kept = tuple(response for place, response in enumerate(group.responses) if place not in refused)
    return replace(group, responses=kept, judgements=()) if kept else None
