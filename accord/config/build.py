"""From dotted keys to checked settings of a run: `build_config`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from accord.config.objective import validate_advantage, validate_objective
from accord.config.online.checks import check_source
from accord.config.online.methods import expand_method, with_constant_length
from accord.config.sections import AlignConfig, idle_keys
from accord.config.unknown import explain
from accord.errors import ConfigError


def build_config(settings: Mapping[str, Any]) -> AlignConfig:
    """Build the settings of a run from dotted or nested keys.

    Raises ConfigError for an unknown key (naming the nearest valid one), a value of the wrong kind or range, a missing
    model or data, an unknown objective or a setting that the objective does not use.
    """
    nested: dict[str, Any] = {}
    for key, value in with_constant_length(expand_method(settings)):
        target = nested
        is_empty_section = isinstance(value, Mapping)
        *parents, leaf = key.split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ConfigError(f"got {key} and also {parent}={target!r} — expected one of them")
        if is_empty_section:
            target.setdefault(leaf, {})
        else:
            target[leaf] = str(value) if isinstance(value, Path) else value
    try:
        config = AlignConfig.model_validate(nested)
    except ValidationError as error:
        raise ConfigError(explain(error)) from None
    config = config.model_copy(
        update={
            "objective": validate_objective(config.objective),
            "advantage": validate_advantage(config.advantage),
        }
    )
    config = settle_reward_model(config)
    check_source(config)
    _refuse_unasked_reference(config)
    _check_critical(config)
    _refuse_unasked_stratum(config)
    return config


def settle_reward_model(config: AlignConfig) -> AlignConfig:
    """Return the settings with nothing sampled where a reward model is trained; refuse those that ask a language model.

    A reward model writes no text and has no vocabulary and no reference.
    """
    if config.objective.spec.family != "reward_model":
        return config
    evaluate, given = config.evaluate, config.evaluate.model_fields_set
    asked = idle_keys(config.train, "train", ["statistics"]) + idle_keys(
        config.reference, "reference", ["path", "soup", "update"]
    )
    asked += idle_keys(evaluate, "evaluate", ["sample_tokens", "gradient_pairs", "reward"])
    asked += ["evaluate.num_samples"] if evaluate.num_samples and "num_samples" in given else []
    if asked:
        raise ConfigError(
            f"got {', '.join(asked)}, but {config.objective.name} trains a reward model, which writes no text and has "
            "no reference — leave it out"
        )
    return config.model_copy(update={"evaluate": evaluate.model_copy(update={"num_samples": 0})})


def _refuse_unasked_reference(config: AlignConfig) -> None:
    name, reference = config.objective.name, config.reference
    if config.objective.spec.reference:
        return
    if reference.update != "none":
        raise ConfigError(
            f"got reference.update={reference.update}, but {name} has no reference that could move — leave it out"
        )
    if not reference.is_own_start and not config.evaluate.num_samples:
        raise ConfigError(
            f"got {reference.named}, but {name} has no reference and evaluate.num_samples is 0: nothing would ask "
            "it — leave it out, or set evaluate.num_samples to measure the KL from it"
        )


def _refuse_unasked_stratum(config: AlignConfig) -> None:
    from accord.objectives import OBJECTIVES, Need

    if idle_keys(config.data, "data", ["stratum"]) and Need.STRATA not in config.objective.spec.needs:
        weighing = ", ".join(name for name, row in OBJECTIVES.items() if Need.STRATA in row.needs)
        raise ConfigError(
            f"got data.stratum={config.data.stratum}, but {config.objective.name} weighs no populations — "
            f"leave it out, or choose one of {weighing}"
        )


def _check_critical(config: AlignConfig) -> None:
    from accord.objectives import Need

    name, critical = config.objective.name, config.critical
    if Need.CRITICAL not in config.objective.spec.needs:
        if idle := idle_keys(critical, "critical", type(critical).model_fields):
            raise ConfigError(f"got {', '.join(idle)}, but {name} weighs no tokens by two models — leave it out")
        return
    if missing := [f"critical.{key}" for key in ("positive", "negative") if getattr(critical, key) is None]:
        raise ConfigError(
            f"{name} needs two further models, one of right and one of wrong answers, and {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing — give each as a folder or Hub id"
        )
