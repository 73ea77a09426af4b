"""Every setting of a run with its bounds, section by section, and which settings make no sense together."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from accord.config.online.sections import AdvantageConfig, CriticConfig, PretrainingConfig, RewardConfig, RolloutConfig
from accord.config.section import Fraction, NonNegative, PositiveInt, Section

if TYPE_CHECKING:
    from accord.objectives import ObjectiveSpec


class ModelConfig(Section):
    """Which model learns, in which precision."""

    path: str = Field(min_length=1, description="model folder or Hub id")
    precision: Literal["float32", "bfloat16", "mixed"] = "float32"
    device: str | None = Field(default=None, description="None = the accelerator if there is one")
    lora_rank: Annotated[int, Ge(0)] = Field(default=0, description="> 0: train adapters, freeze the rest")
    lora_alpha: Annotated[float, Gt(0)] | None = Field(default=None, description="None = twice the rank")
    lora_targets: str = Field(default="all-linear", description="names of linear layers, separated by commas")
    gradient_checkpointing: bool = False
    compile: bool = False
    revision: str | None = None
    trust_remote_code: bool = False


class DataConfig(Section):
    """Which judged responses, how they become tokens, and what happens to awkward rows."""

    path: str = Field(min_length=1, description="file, folder, glob or Hub id")
    format: str = Field(default="auto", description="auto = from the columns")
    split: str | None = None
    eval_path: str | None = Field(default=None, description="held-out file; None = a share of the data")
    eval_fraction: Fraction = Field(default=0.05, description="share of the groups held out when eval_path is None")
    limit: PositiveInt | None = Field(default=None, description="use only the first rows, of each of the two")
    skip_bad_rows: bool = False
    max_tokens: Annotated[int, Ge(2)] | None = Field(default=2048, description="of a prompt and one response")
    on_too_long: Literal["truncate", "truncate_prompt", "truncate_response", "drop", "error"] = "truncate"
    on_empty: Literal["drop", "keep", "error"] = "drop"
    on_identical: Literal["drop", "keep", "error"] = "drop"
    on_prompt_mismatch: Literal["drop", "split", "error"] = "drop"
    stratum: str = Field(
        default="stratum", min_length=1, description="column that names a row's population; judge = who judged it"
    )
    relabel: Literal["none", "reward_conditioned"] = Field(
        default="none", description="reward_conditioned: one group per rating, asked for in the prompt, that wins there"
    )
    goal: str | None = Field(default=None, description="words that ask for a rating, with {score} where it goes")
    select: Literal["all", "isa", "random", "top"] = Field(
        default="all", description="which groups to train on: informative ones, a random share, the clearest ones"
    )
    select_fraction: Annotated[float, Gt(0), Lt(1)] | None = Field(default=None, description="share of them")


class TemplateConfig(Section):
    """How turns become text, and what ends a response."""

    chat: str = Field(default="auto", description="auto = the tokenizer's own, else transcript")
    append_eos: Literal["auto", "never"] = "auto"
    add_bos: Literal["auto", "always", "never"] = "auto"
    train_turns: Literal["all", "last"] = "all"
    on_error: Literal["error", "drop"] = "error"


class ObjectiveConfig(BaseModel):
    """Which objective, and its own settings; extra keys are checked against the objective's signature."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = "dpo"

    @property
    def settings(self) -> dict[str, Any]:
        """Return the given settings of the objective, defaults not filled in."""
        return dict(self.__pydantic_extra__ or {})

    @property
    def spec(self) -> ObjectiveSpec:
        """The row that name and settings mean: one of `OBJECTIVES`, or the sum of several."""
        from accord.objectives.combined import spec_of

        return spec_of(self.name, self.settings)


class ReferenceConfig(Section):
    """What the policy is compared with. `auto` = the policy's own start (the base under adapters)."""

    path: str = Field(default="auto", description="auto, or the folder or Hub id of another model")
    soup: list[str] = Field(default=[], description="models whose averaged weights are the reference; not with path")
    soup_shares: list[NonNegative] = Field(default=[], description="one per model of the soup; empty = equal")
    cache: str | None = Field(
        default="auto", description="folder for its log-probabilities; auto = the user's cache; null = none"
    )
    update: Literal["none", "soft", "hard"] = Field(
        default="none", description="soft: it takes up `mix` of the policy every `update_every` steps; hard: all of it"
    )
    update_every: PositiveInt = Field(default=512, description="steps between two updates")
    mix: Annotated[float, Gt(0), Lt(1)] = Field(default=0.6, description="share of the policy in a soft update")

    @property
    def is_own_start(self) -> bool:
        """Whether it begins as the policy's own start, or the base under its adapters."""
        return self.path == "auto" and not self.soup

    @property
    def named(self) -> str:
        """Its setting, for messages."""
        return f"reference.soup={self.soup}" if self.soup else f"reference.path={self.path}"

    @model_validator(mode="after")
    def _refuse_what_does_not_fit(self) -> ReferenceConfig:
        fields = type(self).model_fields
        idle = [key for key in ("update_every", "mix") if getattr(self, key) != fields[key].default]
        num_models, shares = len(self.soup), self.soup_shares
        for is_wrong, why in (
            (
                self.update == "none" and idle,
                f"reference.{' and reference.'.join(idle)} is set but reference.update is none: the reference never "
                "moves — set reference.update=soft or hard",
            ),
            (
                self.update == "hard" and "mix" in idle,
                "reference.mix is set but reference.update=hard takes up all of the policy — set reference.update=soft",
            ),
            (
                self.soup and self.path != "auto",
                "reference.path and reference.soup are both set: only one of them can say what the reference is",
            ),
            (num_models == 1, "reference.soup has one model: expected two at least, or reference.path"),
            (
                shares and len(shares) != num_models,
                f"reference.soup_shares has {len(shares)} numbers for {num_models} models in reference.soup",
            ),
            (
                shares and abs(sum(shares) - 1.0) > 1e-6,
                f"reference.soup_shares add up to {sum(shares):g}, expected 1",
            ),
        ):
            if is_wrong:
                raise ValueError(why)
        return self


class CriticalConfig(Section):
    """Two further models, of right and of wrong answers, whose contrast says which tokens are mistakes (cDPO)."""

    positive: str | None = Field(default=None, description="folder or Hub id of the model of right answers")
    negative: str | None = Field(default=None, description="folder or Hub id of the model of wrong answers")
    contrast: NonNegative = Field(default=1.0, description="b of softmax((1 + b) logits₊ − b logits₋)")


class TrainConfig(Section):
    """The loop."""

    epochs: Annotated[float, Gt(0)] = 1.0
    max_steps: PositiveInt | None = Field(default=None, description="stop after so many steps, whatever the epochs")
    batch_size: PositiveInt = Field(default=64, description="groups per optimiser step, over all processes")
    max_batch_tokens: PositiveInt = Field(default=16384, description="laid-out tokens per forward pass and process")
    length_window: PositiveInt = Field(default=1, description="batches whose groups are sorted by length")
    lr: Annotated[float, Gt(0)] | None = Field(
        default=None,
        description="highest learning rate of AdamW; None = 1e-6 (sft 2e-5, reward models 1e-5), adapters 1e-5 (1e-4)",
    )
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup: Fraction = Field(default=0.1, description="share of the steps")
    weight_decay: NonNegative = 0.0
    l1: NonNegative = Field(default=0.0, description="times Σ|s·B·A| of adapters, added to the loss (PAFT)")
    adam_beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    adam_beta2: Annotated[float, Ge(0), Lt(1)] = 0.999
    adam_eps: Annotated[float, Gt(0)] = 1e-8
    max_grad_norm: Annotated[float, Gt(0)] | None = 1.0
    seed: Annotated[int, Ge(0)] = 0
    log_every: PositiveInt = 1
    checkpoint_every: PositiveInt | None = Field(
        default=None, description="steps; None = a tenth of the run; more than there are = only when stopped or done"
    )
    keep_last: PositiveInt = 2
    statistics: bool = Field(default=False, description="indicators at every step, too")
    write_rows: bool = Field(default=True, description="per-example rows in Parquet")


class EvaluateConfig(Section):
    """What is measured on held-out groups."""

    every: PositiveInt | None = Field(default=None, description="steps; None = at the start and at the end")
    at_start: bool = True
    num_samples: Annotated[int, Ge(0)] = Field(default=16, description="held-out prompts to answer, for KL and reading")
    sample_tokens: PositiveInt = 64
    reward: str | None = Field(
        default=None, description="reward model that scores the held-out answers: folder or Hub id, same vocabulary"
    )
    gradient_pairs: Annotated[int, Ge(0)] = Field(
        default=0, description="held-out pairs whose gradients are compared (entanglement, CHES): one more pass each"
    )
    patience: PositiveInt | None = Field(
        default=None, description="stop after so many evaluations without a lower loss; the best weights are kept"
    )


class TrackingConfig(Section):
    """Where numbers go besides the run folder and TensorBoard."""

    report: bool = Field(default=True, description="write report.html at the end; `accord report` does it later, too")
    wandb_project: str | None = None


BFLOAT16_IS_TOO_COARSE = (
    "weights in bfloat16 have 8 bits: a step smaller than 1/256 of a weight is rounded away, and at the learning rates "
    "of alignment nearly all are — set model.precision=mixed (float32 weights, bfloat16 products) or "
    "model.lora_rank=16 (float32 adapters on frozen bfloat16 weights)"
)


class AlignConfig(Section):
    """Everything a run depends on."""

    model: ModelConfig
    data: DataConfig
    out: str = Field(default="", description="run folder; empty = runs/<objective>-<model>")
    source: Literal["file", "rollouts", "replay"] = Field(
        default="file", description="rollouts: sample from the policy and have it judged; replay: recorded rollouts"
    )
    method: str | None = Field(default=None, description="preset of an online method: ppo, grpo, … (`accord methods`)")
    template: TemplateConfig = TemplateConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    reference: ReferenceConfig = ReferenceConfig()
    critical: CriticalConfig = CriticalConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    critic: CriticConfig = CriticConfig()
    pretraining: PretrainingConfig = PretrainingConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _refuse_settings_without_effect(self) -> AlignConfig:
        model, data = self.model, self.data
        for is_idle, why in (
            (
                self.evaluate.patience is not None and self.evaluate.every is None,
                "evaluate.patience is set but evaluate.every is not: there is nothing to be patient about",
            ),
            (
                not model.lora_rank and (model.lora_alpha is not None or model.lora_targets != "all-linear"),
                "model.lora_alpha or model.lora_targets is set but model.lora_rank is not: no adapters are trained",
            ),
            (
                data.eval_path is not None and data.eval_fraction != _default(DataConfig, "eval_fraction"),
                "data.eval_path and data.eval_fraction are both set: only one of them can say what is held out",
            ),
            (
                data.goal is not None and data.relabel == "none",
                "data.goal is set but data.relabel is none: no prompt asks for a rating",
            ),
            (
                (data.select == "all") != (data.select_fraction is None),
                "data.select and data.select_fraction only work together: which groups, and how many of them",
            ),
            (
                not self.evaluate.num_samples
                and self.evaluate.sample_tokens != _default(EvaluateConfig, "sample_tokens"),
                "evaluate.sample_tokens is set but evaluate.num_samples is 0: nothing is sampled",
            ),
            (
                not self.evaluate.num_samples and self.evaluate.reward is not None,
                "evaluate.reward is set but evaluate.num_samples is 0: there is nothing to score",
            ),
            (
                model.precision == "bfloat16" and not model.lora_rank and not _is_adapter_folder(model.path),
                BFLOAT16_IS_TOO_COARSE,
            ),
        ):
            if is_idle:
                raise ValueError(why)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved settings as plain values, for config.yaml."""
        plain = self.model_dump(mode="json")
        plain["objective"] = {"name": self.objective.name, **self.objective.settings}
        return plain


def _default(section: type[Section], key: str) -> Any:
    return section.model_fields[key].default


def _is_adapter_folder(path: str) -> bool:
    return (Path(path).expanduser() / "adapter_config.json").is_file()


def idle_keys(section: Section, name: str, keys: Iterable[str]) -> list[str]:
    """Return which of a section's keys are set to something, as dotted keys."""
    return [f"{name}.{key}" for key in keys if getattr(section, key) != _default(type(section), key)]


def default_lr(*, learns_from_demonstrations: bool, has_adapters: bool, trains_reward_model: bool = False) -> float:
    """Return the learning rate of a run that names none.

    Preferences move a model that is already good: 1e-6, with adapters 1e-5. Demonstrations teach it: 2e-5 and 1e-4. A
    reward model has a head to learn: 1e-5 and 1e-4.
    """
    if trains_reward_model:
        return 1e-4 if has_adapters else 1e-5
    if learns_from_demonstrations:
        return 1e-4 if has_adapters else 2e-5
    return 1e-5 if has_adapters else 1e-6
