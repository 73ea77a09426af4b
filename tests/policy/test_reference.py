"""The reference as an artefact: computed once, named by everything its values depend on, never by anything else."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import build_model, build_policy, build_tokenizer, ragged_groups, save_model

from accord.data.tokens import TokenGroup, TokenResponse
from accord.policy.load import hash_weights, load_policy
from accord.policy.policy import Policy, Scores
from accord.policy.reference import Reference, base_of, opened, reference_key

NEVER = "the cache holds everything: the reference must not be opened"


def make(policy: Policy, folder: Path | None, key: str = "key", max_tokens: int = 64) -> Reference:
    return Reference(lambda: opened(policy), key=key, cache_folder=folder, max_tokens=max_tokens)


def closed(folder: Path, key: str = "key") -> Reference:
    """A reference that may only answer from its cache."""

    @contextmanager
    def scorer():  # type: ignore[no-untyped-def]
        raise AssertionError(NEVER)
        yield

    return Reference(scorer, key=key, cache_folder=folder, max_tokens=64)


def test_logps_equal_direct_scoring_and_the_second_use_computes_nothing(tmp_path: Path) -> None:
    policy, groups = build_policy("llama"), ragged_groups((2, 1, 4))
    with torch.no_grad():
        direct_PK = policy.score(groups).logps_PK
    first = make(policy, tmp_path, max_tokens=30)  # several passes of other shapes than the direct one
    first.fill(groups, write=True)
    torch.testing.assert_close(first.logps(groups, direct_PK), direct_PK, rtol=0, atol=1e-5)
    assert (first.num_computed, first.num_reused) == (3, 3)
    second = closed(tmp_path)
    found_PK = second.logps(groups, direct_PK)
    assert found_PK.tolist() == first.logps(groups, direct_PK).tolist()
    assert (second.num_computed, second.num_reused) == (0, 3)
    assert not found_PK.requires_grad


def test_the_cache_grows_and_scores_only_what_is_new(tmp_path: Path) -> None:
    policy, groups = build_policy("llama"), ragged_groups((2, 1, 4))
    make(policy, tmp_path).fill(groups[:2], write=True)
    grown = make(policy, tmp_path)
    assert grown.missing(groups) == groups[2:]
    grown.fill(groups, write=True)
    assert (grown.num_computed, grown.num_reused) == (1, 2)
    assert closed(tmp_path).missing(groups) == []


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_cache_is_computed_again(tmp_path: Path, share: float) -> None:
    policy, groups = build_policy("llama"), ragged_groups((2, 3))
    make(policy, tmp_path).fill(groups, write=True)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    again = make(policy, tmp_path)
    assert again.missing(groups) == groups
    again.fill(groups, write=True)
    assert closed(tmp_path).missing(groups) == []


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reference = make(build_policy("llama"), None)
    reference.fill(ragged_groups((2,)), write=True)
    assert reference.missing(ragged_groups((2,))) == []
    assert list(tmp_path.iterdir()) == []


def test_each_process_scores_its_part(tmp_path: Path) -> None:
    """Two processes share the work and merge: together they hold what one alone computes."""
    policy, groups = build_policy("llama"), ragged_groups((2, 1, 3, 2))
    parts: list[dict[bytes, float]] = []
    for rank in range(2):
        make(policy, None).fill(
            groups, share=lambda some, rank=rank: some[rank::2], merge=lambda values: parts.append(values) or values
        )
    assert not parts[0].keys() & parts[1].keys()
    joined = make(policy, tmp_path)
    joined.fill(groups, share=lambda some: [], merge=lambda values: parts[0] | parts[1], write=True)
    like_PK = torch.zeros(4, 3, dtype=torch.float64)
    torch.testing.assert_close(
        closed(tmp_path).logps(groups, like_PK), make(policy, None).logps(groups, like_PK), rtol=0, atol=1e-5
    )


def test_near_twins_are_told_apart() -> None:
    """One other token, one token moved over the boundary, another mask: each has its own entry."""

    def group(prompt: tuple[int, ...], ids: tuple[int, ...], trained: tuple[bool, ...] | None = None) -> TokenGroup:
        return TokenGroup(prompt_ids=prompt, responses=(TokenResponse(ids=ids, is_trained=trained),))

    seven = (4, 5, 6, 7, 8, 9, 10)
    first = group((2, 3), seven)
    others = [
        group((2, 3), (*seven[:-1], 11)),
        group((2, 4), seven),
        group((2, 3, 4), seven[1:]),
        group((2,), (3, *seven)),
        group((2, 3), seven[:-1]),
        group((2, 3), seven, (True,) * 6 + (False,)),
        group((2, 3), (*seven, 47)),
        group((2, 3), seven, (False,) * 7),
        group((2, 3), seven, (False, *(True,) * 6)),
        # 8 untrained tokens and 9 trained ones: as bytes, the mask could pass for the ninth token
        group((2, 3), (*seven, 11), (False,) * 8),
        group((2, 3), (*seven, 11, 0)),
    ]
    everything = [first, *others]
    for place, one in enumerate(everything):
        reference = make(build_policy("llama"), None)
        reference.fill([one])
        assert reference.missing(everything) == everything[:place] + everything[place + 1 :]
    same = group((2, 3), seven, (True,) * 7)  # a mask that trains everything is no mask
    reference = make(build_policy("llama"), None)
    reference.fill([first])
    assert reference.missing([same, replace(first, index=5)]) == []


def test_the_key_names_what_values_depend_on(tmp_path: Path) -> None:
    def key(policy: Policy) -> str:
        return reference_key(hash_weights(policy), policy, vocabulary=61)

    save_model(tmp_path, "llama")
    start = key(load_policy(tmp_path))
    assert key(load_policy(tmp_path)) == start  # a second load
    assert key(load_policy(tmp_path, gradient_checkpointing=True)) == start  # another way to the same numbers
    copy = tmp_path / "copy"
    load_policy(tmp_path).save(copy)
    assert key(load_policy(copy)) == start  # another folder
    assert key(load_policy(tmp_path, precision="mixed")) != start
    assert key(load_policy(tmp_path, precision="bfloat16")) != start
    moved = load_policy(tmp_path)
    with torch.no_grad():
        next(moved.parameters()).view(-1)[0] += 1e-3
    assert key(moved) != start
    turned = build_model("llama", dtype=torch.float32, rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    assert hash_weights(Policy(turned, build_tokenizer())) != hash_weights(build_policy("llama", dtype=torch.float32))


def test_the_key_tells_adapter_settings_apart(tmp_path: Path) -> None:
    """Equal tensors, another alpha: other numbers, and another key."""
    save_model(tmp_path, "llama")

    def adapted(alpha: float) -> Policy:
        torch.manual_seed(0)
        return load_policy(tmp_path, lora_rank=2, lora_alpha=alpha)

    one, two = adapted(2), adapted(4)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert hash_weights(one) != hash_weights(two)
    assert hash_weights(one, base_only=True) == hash_weights(two, base_only=True) == hash_weights(load_policy(tmp_path))
    one.save(tmp_path / "adapter")
    assert hash_weights(load_policy(tmp_path / "adapter")) == hash_weights(one)


class Small(Policy):
    """A policy on a device that holds 40 tokens."""

    def score(self, groups: Sequence[TokenGroup], **named: Any) -> Scores:
        if sum(group.num_tokens for group in groups) > 40:
            raise torch.OutOfMemoryError("no room")
        return super().score(groups, **named)


def test_a_reference_that_runs_out_of_memory_takes_less_at_once(caplog: pytest.LogCaptureFixture) -> None:
    policy = Small(build_model("llama"), build_tokenizer())
    groups = ragged_groups((1, 2, 1, 2, 1, 1), longest=10)
    assert max(group.num_tokens for group in groups) <= 40 < sum(group.num_tokens for group in groups)
    reference = make(policy, None, max_tokens=10**9)
    reference.fill(groups)
    assert reference.missing(groups) == []
    assert 10 < reference.max_tokens <= 60
    assert "the reference is now scored with" in caplog.text
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        make(policy, None).fill(ragged_groups((8,)))  # one group alone is too much: nothing to halve


def test_the_base_under_adapters_is_the_reference(tmp_path: Path) -> None:
    save_model(tmp_path, "llama")
    policy, plain = load_policy(tmp_path, lora_rank=2), load_policy(tmp_path)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
    reference = Reference(lambda: base_of(policy), key="base", cache_folder=None, max_tokens=64)
    groups = ragged_groups((2, 3))
    with torch.no_grad():
        expected_PK = plain.score(groups).logps_PK
        assert float((policy.score(groups).logps_PK - expected_PK).abs().max()) > 0.1
    torch.testing.assert_close(reference.logps(groups, expected_PK), expected_PK, rtol=0, atol=1e-4)
