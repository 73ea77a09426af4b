"""InstructGPT's three steps in the text world, and the same judgements by DPO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accord.data import write_groups
from accord.feedback.reward_models import reward_model_reward
from accord.lab.gold import request_prompts
from accord.lab.journeys.parts import (
    BASE,
    Tell,
    compare_with_base,
    judged_pairs,
    learn_from,
    learn_online,
    measure,
    sample_groups,
    train_reward_model,
)
from accord.lab.text_world import split_requests
from accord.policy.load import load_policy

PAIRS_PER_REQUEST = 48
PPO: dict[str, Any] = {
    "method": "ppo", "rollout.num_responses": 4, "rollout.epochs": 2, "rollout.prompts": 36, "train.batch_size": 18,
    "advantage.kl_coef": 0.3, "train.lr": 3e-4, "train.max_steps": 40,
}  # fmt: skip
DPO: dict[str, Any] = {
    "objective": "dpo", "objective.beta": 0.1, "train.batch_size": 32, "train.lr": 1e-4, "train.warmup": 0.1,
}  # fmt: skip


def instructgpt(out: Path, *, seed: int, tell: Tell) -> dict[str, Any]:
    """Demonstrations → pairs of the model's answers, compared → a reward model → PPO against it; beside it DPO.

    Step 1 is the shipped base model, which learnt from mediocre demonstrations (`python -m accord.lab.build`).
    """
    base = load_policy(BASE)
    requests, _ = split_requests()
    before = measure(base, seed=seed)
    pairs = judged_pairs(base, requests, per_request=PAIRS_PER_REQUEST, seed=seed)
    write_groups(out / "pairs.jsonl", pairs)
    samples = sample_groups(base, requests, num_responses=16, repeats=1, seed=seed + 2**16)
    _, held_out = train_reward_model(pairs, out / "reward", seed=seed, samples=samples)
    tell(f"reward model of {len(pairs)} pairs: held-out accuracy {held_out['rewards/accuracies']:.3f}")
    reward = reward_model_reward(
        str(out / "reward" / "model"), centre="references", scale=True, policy_tokenizer=base.tokenizer
    )
    ppo = learn_online(out / "ppo", request_prompts(requests), reward, seed=seed, **PPO)
    tell("PPO is done")
    dpo = learn_from(pairs, out / "dpo", seed=seed, **DPO)
    return {
        "stages": {
            "ppo": compare_with_base(ppo.policy, base, before, seed=seed),
            "dpo, same pairs": compare_with_base(dpo.policy, base, before, seed=seed),
        },
        "reward_model": held_out,
        "num_pairs": len(pairs),
    }
