"""What every contender of `online_training.py` is given: prompts, sizes, the reward; and what each of them reports.

Bench model: prompts of exactly 512 tokens of HH-RLHF (random words without that data), weights and vocabulary of
`workload.py`. Text world: its shipped model of 0.35 million parameters on its own requests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from workload import DATA, EOS, _gpt2_tokenizer, _hh_file, _read_hh, _word_tokenizer, prepare

K = 8
LEARNING_RATE = 1e-6
NUM_PROMPT = 512


@dataclass(frozen=True)
class Case:
    """One model with its prompts: `num_prompts` × K responses of at most `max_tokens` a step, for `num_steps`."""

    name: str
    num_prompts: int
    max_tokens: int
    num_steps: int

    @property
    def num_rows(self) -> int:
        """Responses of a step."""
        return self.num_prompts * K


CASES = {case.name: case for case in (Case("bench", 2, 128, 1), Case("text-world", 8, 48, 20))}


def prepare_rollouts(folder: Path) -> str:
    """Write the models, `bench.jsonl` and `text-world.jsonl` (rows of prompt and ids); return what prompts are from."""
    from accord.data import encode_prompts
    from accord.lab.base_model import base_model_folder
    from accord.lab.gold import request_prompts
    from accord.lab.text_world import split_requests
    from accord.policy.load import load_policy

    prepare(folder)
    is_real = (DATA / "gpt2_bpe" / "encoder.json").exists() and _hh_file().exists()
    rows = _cut_prompts() if is_real else _word_prompts()
    _write(folder / "bench.jsonl", rows[: CASES["bench"].num_prompts])
    case = CASES["text-world"]
    groups = request_prompts(split_requests()[0][: 4 * case.num_prompts])
    ids = encode_prompts(groups, load_policy(base_model_folder()).tokenizer)
    turns = [[{"role": turn.role, "content": turn.content} for turn in group.prompt] for group in groups]
    _write(folder / "text-world.jsonl", [{"prompt": t, "ids": list(i)} for t, i in zip(turns, ids, strict=True)])
    return "HH-RLHF helpful-base (test)" if is_real else "synthetic words"


def model_folder(folder: Path, case: Case, *, is_warm_up: bool = False) -> Path:
    """Return the model of a case; that of a warm-up is tiny."""
    from accord.lab.base_model import base_model_folder

    if case.name == "text-world":
        return base_model_folder()
    return folder / ("warm_up_model" if is_warm_up else "model")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read lines of JSON."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _cut_prompts() -> list[dict[str, Any]]:
    """Texts of exactly `NUM_PROMPT` tokens, from conversations laid end to end."""
    tokenizer = _gpt2_tokenizer(DATA / "gpt2_bpe")
    found: list[dict[str, Any]] = []
    text = ""
    for pair in _read_hh(_hh_file()):
        text += pair.prompt + pair.chosen
        cut = tokenizer.decode(tokenizer.encode(text).ids[:NUM_PROMPT])
        ids = tokenizer.encode(cut).ids
        if len(ids) == NUM_PROMPT:  # cutting tokens off may change those before
            found.append({"prompt": cut, "ids": ids})
            text = ""
        if len(found) == CASES["bench"].num_prompts:
            break
    return found


def _word_prompts() -> list[dict[str, Any]]:
    tokenizer, draw = _word_tokenizer(), torch.Generator().manual_seed(0)
    end = tokenizer.token_to_id(EOS)
    found = []
    for _ in range(CASES["bench"].num_prompts):
        ids = torch.randint(1, end, (NUM_PROMPT,), generator=draw).tolist()
        found.append({"prompt": " ".join(f"w{i}" for i in ids), "ids": ids})
    return found


def reward_of(ids: Sequence[int]) -> float:
    """A number in [0, 1) from a response's token ids: cheap, different for almost any two, the same on both sides."""
    return int(hashlib.sha256(json.dumps(list(map(int, ids))).encode()).hexdigest()[:8], 16) / 2**32


@torch.no_grad()
def fingerprint(weights: Iterable[tuple[str, Tensor]]) -> dict[str, tuple[float, float]]:
    """Return of each weight's gradient its norm and its product with a fixed wave: equal only for equal gradients."""
    found = {}
    for name, weight in weights:
        if weight.grad is not None:
            grad = weight.grad.flatten()
            wave = torch.arange(len(grad), dtype=torch.float32).mul_(0.7).sin_()
            found[name] = (float(grad.norm()), float(torch.dot(grad, wave)))
    return found


@dataclass
class StepResult:
    """One run of one contender over a case. Seconds of all its steps; memory in MiB."""

    contender: str
    case: str
    versions: dict[str, str]
    generation_cpu_s: float
    rest_cpu_s: float  # judging, advantages, scoring, loss, backward pass, optimiser
    whole_wall_s: float
    cpu_s_all: float  # loading the model, reading the data and (Accord) checking, saving and reporting too
    peak_mib: float
    peak_over_start_mib: float
    num_tokens: int  # of the responses drawn
    rewards: list[float]  # the mean of each step
    grad_norms: list[float]  # of each step, before clipping
    gradient: dict[str, tuple[float, float]]  # of the first step, see `fingerprint`
    prompts_sha256: str
    num_positions: int  # that went through the layers in training passes, padding included
    was_fed: bool = False  # trained on Accord's responses, after drawing its own
    details: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the result for the parent process."""
        path.write_text(json.dumps(asdict(self), indent=1))


def prompts_sha256(prompts: Iterable[Sequence[int]]) -> str:
    """Hash the prompts' ids, whatever their order."""
    rows = sorted({tuple(map(int, ids)) for ids in prompts})
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
