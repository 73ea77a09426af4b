"""Sampler against scorer: the numbers by hand, the levels, and a sampler with other weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from models import build_policy

from accord.errors import PolicyError
from accord.policy.load import load_policy
from accord.policy.sampling import LocalSampler, Samples, SamplingSettings
from accord.policy.sampling.monitor import MismatchLimits, check_sampler, mismatch

PROMPTS = [(5, 6, 7), (8,), (9, 10, 11, 12)]


def test_mismatch_by_hand() -> None:
    """Gaps ln 2, −ln 2, 0: mean (2/3) ln 2, ratio 2, k3 = ((2 − 1 − ln 2) + (½ − 1 + ln 2)) / 3 = 1/6."""
    sampler, scorer = [[-1.0, -2.0], [-3.0]], [[-1.0 + math.log(2), -2.0 - math.log(2)], [-3.0]]
    for given in ((sampler, scorer), (torch.tensor([-1.0, -2.0, -3.0]).double(), scorer)):
        found = mismatch(*given)
        assert found.num_tokens == 3
        assert found.mean_abs == pytest.approx(2 / 3 * math.log(2))
        assert found.largest_ratio == pytest.approx(2.0)
        assert found.k3 == pytest.approx(1 / 6)
    same = mismatch(sampler, sampler)
    assert (same.mean_abs, same.largest_ratio, same.k3) == (0.0, 1.0, 0.0)


def test_k3_is_unbiased_for_the_divergence() -> None:
    """Enumerated over p: E_p[ρ − 1 − log ρ] = KL(p ‖ q)."""
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.4, 0.5, 0.1]).double()
    one = [mismatch([[a]], [[b]]).k3 for a, b in zip(p.log().tolist(), q.log().tolist(), strict=True)]
    assert float((p * torch.tensor(one).double()).sum()) == pytest.approx(float((p * (p / q).log()).sum()))


def test_levels() -> None:
    limits = MismatchLimits(alarm_mean_abs=0.1, stop_mean_abs=1.0, alarm_ratio=3.0, stop_k3=None, alarm_k3=None)
    assert limits.level(mismatch([[-1.0, -1.0]], [[-1.05, -1.0]])) == "ok"
    assert limits.level(mismatch([[-1.0, -1.0]], [[-1.5, -1.0]])) == "alarm"
    assert limits.level(mismatch([[-1.0] * 99], [[-1.0] * 98 + [-2.2]])) == "alarm"  # one token, e^1.2 > 3
    assert limits.level(mismatch([[-1.0]], [[-2.5]])) == "stop"
    assert limits.level(mismatch([[-1.0]], [[math.nan]])) == "stop"


@pytest.mark.parametrize(
    ("sampler", "scorer"), [([[-1.0]], [[-1.0, -2.0]]), ([[-1.0, -1.0], [-1.0]], [[-1.0], [-1.0, -1.0]]), ([], [])]
)
def test_what_cannot_be_compared(sampler: Sequence[Sequence[float]], scorer: Sequence[Sequence[float]]) -> None:
    with pytest.raises(PolicyError, match="expected as many of each, at least one"):
        mismatch(sampler, scorer)


def test_check_sampler_passes_the_policy_and_stops_another() -> None:
    policy, other = build_policy("llama", dtype=torch.float32), build_policy("llama", dtype=torch.float32, seed=1)
    settings = SamplingSettings(temperature=0.0, top_k=2)  # cuts are not what is asked about
    found = check_sampler(policy, PROMPTS, settings)
    assert found.num_tokens > 20
    assert found.mean_abs < 1e-5
    assert MismatchLimits().level(found) == "ok"
    with pytest.raises(PolicyError, match="the sampler is not the policy that is trained: mean"):
        check_sampler(policy, PROMPTS, sampler=LocalSampler(other))


def test_check_sampler_sees_adapters(tmp_path: object) -> None:
    """The sampler runs the adapters: changed ones change both sides, switched off they change one."""
    from models import save_model

    folder = save_model(tmp_path, "llama")  # type: ignore[arg-type]
    policy = load_policy(folder, lora_rank=2)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    assert check_sampler(policy, PROMPTS).mean_abs < 1e-5

    class Base:
        def sample(
            self, prompts: Sequence[Sequence[int]], settings: SamplingSettings, *, streams: Sequence[int] | None = None
        ) -> Samples:
            with policy.as_base():
                return LocalSampler(policy).sample(prompts, settings, streams=streams)

    assert (
        check_sampler(policy, PROMPTS, sampler=Base(), limits=MismatchLimits(stop_mean_abs=None, stop_k3=None)).mean_abs
        > 0.03
    )
