"""The reference of a run: the policy's own start, the base under its adapters, another model or a soup of several.

It may follow the policy (TR-DPO); what held-out groups are compared with stays where it was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.config import AlignConfig
from accord.data.tokens import TokenGroup
from accord.errors import ConfigError, PolicyError
from accord.objectives import Need, ObjectiveSpec
from accord.policy.load import hash_weights, load_policy
from accord.policy.moving_reference import MovingReference, UpdateRule
from accord.policy.policy import Policy
from accord.policy.reference import Level, Reference, base_of, default_cache_folder, opened, reference_key
from accord.policy.weights.averaging import load_soup


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
            self._kept.temperature = policy.temperature
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
        policy.temperature = self._policy.temperature
        return policy


def is_asked_later(config: AlignConfig, spec: ObjectiveSpec, *, is_resumed: bool = False) -> bool:
    """Whether the policy's own start is asked for log-probabilities after the policy has moved."""
    if not config.reference.is_own_start:
        return False
    to_fill = (is_resumed or config.source != "file") and spec.reference
    to_fill = to_fill or config.rollout.from_reference > 0
    mismatched = Need.MISMATCHED_KL in spec.needs and config.reference.update == "none"
    return to_fill or mismatched or Need.POSITION_KL in spec.needs or config.evaluate.num_samples > 0


def level_of(spec: ObjectiveSpec) -> Level:
    """Return whether an objective reads the reference's log-probabilities token by token, or only their sums."""
    return "token" if spec.reference and spec.needs & {Need.TOKENS, Need.SAMPLER_LOGPS} else "sequence"


def starts_at_base(policy: Policy) -> bool:
    """Whether the policy, if it has adapters, still equals the base under them: LoRA starts with B = 0."""
    return not any("lora_B" in name and bool(parameter.any()) for name, parameter in policy.named_parameters())


@dataclass(frozen=True, kw_only=True)
class References:
    """What a run compares its policy with. `moving`: what training asks instead of `fixed`, which it began as."""

    fixed: Reference | None
    moving: MovingReference | None
    num_bytes: int  # beside the policy
    is_of_objective: bool = True  # else only the KL of the evaluation asks
    other: Policy | None = None  # the model, where it is not the policy's own start

    def open(self, origin: Origin) -> Callable[[], AbstractContextManager[Policy]]:
        """Return what opens the reference itself."""
        other = self.other
        return origin if other is None else lambda: opened(other)

    def to_fill(self, groups: Sequence[TokenGroup], held_out: Sequence[TokenGroup]) -> list[TokenGroup]:
        """Return the groups whose log-probabilities are asked of the fixed one again and again."""
        return [*held_out] if self.moving is not None else [*groups, *held_out]

    def to_score(
        self, groups: Sequence[TokenGroup], held_out: Sequence[TokenGroup], batches: Iterable[Sequence[TokenGroup]]
    ) -> list[TokenGroup]:
        """Return what has to be scored, one that moves with every batch: for the plan."""
        if self.fixed is None or not self.is_of_objective:
            return []
        missing = self.fixed.missing(self.to_fill(groups, held_out))
        return missing if self.moving is None else [*missing, *(group for batch in batches for group in batch)]

    def describe(self) -> str:
        """Say how the reference moves and what held-out numbers are measured from."""
        assert self.moving is not None
        return (
            f"the reference moves: {self.moving.rule}; held-out losses, rewards and KL are measured from where it "
            "began, so that they can be compared over the run"
        )


def make_references(
    config: AlignConfig, spec: ObjectiveSpec, policy: Policy, origin: Origin, groups: Sequence[TokenGroup]
) -> References:
    """Return the references of a run, needed by the objective or by the KL of the evaluation."""
    settings = config.reference
    if not spec.reference and not config.evaluate.num_samples:
        return References(fixed=None, moving=None, num_bytes=0)
    holder = policy if not policy.has_adapters and is_asked_later(config, spec) else None
    scorer, weights = origin, origin.weights_hash
    other = None if settings.is_own_start else _load_other(config, policy, groups)
    if other is not None:
        scorer, weights, holder = (lambda: opened(other)), hash_weights(other), other
    folder = None
    if settings.cache is not None:
        folder = default_cache_folder() if settings.cache == "auto" else Path(settings.cache)
    fixed = Reference(
        scorer,
        key=reference_key(weights, policy, vocabulary=_vocabulary(policy)),
        cache_folder=folder,
        max_tokens=config.train.max_batch_tokens,
        level=level_of(spec),
    )
    moving = _make_moving(config, spec, policy, other) if settings.update != "none" else None
    num_bytes = sum(p.numel() * p.element_size() for p in holder.parameters()) if holder is not None else 0
    num_bytes += moving.num_bytes if moving is not None else 0
    return References(
        fixed=fixed, moving=moving, num_bytes=num_bytes, is_of_objective=spec.reference, other=other
    )  # fmt: skip


def _load_other(config: AlignConfig, policy: Policy, groups: Sequence[TokenGroup]) -> Policy:
    """Load the model, or the soup of models, that the settings name as the reference."""
    settings = config.reference
    options: dict[str, Any] = {
        "precision": config.model.precision, "device": policy.device,
        "trust_remote_code": config.model.trust_remote_code,
    }  # fmt: skip
    if settings.soup:
        other = load_soup(settings.soup, settings.soup_shares, **options)
    else:
        other = load_policy(settings.path, **options)
    if _vocabulary(other) != _vocabulary(policy):
        raise PolicyError(
            f"got {settings.named} with a vocabulary of {_vocabulary(other)}, another than the policy's "
            f"{_vocabulary(policy)}"
        )
    other.temperature = policy.temperature
    other.settle_layout([groups[0], max(groups, key=lambda group: group.num_tokens)])
    other.requires_grad_(False)
    return other


def _vocabulary(policy: Policy) -> int:
    return policy.causal_lm.config.get_text_config().vocab_size


def _make_moving(
    config: AlignConfig, spec: ObjectiveSpec, policy: Policy, other: Policy | None
) -> MovingReference:  # fmt: skip
    """Return the reference that follows the policy. It begins as the fixed one, or that is refused."""
    settings = config.reference
    rule = UpdateRule(every=settings.update_every, share=1.0 if settings.update == "hard" else settings.mix)
    if policy.has_adapters and (other is not None or not starts_at_base(policy)):
        begins = settings.named if other is not None else "trained adapters to start from"
        raise ConfigError(
            f"got reference.update={settings.update} with adapters and {begins} — a reference that moves is a copy of "
            "the adapters, and can only begin as the base under them: merge adapters into a model of their own first "
            "(docs/how_to/lora.md), or train without adapters"
        )
    trained = [name for name, parameter in policy.model.named_parameters() if parameter.requires_grad]
    start = None
    if other is not None:
        theirs = dict(other.model.named_parameters())
        start = {name: theirs[name] for name in trained if name in theirs}
    return MovingReference(
        policy, rule, max_tokens=config.train.max_batch_tokens, start=start, level=level_of(spec)
    )  # fmt: skip


def check_moves(config: AlignConfig, num_steps: int) -> None:
    """Raise ConfigError where the reference was told to move but the run ends before."""
    settings = config.reference
    if settings.update != "none" and settings.update_every >= num_steps:
        raise ConfigError(
            f"got reference.update={settings.update} every {settings.update_every} steps, but the run has {num_steps}: "
            f"the reference would not move — set reference.update_every below {num_steps}"
        )
