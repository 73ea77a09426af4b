"""How the parts of a reward pull the policy: the gradient of each part's own advantages, and how they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from accord.data.batching import micro_batches
from accord.data.tokens import TokenGroup
from accord.errors import ConfigError, TrainingError
from accord.feedback.findings import Layers, Scores
from accord.groups import Advantages, RolloutBatch
from accord.objectives.advantages import AdvantageSpec
from accord.rollouts.estimation import Measured, to_batch
from accord.run.scored import Scoring


def gradient_gram(
    groups: Sequence[TokenGroup],
    parts: Mapping[str, Scores],
    scoring: Scoring,
    *,
    spec: AdvantageSpec | None,
    settings: Mapping[str, Any],
    max_tokens: int,
    layers: Layers,
) -> list[list[float]]:
    """Return ⟨g_k, g_j⟩ with g_k = ∇ (1/n) Σ_t A_k,t log π(y_t), n the trained tokens of the rollout; no step is taken.

    A_k are the advantages that a part has by itself, without a KL and without what an estimator carries between
    rollouts. Every process takes its share and gets the whole. `layers`: "middle" takes the middle third of the
    trained weights in the model's order. Memory: a gradient of those weights per part. Raises ConfigError for a method
    without advantages or with a critic, TrainingError for weights that are sharded.
    """
    if spec is None or spec.critic:
        raise ConfigError("weights by gradients need an advantage without a critic — use method=grpo or method=rloo")
    kept = dict(settings) | ({"kl_coef": 0.0} if "kl_coef" in spec.settings() else {})
    found = [spec.fn(_judged_by(groups, scores), **kept) for scores in parts.values()]
    weights = _chosen(scoring.policy.trained(), layers)
    vectors = [
        [torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32)) for weight in weights]
        for _ in found
    ]
    rank, world = scoring.share
    for places in micro_batches(groups, max_tokens, layout=scoring.policy.layout)[rank::world]:
        part = [groups[place] for place in places]
        for row, advantages in enumerate(found):
            # a pass per part: a graph whose layers are recomputed can be gone back through only once
            scores = scoring.policy.score(part)
            worth_N = _of_tokens(groups, places, advantages).to(scores.token_logps_N)
            total = (torch.where(scores.is_trained_N, worth_N, 0.0) * scores.token_logps_N).sum()
            more = torch.autograd.grad(total, weights, allow_unused=True)
            for vector, gradient in zip(vectors[row], more, strict=True):
                if gradient is not None:
                    vector += gradient
    total_tokens = max(1, sum(response.num_trained for group in groups for response in group.responses))
    whole = _added_up(scoring, vectors) if world > 1 else vectors
    return [[_inner(one, other) / total_tokens**2 for other in whole] for one in whole]


def _judged_by(groups: Sequence[TokenGroup], scores: Scores) -> RolloutBatch:
    """Return the rollout with one part for its reward."""
    batch = to_batch(groups, Measured())
    reward_PK, is_scored_PK = torch.zeros_like(batch.reward_PK), torch.zeros_like(batch.is_scored_PK)
    for row, of_group in enumerate(scores):
        for column, score in enumerate(of_group):
            reward_PK[row, column] = 0.0 if score is None else score
            is_scored_PK[row, column] = score is not None
    return replace(batch, reward_PK=reward_PK, is_scored_PK=is_scored_PK)


def _chosen(trained: Mapping[str, nn.Parameter], layers: Layers) -> list[nn.Parameter]:
    weights = list(trained.values())
    if any(hasattr(weight, "full_tensor") for weight in weights):
        raise TrainingError(
            "reward.dynamic=gradients got sharded weights — it needs whole ones in every process: choose another rule"
        )
    third = len(weights) // 3
    return weights[third : len(weights) - third] if layers == "middle" else weights


def _of_tokens(groups: Sequence[TokenGroup], places: Sequence[int], advantages: Advantages) -> Tensor:
    """Return what the response tokens of a micro-batch are worth, in (group, response, token) order."""
    return torch.cat(
        [
            advantages.advantage_PKT[place, column, : len(response.ids)]
            for place in places
            for column, response in enumerate(groups[place].responses)
        ]
    )


def _added_up(scoring: Scoring, vectors: list[list[Tensor]]) -> list[list[Tensor]]:
    shares = scoring.gather([[[tensor.cpu() for tensor in vector] for vector in vectors]])
    return [
        [torch.stack(tensors).sum(dim=0) for tensors in zip(*of_part, strict=True)]
        for of_part in zip(*shares, strict=True)
    ]


def _inner(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return sum(float(a.double().flatten() @ b.double().flatten()) for a, b in zip(one, other, strict=True))
