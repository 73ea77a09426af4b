"""From settings to a source of rollouts: what must be known of every token, who draws, who judges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from accord.config import AlignConfig
from accord.data import write_groups
from accord.data.tokens import TokenGroup, TokenResponse
from accord.decoding.realigned import sample_realigned
from accord.errors import ConfigError, PolicyError
from accord.feedback.composition import build_reward
from accord.feedback.findings import Reward
from accord.objectives import Need, ObjectiveSpec
from accord.policy.critic import ActorCritic
from accord.policy.policy import Policy
from accord.policy.reward import load_reward
from accord.policy.sampling import SamplingSettings, sample_responses, stop_ids
from accord.policy.value_heads import HEADS_FILE, ValueLearner
from accord.records import Group, Response
from accord.rollouts.judging import judge
from accord.rollouts.prompts import longest_response
from accord.rollouts.source import Draw, RolloutSource, Worth
from accord.rollouts.tokens import OPPONENT
from accord.run.held_out.answers import Answers
from accord.store import RunFolder

IN_MEMORY = "in_memory"
"""What stands in the settings for a reward that was given as an object."""
_DRAW_SEED = 2**20  # beside the seed: held-out prompts are answered with other random numbers
_REFERENCE_SEED = 2**21
Opened = Callable[[], AbstractContextManager[Policy]]


def make_worth(config: AlignConfig) -> Worth:
    """Return what rewards become, and what that asks of the models before the first update of a rollout."""
    rollout, advantage, spec = config.rollout, config.advantage, config.objective.spec
    row, settings = advantage.spec, advantage.settings
    is_one_step = rollout.epochs == 1 and (rollout.prompts or config.train.batch_size) <= config.train.batch_size
    is_exact = is_one_step and not rollout.max_staleness and config.source == "rollouts"
    needs_reference = row is not None and row.needs_reference(settings)
    needs_values = row is not None and row.critic
    return Worth(
        spec=row,
        settings=settings,
        # a pass before the only update of a rollout says the same as one more pass before it
        needs_old=not is_exact or needs_reference or needs_values,
        needs_reference=needs_reference or (spec.reference and not is_exact),
        needs_values=needs_values,
    )


def online_spec(spec: ObjectiveSpec, worth: Worth) -> ObjectiveSpec:
    """Return an objective's row with what a rollout adds: its tokens are looked at, its rewards may ask a reference."""
    return replace(
        spec, needs=spec.needs | {Need.SAMPLER_LOGPS}, reference=spec.reference or worth.needs_reference
    )  # fmt: skip


def prepare_policy(config: AlignConfig, spec: ObjectiveSpec, policy: Policy) -> Policy:
    """Return the policy at the temperature it samples at, with a critic where values are asked for."""
    policy.temperature = config.rollout.temperature
    policy = with_value_heads(config, spec, policy)
    if Need.VALUES not in spec.needs or isinstance(policy, ActorCritic):
        return policy
    path, model = config.critic.path, config.model
    critic = None
    if path is not None:
        critic = load_reward(
            policy.path if path == "policy" else path, kind="response", precision=model.precision,
            device=policy.device, trust_remote_code=model.trust_remote_code,
        )  # fmt: skip
        ours, theirs = (one.causal_lm.config.get_text_config().vocab_size for one in (policy, critic))
        if ours != theirs:
            raise PolicyError(
                f"got critic.path={path} with a vocabulary of {theirs}, not {ours} — expected a model that reads the "
                "policy's tokens, such as critic.path=policy or a reward model trained from it"
            )
    with_critic = ActorCritic(policy, critic=critic)
    with_critic.temperature = policy.temperature
    return with_critic.train()


def with_value_heads(config: AlignConfig, spec: ObjectiveSpec, policy: Policy) -> Policy:
    """Return the policy with heads of Q and V where they are asked for: those saved beside it, or new ones."""
    if Need.Q_VALUES not in spec.needs:
        return policy
    learner = policy
    if not isinstance(learner, ValueLearner):
        learner = ValueLearner(policy, seed=config.train.seed)
        if (Path(policy.path) / HEADS_FILE).is_file():
            learner.take_heads(policy.path)
    settings = config.objective.settings
    asked = [settings, *settings.get("parts", {}).values()]
    learner.polyak = next((part["polyak"] for part in asked if "polyak" in part), learner.polyak)
    return learner.train()


def longest_group(config: AlignConfig, prompts: Sequence[TokenGroup]) -> TokenGroup:
    """Return the longest prompt with responses as long as they may be: for the plan and the check of the layout."""
    prompt = max(prompts, key=lambda group: len(group.prompt_ids) + longest_response(config, group))
    length, token = longest_response(config, prompt), prompt.prompt_ids[-1]
    responses = [TokenResponse(ids=(token,) * max(1, length - place)) for place in range(config.rollout.num_responses)]
    return replace(prompt, responses=tuple(responses))


def make_reward(config: AlignConfig, policy: Policy, reward: Reward | None) -> Reward | None:
    """Return the reward in memory, or that of the settings; None where recorded rewards are taken as they are."""
    if reward is not None or not config.reward.sections:
        return reward
    if IN_MEMORY in config.reward.sections:
        raise ConfigError("the run was started with a reward in memory — give it again: align(…, reward=…)")
    return build_reward(config.reward.sections, policy_tokenizer=policy.tokenizer, device=policy.device)


def answers_of(config: AlignConfig, reward: Reward | None) -> Answers:
    """Return how held-out prompts are answered and judged: as in training."""
    return Answers(
        sampling=sampling_settings(config, num_responses=1, seed=config.train.seed),
        judge=(lambda groups: judge(groups, reward)) if reward is not None else None,
    )


def keep_rollout(run: RunFolder, step: int, groups: Sequence[Group]) -> None:
    """Write the rollout that the steps after `step` train on: what was asked, answered, and what it was worth."""
    run.write_rollout(step, lambda path: write_groups(path, groups))


def make_rollouts(
    config: AlignConfig, policy: Policy, prompts: Sequence[TokenGroup], reward: Reward | None, worth: Worth, *,
    origin: Opened,
) -> RolloutSource:  # fmt: skip
    """Return the source of a run's groups. `origin` opens the reference, which may draw some of the responses."""
    return RolloutSource(
        prompts,
        draw=make_draw(config, policy, origin) if config.source == "rollouts" else None,
        reward=reward,
        worth=worth,
        settings=config.rollout,
        train=config.train,
    )


def sampling_settings(config: AlignConfig, *, num_responses: int, seed: int) -> SamplingSettings:
    """Return how the run draws, for so many responses."""
    rollout = config.rollout
    return SamplingSettings(
        num_responses=num_responses, max_tokens=rollout.max_tokens, temperature=rollout.temperature,
        top_p=rollout.top_p, top_k=rollout.top_k, min_p=rollout.min_p, stop=tuple(rollout.stop), seed=seed,
        max_batch_tokens=rollout.max_batch_tokens,
    )  # fmt: skip


def make_draw(config: AlignConfig, policy: Policy, origin: Opened) -> Draw:
    """Return what draws K responses: the policy, and the reference the last `rollout.from_reference` of them."""
    num_others = config.rollout.from_reference
    num_own, seed = config.rollout.num_responses - num_others, config.train.seed
    own = sampling_settings(config, num_responses=num_own, seed=seed + _DRAW_SEED)
    chat, mix = config.template.chat, config.rollout.opponent_mix

    def draw(prompts: Sequence[Sequence[int]], streams: Sequence[int]) -> list[tuple[Response, ...]]:
        drawn = sample_responses(policy, prompts, own, streams=streams, chat_template=chat)
        if not num_others:
            return drawn
        others = replace(own, num_responses=num_others, seed=seed + _REFERENCE_SEED)
        with origin() as reference:
            if mix:
                ends = stop_ids(policy, chat)
                more = sample_realigned(
                    policy, reference, prompts, others, strength=mix, streams=streams, ends=ends
                )  # fmt: skip
            else:
                more = sample_responses(reference, prompts, others, streams=streams, chat_template=chat)
        return [
            (*ours, *(replace(response, source=OPPONENT) for response in theirs))
            for ours, theirs in zip(drawn, more, strict=True)
        ]

    return draw
