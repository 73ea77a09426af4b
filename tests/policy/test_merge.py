"""Adapters by what they add: the L1 gradient, every way of merging against its definition, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from models import save_model
from toy_runs import checkpoint_of, metrics_of, run, write_pairs

from accord.errors import ConfigError, PolicyError
from accord.policy.load import load_policy
from accord.policy.policy import Policy
from accord.policy.weights.merge import MergeMethod, add_l1_gradient, merge_adapters, slerp


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A base and two adapters of different ranks trained on it, the second on fewer layers."""
    root = tmp_path_factory.mktemp("adapters")
    base = save_model(root / "base")
    for seed, (name, rank, targets) in enumerate((("one", 2, "all-linear"), ("two", 3, "q_proj,up_proj"))):
        policy = adapted(base, rank, targets, seed)
        policy.save(root / name)
    return base, root / "one", root / "two"


def adapted(base: Path, rank: int = 2, targets: str = "all-linear", seed: int = 0) -> Policy:
    """The base under adapters that add something."""
    policy = load_policy(base, lora_rank=rank, lora_targets=targets)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return policy


def weights_of(policy: Policy) -> dict[str, torch.Tensor]:
    return dict(policy.causal_lm.state_dict())


def added_by(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """What an adapter adds, by plain arithmetic on its files: merged by peft, less the base."""
    merged = load_policy(adapter).model.merge_and_unload().state_dict()
    return {name: merged[name] - tensor for name, tensor in weights_of(load_policy(base)).items()}


def assert_adds(merged: Policy, base: Path, expected: dict[str, torch.Tensor]) -> None:
    before = weights_of(load_policy(base))
    for name, tensor in weights_of(merged).items():
        torch.testing.assert_close(tensor, before[name] + expected[name], rtol=0, atol=1e-6)


def test_linear_with_all_weight_on_one_is_that_one_alone(folders):
    base, one, two = folders
    merged = merge_adapters(base, [one, two], method="linear", weights=(0.0, 1.0))
    alone = load_policy(two).model.merge_and_unload().state_dict()
    for name, tensor in weights_of(merged).items():
        torch.testing.assert_close(tensor, alone[name], rtol=0, atol=1e-6)
    assert not merged.has_adapters


@pytest.mark.parametrize(
    ("method", "weights", "factors"),
    [
        ("linear", None, (0.5, 0.5)), ("linear", (1.0, 3.0), (0.25, 0.75)),
        ("task_arithmetic", None, (1.0, 1.0)), ("task_arithmetic", (0.5, -2.0), (0.5, -2.0)),
    ],
)  # fmt: skip
def test_sums(folders, method: MergeMethod, weights, factors):
    base, one, two = folders
    first, second = added_by(base, one), added_by(base, two)
    expected = {name: factors[0] * first[name] + factors[1] * second[name] for name in first}
    assert_adds(merge_adapters(base, [one, two], method=method, weights=weights), base, expected)


def test_ties_trims_elects_and_averages_what_agrees(folders):
    base, one, two = folders
    first, second = added_by(base, one), added_by(base, two)

    def trimmed(delta: torch.Tensor, density: float) -> torch.Tensor:
        kept = int(density * delta.numel())
        least = delta.abs().flatten().sort(descending=True).values[kept - 1] if kept else math.inf
        return torch.where(delta.abs() >= least, delta, 0.0)

    expected = {}
    for name in first:
        if not first[name].any():
            expected[name] = first[name]
            continue
        parts = torch.stack([trimmed(first[name], 0.5), trimmed(second[name], 0.5)])
        elected = torch.where(parts.sum(0) >= 0, 1.0, -1.0)
        agrees = parts.sign() == elected
        expected[name] = (parts * agrees).sum(0) / agrees.sum(0).clamp(min=1)
    assert_adds(merge_adapters(base, [one, two], method="ties", density=0.5), base, expected)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_keeps_a_random_share_and_makes_up_for_it(folders, method: MergeMethod):
    base, one, two = folders
    first, second = added_by(base, one), added_by(base, two)
    if method == "dare_linear":
        expected = {name: first[name] + second[name] for name in first}
        assert_adds(merge_adapters(base, [one, two], method=method, density=1.0), base, expected)
    merged = [weights_of(merge_adapters(base, [one, two], method=method, density=0.5, seed=s)) for s in (0, 0, 1)]
    name = "model.layers.0.self_attn.o_proj.weight"  # only the first adapter is there
    added = merged[0][name] - weights_of(load_policy(base))[name]
    ratio = added / first[name]
    assert sorted({round(value, 3) for value in ratio.flatten().tolist()}) == [0.0, 2.0]
    assert torch.equal(merged[0][name], merged[1][name])
    assert not torch.equal(merged[0][name], merged[2][name])


def test_slerp_goes_along_the_circle(folders):
    base, one, two = folders
    first, second = added_by(base, one), added_by(base, two)
    expected = {name: slerp(first[name], second[name], share=0.75) for name in first}
    assert_adds(merge_adapters(base, [one, two], method="slerp", weights=(1.0, 3.0)), base, expected)


def test_slerp_of_known_tensors():
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    torch.testing.assert_close(slerp(a, b, share=1 / 3), torch.tensor([math.cos(math.pi / 6), math.sin(math.pi / 6)]))
    torch.testing.assert_close(slerp(a, b, share=0.0), a)
    torch.testing.assert_close(slerp(a, b, share=1.0), b)
    torch.testing.assert_close(slerp(a, 3 * a, share=0.5), 2 * a)  # parallel: the straight line
    torch.testing.assert_close(slerp(a, torch.zeros(2), share=0.5), 0.5 * a)


def test_a_merged_model_is_a_plain_folder(folders, tmp_path: Path):
    base, one, two = folders
    merged = merge_adapters(base, [one, two])
    merged.save(tmp_path / "merged")
    again = load_policy(tmp_path / "merged")
    assert not again.has_adapters
    for name, tensor in weights_of(again).items():
        torch.testing.assert_close(tensor, weights_of(merged)[name])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": "magic"}, "got method='magic'.*linear, task_arithmetic"),
        ({"weights": (1.0,)}, "1 weights for 2 adapters"),
        ({"density": 0.0}, "density=0.0"),
        ({"method": "linear", "weights": (1.0, -1.0)}, "add up to 0"),
        ({"method": "slerp", "weights": (-1.0, 2.0)}, "none below 0"),
    ],
)
def test_settings_that_cannot_be_meant(folders, changes, says: str):
    base, one, two = folders
    with pytest.raises(PolicyError, match=says):
        merge_adapters(base, [one, two], **changes)


def test_slerp_takes_two_and_merging_at_least_two(folders):
    base, one, two = folders
    with pytest.raises(PolicyError, match="slerp goes from one to another"):
        merge_adapters(base, [one, two, two], method="slerp")
    with pytest.raises(PolicyError, match="two at least"):
        merge_adapters(base, [one])


def test_adapters_of_another_base_or_kind_are_refused(folders, tmp_path: Path):
    base, one, two = folders
    other = save_model(tmp_path / "other")
    with pytest.raises(PolicyError, match=r"were trained on .*base.*correct base_model_name_or_path"):
        merge_adapters(other, [one, two])
    with pytest.raises(PolicyError, match=r"without a readable adapter_config\.json"):
        merge_adapters(base, [one, base])
    settings = json.loads((two / "adapter_config.json").read_text())
    for change in ({"use_dora": True}, {"bias": "all"}, {"peft_type": "IA3"}):
        (tmp_path / "odd").mkdir(exist_ok=True)
        (tmp_path / "odd" / "adapter_config.json").write_text(json.dumps(settings | change))
        with pytest.raises(PolicyError, match="expected plain LoRA"):
            merge_adapters(base, [one, tmp_path / "odd"])


# -- the L1 penalty ----------------------------------------------------------------------------------------------------


def test_the_l1_gradient_is_lambda_times_the_sign_of_what_adapters_add(folders):
    policy = load_policy(folders[1])
    layer = next(
        module for name, module in policy.named_modules() if name.endswith("q_proj") and hasattr(module, "lora_A")
    )
    a, b, scale = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"]
    size = add_l1_gradient(policy, 0.01)
    sign = (b @ a).sign()
    torch.testing.assert_close(b.grad, 0.01 * scale * sign @ a.T)
    torch.testing.assert_close(a.grad, 0.01 * scale * b.T @ sign)
    added = added_by(folders[0], folders[1])
    assert size == pytest.approx(sum(float(tensor.abs().sum()) for tensor in added.values()), rel=1e-5)
    add_l1_gradient(policy, 0.01)  # it is added to what is there
    torch.testing.assert_close(b.grad, 0.02 * scale * sign @ a.T)


def test_adapters_that_add_nothing_are_left_alone(folders):
    policy = load_policy(folders[0], lora_rank=2)
    assert add_l1_gradient(policy, 1.0) == 0.0
    assert all(not p.grad.any() for name, p in policy.named_parameters() if "lora_" in name and p.grad is not None)


def test_a_run_with_the_penalty_keeps_its_adapters_smaller_however_it_is_split(tmp_path: Path):
    pairs = write_pairs(tmp_path)
    settings = {"objective": "sft", "model.lora_rank": 2, "train.epochs": 3, "train.lr": 0.01}
    free, held, split = (
        run(pairs, tmp_path / name, **settings | more)
        for name, more in (
            ("free", {"train.l1": 1e-9}), ("held", {"train.l1": 1e-2}),
            ("split", {"train.l1": 1e-2, "train.max_batch_tokens": 60}),
        )
    )  # fmt: skip
    sizes = [
        [line["adapters/l1"] for line in metrics_of(done) if "adapters/l1" in line] for done in (free, held, split)
    ]
    assert sizes[0][0] == sizes[1][0] == 0.0  # LoRA starts with B = 0
    assert sizes[1][-1] < 0.7 * sizes[0][-1]
    one, other = (checkpoint_of(tmp_path / name, 9)["weights"] for name in ("held", "split"))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=2e-3)


def test_the_penalty_without_adapters_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"train\.l1=0\.1 without adapters"):
        run(write_pairs(tmp_path), tmp_path / "out", **{"train.l1": 0.1})
