"""From settings to a reward: the table of what a reward can be made of, and checks of everything that was asked."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_type_hints

from pydantic import ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError, create_model

from accord.errors import ConfigError
from accord.feedback.composition.combine import Combine, Composition, OnUnknown, Part, Shaping, check_parts
from accord.feedback.composition.infalign import InferenceCalibrated, Transform, read_references
from accord.feedback.composition.moving import DYNAMICS, STEP, Dynamic, DynamicReward, check_dynamic, make_dynamic
from accord.feedback.composition.shaping import (
    Abstention,
    CosineLength,
    KimiLength,
    LengthReward,
    OverlongReward,
    RepetitionReward,
    Unit,
)
from accord.feedback.findings import Layers, Reward
from accord.feedback.verifiers.texts import ABSTENTIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a run gives its rewards beside their settings."""

    policy_tokenizer: Any = None  # of the sampled token ids
    device: Any = None


Builder = Callable[..., Any]  # (given: Given, *, **settings) -> Reward | Shaping


def _length(given: Given, *, unit: Unit = "tokens") -> Reward:
    return LengthReward(unit=unit, tokenizer=given.policy_tokenizer)


def _overlong(given: Given, *, max_length: int, buffer: int, unit: Unit = "tokens") -> Reward:
    return OverlongReward(max_length=max_length, buffer=buffer, unit=unit, tokenizer=given.policy_tokenizer)


def _repetition(given: Given, *, ngram: int = 4, unit: Unit = "words") -> Reward:
    return RepetitionReward(ngram=ngram, unit=unit, tokenizer=given.policy_tokenizer)


def _cosine_length(
    given: Given, *, max_length: int, right: tuple[float, float] = (1.0, 0.5),
    wrong: tuple[float, float] = (-1.0, -0.5), right_from: float = 1.0, unit: Unit = "tokens",
) -> Shaping:  # fmt: skip
    return CosineLength(
        max_length=max_length, right=right, wrong=wrong, right_from=right_from, unit=unit,
        tokenizer=given.policy_tokenizer,
    )  # fmt: skip


def _kimi_length(given: Given, *, right_from: float = 1.0, unit: Unit = "tokens") -> Shaping:
    return KimiLength(right_from=right_from, unit=unit, tokenizer=given.policy_tokenizer)


def _abstention(
    given: Given, *, right: float = 1.0, abstain: float = 0.0, wrong: float = -1.0, right_from: float = 1.0,
    phrases: tuple[str, ...] = ABSTENTIONS,
) -> Shaping:  # fmt: skip
    del given
    return Abstention(right=right, abstain=abstain, wrong=wrong, right_from=right_from, phrases=phrases)


def _infalign(
    given: Given, *, references: str, transform: Transform = "identity", t: float = 10.0, attribute: str = "reward"
) -> Shaping:  # fmt: skip
    del given
    return InferenceCalibrated(references=read_references(references, attribute=attribute), transform=transform, t=t)


def _model(
    given: Given, *, path: str | tuple[str, ...], centre: str | None = None, scale: bool | None = None,
    remove_length: bool = False, ensemble: str = "mean", penalty: float = 0.5, chat_template: str = "auto",
    precision: str = "float32", max_batch_tokens: int = 8192, steps: str | None = None,
) -> Reward:  # fmt: skip
    from accord.feedback.reward_models import reward_model_reward

    return reward_model_reward(
        path, centre=centre, scale=scale, remove_length=remove_length, ensemble=ensemble, penalty=penalty,
        chat_template=chat_template, precision=precision, max_batch_tokens=max_batch_tokens, steps=steps,
        policy_tokenizer=given.policy_tokenizer, device=given.device,
    )  # fmt: skip


def _critique(
    given: Given, *, critic: str, scorer: str, max_tokens: PositiveInt = 256, temperature: NonNegativeFloat = 0.0,
    seed: int = 0, centre: str | None = None, scale: bool | None = None, chat_template: str = "auto",
    precision: str = "float32", max_batch_tokens: int = 8192,
) -> Reward:  # fmt: skip
    from accord.feedback.critique_reward import CritiqueReward
    from accord.feedback.reward_models import reward_model_reward
    from accord.policy.load import load_policy
    from accord.policy.sampling import SamplingSettings

    scores = reward_model_reward(
        scorer, centre=centre, scale=scale, chat_template=chat_template, precision=precision,
        max_batch_tokens=max_batch_tokens, device=given.device,
    )  # fmt: skip
    return CritiqueReward(
        critic=load_policy(critic, precision=cast(Any, precision), device=given.device), scorer=scores,
        sampling=SamplingSettings(num_responses=1, max_tokens=max_tokens, temperature=temperature, seed=seed),
        chat_template=chat_template,
    )  # fmt: skip


def _judge(
    given: Given, *, url: str, model: str, prompt: str = "pointwise.v1", rubric: str = "",
    reference_key: str | None = None, lowest: float = 1.0, highest: float = 10.0, temperature: float = 0.0,
    max_tokens: int = 1024, api_key_variable: str | None = None, cache: str | None = None, max_concurrent: int = 8,
    num_attempts: int = 3,
) -> Reward:  # fmt: skip
    from accord.endpoint import Endpoint, EndpointSettings
    from accord.feedback.judges import EndpointChat, PointwiseJudge

    del given
    settings = EndpointSettings(
        url=url, model=model, api_key_variable=api_key_variable, max_concurrent=max_concurrent,
        cache_folder=None if cache is None else Path(cache),
    )  # fmt: skip
    return PointwiseJudge(
        chat=EndpointChat(endpoint=Endpoint(settings), temperature=temperature, max_tokens=max_tokens),
        prompt=prompt, rubric=rubric, reference_key=reference_key, lowest=lowest, highest=highest,
        num_attempts=num_attempts,
    )  # fmt: skip


REWARDS: dict[str, Builder] = {
    "critique": _critique,
    "judge": _judge,
    "model": _model,
    "length_penalty": _length,
    "overlong": _overlong,
    "repetition_penalty": _repetition,
    "cosine_length": _cosine_length,
    "kimi_length": _kimi_length,
    "abstention": _abstention,
    "infalign": _infalign,
}
"""What a reward can be made of beside the verifiers; the settings of each are its keyword parameters."""

_OF_PART: dict[str, tuple[Any, Any]] = {
    "weight": (float | None, None),  # 1, but 0 for a gate and for a part that a shaping stands for
    "gate": (bool, False),
    "passes_at": (float, 1.0),
    "of": (str | None, None),
    "kind": (str | None, None),
    "reference_score": (float | None, None),
}
_OF_WHOLE: dict[str, tuple[Any, Any]] = {
    "combine": (Combine, "sum"),
    "on_unknown": (OnUnknown, "unknown"),
    "closed": (float, 0.0),
    "quantile": (float, 0.85),
    "dynamic": (Dynamic | None, None),
    "dynamic_step": (PositiveFloat, STEP),
    "dynamic_layers": (Layers, "middle"),
}
_REPLACES = {"cosine_length", "abstention", "infalign"}  # shapings that say again, in another way, what `of` says


def build_reward(
    settings: Mapping[str, Any], *, policy_tokenizer: Any = None, device: Any = None
) -> Composition | DynamicReward:
    """Return the reward that settings describe, such as `{"gsm8k": {}, "overlong": {"max_length": 512, "buffer": 64}}`.

    Keys: names of `reward_names()`, each with its settings beside `weight` (1), `gate`, `passes_at`, `of` (the part
    that a shaping reads; the only other one unless given) and `kind` (the reward's name, where the key is one's own
    name for it); and, for the whole, `combine`, `on_unknown`, `closed` and `quantile` of `Composition`, and `dynamic`,
    the rule of `DYNAMICS` by which the weights move in a run that samples, with its `dynamic_step` and
    `dynamic_layers`.
    `policy_tokenizer` is that of sampled token ids: lengths count its tokens, and a reward model with the same
    vocabulary reads the ids as they are. A part that another stands for (`cosine_length`, `abstention`, `infalign`)
    has weight 0 unless one is given.
    Raises ConfigError for an unknown reward or setting (naming the nearest), or one of the wrong kind or range.
    """
    whole, planned = _plan(settings)
    given = Given(policy_tokenizer=policy_tokenizer, device=device)
    parts = []
    for one in planned:
        scores = _builder(one.name, one.kind)(given, **one.settings)
        key = "shaping" if _is_shaping(one.kind) else "source"
        parts.append(replace(one.part, **{key: scores}))
    dynamic, step, layers = (whole.pop(key) for key in ("dynamic", "dynamic_step", "dynamic_layers"))
    composition = Composition(parts=tuple(parts), **whole)
    return composition if dynamic is None else make_dynamic(composition, dynamic, step=step, layers=layers)


def check_reward(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError as `build_reward` would, before any model is loaded or file read."""
    _plan(settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planned:
    """A part that is checked and not yet built."""

    name: str
    kind: str
    part: Part  # without its source
    settings: Mapping[str, Any]


def _plan(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[_Planned]]:
    """Return the settings of the whole and of its parts, all checked."""
    whole = _validated("reward", {key: settings[key] for key in settings if key in _OF_WHOLE}, _OF_WHOLE)
    names = [name for name in settings if name not in _OF_WHOLE]
    if not names:
        raise ConfigError(f"got no reward — expected one or more of {', '.join(reward_names())}")
    found = {name: _read_part(name, settings[name]) for name in names}
    own = [name for name, (kind, _, _) in found.items() if not _is_shaping(kind)]
    stands_for = {
        part["of"] or (own[0] if len(own) == 1 else "") for kind, part, _ in found.values() if kind in _REPLACES
    }
    planned = []
    for name, (kind, of_part, own_settings) in found.items():
        weight = of_part["weight"]
        if weight is None:
            weight = 0.0 if of_part["gate"] or name in stands_for else 1.0
        part = Part(
            name=name, weight=weight, of=_read_of(name, of_part["of"], own, is_shaping=_is_shaping(kind)),
            is_gate=of_part["gate"], passes_at=of_part["passes_at"], reference_score=of_part["reference_score"],
        )  # fmt: skip
        planned.append(_Planned(name=name, kind=kind, part=part, settings=own_settings))
    parts = [one.part for one in planned]
    _refuse_idle(settings, whole, parts)
    check_parts(parts, combine=whole["combine"], quantile=whole["quantile"])
    if whole["dynamic"] is not None:
        check_dynamic(whole["dynamic"], parts, combine=whole["combine"])
    return whole, planned


def reward_names() -> list[str]:
    """Return every name a reward can be built by."""
    from accord.feedback.verifiers import VERIFIERS

    return sorted({*REWARDS, *VERIFIERS})


def reward_settings(kind: str) -> dict[str, Any]:
    """Return the settings of one reward with their defaults (`inspect.Parameter.empty` where one must be given)."""
    return {name: default for name, (_, default) in _own_fields(_builder(kind, kind)).items()}


def _read_part(name: str, given: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the kind of a part, what composition wants to know of it, and its own settings, all checked."""
    if given is None or given == "":
        given = {}
    if not isinstance(given, Mapping):
        known = ", ".join(_OF_WHOLE)
        raise ConfigError(f"got reward.{name}={given!r} — expected settings of a reward by its name, or one of {known}")
    kind = str(given.get("kind") or name)
    fields = _own_fields(_builder(name, kind))
    checked = _validated(f"reward.{name}", given, {**_OF_PART, **fields})  # a reward's own settings come first
    of_part = {key: default if key in fields else checked[key] for key, (_, default) in _OF_PART.items()}
    return kind, of_part, {key: checked[key] for key in fields}


def _builder(name: str, kind: str) -> Builder:
    if kind in REWARDS:
        return REWARDS[kind]
    from accord.feedback.verifiers import VERIFIERS
    from accord.feedback.verifiers.spec import VerifierReward

    if kind not in VERIFIERS:
        near = difflib.get_close_matches(kind, reward_names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(reward_names())}"
        raise ConfigError(f"got the unknown reward {f'{name} of kind {kind}' if kind != name else name} — {hint}")
    spec = VERIFIERS[kind]

    def build(given: Given, **settings: Any) -> Reward:
        del given
        return VerifierReward(name, spec, settings)

    cast(Any, build).__signature__ = inspect.Signature(list(spec.settings().values()))  # as if it were written out
    return build


def _refuse_idle(settings: Mapping[str, Any], whole: Mapping[str, Any], parts: Sequence[Part]) -> None:
    """Raise ConfigError for a setting that this composition never looks at."""
    dynamic, combine, has_gate = whole["dynamic"], whole["combine"], any(part.is_gate for part in parts)
    of_rule = DYNAMICS[dynamic].reads if dynamic is not None else frozenset[str]()
    if unread := [key for key in ("dynamic_step", "dynamic_layers") if key in settings and key not in of_rule]:
        shown = ", ".join(f"reward.{key}" for key in unread)
        raise ConfigError(f"got {shown}, which reward.dynamic={dynamic} does not look at — leave it out")
    idle = [
        key
        for key, is_read in (("closed", has_gate), ("quantile", combine == "log_sigmoid"))
        if key in settings and not is_read
    ]
    for part in parts:
        reads = {
            "passes_at": part.is_gate or combine == "lexicographic",
            "reference_score": combine == "log_sigmoid" and not part.is_gate,
        }
        given = settings[part.name] or {}
        own = _own_fields(_builder(part.name, str(given.get("kind") or part.name)))
        idle += [
            f"{part.name}.{key}" for key, is_read in reads.items() if key in given and key not in own and not is_read
        ]
    if idle:
        raise ConfigError(
            f"got {', '.join(f'reward.{key}' for key in idle)}, which combine={combine} "
            f"{'with' if has_gate else 'without'} a gate does not look at — leave it out"
        )


def _is_shaping(kind: str) -> bool:
    return kind in REWARDS and get_type_hints(REWARDS[kind])["return"] is Shaping


def _read_of(name: str, of: str | None, own: list[str], *, is_shaping: bool) -> str | None:
    if not is_shaping:
        if of is not None:
            raise ConfigError(f"got reward.{name}.of={of}, but {name} reads no other part — leave it out")
        return None
    if of is None and len(own) != 1:
        raise ConfigError(
            f"got reward.{name} beside {', '.join(own) or 'no part with scores of its own'} — expected "
            f"reward.{name}.of to name the part it reads"
        )
    if of is not None and of not in own:
        raise ConfigError(
            f"got reward.{name}.of={of} — expected the name of a part with scores of its own, which are: "
            f"{', '.join(own) or 'none'}"
        )
    return of or own[0]


def _own_fields(builder: Builder) -> dict[str, tuple[Any, Any]]:
    return {
        name: (parameter.annotation, parameter.default)
        for name, parameter in inspect.signature(builder, eval_str=True).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def _validated(prefix: str, given: Mapping[str, Any], fields: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    for key in given:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {prefix}.{near[0]}?" if near else f"valid ones are {', '.join(sorted(fields))}"
            raise ConfigError(f"got the unknown setting {prefix}.{key} — {hint}")
    missing = [key for key, (_, default) in fields.items() if default is inspect.Parameter.empty and key not in given]
    if missing:
        raise ConfigError(f"{prefix} needs {', '.join(f'{prefix}.{key}' for key in missing)} — give it")
    definitions: dict[str, Any] = {
        key: (kind, ... if default is inspect.Parameter.empty else default) for key, (kind, default) in fields.items()
    }
    model = create_model("settings", __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=True), **definitions)
    try:
        checked = model.model_validate(dict(given))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        shown = json.dumps(problem["input"], default=str)
        raise ConfigError(f"got {prefix}.{key}={shown} — {problem['msg']}") from None
    return {key: getattr(checked, key) for key in fields}
