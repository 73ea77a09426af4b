"""The reference of a run: the policy's own start, the base under its adapters, or another model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from accord.config import AlignConfig
from accord.data.tokens import TokenGroup
from accord.errors import PolicyError
from accord.objectives import Need, ObjectiveSpec
from accord.policy.load import hash_weights, load_policy
from accord.policy.policy import Policy
from accord.policy.reference import Reference, base_of, default_cache_folder, opened, reference_key


class Origin:
    """The policy as it was before its first step, for as long as anything asks for it."""

    def __init__(self, policy: Policy, config: AlignConfig, weights_hash: str, *, keep: bool) -> None:
        """`keep`: a copy in memory, for when the policy has moved and the folder it came from is no way back."""
        self.is_untouched: Callable[[], bool] = lambda: True
        self._policy, self._config, self.weights_hash = policy, config, weights_hash
        self._kept: Policy | None = None
        if keep and not policy.has_adapters:
            self._kept = Policy(
                copy.deepcopy(policy.model), policy.tokenizer, path=policy.path, autocast=policy.autocast
            )
            self._kept.why_plain = policy.why_plain
            self._kept.requires_grad_(False)

    @contextmanager
    def __call__(self) -> Iterator[Policy]:
        if self._policy.has_adapters:
            with base_of(self._policy) as base:
                yield base
        elif self.is_untouched():
            with opened(self._policy) as policy:
                yield policy
        else:
            self._kept = self._kept or self._reload()
            yield self._kept

    def _reload(self) -> Policy:
        model = self._config.model
        policy = load_policy(
            model.path, precision=model.precision, device=self._policy.device, revision=model.revision,
            trust_remote_code=model.trust_remote_code,
        )  # fmt: skip
        if hash_weights(policy) != self.weights_hash:
            raise PolicyError(
                f"{model.path} no longer holds the weights this run started from, which its reference is made of — "
                "put them back, or give them as reference.path"
            )
        if self._policy.why_plain is not None:
            policy.fall_back_to_plain(self._policy.why_plain)
        policy.requires_grad_(False)
        return policy


def is_asked_later(config: AlignConfig, spec: ObjectiveSpec, *, is_resumed: bool = False) -> bool:
    """Whether the policy's own start is asked for log-probabilities after the policy has moved."""
    if config.reference.path != "auto":
        return False
    to_fill = is_resumed and spec.reference
    return to_fill or Need.MISMATCHED_KL in spec.needs or config.evaluate.num_samples > 0


def starts_at_base(policy: Policy) -> bool:
    """Whether the policy, if it has adapters, still equals the base under them: LoRA starts with B = 0."""
    return not any("lora_B" in name and bool(parameter.any()) for name, parameter in policy.named_parameters())


def make_reference(
    config: AlignConfig, spec: ObjectiveSpec, policy: Policy, origin: Origin, groups: Sequence[TokenGroup]
) -> tuple[Reference | None, int]:
    """Return the reference of a run, needed by the objective or by the KL of the evaluation, and its own bytes."""
    settings = config.reference
    if not spec.reference and not config.evaluate.num_samples:
        return None, 0
    holder = policy if not policy.has_adapters and is_asked_later(config, spec) else None
    vocabulary = policy.causal_lm.config.get_text_config().vocab_size
    scorer, weights = origin, origin.weights_hash
    if settings.path != "auto":
        other = load_policy(
            settings.path, precision=config.model.precision, device=policy.device,
            trust_remote_code=config.model.trust_remote_code,
        )  # fmt: skip
        if other.causal_lm.config.get_text_config().vocab_size != vocabulary:
            raise PolicyError(
                f"got the reference {settings.path} with another vocabulary than the policy's {vocabulary}"
            )
        other.settle_layout([groups[0], max(groups, key=lambda group: group.num_tokens)])
        other.requires_grad_(False)
        scorer, weights, holder = (lambda: opened(other)), hash_weights(other), other
    folder = None
    if settings.cache is not None:
        folder = default_cache_folder() if settings.cache == "auto" else Path(settings.cache)
    made = Reference(
        scorer,
        key=reference_key(weights, policy, vocabulary=vocabulary),
        cache_folder=folder,
        max_tokens=config.train.max_batch_tokens,
    )
    return made, sum(p.numel() * p.element_size() for p in holder.parameters()) if holder is not None else 0
