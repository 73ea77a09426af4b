"""Tree layout = plain layout = the model's own logits, for many architectures, in values and in gradients.

Tolerances: float64 throughout, but many models normalise and take their softmax in float32 whatever the weights are,
so equality is to about 1e-7; 1e-6 nats per token and 1e-6 of the gradient's norm are asserted (a leak between siblings
or a position off by one shows at 1e-3 and more).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch._dynamo.utils
from models import SHAREABLE, UNSHAREABLE, build_policy, build_tokenizer, own_token_logps, ragged_groups, save_model
from toy_runs import BASE

from accord.data.tokens import TokenGroup, TokenResponse
from accord.policy import attention, layout, shared_prompt
from accord.policy.check import check_layout, probe_groups
from accord.policy.layout import Tree
from accord.policy.load import Precision, load_policy
from accord.policy.policy import Policy

TOLERANCE = 1e-6
REASONS = {
    "mamba": "layers share a prompt through attention",
    "falcon_h1": "let a response see its sibling",
    "gpt_oss": "`s_aux`",
    "bloom": "attention interface",
    "mpt": "attention interface",
    "falcon": "attention interface",
    "falcon_alibi": "attention interface",
    "stablelm": "does not pass keyword arguments",
    "llama4": "nats per token between the layouts",
    "roberta": "nats per token between the layouts",
}


def gradient(policy: Policy, groups: list[TokenGroup], layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token log-probabilities, and the gradient of a sum that weighs every token differently."""
    logps_N = policy(groups, layout=layout).token_logps_N
    parameters = [p for p in policy.parameters() if p.requires_grad]
    weights_N = torch.linspace(-1, 2, len(logps_N), dtype=logps_N.dtype)
    grads = torch.autograd.grad((weights_N * logps_N).sum(), parameters, allow_unused=True)
    flat = [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(grads, parameters, strict=True)]
    return logps_N.detach(), torch.cat(flat)


@pytest.mark.parametrize("arrangement", ["segmented", "in products", "padded"])
@pytest.mark.parametrize("name", SHAREABLE)
def test_tree_equals_plain(name: str, arrangement: str, monkeypatch: pytest.MonkeyPatch) -> None:
    short_tree = 10**6 if arrangement == "padded" else 0
    monkeypatch.setattr(attention, "SHORT_TREE", short_tree)
    monkeypatch.setattr(attention, "MOST_PADDING", short_tree)
    monkeypatch.setattr(attention, "LONG_PROMPT", 1)
    monkeypatch.setattr(shared_prompt, "goes_to_onednn", lambda *given: arrangement == "in products")
    monkeypatch.setattr(shared_prompt, "ROWS", 3)  # blocks that end inside prompts and responses
    policy, groups = build_policy(name), ragged_groups()
    assert policy.layout == "tree"
    plain_N, plain_grad = gradient(policy, groups, "plain")
    tree_N, tree_grad = gradient(policy, groups, "tree")
    assert float(plain_N.abs().max()) > 1  # not a uniform model
    torch.testing.assert_close(tree_N, plain_N, rtol=0, atol=TOLERANCE)
    assert float((tree_grad - plain_grad).norm() / plain_grad.norm()) < TOLERANCE


@pytest.mark.parametrize("name", SHAREABLE | UNSHAREABLE)
def test_plain_equals_the_models_own_logits(name: str) -> None:
    policy, groups = build_policy(name), ragged_groups((3, 1, 2))
    with torch.no_grad():
        ours_N = policy(groups, layout="plain").token_logps_N
        theirs_N = own_token_logps(policy.causal_lm, groups)
    torch.testing.assert_close(ours_N, theirs_N.double(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", UNSHAREABLE)
def test_unshareable_models_are_detected_and_served(name: str, caplog: pytest.LogCaptureFixture) -> None:
    policy, groups = build_policy(name), ragged_groups((2, 3))
    if policy.why_plain is None:
        found = check_layout(policy, probe_groups(61))
        assert not found.passed
        assert found.reason is not None
        policy.fall_back_to_plain(found.reason)
    assert policy.layout == "plain"
    assert REASONS[name] in str(policy.why_plain)
    policy.fall_back_to_plain(str(policy.why_plain))
    warned = [record for record in caplog.records if "plain path" in record.message]
    assert len(warned) == 1  # said once
    assert str(policy.why_plain) in warned[0].message
    with torch.no_grad():
        ours_N, theirs_N = policy.score(groups).token_logps_N, own_token_logps(policy.causal_lm, groups)
    torch.testing.assert_close(ours_N, theirs_N.double(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["llama", "mistral_window", "gemma2"])
def test_check_layout_passes_with_gradients(name: str) -> None:
    found = check_layout(build_policy(name), probe_groups(61, num_responses=range(1, 9)), gradients=True)
    assert found.passed
    assert found.gap_logps < TOLERANCE
    assert found.gap_gradient is not None
    assert found.gap_gradient < TOLERANCE


@pytest.mark.parametrize("name", ["llama", "mistral_window", "qwen3", "gemma2", "mixtral", "qwen3_moe"])
def test_sound_models_stay_on_the_tree_in_bfloat16(name: str) -> None:
    found = check_layout(build_policy(name, dtype=torch.bfloat16), probe_groups(61), gradients=True)
    assert found.passed, found.reason
    assert found.tolerance_logps < 0.05  # nats per token: not blind


@pytest.mark.parametrize("name", ["falcon_h1", "llama4", "roberta"])
def test_others_fall_back_in_bfloat16_too(name: str) -> None:
    assert REASONS[name] in str(check_layout(build_policy(name, dtype=torch.bfloat16), probe_groups(61)).reason)


@pytest.mark.parametrize("precision", ["float32", "mixed", "bfloat16"])
def test_the_shipped_model_shares_prompts_in_every_precision(precision: Precision) -> None:
    policy = load_policy(BASE, precision=precision)
    found = check_layout(policy, probe_groups(policy.causal_lm.config.vocab_size), gradients=True)
    assert found.passed, found.reason


def test_a_tree_in_products_is_the_definition_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """What long prompts take where products are fast, against a softmax written out."""
    monkeypatch.setattr(shared_prompt, "goes_to_onednn", lambda *given: True)
    assert shared_prompt.agrees_with_attention()
    draw = torch.Generator().manual_seed(0)
    lengths, num_prompt = [130, 0, 1, 300], 520
    tree = Tree((0, num_prompt), tuple((0, n) for n in lengths))
    at_N = torch.cat([torch.arange(num_prompt), *(num_prompt + torch.arange(n) for n in lengths)])
    branch_N = torch.repeat_interleave(torch.arange(5), torch.tensor([num_prompt, *lengths]))
    hidden_NN = (branch_N[:, None] != branch_N[None]) & (branch_N[None] != 0) | (at_N[None] > at_N[:, None])
    q, k, v, w = (torch.randn(2, len(at_N), 16, generator=draw, dtype=torch.float64) for _ in range(4))

    def by_definition(*given: torch.Tensor) -> torch.Tensor:
        q, k, v = given
        return (q @ k.transpose(1, 2) / 4).masked_fill(hidden_NN, float("-inf")).softmax(-1) @ v

    def in_products(*given: torch.Tensor) -> torch.Tensor:
        laid_out = layout.TreeLayout((tree,), at_N)
        out, _ = attention.tree_attention(torch.nn.Module(), *(x[None] for x in given), None, tree=laid_out)
        return out[0].transpose(0, 1)

    def found(attend: Callable[..., torch.Tensor], dtype: torch.dtype, turned: bool = False) -> list[torch.Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        given = [x.transpose(1, 2).contiguous().transpose(1, 2) if turned else x for x in leaves]
        out = attend(*given)
        return [x.detach() for x in (out, *torch.autograd.grad((out * w.to(dtype)).sum(), leaves))]

    exact = found(by_definition, torch.float64)
    for ours in (found(in_products, torch.float64), found(in_products, torch.float64, turned=True)):
        torch.testing.assert_close(ours, exact, rtol=0, atol=1e-12)
    ours = [x.double() for x in found(in_products, torch.float32)]
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-5)


def test_what_does_not_fit_large_products_goes_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_prompt, "goes_to_onednn", lambda *given: True)
    q, narrow = torch.randn(2, 600, 16), torch.randn(2, 600, 8)
    assert shared_prompt.can_share_products(q, q, q)
    assert not shared_prompt.can_share_products(q, q, narrow)
    assert not shared_prompt.can_share_products(q, q, q.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not shared_prompt.can_share_products(q, q, q)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_long_prompts_train_in_every_precision(autocast: torch.dtype | None) -> None:
    """Autocast leaves rotated queries in float32 beside values in bfloat16."""
    policy = Policy(build_policy("llama", dtype=torch.float32).causal_lm, build_tokenizer(), autocast=autocast)
    long = ragged_groups((3,))[0]
    long = replace(long, prompt_ids=(long.prompt_ids * 500)[: attention.LONG_PROMPT + 12])
    policy.ensure_layout(ragged_groups((2,)))
    tree_N, tree_grad = gradient(policy, [long], "tree")
    plain_N, plain_grad = gradient(policy, [long], "plain")
    assert policy.layout == "tree"
    tolerance = 1e-4 if autocast is None else 0.1
    torch.testing.assert_close(tree_N, plain_N, rtol=0, atol=tolerance)
    assert float((tree_grad - plain_grad).norm() / plain_grad.norm()) < tolerance


def test_a_leak_between_siblings_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Causal attention over the whole packed row: responses that see each other are reported with their size."""
    monkeypatch.setattr(attention, "_branches", lambda tree: torch.zeros(tree.length, dtype=torch.long))
    monkeypatch.setattr(attention, "SHORT_TREE", 10**6)
    monkeypatch.setattr(attention, "MOST_PADDING", 10**6)
    for dtype in (torch.float32, torch.bfloat16):
        found = check_layout(build_policy("llama", dtype=dtype), probe_groups(61))
        assert "its layers let a response see its sibling (by " in str(found.reason)


@pytest.mark.parametrize("size", [1e-3, 1e-6])
def test_a_leak_below_rounding_is_found(size: float) -> None:
    """The mean over the packed row times 1e-3 disappears in bfloat16's rounding; its gradient does not."""
    policy = build_policy("llama", dtype=torch.bfloat16)
    policy.causal_lm.base_model.layers[0].register_forward_hook(
        lambda module, arguments, output: output + size * output.mean(1, keepdim=True)
    )
    assert "let a response see its sibling" in str(check_layout(policy, probe_groups(61)).reason)


def test_positions_off_by_one_are_found_in_low_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """No leak: only the comparison can see it, whose tolerance is far below what such a mistake costs."""
    policy, lay_out = build_policy("llama", dtype=torch.bfloat16), layout.lay_out_tree

    def shifted(groups: list[TokenGroup], device: torch.device) -> layout.Batch:
        batch = lay_out(groups, device)
        assert batch.tree is not None
        places = [range(start, start + length) for tree in batch.tree.trees for start, length in tree.responses]
        batch.tree.position_ids_N[[place for some in places for place in some]] += 1
        return batch

    monkeypatch.setattr("accord.policy.policy.lay_out_tree", shifted)
    found = check_layout(policy, probe_groups(61))
    assert "nats per token between the layouts" in str(found.reason)
    assert found.gap_logps > 3 * found.tolerance_logps


@pytest.mark.parametrize("layout", ["tree", "plain"])
@pytest.mark.parametrize("name", ["llama", "granite"])
def test_scores_are_sums_over_trained_tokens(name: str, layout: str) -> None:
    """K varies between groups, one response is empty, one is partly trained: sums, counts and padding slots."""
    policy = build_policy(name)
    groups = [
        TokenGroup(prompt_ids=(4, 5), responses=(TokenResponse(ids=()), TokenResponse(ids=(6, 7, 8)))),
        TokenGroup(
            prompt_ids=(9,),
            responses=(TokenResponse(ids=(3, 4, 5, 6), is_trained=(True, False, False, True)),),
        ),
    ]
    scores = policy(groups, layout=layout, statistics=("entropy",))
    own_N = own_token_logps(policy.causal_lm, groups)
    assert scores.is_valid_PK.tolist() == [[True, True], [True, False]]
    assert scores.num_tokens_PK.tolist() == [[0, 3], [2, 0]]
    expected = torch.stack([own_N[:0].sum(), own_N[:3].sum(), own_N[3] + own_N[6], own_N[:0].sum()])
    torch.testing.assert_close(scores.logps_PK.flatten(), expected, rtol=0, atol=TOLERANCE)
    assert scores.statistics["entropy"].shape == scores.token_logps_N.shape == (7,)


@pytest.mark.parametrize("layout", ["tree", "plain"])
def test_a_batch_of_empty_responses_scores_zero(layout: str) -> None:
    """`on_empty = "keep"` lets such a batch through; it must give 0 and a gradient of 0, not a crash."""
    policy = build_policy("llama")
    scores = policy([TokenGroup(prompt_ids=(4, 5), responses=(TokenResponse(ids=()),))], layout=layout)
    assert scores.logps_PK.tolist() == [[0.0]]
    scores.logps_PK.sum().backward()
    assert sum(float(p.grad.abs().sum()) for p in policy.parameters() if p.grad is not None) == 0.0


def test_scoring_leaves_no_trace_in_the_model() -> None:
    """After scoring, `generate` runs and the config still names the model's own attention."""
    policy, ids = build_policy("llama", dtype=torch.float32), torch.tensor([[5, 6, 7]])
    before = policy.causal_lm.generate(ids, max_new_tokens=4, do_sample=False)  # type: ignore[operator]
    policy.score(ragged_groups((2, 3))).logps_PK.sum().backward()
    assert policy.causal_lm.config._attn_implementation == "sdpa"
    after = policy.causal_lm.generate(ids, max_new_tokens=4, do_sample=False)  # type: ignore[operator]
    assert after.tolist() == before.tolist()


def test_the_check_leaves_no_trace_in_a_compiled_or_checkpointed_model(tmp_path: Path) -> None:
    """Its hooks must not be compiled into the model, nor compiled code keep them from running."""
    policy = load_policy(save_model(tmp_path, "llama"), gradient_checkpointing=True)
    policy.causal_lm.base_model.compile(backend="eager")
    groups = probe_groups(61)
    with torch.no_grad():
        before_N = policy(groups, layout="plain").token_logps_N  # compiled before the check …
        policy.settle_layout(groups)
        assert policy.layout == "tree", policy.why_plain
        found_N = policy.score(groups).token_logps_N  # … and after it
    torch.testing.assert_close(found_N, before_N, rtol=0, atol=1e-5)
    bfloat16 = load_policy(tmp_path, precision="bfloat16")
    eager = check_layout(bfloat16, groups)
    bfloat16.causal_lm.base_model.compile(backend="eager")
    assert check_layout(bfloat16, groups) == eager


def test_one_long_tree_does_not_pad_the_short_ones() -> None:
    """Forty trees of 3 tokens and one of 500: padded together they would need forty times the scores."""
    trees = [Tree((3 * i, 2), ((3 * i + 2, 1),)) for i in range(40)]
    assert attention._pads_well(trees)
    assert not attention._pads_well([*trees, Tree((120, 400), ((520, 100),))])
    assert not attention._pads_well([Tree((0, 200), ((200, 100),))])  # long trees run apart in any case


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at it while tracing
def test_compiled_models_give_the_same_numbers(tmp_path: Path) -> None:
    """`compile=True` reaches the layers that scoring runs, for trees of changing shape, forward and backward."""
    policy = load_policy(save_model(tmp_path, "llama"))
    expected = [gradient(policy, ragged_groups((2, 1), seed=seed), "tree") for seed in range(3)]
    counters = torch._dynamo.utils.counters
    counters.clear()
    policy.causal_lm.base_model.compile(backend="eager")  # as `load_policy(compile=True)`, without building kernels
    for seed, (logps_N, grad) in enumerate(expected):
        found_N, found_grad = gradient(policy, ragged_groups((2, 1), seed=seed), "tree")
        torch.testing.assert_close(found_N, logps_N, rtol=0, atol=1e-5)
        assert float((found_grad - grad).norm() / grad.norm()) < 1e-4
    assert counters["stats"]["unique_graphs"] > 2
