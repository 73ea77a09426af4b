"""K = 8 responses of one prompt: Accord's tree path against padded rows, forward and backward of `score`.

Padded rows twice: Accord's plain path, which meets the vocabulary at response positions only, and the model's own
forward, which makes logits at every position.

Each runs in a process of its own, as training does: beside another, a path finds memory that the other has left behind,
or has to ask the system for it.

Two vocabularies on the same eight layers: GPT-2's 50 257, where the head (the same work on both paths) is half of the
model, and 8 192, where it is a seventh, as in models of a billion parameters and more.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from measure import Clock
from necessary import Shape, forward_flops, plain_forward_flops
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from workload import MODEL_SHAPE

from accord.data.tokens import TokenGroup, TokenResponse
from accord.policy.policy import Policy
from accord.policy.products import use_fast_products

NUM_RESPONSES, NUM_PROMPT, NUM_RESPONSE = 8, 512, 128


def group(vocabulary: int) -> TokenGroup:
    """A prompt of 512 random tokens with eight responses of 128."""
    draw = random.Random(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(vocabulary) for _ in range(count))

    responses = tuple(TokenResponse(ids=ids(NUM_RESPONSE)) for _ in range(NUM_RESPONSES))
    return TokenGroup(prompt_ids=ids(NUM_PROMPT), responses=responses)


def policy_of(vocabulary: int) -> Policy:
    """The benchmark's layers with random weights under a vocabulary of this size."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        num_key_value_heads=MODEL_SHAPE["num_attention_heads"],
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        **MODEL_SHAPE,
    )
    model = LlamaForCausalLM(config)
    use_fast_products(model)  # as load_policy does, for all three alike
    return Policy(model, _no_tokenizer())


def _no_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"x": 0}, unk_token="x")), pad_token="x")


def scored(policy: Policy, groups: list[TokenGroup], layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    """One of Accord's paths: summed and per-token log-probabilities."""
    scores = policy(groups, layout=layout)
    return scores.logps_PK[0], scores.token_logps_N


def own_logps(policy: Policy, one: TokenGroup) -> tuple[torch.Tensor, torch.Tensor]:
    """What a padded batch costs without Accord: every position's logits, then the responses' log-probabilities."""
    rows = torch.tensor([[*one.prompt_ids, *response.ids] for response in one.responses])
    logits_KLV = policy.causal_lm(input_ids=rows, use_cache=False).logits[:, :-1]
    logps_KL = -torch.nn.functional.cross_entropy(logits_KLV.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
    logps_KT = logps_KL.view(len(rows), -1)[:, NUM_PROMPT - 1 :]
    return logps_KT.sum(1), logps_KT.flatten()


def step(policy: Policy, one: TokenGroup, layout: str) -> torch.Tensor:
    """Score and differentiate; return the responses' token log-probabilities."""
    policy.zero_grad(set_to_none=True)
    logps_K, token_logps_N = own_logps(policy, one) if layout == "own" else scored(policy, [one], layout)
    (logps_K * torch.linspace(-1, 1, NUM_RESPONSES)).sum().backward()
    return token_logps_N.detach()


def seconds_of(vocabulary: int, layout: str, passes: int) -> float:
    """Return the median CPU seconds of a step in a process that runs nothing else, as training does."""
    command = [sys.executable, __file__, "--layout", layout, "--vocabulary", str(vocabulary), "--passes", str(passes)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure(vocabulary: int, layout: str, passes: int) -> float:
    """Return the median CPU seconds of a step in this process, after two to warm up."""
    policy, one = policy_of(vocabulary), group(vocabulary)
    found = []
    for _ in range(passes + 2):
        with Clock() as clock:
            step(policy, one, layout)
        found.append(clock.cpu_s)
    return median(found[2:])


def gaps(vocabulary: int) -> dict[str, float]:
    """How far the two paths are apart: nats of a token, and relative to a gradient's norm."""
    policy, one = policy_of(vocabulary), group(vocabulary)
    found = []
    for layout in ("tree", "plain"):
        values_N = step(policy, one, layout)
        found.append((values_N, policy.causal_lm.base_model.layers[0].mlp.up_proj.weight.grad.clone()))
    (tree_N, tree_grad), (plain_N, plain_grad) = found
    return {
        "largest_token_logp_gap_nats": float((tree_N - plain_N).abs().max()),
        "relative_gradient_gap": float((tree_grad - plain_grad).norm() / plain_grad.norm()),
    }


def compare(vocabulary: int, repeats: int) -> dict[str, Any]:
    """Measure each path in a process of its own, in turns; CPU seconds are medians over the turns."""
    turns = [
        {layout: seconds_of(vocabulary, layout, 1 if layout == "own" else 4) for layout in ("tree", "plain", "own")}
        for _ in range(repeats)
    ]
    tree, plain, own = (median(turn[layout] for turn in turns) for layout in ("tree", "plain", "own"))
    ratios = [turn["plain"] / turn["tree"] for turn in turns]
    shape = Shape(
        MODEL_SHAPE["hidden_size"],
        MODEL_SHAPE["num_hidden_layers"],
        MODEL_SHAPE["intermediate_size"],
        vocabulary,
        MODEL_SHAPE["hidden_size"],
    )
    lengths = [NUM_RESPONSE] * NUM_RESPONSES
    return {
        "vocabulary": vocabulary,
        "tree_cpu_s": tree,
        "plain_cpu_s": plain,
        "ratio": median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "own_logits_cpu_s": own,
        "ratio_to_own_logits": own / tree,
        "ratio_by_flops": plain_forward_flops(shape, NUM_PROMPT, lengths) / forward_flops(shape, NUM_PROMPT, lengths),
        "tree_gflops": 3 * forward_flops(shape, NUM_PROMPT, lengths) / tree / 1e9,
        **gaps(vocabulary),
    }


def main() -> None:
    """Compare and write the result, or measure one path in this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--result", type=Path)
    parser.add_argument("--repeats", type=int, default=3, help="turns of the three")
    parser.add_argument("--layout", choices=("tree", "plain", "own"), help="measure this one here, and print seconds")
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--passes", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.layout:
        print(measure(args.vocabulary, args.layout, args.passes))
        return
    found = [compare(vocabulary, args.repeats) for vocabulary in (50257, 8192)]
    if args.result:
        args.result.write_text(json.dumps(found))
    else:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
