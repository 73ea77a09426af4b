"""Which settings of learning from one's own samples make no sense together."""

from __future__ import annotations

from accord.config.online.sections import AdvantageConfig
from accord.config.sections import AlignConfig, idle_keys
from accord.errors import ConfigError


def check_source(config: AlignConfig) -> None:
    """Raise ConfigError for settings that the source of groups leaves without effect, or that it cannot serve."""
    mix = config.pretraining
    if mix.path is None and (idle := idle_keys(mix, "pretraining", ["weight", "batch_size"])):
        raise ConfigError(f"got {', '.join(idle)} without pretraining.path: there are no demonstrations to mix in")
    if config.source == "file":
        _check_file(config)
    else:
        _check_objective(config)
        _check_rollouts(config)


def _check_file(config: AlignConfig) -> None:
    from accord.objectives import Need

    name = config.objective.name
    online = {Need.ADVANTAGES, Need.SAMPLER_LOGPS, Need.VALUES, Need.OPPONENTS}
    if lacking := sorted(need.value for need in config.objective.spec.needs & online):
        raise ConfigError(
            f"{name} needs {', '.join(lacking)}, which no file gives — sample from the policy: source=rollouts with an "
            "advantage and a reward, or one of the presets, such as method=grpo"
        )
    idle = [f"reward.{key}" for key in config.reward.sections]
    for section in ("rollout", "critic"):
        part = getattr(config, section)
        idle += idle_keys(part, section, type(part).model_fields)
    idle += ["advantage"] if config.advantage.name is not None else []
    if idle:
        raise ConfigError(
            f"got {', '.join(idle)}, but source=file samples nothing — set source=rollouts, or leave it out"
        )


def _check_objective(config: AlignConfig) -> None:
    from accord.objectives import Need

    spec, advantage = config.objective.spec, config.advantage
    name, needs = config.objective.name, spec.needs
    no_such = {Need.STEP_LABELS, Need.TOKEN_WEIGHTS, Need.EDITS, Need.CRITICAL, Need.STRATA, Need.VOTES}
    for is_wrong, why in (
        (spec.family == "reward_model", f"{name} trains a reward model, which samples nothing — set source=file"),
        (
            needs & no_such,
            f"{name} needs {', '.join(sorted(need.value for need in needs & no_such))}, which sampling does not give",
        ),
        (
            Need.ADVANTAGES in needs and advantage.name is None,
            f"{name} needs advantages — set advantage.name, or a preset such as method=grpo",
        ),
        (
            Need.ADVANTAGES not in needs and advantage.name is not None,
            f"advantage.name={advantage.name} is set, but {name} reads rewards as judgements — leave it out",
        ),
        (
            Need.VALUES in needs and advantage.spec is not None and not advantage.spec.critic,
            f"{name} trains a critic with these settings, but advantage.name={advantage.name} asks none — set "
            "advantage.name=gae or objective.value_coef=0",
        ),
        (
            advantage.spec is not None and advantage.spec.critic and Need.VALUES not in needs,
            f"advantage.name={advantage.name} asks a critic that {name} does not train — set objective.value_coef",
        ),
        (
            advantage.spec is not None and advantage.spec.steps == "required",
            f"advantage.name={advantage.name} needs a reward for each step of a response, and rewards judge whole "
            "ones — choose another",
        ),
    ):
        if is_wrong:
            raise ConfigError(why)


def _check_rollouts(config: AlignConfig) -> None:
    from accord.objectives import Need

    rollout, advantage, dynamic = config.rollout, config.advantage, config.reward.sections.get("dynamic")
    name, needs = config.objective.name, config.objective.spec.needs
    reads_pairs = bool(needs & {Need.PREFERENCES, Need.STRENGTHS, Need.WIN_FRACTIONS, Need.LABELS, Need.OPPONENTS})
    of_data = ["relabel", "goal", "select", "select_fraction"]
    for is_wrong, why in (
        (
            rollout.num_responses < 2 and (reads_pairs or rollout.dynamic_sampling),
            f"{name} compares responses of one prompt — set rollout.num_responses=2 or more",
        ),
        (
            Need.GOLD in needs and rollout.num_responses < 3,
            f"{name} sets the best response against several others — set rollout.num_responses=3 or more",
        ),
        (
            rollout.from_reference >= rollout.num_responses and rollout.from_reference > 0,
            f"rollout.from_reference={rollout.from_reference} leaves the policy nothing to write of "
            f"rollout.num_responses={rollout.num_responses}",
        ),
        (
            rollout.opponent_mix and not rollout.from_reference,
            "rollout.opponent_mix is set but rollout.from_reference is 0: nobody else draws responses",
        ),
        (
            config.source == "rollouts" and not config.reward.sections,
            "source=rollouts needs a reward — set one, such as reward.gsm8k.weight=1 or reward.model.path=DIR",
        ),
        (
            rollout.kl_target is not None and not advantage.settings.get("kl_coef"),
            "rollout.kl_target is set but advantage.kl_coef is 0: there is no KL in the reward to steer",
        ),
        (
            dynamic == "hypervolume" and not _keeps_scale(advantage),
            f"reward.dynamic=hypervolume multiplies all rewards by one number, and with "
            f"{f'advantage.name={advantage.name}' if advantage.name else name} nothing comes of that: it looks at "
            "rewards relative to each other — use an advantage in the reward's own scale, such as method=rloo",
        ),
        (
            dynamic == "gradients" and (advantage.spec is None or advantage.spec.critic),
            f"reward.dynamic=gradients needs the advantages of each part by itself, which "
            f"{f'advantage.name={advantage.name} has no critic for' if advantage.name else f'{name} does not have'} — "
            "use a method with an advantage and without a critic, such as method=grpo or method=rloo",
        ),
        (idle_keys(config.data, "data", of_data), "data.relabel, data.goal and data.select are for judged files"),
        (
            config.reference.update != "none",
            "reference.update is for files: a rollout keeps the reference it was scored with — leave it out",
        ),
    ):
        if is_wrong:
            raise ConfigError(why)


def _keeps_scale(advantage: AdvantageConfig) -> bool:
    """Return whether twice the rewards give other advantages: not after a division by their spread."""
    spec = advantage.spec
    if spec is None or "scale" in spec.invariant_to:
        return False
    return not (spec.defaults() | advantage.settings).get("whitened", False)
