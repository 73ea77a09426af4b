"""Arithmetic on weights: what is equal stays equal to the bit, what is not alike is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import build_model, save_model

from accord.errors import PolicyError
from accord.policy.load import hash_weights, load_policy
from accord.policy.weights.averaging import (
    Weights,
    average_weights,
    extrapolate_weights,
    load_extrapolated,
    load_soup,
    mix_weights,
)


def weights(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-9, 9, 40, dtype=torch.float64)
    values = torch.randn(5, 40, generator=generator, dtype=torch.float64) * scale
    return {"matrix": values.to(dtype), "count": torch.tensor([3, 4])}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_soup_of_equal_models_is_that_model_bit_for_bit(dtype: torch.dtype) -> None:
    one = weights(0, dtype)
    for found in (
        average_weights([one, one, one], [1 / 3, 1 / 3, 1 / 3]),
        mix_weights(one, one, 0.3),
        extrapolate_weights(one, one, 0.3),
    ):
        assert torch.equal(found["matrix"], one["matrix"])
        assert found["matrix"].dtype == dtype


def test_a_soup_is_the_weighted_mean() -> None:
    models = [weights(seed) for seed in range(3)]
    shares = [0.5, 0.2, 0.3]
    found = average_weights(iter(models), shares)["matrix"]
    expected = sum(share * model["matrix"].double() for share, model in zip(shares, models, strict=True))
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)


def test_mixing_and_extrapolating_are_the_same_line() -> None:
    """a θ + (1 − a) θ_ref for a in [0, 1]; θ + α (θ − θ') goes on beyond its end: a = 1 + α."""
    reference, policy = weights(0, torch.float64), weights(1, torch.float64)
    for found, share in (
        (mix_weights(reference, policy, 0.0), 0.0),
        (mix_weights(reference, policy, 0.6), 0.6),
        (mix_weights(reference, policy, 1.0), 1.0),
        (extrapolate_weights(policy, reference, 0.3), 1.3),
    ):
        line = share * policy["matrix"] + (1 - share) * reference["matrix"]
        torch.testing.assert_close(found["matrix"], line, rtol=1e-12, atol=1e-12)
    assert torch.equal(mix_weights(reference, policy, 1.0)["matrix"], policy["matrix"])


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"count": torch.tensor([3, 4])}, "lacks the weight matrix"),
        (weights(1) | {"more": torch.zeros(1)}, "has, alone, the weight more"),
        (weights(1) | {"matrix": torch.zeros(2, 2)}, r"matrix as float32 \(2, 2\), where float32 \(5, 40\)"),
        (weights(1, torch.bfloat16), "matrix as bfloat16"),
        (weights(1) | {"count": torch.tensor([3, 5])}, "another count, which holds whole numbers"),
    ],
)
def test_models_that_are_not_alike_are_refused(other: Weights, says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        average_weights([weights(0), other], [0.5, 0.5])
    with pytest.raises(PolicyError, match=says):
        mix_weights(weights(0), other, 1.0)


@pytest.mark.parametrize("name", ["llama", "llama_tied"])
def test_a_soup_of_folders(name: str, tmp_path: Path) -> None:
    folders = [save_model(tmp_path / str(seed), name, seed=seed) for seed in range(3)]
    models = [build_model(name, seed=seed, dtype=torch.float32).state_dict() for seed in range(3)]
    for shares in ((), (0.2, 0.3, 0.5)):
        soup = load_soup(folders, shares, device="cpu")
        for key, tensor in soup.causal_lm.state_dict().items():
            expected = sum(s * m[key].double() for s, m in zip(shares or [1 / 3] * 3, models, strict=True))
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)
    alone = hash_weights(load_policy(folders[0], device="cpu"))
    assert hash_weights(load_soup([folders[0]] * 3, device="cpu")) == alone
    assert hash_weights(load_soup(folders, device="cpu")) != alone


def test_extrapolating_folders(tmp_path: Path) -> None:
    before, now = (save_model(tmp_path / str(seed), seed=seed) for seed in range(2))
    assert hash_weights(load_extrapolated(now, before, 0.0, device="cpu")) == hash_weights(load_policy(now))
    made = load_extrapolated(now, before, 0.5, device="cpu").causal_lm.state_dict()
    first, second = (build_model(seed=seed, dtype=torch.float32).state_dict() for seed in range(2))
    for key, tensor in made.items():
        torch.testing.assert_close(tensor, 1.5 * second[key] - 0.5 * first[key], rtol=1e-5, atol=1e-6)


def test_folders_that_cannot_be_averaged(tmp_path: Path) -> None:
    llama, qwen = save_model(tmp_path / "llama"), save_model(tmp_path / "qwen", "qwen2")
    with pytest.raises(PolicyError, match=r"\(llama\).*\(qwen2\)"):
        load_soup([llama, qwen], device="cpu")
    wide = tmp_path / "wide"
    build_model(dtype=torch.float32, intermediate_size=32).save_pretrained(wide)
    load_policy(llama).tokenizer.save_pretrained(wide)
    with pytest.raises(PolicyError, match=r"wide has the weight .* \(32, 16\), where float32 \(24, 16\)"):
        load_extrapolated(llama, wide, 0.3, device="cpu")
    load_policy(llama, lora_rank=2, device="cpu").save(tmp_path / "adapters")
    with pytest.raises(PolicyError, match=r"adapters.*merge them into their base"):
        load_soup([llama, tmp_path / "adapters"], device="cpu")
