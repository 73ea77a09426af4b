"""All settings, strictly: an unknown key is an error that names the nearest valid one. No torch.

A run's settings come as dotted keys (`train.lr=1e-6`), from a YAML recipe, the command line or Python; later ones win.
The settings of an objective are read off its function's signature, so that they are written down once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from accord.errors import ConfigError

if TYPE_CHECKING:
    from accord.objectives import ObjectiveSpec

Fraction = Annotated[float, Ge(0), Le(1)]
PositiveInt = Annotated[int, Gt(0)]
NonNegative = Annotated[float, Ge(0)]


class Section(BaseModel):
    """Base of every group of settings: nothing unknown, nothing changed after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


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
    template: TemplateConfig = TemplateConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    reference: ReferenceConfig = ReferenceConfig()
    critical: CriticalConfig = CriticalConfig()
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


SHORT = {"model": "model.path", "data": "data.path", "objective": "objective.name", "reference": "reference.path"}
"""Keys that may be given as one word: `objective=dpo` is `objective.name=dpo`."""


def build_config(settings: Mapping[str, Any]) -> AlignConfig:
    """Build the settings of a run from dotted or nested keys.

    Raises ConfigError for an unknown key (naming the nearest valid one), a value of the wrong kind or range, a missing
    model or data, an unknown objective or a setting that the objective does not use.
    """
    nested: dict[str, Any] = {}
    for key, value in flatten(settings):
        target = nested
        is_empty_section = isinstance(value, Mapping)
        *parents, leaf = (key if is_empty_section else SHORT.get(key, key)).split(".")
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
        raise ConfigError(_explain(error)) from None
    config = config.model_copy(update={"objective": validate_objective(config.objective)})
    config = settle_reward_model(config)
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
    asked += idle_keys(evaluate, "evaluate", ["sample_tokens", "gradient_pairs"])
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


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read a YAML recipe. Raises ConfigError when it is missing or not a mapping."""
    try:
        loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"got the recipe {path}, which cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"got the recipe {path}, which is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"got the recipe {path} with {type(loaded).__name__} — expected keys and values")
    return loaded


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split `key=value`; the value is read as YAML (so 1e-6 is a number and null is None)."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"got {text!r} — expected key=value, such as train.lr=1e-6")
    return key, _plain_value(value)


def _plain_value(text: str) -> Any:
    try:
        return float(text) if "e" in text.lower() else yaml.safe_load(text)  # YAML 1.1 reads 1e-6 as a word
    except (ValueError, yaml.YAMLError):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            return text


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of nested settings; an empty section is yielded as such."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def valid_keys() -> list[str]:
    """Return every dotted key of a run, but for those of the objectives."""
    keys: list[str] = []
    for name, field in AlignConfig.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            keys.extend(f"{name}.{key}" for key in section.model_fields)
        else:
            keys.append("objective.name" if name == "objective" else name)
    return keys


def _objective_keys() -> list[str]:
    from accord.objectives import OBJECTIVES

    return sorted({f"objective.{key}" for spec in OBJECTIVES.values() for key in spec.settings()})


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            given = problem["input"]
            keys = [f"{key}.{leaf}" for leaf, _ in flatten(given)] if isinstance(given, Mapping) else [key]
            lines.extend(_unknown(unknown, valid_keys() + _objective_keys()) for unknown in keys)
        elif problem["type"] == "missing":
            wanted = f"{key}.path" if key in ("model", "data") else key
            lines.append(
                f"{wanted} is missing — give it as {wanted}=… or, on the command line, --{wanted.split('.')[0]}"
            )
        else:
            is_section = not key or isinstance(problem["input"], Mapping)  # then the message names the keys
            what = "" if is_section else f"got {key}={problem['input']!r} — "
            lines.append(f"{what}{problem['msg'].removeprefix('Value error, ')}")
    return "; ".join(lines)


def _unknown(key: str, valid: list[str]) -> str:
    leaves = {candidate.rsplit(".", 1)[-1]: candidate for candidate in valid}
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.85)  # first, for a leaf such as `path` is not the only
    near = near or [leaves[n] for n in difflib.get_close_matches(key.rsplit(".", 1)[-1], leaves, n=1, cutoff=0.6)]
    hint = f"did you mean {near[0]}?" if near else f"valid ones are {', '.join(sorted(valid))}"
    return f"got the unknown setting {key} — {hint}"


def validate_objective(given: ObjectiveConfig) -> ObjectiveConfig:
    """Fill in and check an objective's settings against its signature, those of a sum part by part."""
    from accord.objectives.combined import SUM, spec_of

    if given.name != SUM:
        return ObjectiveConfig(name=given.name, **_objective_settings(given.name, given.settings, "objective"))
    parts = given.settings.get("parts")
    if not isinstance(parts, Mapping) or not parts or len(given.settings) > 1:
        found = ", ".join(f"objective.{key}" for key in given.settings) or "no part"
        raise ConfigError(
            f"got objective=sum with {found} — expected only parts with their weights and settings, such as "
            "objective.parts.dpo.weight=1 objective.parts.sft.weight=0.2"
        )
    for name, part in parts.items():
        if part is not None and not isinstance(part, Mapping):
            raise ConfigError(f"got objective.parts.{name}={part!r} — expected its settings, such as weight: 1.0")
    settled = {name: _objective_settings(name, part or {}, f"objective.parts.{name}") for name, part in parts.items()}
    try:
        spec_of(SUM, {"parts": settled})
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return ObjectiveConfig(name=SUM, **{"parts": settled})


def _objective_settings(name: str, given: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the settings of one row, filled in and checked; as a part of a sum it has a weight besides."""
    from accord.objectives import OBJECTIVES
    from accord.objectives.combined import SUM

    is_part = prefix != "objective"
    if name not in OBJECTIVES:
        known = [*OBJECTIVES] if is_part else [*OBJECTIVES, SUM]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
        raise ConfigError(f"got {prefix if is_part else f'objective={name}'} — {hint} (`accord methods` lists them)")
    spec = OBJECTIVES[name]
    fields: dict[str, Any] = {key: (p.annotation, p.default) for key, p in spec.settings().items()}
    if is_part:
        fields = {"weight": (Annotated[float, Gt(0)], 1.0)} | fields
    for key in given:
        if key not in fields:
            valid = [*([] if is_part else ["objective.name"]), *(f"{prefix}.{field}" for field in fields)]
            owners = [other for other, row in OBJECTIVES.items() if key in row.settings()]
            owners += [SUM] if key == "parts" else []
            also = f" ({', '.join(owners)} has {key})" if owners else ""
            raise ConfigError(f"{_unknown(f'{prefix}.{key}', valid)}; {name} does not use it{also}")
    model = create_model(f"{name}_settings", __config__=ConfigDict(extra="forbid"), **fields)
    try:
        settings = model.model_validate(dict(given)).model_dump()
        if spec.check is not None:
            spec.check(**{key: value for key, value in settings.items() if key != "weight" or not is_part})
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise ConfigError(f"got {prefix}.{key}={problem['input']!r} — {problem['msg']}") from None
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None
    return settings
