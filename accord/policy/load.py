"""A policy from a folder or a Hub id: weights, precision, adapters. The real loading code, the only one."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from accord.errors import PolicyError
from accord.policy.policy import Policy
from accord.policy.products import use_fast_products

Precision = Literal["float32", "bfloat16", "mixed"]
_STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "mixed": torch.float32}


def load_policy(
    path: str | Path,
    *,
    precision: Precision = "float32",
    device: str | torch.device | None = None,
    lora_rank: int = 0,
    lora_alpha: float | None = None,
    lora_targets: str = "all-linear",
    gradient_checkpointing: bool = False,
    compile: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Policy:
    """Load a causal language model and its tokenizer as a `Policy`.

    precision: "float32"; "bfloat16" (for adapters on a frozen base and for scoring: in weights of its own, rounding
    loses small updates); "mixed" (float32 weights, bfloat16 products; 16 bytes per parameter with AdamW).
    `lora_rank` > 0 adds trainable adapters and
    freezes the rest. A folder with an `adapter_config.json` is loaded on its base model.
    Raises PolicyError when the path is not a model, is half-written, or cannot be reached.
    """
    model, tokenizer, source = load_parts(
        path, load_causal_lm, task_type="CAUSAL_LM", precision=precision, device=device, lora_rank=lora_rank,
        lora_alpha=lora_alpha, lora_targets=lora_targets, revision=revision, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    policy = Policy(model, tokenizer, path=source, autocast=torch.bfloat16 if precision == "mixed" else None)
    return make_ready(policy, gradient_checkpointing=gradient_checkpointing, compile=compile)


def load_parts(
    path: str | Path,
    load_model: Callable[[str, torch.dtype, dict[str, Any]], PreTrainedModel],
    *,
    task_type: str,
    precision: Precision,
    device: str | torch.device | None,
    lora_rank: int,
    lora_alpha: float | None,
    lora_targets: str,
    revision: str | None,
    trust_remote_code: bool,
) -> tuple[nn.Module, PreTrainedTokenizerBase, str]:
    """Return a model without dropout on its device, its tokenizer, and the folder or Hub id they came from.

    `load_model(source, dtype, options)` loads the base; adapters of the folder, or new ones, are put on it.
    `task_type` is peft's name of what the model is for.
    """
    source = _resolve(path)
    adapter_source = source if (Path(source) / "adapter_config.json").is_file() else None
    base_source = _base_of_adapter(source) if adapter_source else source
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    tokenizer = _load_tokenizer(source, base_source, options)
    model: nn.Module = load_model(base_source, _STORED[precision], options)
    if adapter_source:
        model = _load_adapters(model, adapter_source, task_type)
    elif lora_rank:
        model = _add_lora(model, lora_rank, lora_alpha, lora_targets, task_type)
    silence_dropout(model)
    cast(nn.Module, model).to(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    return model, tokenizer, source


AnyPolicy = TypeVar("AnyPolicy", bound=Policy)


def make_ready(policy: AnyPolicy, *, gradient_checkpointing: bool, compile: bool) -> AnyPolicy:
    """Set a loaded policy to training, with what saves memory or time where it was asked for."""
    policy.train()
    if gradient_checkpointing:
        policy.enable_gradient_checkpointing()
    if compile:
        policy.causal_lm.base_model.compile()  # what scoring calls; the head is apart
    else:  # the compiler chooses its kernels itself
        use_fast_products(policy.model)
    return policy


def _resolve(path: str | Path) -> str:
    """Return a local folder, checked, or a Hub id as it came."""
    text, local = str(path), Path(path).expanduser()
    if local.is_dir():
        names = {entry.name for entry in local.iterdir()}
        if not names & {"config.json", "adapter_config.json"}:
            found = ", ".join(sorted(names)[:6]) or "nothing"
            raise PolicyError(f"got the folder {text} with {found} — expected a model folder with a config.json")
        return str(local)
    if local.exists():
        raise PolicyError(f"got the file {text} — expected a model folder (with config.json) or a Hub id")
    if text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise PolicyError(f"got the path {text}, which does not exist — expected a model folder or a Hub id")
    return text


def _base_of_adapter(source: str) -> str:
    try:
        base = json.loads((Path(source) / "adapter_config.json").read_text()).get("base_model_name_or_path")
    except ValueError as error:
        raise PolicyError(
            f"{source}/adapter_config.json is not JSON ({error}) — expected a complete adapter folder; copy it again"
        ) from error
    if not base:
        raise PolicyError(f"{source}/adapter_config.json names no base model — set base_model_name_or_path in it")
    return _resolve(base)


def _load_tokenizer(source: str, base_source: str, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    problems = []
    for place in dict.fromkeys((source, base_source)):
        try:
            return AutoTokenizer.from_pretrained(place, **options)
        except (OSError, ValueError, KeyError, TypeError) as error:  # what a missing or unreadable tokenizer raises
            problems.append(f"{place}: {first_line(error)}")
    raise PolicyError(
        f"no tokenizer could be loaded ({'; '.join(problems)}) — a model folder needs its tokenizer files"
    )


def load_causal_lm(source: str, dtype: torch.dtype, options: dict[str, Any]) -> PreTrainedModel:
    """Load a causal language model, complete or not at all."""
    from safetensors import SafetensorError

    try:
        model, report = cast(
            tuple[PreTrainedModel, dict[str, Any]],
            AutoModelForCausalLM.from_pretrained(source, dtype=dtype, output_loading_info=True, **options),
        )
    except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
        raise PolicyError(
            f"{source} could not be loaded as a causal language model: {first_line(error)} — "
            "expected config.json and complete weights; copy or download the folder again"
        ) from error
    if any(name.startswith("score.") for name in report.get("unexpected_keys") or ()):
        raise PolicyError(
            f"{source} holds a reward model — expected a causal language model; load it with load_reward, or train it "
            "with a reward model's objective"
        )
    missing = sorted(report.get("missing_keys") or ())
    if missing:  # transformers fills them with random numbers and goes on
        raise PolicyError(
            f"{source} lacks {len(missing)} weights ({', '.join(missing[:3])}, …) — expected a complete model; "
            "it is half-written or of another architecture"
        )
    return model


def _load_adapters(model: nn.Module, source: str, task_type: str) -> nn.Module:
    from peft import PeftModel
    from safetensors import SafetensorError

    made_for = json.loads((Path(source) / "adapter_config.json").read_text()).get("task_type")
    if made_for in _KINDS and made_for != task_type:
        raise PolicyError(
            f"got the adapters in {source} of {_KINDS[made_for]} — expected those of {_KINDS[task_type]}; merge them "
            "into their base first (docs/how_to/lora.md) and give the merged model"
        )
    try:
        with _without_peft_notice():
            warnings.filterwarnings("error", message="Found missing adapter keys")  # peft goes on with fresh ones
            return PeftModel.from_pretrained(cast(PreTrainedModel, model), source, is_trainable=True)
    except (OSError, ValueError, KeyError, SafetensorError, RuntimeError, UserWarning) as error:
        raise PolicyError(
            f"the adapters in {source} could not be loaded: {first_line(error)} — "
            "expected adapter_config.json and adapter_model.safetensors made for the base model it names"
        ) from error


_KINDS = {"CAUSAL_LM": "a language model", "SEQ_CLS": "a reward model"}


def _add_lora(model: nn.Module, rank: int, alpha: float | None, targets: str, task_type: str) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    chosen: Any = targets if targets == "all-linear" else targets.split(",")
    settings = LoraConfig(
        r=rank, lora_alpha=int(alpha if alpha is not None else 2 * rank), target_modules=chosen, task_type=task_type
    )
    try:
        with _without_peft_notice():
            return get_peft_model(cast(PreTrainedModel, model), settings)
    except ValueError as error:
        raise PolicyError(f"got lora_targets={targets!r}: {first_line(error)}") from error


def silence_dropout(model: nn.Module) -> None:
    """Set every dropout and jitter to 0: a log-probability that changes from call to call is not the policy's."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("drop" in name or "jitter" in name):
                setattr(module, name, 0.0)


def hash_weights(policy: Policy, *, base_only: bool = False) -> str:
    """Return a hash of all weights, in name order, and of the settings that say what is computed with them.

    `base_only` leaves adapters out, and is then the hash of the base model by itself.
    """
    digest = hashlib.blake2b(_settings_text(policy).encode(), digest_size=16)
    if policy.has_adapters and not base_only:
        digest.update(_adapter_text(policy).encode())
    for full_name, tensor in sorted(policy.causal_lm.state_dict().items()):
        if base_only and ("lora_" in full_name or "modules_to_save." in full_name):
            continue
        name = full_name.replace("base_layer.", "").replace("original_module.", "")
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        if tensor.numel():
            flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(memoryview(flat.numpy()))
    return digest.hexdigest()


_NOT_COMPUTED_WITH = {"transformers_version", "dtype", "torch_dtype", "architectures", "use_cache", "auto_map"}


def _settings_text(policy: Policy) -> str:
    """Everything in the model's config that may change its numbers (rotary base, soft-caps, window, …)."""
    settings = policy.causal_lm.config.to_dict()
    kept = {k: v for k, v in settings.items() if k not in _NOT_COMPUTED_WITH and not k.startswith("_")}
    return json.dumps(kept, sort_keys=True, default=str)


_ADAPTER_DESCRIBES = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "init_lora_weights", "lora_dropout",
    "peft_version", "revision", "runtime_config", "task_type",
    "target_modules",  # the tensors' names say which, exactly
}  # fmt: skip


def _adapter_text(policy: Policy) -> str:
    """Everything in the adapters' settings that may change their numbers: equal tensors count for alpha / rank."""
    configs = cast(Any, policy.model).peft_config
    kept = {
        name: {k: v for k, v in config.to_dict().items() if k not in _ADAPTER_DESCRIBES}
        for name, config in configs.items()
    }
    active = list(cast(Any, policy.model).active_adapters)
    # sets in an order of their own: theirs changes from process to process
    return json.dumps([active, kept], sort_keys=True, default=lambda v: sorted(v) if isinstance(v, set) else str(v))


@contextmanager
def _without_peft_notice() -> Iterator[None]:
    """Keep peft's use of a renamed transformers attribute from the user, who can do nothing about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        yield


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, for a message of our own."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
