"""Generation by Accord's engine beside transformers' `generate` as TRL 1.16 calls it: tokens per CPU second.

    python benchmarks/generation.py --repeats 3 --json generation.json

One process, one thread, fp32, the same weights and prompts; contenders take turns and medians are shown. `generate`
gets what TRL's GRPO gives it: every prompt repeated K times, left-padded, one static batch, sampling at temperature 1
with no cuts. Counted are the tokens of the responses, up to the first end, over the CPU seconds of the call with the
padding before and the cutting after. Accord's call also gives log-probabilities and texts, TRL's does not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig
from workload import prepare

from accord.lab.base_model import base_model_folder
from accord.policy.load import load_policy
from accord.policy.policy import Policy
from accord.policy.sampling import SamplingSettings, sample_responses, stop_ids

K = 8
TRL_ROWS = 8  # its per_device_train_batch_size, by default also what one call of `generate` gets
PROMPTS_WAITING = (
    8  # where lengths vary: of two in the batch, so that those that wait can take the places of those that end
)
GOALS = "Goals: ≥ 4 × generate on the text world's model, ≥ 3 × on the bench model, more where lengths vary."


@dataclass(frozen=True)
class Case:
    """One comparison: prompts, K responses each, rows that a call of `generate` gets and that Accord holds at once."""

    name: str
    policy: Policy
    model: Any  # the same weights as transformers loads them
    prompts: Sequence[Sequence[int]]
    max_tokens: int
    ends: Sequence[int]
    rows_of_generate: int
    rows_of_accord: int = 256


@torch.no_grad()
def generate(case: Case, seed: int) -> int:
    """Draw with transformers as TRL does, and return the number of tokens."""
    torch.manual_seed(seed)
    rows = [prompt for prompt in case.prompts for _ in range(K)]
    pad = case.policy.pad_id
    config = GenerationConfig(
        max_new_tokens=case.max_tokens, do_sample=True, pad_token_id=pad,
        bos_token_id=case.policy.tokenizer.bos_token_id, eos_token_id=list(case.ends),
        temperature=1.0, top_p=1.0, top_k=0, min_p=None, repetition_penalty=1.0,
        cache_implementation=None, disable_compile=True,
    )  # fmt: skip
    count = 0
    for start in range(0, len(rows), case.rows_of_generate):
        part = rows[start : start + case.rows_of_generate]
        width = max(map(len, part))
        ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in part])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in part])
        out = case.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, width:]
        is_end = torch.isin(out, torch.tensor(case.ends))
        last = torch.where(is_end.any(1), is_end.int().argmax(1), out.shape[1] - 1)
        count += int((last + 1).sum())
    return count


def accord(case: Case, seed: int) -> int:
    """Draw with Accord's engine, all prompts in one call, and return the number of tokens."""
    settings = SamplingSettings(
        num_responses=K, max_tokens=case.max_tokens, seed=seed, max_rows=case.rows_of_accord
    )  # fmt: skip
    drawn = sample_responses(case.policy, case.prompts, settings, more_stop_ids=case.ends)
    return sum(len(response.token_ids or ()) for responses in drawn for response in responses)


CONTENDERS: dict[str, Callable[[Case, int], int]] = {"generate": generate, "Accord": accord}


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Run both in turn, after a warm-up, and return medians and every run."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    warm_up = Case(case.name, case.policy, case.model, case.prompts[:1], 2, case.ends, case.rows_of_generate)
    for run in CONTENDERS.values():
        run(warm_up, 0)
    for repeat in range(repeats):
        for name, run in CONTENDERS.items():
            started = time.process_time()
            tokens = run(case, repeat)
            runs[name].append({"tokens": tokens, "cpu_s": time.process_time() - started})
        print(f"# {case.name}, {repeat + 1}/{repeats}: {json.dumps({n: r[-1] for n, r in runs.items()})}", flush=True)
    rates = {name: median(run["tokens"] / run["cpu_s"] for run in found) for name, found in runs.items()}
    pairs = zip(runs["Accord"], runs["generate"], strict=True)
    ratios = sorted(a["tokens"] / a["cpu_s"] / (b["tokens"] / b["cpu_s"]) for a, b in pairs)
    return {
        "case": case.name,
        "tokens_per_cpu_s": rates,
        "ratio": rates["Accord"] / rates["generate"],
        "ratio_range": [ratios[0], ratios[-1]],
        "runs": runs,
    }


def text_world_cases(num_prompts: int) -> list[Case]:
    """The text world's model on its own prompts; `generate` with TRL's default rows a call, and with all in one."""
    from accord.data import encode_prompts
    from accord.lab.text_world import render_request, split_requests, user_prompt
    from accord.records import Group, Response

    policy, model = load_policy(base_model_folder()), AutoModelForCausalLM.from_pretrained(base_model_folder())
    requests = split_requests()[0][:num_prompts]
    groups = [
        Group(prompt=user_prompt(render_request(request)), responses=(Response(token_ids=()),)) for request in requests
    ]
    prompts, ends = encode_prompts(groups, policy.tokenizer), sorted(stop_ids(policy))
    name = f"text world, {num_prompts} prompts × {K}, ≤ 48 tokens"
    return [
        Case(f"{name}; {rows} rows a call of generate", policy, model, prompts, 48, ends, rows)
        for rows in (TRL_ROWS, num_prompts * K)
    ]


def bench_cases(folder: Path, num_prompts: int) -> list[Case]:
    """The bench model at prompt 512 and response 128, of one length and of lengths that vary."""
    prepare(folder)
    policy, model = load_policy(folder / "model"), AutoModelForCausalLM.from_pretrained(folder / "model")
    for each in (policy.causal_lm, model):
        each.generation_config.eos_token_id = None
    policy.tokenizer.eos_token = None
    draw = torch.Generator().manual_seed(0)
    waiting = [torch.randint(0, 50_000, (512,), generator=draw).tolist() for _ in range(PROMPTS_WAITING)]
    prompts = waiting[:num_prompts]
    vocabulary = policy.causal_lm.config.vocab_size
    # the weights are random and every token about as likely: one in eighty ends a response, as lengths vary in life
    many = list(range(0, vocabulary, 80))
    rows = num_prompts * K
    both = f"{rows} rows a call and at once"
    return [
        Case(f"bench model, {num_prompts} prompts of 512 × {K}, 128 tokens", policy, model, prompts, 128, [], rows),
        Case(f"bench model, {num_prompts} prompts of 512 × {K}, ≤ 128 tokens", policy, model, prompts, 128, many, rows),
        Case(
            f"bench model, {PROMPTS_WAITING} prompts of 512 × {K}, ≤ 128 tokens; {both}",
            policy, model, waiting, 128, many, rows, rows,
        ),
    ]  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """The comparison as Markdown."""
    lines = ["| case | generate, tokens / CPU s | Accord | ratio (range) |", "|---|--:|--:|--:|"]
    for row in rows:
        rates = row["tokens_per_cpu_s"]
        low, high = row["ratio_range"]
        lines.append(
            f"| {row['case']} | {rates['generate']:.0f} | {rates['Accord']:.0f} "
            f"| {row['ratio']:.2f} ({low:.2f}–{high:.2f}) |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", choices=("all", "text-world", "bench"), default="all")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    rows = []
    if args.cases != "bench":
        # seconds, not minutes: more turns
        rows += [measure(case, 5 * args.repeats) for case in text_world_cases(8)]
    if args.cases != "text-world":
        with tempfile.TemporaryDirectory() as folder:
            rows += [measure(case, args.repeats) for case in bench_cases(Path(folder), 2)]
    print(f"\n{table(rows)}\n\n{GOALS}")
    if args.json:
        where = {
            "command": shlex.join(["python", "benchmarks/generation.py", *sys.argv[1:]]),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "processor": platform.processor() or platform.machine(),
            "load_average": os.getloadavg(),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }
        args.json.write_text(json.dumps({"where": where, "cases": rows}, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
