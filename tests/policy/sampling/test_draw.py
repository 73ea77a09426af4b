"""The distribution that is drawn from and the drawing, by hand and by counting."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import build_policy
from scipy.stats import chisquare

from accord.errors import PolicyError
from accord.policy.sampling import SamplingSettings, answer_prompts, sample_responses, tempered_logps
from accord.policy.sampling.draw import Barred, adjusted_logits, draw
from accord.records import FinishReason, Group, Response

PROMPTS = [(5, 6, 7, 8, 9, 10, 11, 12, 13), (8,), (9, 10, 11)]


def test_min_p_by_hand() -> None:
    """p = (.5, .3, .15, .05): at least 0.3 · 0.5 = 0.15 stays; after top-k = 2 the largest is 0.5/0.8."""
    p_V = torch.tensor([[0.15, 0.5, 0.05, 0.3]], dtype=torch.float64)

    def of(**settings: float) -> list[float]:
        return tempered_logps(p_V.log(), SamplingSettings(**settings)).exp()[0].tolist()  # type: ignore[arg-type]

    assert of(min_p=0.31) == pytest.approx([0, 0.5 / 0.8, 0, 0.3 / 0.8])
    assert of(min_p=0.29) == pytest.approx([0.15 / 0.95, 0.5 / 0.95, 0, 0.3 / 0.95])
    assert of(min_p=1.0) == pytest.approx([0, 1, 0, 0])
    assert of(min_p=0.61, top_k=2) == pytest.approx([0, 1, 0, 0])


def test_repetition_penalty_and_barred_ends_by_hand() -> None:
    """Penalty 2 halves a positive logit and doubles a negative one; the end of a short row has no chance."""
    logits = torch.tensor([[2.0, -1.0, 0.5, 3.0], [2.0, -1.0, 0.5, 3.0]], dtype=torch.float64)
    barred = Barred(
        seen_BV=torch.tensor([[True, True, False, False], [False, False, False, True]]),
        may_not_end_B=torch.tensor([True, False]),
        ends=torch.tensor([2]),
    )
    found = adjusted_logits(logits, SamplingSettings(repetition_penalty=2.0), barred)
    assert found.tolist() == [[1.0, -2.0, -math.inf, 3.0], [2.0, -1.0, 0.5, 1.5]]


@pytest.mark.parametrize("vocabulary", [7, 2048, 2049, 5000])
def test_a_draw_is_the_inverse_of_the_distribution_function(vocabulary: int) -> None:
    """Also where the distribution function is summed by blocks, and where most tokens are cut."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, vocabulary, generator=generator)
    uniform = np.array([0.0, 0.25, 0.7, 1 - 1e-16])
    for settings in (SamplingSettings(), SamplingSettings(top_k=3), SamplingSettings(temperature=0.5, top_p=0.7)):
        ids_B, logps_B = draw(logits, uniform, settings)
        logps_BV = tempered_logps(logits, settings)
        assert logps_B.tolist() == logps_BV.gather(-1, ids_B[:, None]).squeeze(-1).tolist()
        assert torch.isfinite(logps_B).all()
        cdf_BV = logps_BV.double().exp().cumsum(-1)
        for row, (token, u) in enumerate(zip(ids_B.tolist(), uniform.tolist(), strict=True)):
            below = float(cdf_BV[row, token - 1]) if token else 0.0
            assert below - 1e-6 <= u <= float(cdf_BV[row, token]) + 1e-6


def test_draws_by_blocks_have_the_right_frequencies() -> None:
    """20 000 draws of 3000 tokens in 12 classes of the same chance: chi-square, p > 0.001."""
    weight_V = torch.arange(1, 3001, dtype=torch.float64).sqrt()
    logits = weight_V.log().float()[None].expand(500, -1)
    rng = np.random.default_rng(0)
    counts: Counter[int] = Counter()
    bounds = torch.linspace(0, 1, 13)[1:-1]
    class_V = torch.bucketize((weight_V / weight_V.sum()).cumsum(0), bounds.double())
    for _ in range(40):
        ids_B, _ = draw(logits, rng.random(500), SamplingSettings())
        counts.update(class_V[ids_B].tolist())
    chance = torch.zeros(12, dtype=torch.float64).index_add(0, class_V, weight_V / weight_V.sum())
    assert chisquare([counts[i] for i in range(12)], (20_000 * chance).tolist()).pvalue > 1e-3


@torch.no_grad()
def test_behaviour_logps_under_a_penalty_and_a_least_length() -> None:
    """Recomputed without a cache, token by token, from the definition."""
    policy = build_policy("llama")
    policy.causal_lm.generation_config.eos_token_id = list(range(1, 30))
    settings = SamplingSettings(
        num_responses=3, max_tokens=8, seed=7, repetition_penalty=1.8, min_tokens=3, temperature=1.3, max_rows=4
    )
    for prompt, responses in zip(PROMPTS, sample_responses(policy, PROMPTS, settings), strict=True):
        for response in responses:
            ids = response.token_ids or ()
            assert not set(ids[:3]) & set(range(1, 30))
            for step, (token, logp) in enumerate(zip(ids, response.behaviour_logps or (), strict=True)):
                before = [*prompt, *ids[:step]]
                logits = policy.causal_lm(torch.tensor([before]), use_cache=False).logits[0, -1]
                for seen in set(before):
                    logits[seen] = logits[seen] / 1.8 if logits[seen] > 0 else logits[seen] * 1.8
                if step < 3:
                    logits[1:30] = -math.inf
                assert logp == pytest.approx(float((logits / 1.3).log_softmax(-1)[token]), abs=1e-6)


def test_penalised_rows_keep_their_own_history() -> None:
    policy = build_policy("llama")
    policy.causal_lm.generation_config.eos_token_id = [1, 20, 30, 40]
    settings = SamplingSettings(num_responses=4, max_tokens=16, seed=7, repetition_penalty=3.0)
    whole = sample_responses(policy, PROMPTS, settings)
    for max_rows in (1, 3, 5):
        again = sample_responses(policy, PROMPTS, replace(settings, max_rows=max_rows))
        assert [[r.token_ids for r in rs] for rs in again] == [[r.token_ids for r in rs] for rs in whole]
    greedy = sample_responses(policy, PROMPTS, replace(settings, temperature=0.0, repetition_penalty=1e9))
    for prompt, responses in zip(PROMPTS, greedy, strict=True):
        for response in responses:
            ids = response.token_ids or ()
            assert len({*prompt, *ids}) == len(set(prompt)) + len(ids)  # nothing occurs twice


def test_stop_strings_end_a_response_and_are_no_part_of_it() -> None:
    """Words are joined by a space: "w9 w" spans two tokens; ids and log-probabilities stay as drawn."""
    policy = build_policy("llama")
    policy.causal_lm.generation_config.eos_token_id = None
    policy.tokenizer.eos_token = None  # type: ignore[assignment]
    settings = SamplingSettings(num_responses=60, max_tokens=24, seed=3, max_rows=40)
    (free,) = sample_responses(policy, [(5, 6)], settings)
    (cut,) = sample_responses(policy, [(5, 6)], replace(settings, stop=("w9 w", "w33")))
    (late,) = sample_responses(policy, [(5, 6)], replace(settings, stop=("w9 w", "w33"), min_tokens=10))
    reasons: Counter[FinishReason] = Counter()
    for whole, stopped, later in zip(free, cut, late, strict=True):
        ids, text = stopped.token_ids or (), str(whole.content)
        assert ids == (whole.token_ids or ())[: len(ids)]
        assert stopped.behaviour_logps == pytest.approx((whole.behaviour_logps or ())[: len(ids)], abs=1e-9)
        places = [at for wanted in ("w9 w", "w33") if (at := text.find(wanted)) >= 0]
        assert stopped.content == (text[: min(places)] if places else text)
        assert stopped.finish_reason is (FinishReason.STOP if places else FinishReason.LENGTH)
        assert len(ids) == (24 if not places else len(ids))
        read = [policy.tokenizer.decode(list(part), skip_special_tokens=True) for part in (ids, ids[:-1])]
        assert [any(wanted in text for wanted in ("w9 w", "w33")) for text in read] == [bool(places), False]
        assert len(later.token_ids or ()) >= 10
        reasons[stopped.finish_reason] += 1
    assert min(reasons[FinishReason.STOP], reasons[FinishReason.LENGTH]) >= 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_p": 1.1}, r"got min_p=1.1 — expected min_p in \[0, 1\]"),
        ({"repetition_penalty": 0.0}, r"got repetition_penalty=0.0 — expected repetition_penalty > 0 \(1 = none\)"),
        ({"min_tokens": 9, "max_tokens": 8}, r"got min_tokens=9 — expected min_tokens in \[0, max_tokens=8\]"),
        ({"stop": ("a", "")}, "expected stop of texts that are not empty"),
        ({"max_batch_tokens": 0}, "got max_batch_tokens=0 — expected max_batch_tokens ≥ 1"),
    ],
)
def test_settings_out_of_range(settings: dict[str, float], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        SamplingSettings(**settings)  # type: ignore[arg-type]


def test_settings_know_whether_the_distribution_is_whole() -> None:
    assert SamplingSettings(temperature=0.7, stop=("x",)).is_uncut
    assert SamplingSettings(stop="ab").stop == ("ab",)  # type: ignore[arg-type]
    cuts = (
        {"temperature": 0.0},
        {"top_k": 1},
        {"top_p": 0.9},
        {"min_p": 0.1},
        {"min_tokens": 1},
        {"repetition_penalty": 1.1},
    )
    assert not any(SamplingSettings(**cut).is_uncut for cut in cuts)  # type: ignore[arg-type]


def test_answers_through_the_policy_take_the_same_settings() -> None:
    policy = build_policy("llama")
    group = Group(prompt="w5 w6", responses=(Response(token_ids=()),))
    settings = SamplingSettings(
        num_responses=2, max_tokens=9, min_p=0.1, repetition_penalty=1.2, min_tokens=2, stop=("w9",)
    )
    (expected,) = answer_prompts(policy, [group], settings)
    (found,) = policy.sample(
        ["w5 w6"], num_responses=2, max_tokens=9, min_p=0.1, repetition_penalty=1.2, min_tokens=2, stop=["w9"]
    )
    assert found.responses == expected.responses
