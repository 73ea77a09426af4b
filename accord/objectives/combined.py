"""Weighted sums of objectives: `dpo` plus a likelihood term, unlearning plus imitation of what should stay.

Axes: P prompts, K responses per prompt. A sum is a row like any other: the loop, the checkpoints and the tables do not
know the difference. Its settings are `parts`: name of a row → `weight` and the settings of that row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from accord.groups import ObjectiveResult, ScoredGroups
from accord.objectives import OBJECTIVES
from accord.objectives.spec import Need, ObjectiveSpec, StateSpec

SUM = "sum"
"""The name under which settings ask for a sum."""

Parts = Mapping[str, Mapping[str, Any]]
"""Name of a row → its `weight` and its settings."""


def sum_of_objectives(groups: ScoredGroups, *, parts: Parts) -> ObjectiveResult:
    """Add up the losses of several objectives on the same groups, each times its weight.

    Formula: Σ_k w_k · ℓ_k, where ℓ_k is part k's own mean WITHIN a group: its loss over its denominator there (for
    `sft` the mean over the group's tokens, for `kto` over its labelled responses, for a pairwise row over its pairs).
    The sum is then averaged over groups. A part that averages over all tokens or responses of the batch when alone
    therefore weighs groups alike here: a weight would otherwise mean something else in every batch.
    Counting: a group counts where ANY part counts it, once; a part that does not count it adds nothing there. So a part
    that reads few groups (thumbs down, say) has its weight diluted by their share, as it should: its sum over the data
    does not depend on how many groups the other parts read.
    Gradient: Σ_k w_k · that of ℓ_k. Optimum: that of the sum; in general between those of the parts.
    Use: what one row does not do; `dpo` + α `chosen_nll` is RPO, `npo` + `sft` unlearns and keeps.
    Limits: the implicit reward shown is the first part's. Weights are of losses whose scales differ: `ipo` at τ = 0.1
    starts at 25, `dpo` at 0.69.
    Source: none; a sum.

    >>> import torch
    >>> from accord.groups import groups_from_pairs
    >>> pair = groups_from_pairs(
    ...     torch.tensor([[-12.0, -15.0]]), reference_logps_P2=torch.tensor([[-13.0, -14.5]]),
    ...     num_tokens_P2=torch.tensor([[10, 12]]),
    ... )
    >>> parts = {"dpo": {"weight": 1.0, "beta": 0.1}, "chosen_nll": {"weight": 0.5}}
    >>> round(sum_of_objectives(pair, parts=parts).loss_P.item(), 6)  # 0.620957 + 0.5 × 1.2
    1.220957
    """
    results = {
        name: OBJECTIVES[name].fn(replace(groups, state=_of_part(groups.state, name)), **_settings(part))
        for name, part in parts.items()
    }
    loss_P = torch.zeros_like(next(iter(results.values())).loss_P)
    is_counted_P = torch.zeros_like(loss_P, dtype=torch.bool)
    for name, result in results.items():
        denominator_P = torch.where(result.is_counted_P, result.denominators(), 1.0)
        own_P = torch.where(result.is_counted_P, result.loss_P / denominator_P.to(loss_P.dtype), 0.0)
        loss_P = loss_P + parts[name].get("weight", 1.0) * own_P
        is_counted_P = is_counted_P | result.is_counted_P
    return ObjectiveResult(
        loss_P=loss_P,
        is_counted_P=is_counted_P,
        implicit_reward_PK=next(iter(results.values())).implicit_reward_PK,
        state_sums={f"{name}.{key}": x for name, result in results.items() for key, x in result.state_sums.items()},
    )


def weighted_sum(parts: Mapping[str, tuple[float, Mapping[str, Any]]]) -> ObjectiveSpec:
    """Return the row of a sum: name of a row → (weight, its settings); the first part's implicit reward is shown.

    It needs what any part needs. Raises ValueError for no part, an unknown one, a weight that is not above 0, and for a
    reward model's loss beside a language model's.
    """
    if not parts:
        raise ValueError("got a sum without parts — expected at least one objective with its weight")
    for name, (weight, _) in parts.items():
        if name not in OBJECTIVES:
            raise ValueError(f"got the unknown part {name} — expected one of {', '.join(OBJECTIVES)}")
        if not weight > 0:
            raise ValueError(f"got the weight {weight} of {name} — expected a number above 0")
    rows = {name: OBJECTIVES[name].at(OBJECTIVES[name].defaults() | dict(given)) for name, (_, given) in parts.items()}
    families = {row.family for row in rows.values()}
    if "reward_model" in families and len(families) > 1:
        raise ValueError(f"got {' and '.join(rows)} — expected losses of a language model, or of a reward model only")
    if len({Need.PAIR_SCORES in row.needs for row in rows.values()}) > 1:
        raise ValueError(f"got {' and '.join(rows)} — expected losses that all score responses, or all score pairs")
    bound = {name: {"weight": weight, **given} for name, (weight, given) in parts.items()}
    first = next(iter(rows.values()))
    return ObjectiveSpec(
        fn=partial(sum_of_objectives, parts=bound),
        family=first.family,
        needs=frozenset[Need]().union(*(row.needs for row in rows.values())),
        reads=frozenset[Need]().union(*(row.reads for row in rows.values())),
        reference=any(row.reference for row in rows.values()),
        level="token" if any(row.level == "token" for row in rows.values()) else "sequence",
        is_difference_only=all(row.is_difference_only for row in rows.values()),
        initial_loss=partial(_initial_loss, bound=bound),
        learns_from_reference=any(row.learns_from_reference for row in rows.values()),
        has_stop_gradient=any(row.has_stop_gradient for row in rows.values()),
        state=_state(bound) if any(row.state is not None for row in rows.values()) else None,
        proof="identity",
        implicit_reward=first.implicit_reward,
        paper="; ".join(row.paper for row in rows.values()),
    )


def spec_of(name: str, settings: Mapping[str, Any]) -> ObjectiveSpec:
    """Return the row that a run's `objective.name` and its other settings mean: one of `OBJECTIVES`, or a sum."""
    if name != SUM:
        return OBJECTIVES[name].at(settings)
    parts: Parts = settings["parts"]
    return weighted_sum({name: (part.get("weight", 1.0), _settings(part)) for name, part in parts.items()})


def _settings(part: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key != "weight"}


def _initial_loss(*, bound: Parts, **_: Any) -> float | None:
    """Return Σ w · loss where policy = reference, if all parts promise theirs of the same groups."""
    rows = [OBJECTIVES[name] for name in bound]
    if {(row.family, row.needs) for row in rows} != {("pairwise", frozenset({Need.PREFERENCES}))}:
        return None  # one part may count groups that another does not
    promised = [
        row.initial_loss(**row.defaults() | _settings(part)) if row.initial_loss is not None else None
        for row, part in zip(rows, bound.values(), strict=True)
    ]
    known = [value for value in promised if value is not None]
    weights = (part["weight"] for part in bound.values())
    return sum(w * v for w, v in zip(weights, known, strict=True)) if len(known) == len(promised) else None


def _state(bound: Parts) -> StateSpec:
    """Return the states of all parts that have one, each number under the name of its part."""
    rows = {name: row for name in bound if (row := OBJECTIVES[name]).state is not None}

    def settings(name: str) -> dict[str, Any]:
        return rows[name].defaults() | _settings(bound[name])

    def start(*, parts: Parts | None = None, **population: Any) -> dict[str, Tensor]:
        return _joined(
            {name: row.state.start(**population, **settings(name)) for name, row in rows.items() if row.state}
        )

    def advance(
        state: dict[str, Tensor], sums: dict[str, Tensor], *, parts: Parts | None = None
    ) -> dict[str, Tensor]:  # fmt: skip
        return _joined({
            name: row.state.advance(_of_part(state, name) or {}, _of_part(sums, name) or {}, **settings(name))
            for name, row in rows.items()
            if row.state
        })  # fmt: skip

    entries: dict[str, Literal["judge", "stratum"]] = {
        f"{name}.{key}": kind for name, row in rows.items() if row.state for key, kind in row.state.entries.items()
    }
    return StateSpec(start=start, advance=advance, entries=entries)


def _joined(states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for name, state in states.items() for key, value in state.items()}


def _of_part(state: Mapping[str, Tensor] | None, name: str) -> dict[str, Tensor] | None:
    if state is None:
        return None
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
