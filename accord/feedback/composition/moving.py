"""A composition whose weights move with the rollouts, and the table of rules by which they do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from accord.errors import ConfigError
from accord.feedback.composition.combine import Combine, Composition, Part
from accord.feedback.composition.dynamic import GradientWeights, HypervolumeGuide
from accord.feedback.composition.maxmin import MaxMinWeights
from accord.feedback.findings import Finding, Layers, PartGradients, Scores, Weighed
from accord.records import Group, Rating

log = logging.getLogger(__name__)
Dynamic = Literal["hypervolume", "gradients", "maxmin"]
STEP = 0.1
"""Of the weights unless told otherwise: η/μ = 1e-6/1e-5 of the gradient rule's paper, and η of MaxMin."""


class WeightRule(Protocol):
    """How the parts of a rollout become what it is worth."""

    def weigh(self, composition: Composition, parts: Mapping[str, Scores], gradients: PartGradients) -> Weighed:
        """Return what a rollout is worth, and move."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what moves, as plain values."""
        ...

    def take_up(self, state: Mapping[str, Any]) -> None:
        """Put a checkpoint's state in place."""
        ...


@dataclass(slots=True)
class HypervolumeRule:
    """R ← f · R: all rewards times ½ + 3/2 tanh(ΔHV), ΔHV the volume that the rollout before this one gained.

    An objective is a part's weight times its mean score in a rollout; the reference point is the first rollout.
    Source: Lu et al. 2025, arXiv:2509.11452.
    """

    guide: HypervolumeGuide = field(default_factory=HypervolumeGuide)
    factor: float = 1.0

    @classmethod
    def start(cls, weights: Mapping[str, float], *, step: float, layers: Layers) -> HypervolumeRule:
        """Return the rule before any rollout."""
        del weights, step, layers
        return cls()

    def weigh(self, composition: Composition, parts: Mapping[str, Scores], gradients: PartGradients) -> Weighed:
        """Multiply by the factor of the rollout before, then measure this one."""
        factor, weights = self.factor, _weights(composition.parts)
        scores = _mapped(composition.totals(parts, weights), lambda score: factor * score)
        if (means := _means({name: parts[name] for name in weights})) is not None:
            self.factor = self.guide.observe([weight * means[name] for name, weight in weights.items()])
        return Weighed(scores=scores, numbers={"reward_factor": factor})

    def state(self) -> dict[str, Any]:
        """Return the front and the factor of the rollout to come."""
        return {"guide": self.guide.to_dict(), "factor": self.factor}

    def take_up(self, state: Mapping[str, Any]) -> None:
        """Put a checkpoint's state in place."""
        self.guide, self.factor = HypervolumeGuide.from_dict(state["guide"]), state["factor"]


@dataclass(slots=True)
class GradientRule:
    """w ← softmax(log w + step · I), I_k = Σ_j ⟨g_k, g_j⟩, then R = Σ_k W w_k s_k in this same rollout.

    W = the sum of the weights that were given; they are also the start. A part's gradient is that of the total with
    this part alone at weight 1: gates and normalisation included. Source: Lu et al. 2025, arXiv:2509.11452.
    """

    names: tuple[str, ...]
    whole: float
    weights: GradientWeights
    step: float
    layers: Layers

    @classmethod
    def start(cls, weights: Mapping[str, float], *, step: float, layers: Layers) -> GradientRule:
        """Return the rule before any rollout."""
        moving = GradientWeights(list(weights.values()), mu=1.0)
        return cls(tuple(weights), sum(weights.values()), moving, step, layers)

    def weigh(self, composition: Composition, parts: Mapping[str, Scores], gradients: PartGradients) -> Weighed:
        """Move the weights by the gradients of this rollout, then combine it."""
        alone = {
            name: composition.totals(parts, {other: float(other == name) for other in self.names})
            for name in self.names
        }
        self.weights.update(gradients(alone, layers=self.layers), learning_rate=self.step)
        return _by_weights(composition, parts, dict(zip(self.names, self.weights.weights, strict=True)), self.whole)

    def state(self) -> dict[str, Any]:
        """Return the weights."""
        return self.weights.to_dict()

    def take_up(self, state: Mapping[str, Any]) -> None:
        """Put a checkpoint's state in place."""
        self.weights = GradientWeights.from_dict(state)


@dataclass(slots=True)
class MaxMinRule:
    """R = Σ_u W λ_u z_u, then λ_u ← λ_u e^{−step · mean z_u}: the part worst served gains weight.

    z_u = (s_u − m_u)/σ_u with mean and standard deviation of the first rollout that knows the part, for scores of
    different parts have arbitrary scales; W and the start of λ are the weights given. Parts stand for groups of people,
    each with a reward of its own. Source: Chakraborty et al. 2024, arXiv:2402.08925.
    """

    names: tuple[str, ...]
    whole: float
    weights: MaxMinWeights
    scales: dict[str, tuple[float, float]] = field(default_factory=dict)  # mean, standard deviation

    @classmethod
    def start(cls, weights: Mapping[str, float], *, step: float, layers: Layers) -> MaxMinRule:
        """Return the rule before any rollout."""
        del layers
        return cls(tuple(weights), sum(weights.values()), MaxMinWeights(list(weights.values()), step_size=step))

    def weigh(self, composition: Composition, parts: Mapping[str, Scores], gradients: PartGradients) -> Weighed:
        """Combine this rollout by the weights so far, then move them by how each part is served."""
        served = {name: self._scaled(name, parts[name]) for name in self.names}
        now = dict(zip(self.names, self.weights.weights, strict=True))
        found = _by_weights(composition, {**parts, **served}, now, self.whole)
        if (means := _means(served)) is not None:
            self.weights.update([means[name] for name in self.names])
        return found

    def _scaled(self, name: str, scores: Scores) -> Scores:
        known = _known(scores)
        if name not in self.scales and known:
            low, high = min(known), max(known)
            self.scales[name] = (float(np.mean(known)), float(np.std(known)) if high > low else 1.0)
        mean, std = self.scales.get(name, (0.0, 1.0))
        return _mapped(scores, lambda score: (score - mean) / std)

    def state(self) -> dict[str, Any]:
        """Return the weights and the scales of the parts."""
        return self.weights.to_dict() | {"scales": {name: list(scale) for name, scale in self.scales.items()}}

    def take_up(self, state: Mapping[str, Any]) -> None:
        """Put a checkpoint's state in place."""
        self.weights = MaxMinWeights.from_dict(state)
        self.scales = {name: (mean, std) for name, (mean, std) in state["scales"].items()}


@dataclass(frozen=True, slots=True)
class _Row:
    """A rule, which compositions it can weigh, and whether it moves weights (then they are above 0, of two or more)."""

    start: Callable[..., WeightRule]
    combines: tuple[Combine, ...]
    moves_weights: bool
    reads: frozenset[str]  # its settings


DYNAMICS: dict[Dynamic, _Row] = {
    "hypervolume": _Row(
        HypervolumeRule.start,
        ("sum", "product", "min", "lexicographic", "normalised_sum", "log_sigmoid"),
        moves_weights=False,
        reads=frozenset(),
    ),
    "gradients": _Row(
        GradientRule.start,
        ("sum", "normalised_sum", "log_sigmoid"),
        moves_weights=True,
        reads=frozenset({"dynamic_step", "dynamic_layers"}),
    ),
    "maxmin": _Row(MaxMinRule.start, ("sum",), moves_weights=True, reads=frozenset({"dynamic_step"})),
}
"""How weights may move, by the name in `reward.dynamic`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicReward:
    """A composition that judges by its own weights, and weighs each rollout by weights that move (`StatefulReward`)."""

    composition: Composition
    rule: WeightRule

    @property
    def name(self) -> str:
        """What its scores are recorded under."""
        return self.composition.name

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts with the weights that were given."""
        return self.composition.parts

    def __call__(self, groups: Sequence[Group]) -> list[list[Finding]]:
        """Judge by the weights that were given, whatever the rollouts have moved."""
        return self.composition(groups)

    def check_groups(self, groups: Sequence[Group]) -> None:
        """Raise DataError where a row lacks a column that a part reads."""
        self.composition.check_groups(groups)

    def weigh(self, rollout: Sequence[Group], gradients: PartGradients) -> Weighed:
        """Return what the rollout is worth by the weights that move, from its recorded parts."""
        names = [part.name for part in self.parts]
        return self.rule.weigh(self.composition, _parts_of(rollout, names, judge=self.name), gradients)

    def state(self) -> dict[str, Any]:
        """Return what moves, as plain values."""
        return self.rule.state()

    def take_up(self, state: Mapping[str, Any]) -> None:
        """Put a checkpoint's state in place."""
        self.rule.take_up(state)


def make_dynamic(composition: Composition, dynamic: Dynamic, *, step: float, layers: Layers) -> DynamicReward:
    """Return a composition whose weights move by a rule of `DYNAMICS`. Raises ConfigError where they cannot."""
    check_dynamic(dynamic, composition.parts, combine=composition.combine)
    rule = DYNAMICS[dynamic].start(_weights(composition.parts), step=step, layers=layers)
    return DynamicReward(composition=composition, rule=rule)


def check_dynamic(dynamic: Dynamic, parts: Sequence[Part], *, combine: Combine) -> None:
    """Raise ConfigError for a composition that a rule cannot weigh."""
    row, weights = DYNAMICS[dynamic], _weights(parts)
    shown = ", ".join(f"{name}={weight:g}" for name, weight in weights.items())
    if combine not in row.combines:
        raise ConfigError(f"got reward.dynamic={dynamic} with combine={combine} — expected {', '.join(row.combines)}")
    if len(weights) < 2:
        raise ConfigError(f"got reward.dynamic={dynamic} with the weights {shown} — expected two parts or more")
    if row.moves_weights and min(weights.values()) <= 0:
        raise ConfigError(f"got reward.dynamic={dynamic} with the weights {shown} — expected weights above 0")
    if gates := [part.name for part in parts if part.is_gate and part.weight]:
        raise ConfigError(
            f"got reward.dynamic={dynamic} with a weight of the gate {', '.join(gates)} — expected gates without one"
        )


def _weights(parts: Sequence[Part]) -> dict[str, float]:
    return {part.name: part.weight for part in parts if part.weight}


def _by_weights(
    composition: Composition, parts: Mapping[str, Scores], shares: Mapping[str, float], whole: float
) -> Weighed:
    scores = composition.totals(parts, {name: whole * share for name, share in shares.items()})
    return Weighed(scores=scores, numbers={f"weight/{name}": share for name, share in shares.items()})


def _parts_of(rollout: Sequence[Group], names: Sequence[str], *, judge: str) -> dict[str, Scores]:
    found: dict[str, Scores] = {name: [[None] * len(group.responses) for group in rollout] for name in names}
    for place, group in enumerate(rollout):
        for rating in group.judgements:
            if isinstance(rating, Rating) and rating.judge == judge and rating.attribute in found:
                found[rating.attribute][place][rating.response] = rating.value
    return found


def _mapped(scores: Scores, change: Callable[[float], float]) -> Scores:
    return [[None if score is None else change(score) for score in row] for row in scores]


def _known(scores: Scores) -> list[float]:
    return [score for row in scores for score in row if score is not None]


def _means(parts: Mapping[str, Scores]) -> dict[str, float] | None:
    """Return the mean score of each part; None, and a warning, where one is known of no response."""
    known = {name: _known(scores) for name, scores in parts.items()}
    if unknown := [name for name, values in known.items() if not values]:
        log.warning("no response has a known %s: the weights of the reward stay", ", ".join(unknown))
        return None
    return {name: float(np.mean(values)) for name, values in known.items()}
