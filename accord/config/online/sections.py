"""Settings of learning from one's own samples: the rollout, who judges it, what it is worth, and a critic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, Field

from accord.config.section import NonNegative, PositiveInt, Section

if TYPE_CHECKING:
    from accord.objectives.advantages import AdvantageSpec


class RolloutConfig(Section):
    """How responses are drawn and how often they are trained on. Only with source=rollouts (or replay)."""

    num_responses: Annotated[int, Ge(1)] = Field(default=8, description="K: responses per prompt")
    prompts: PositiveInt | None = Field(default=None, description="prompts per rollout; None = train.batch_size")
    epochs: PositiveInt = Field(default=1, description="passes over each rollout")
    max_tokens: PositiveInt = Field(default=256, description="of a response")
    temperature: Annotated[float, Gt(0)] = Field(default=1.0, description="also of all log-probabilities")
    top_p: Annotated[float, Gt(0), Le(1)] = Field(default=1.0, description="probability mass that is drawn from")
    top_k: Annotated[int, Ge(0)] = Field(default=0, description="0 = no cut")
    min_p: Annotated[float, Ge(0), Le(1)] = Field(
        default=0.0, description="tokens below this share of the likeliest one's probability are not drawn"
    )
    stop: list[str] = Field(default=[], description="strings that end a response")
    from_reference: Annotated[int, Ge(0)] = Field(
        default=0, description="how many of the K responses the reference draws: the last ones"
    )
    opponent_mix: Annotated[float, Ge(0), Lt(1)] = Field(
        default=0.0, description="the policy's share in who draws those: a token-wise geometric mixture (Nash-MD: 0.5)"
    )
    truncated: Literal["keep", "mask"] = Field(
        default="keep", description="mask: responses cut by the length limit carry no gradient"
    )
    dynamic_sampling: bool = Field(
        default=False, description="draw further prompts in place of groups whose rewards are all equal"
    )
    max_draws: PositiveInt = Field(default=4, description="rounds of drawing for one rollout")
    max_staleness: Annotated[int, Ge(0)] = Field(
        default=0, description="rollouts drawn ahead of the one trained on, with the weights of then; 0 = exact"
    )
    kl_target: Annotated[float, Gt(0)] | None = Field(
        default=None, description="nats per response: β of the KL in the reward is steered to it; None = β stays"
    )
    kl_gain: Annotated[float, Gt(0)] = Field(default=0.1, description="of that controller, per rollout")
    mismatch_alarm: NonNegative = Field(
        default=0.02, description="mean |log π_sampler − log π_trainer| per token, nats, that is warned about"
    )
    mismatch_stop: NonNegative = Field(default=0.2, description="… and that stops the run")
    max_batch_tokens: PositiveInt = Field(default=65536, description="cached tokens of the sampler")
    record: bool = Field(default=True, description="keep rollouts in the run folder, for audit and replay")


class CriticConfig(Section):
    """Who estimates values, for advantages that need them (gae)."""

    path: str | None = Field(
        default=None,
        description="model of its own: folder or Hub id, or `policy` for a copy; None = a head on the policy",
    )
    lr: Annotated[float, Gt(0)] | None = Field(default=None, description="of the critic; None = train.lr")


class PretrainingConfig(Section):
    """Demonstrations whose likelihood is raised beside the rewards (PPO-ptx)."""

    path: str | None = Field(default=None, description="file, folder or Hub id of demonstrations")
    weight: NonNegative = Field(default=1.0, description="γ: times their mean negative log-likelihood per token")
    batch_size: PositiveInt | None = Field(default=None, description="of them per step; None = train.batch_size")


class AdvantageConfig(BaseModel):
    """What rewards become, token by token; extra keys are checked against the function's signature."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Return the given settings, defaults not filled in."""
        return dict(self.__pydantic_extra__ or {})

    @property
    def spec(self) -> AdvantageSpec | None:
        """The row of `ADVANTAGES`, or None."""
        from accord.objectives.advantages import ADVANTAGES

        return ADVANTAGES[self.name] if self.name is not None else None


class RewardConfig(BaseModel):
    """Who judges: a section per source of feedback, with its weight and settings. See `docs/how_to/rewards.md`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @property
    def sections(self) -> dict[str, Any]:
        """Return what was given, name by name."""
        return {name: value if value is not None else {} for name, value in (self.__pydantic_extra__ or {}).items()}
