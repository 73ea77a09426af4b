"""Products through oneDNN: the same numbers to rounding, the same modules to everybody else, the same bits twice."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from models import build_tokenizer, ragged_groups
from torch import Tensor, nn

from accord.policy import products
from accord.policy.head import linear_logps
from accord.policy.load import load_policy
from accord.policy.policy import Policy
from accord.policy.products import FEWEST_ROWS, FastLinear, _Linear, has_onednn, onednn_is_faster, use_fast_products

H, O = 160, 144  # noqa: E741 — the axes' names
ROWS = 96  # 96 · 160 · 144 is above the threshold

needs_operation = pytest.mark.skipif(not has_onednn(), reason="this torch has no oneDNN linear operation")


@pytest.fixture
def is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take oneDNN whatever the processor: slower on some, right on all that have the operation."""
    if not has_onednn():
        pytest.skip("this torch has no oneDNN linear operation")
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)


def linear(bias: bool = True) -> FastLinear:
    torch.manual_seed(0)
    return FastLinear(H, O, bias=bias)


def inputs(shape: str) -> Tensor:
    torch.manual_seed(1)
    return {
        "one row": torch.randn(H),
        "few rows": torch.randn(FEWEST_ROWS + 5, H),
        "rows": torch.randn(ROWS, H),
        "sequences": torch.randn(4, ROWS // 4, H),
        "none": torch.randn(0, H),
        "transposed": torch.randn(H, ROWS).t(),
        "cut out": torch.randn(ROWS, 2 * H)[:, 3 : 3 + H],
        "every other row": torch.randn(2 * ROWS, H)[::2],
        "heads": torch.randn(ROWS // 4, 4, H).transpose(0, 1),
        "repeated": torch.randn(1, H).expand(ROWS, H),
    }[shape]


def values_and_gradients(function, x: Tensor, layer: nn.Linear, upstream: str) -> list[Tensor]:  # type: ignore[no-untyped-def]
    x = x.detach().requires_grad_()
    y = function(x, layer.weight, layer.bias)
    torch.manual_seed(2)
    loss = y.sum() if upstream == "sum" else (y * torch.randn_like(y)).sum()
    leaves = [x, layer.weight] + ([layer.bias] if layer.bias is not None else [])
    return [y.detach(), *torch.autograd.grad(loss, leaves)]


def assert_rounding_apart(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Sums of at most 200 terms: a few float32 roundings of the largest element."""
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6 * max(1.0, float(b.abs().max()) if b.numel() else 0.0))


@pytest.mark.parametrize("upstream", ["sum", "random"])  # a sum's gradient is one number, expanded
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "shape",
    [
        "one row",
        "few rows",
        "rows",
        "sequences",
        "none",
        "transposed",
        "cut out",
        "every other row",
        "heads",
        "repeated",
    ],
)
def test_values_and_gradients_equal_linear(is_used: None, shape: str, bias: bool, upstream: str) -> None:
    layer, x = linear(bias), inputs(shape)
    expected = values_and_gradients(F.linear, x, layer, upstream)
    assert_rounding_apart(values_and_gradients(_Linear.apply, x, layer, upstream), expected)
    assert_rounding_apart(values_and_gradients(lambda x, *_: layer(x), x, layer, upstream), expected)


@needs_operation
def test_the_operation_itself_on_transposed_operands() -> None:
    """What the two gradients ask for; compared in float64, below the threshold as above it."""
    for rows in (1, 5, ROWS):
        x, grad, weight = torch.randn(rows, H), torch.randn(rows, O), torch.randn(O, H)
        for a, b in ((x, weight), (grad, weight.t()), (grad.t(), x.t())):
            torch.testing.assert_close(
                products._onednn(a, b, None).double(), a.double() @ b.double().t(), rtol=0, atol=2e-4
            )


def test_which_products_take_it(is_used: None) -> None:
    layer = linear()

    def takes(x: Tensor) -> bool:
        return type(layer(x).grad_fn).__name__ == "_LinearBackward"

    assert takes(inputs("rows"))
    assert takes(inputs("sequences"))
    assert not takes(inputs("few rows"))  # for so small a weight
    assert FEWEST_ROWS == 2
    large, small = FastLinear(2048, 2048), FastLinear(1024, 512)
    assert type(large(torch.randn(2, 2048)).grad_fn).__name__ == "_LinearBackward"  # decoding
    assert type(large(torch.randn(1, 2048)).grad_fn).__name__ != "_LinearBackward"
    assert type(small(torch.randn(3, 1024)).grad_fn).__name__ != "_LinearBackward"
    assert type(small(torch.randn(4, 1024)).grad_fn).__name__ == "_LinearBackward"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not takes(inputs("rows"))
        assert layer(inputs("rows")).dtype == torch.bfloat16
    layer.to(torch.float64)
    assert not takes(inputs("rows").double())


@pytest.mark.parametrize("frozen", ["weight", "input"])
def test_what_is_frozen_gets_no_gradient_and_keeps_no_memory(is_used: None, frozen: str) -> None:
    layer, x = linear(), inputs("rows").requires_grad_()
    (layer.weight if frozen == "weight" else x).requires_grad_(False)
    y = layer(x)
    assert [saved is None for saved in y.grad_fn.saved_tensors] == (
        [True, False] if frozen == "weight" else [False, True]
    )
    y.sum().backward()
    assert (layer.weight.grad is None) == (frozen == "weight")
    assert (x.grad is None) == (frozen == "input")


def test_the_head_in_tiles_equals_log_softmax(is_used: None) -> None:
    """Large enough for oneDNN in each tile; kept and recomputed; without gradient too."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(70, 96, requires_grad=True), torch.randn(1500, 96, requires_grad=True)
    targets_N, slope_N = torch.randint(1500, (70,)), torch.linspace(-1, 1, 70)
    wide = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    expected_N = F.log_softmax(F.linear(*wide), -1)[torch.arange(70), targets_N]
    expected = [expected_N, *torch.autograd.grad((slope_N * expected_N).sum(), wide)]
    for keep_bytes in (2**30, 0):
        logps_N, _ = linear_logps(hidden, weight, None, targets_N, num_tile_words=400, keep_bytes=keep_bytes)
        found = [logps_N, *torch.autograd.grad((slope_N * logps_N).sum(), [hidden, weight])]
        for a, b in zip(found, expected, strict=True):
            assert float((a.detach().double() - b.detach()).norm() / b.detach().norm()) < 1e-6
    with torch.no_grad():
        without, _ = linear_logps(hidden, weight, None, targets_N, num_tile_words=400)
    torch.testing.assert_close(without, logps_N, rtol=0, atol=0)


# -- in a model ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Llama wide enough that its products take oneDNN."""
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=61, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512, pad_token_id=0, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    hf.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def plain_policy(folder: Path) -> Policy:
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return Policy(model, build_tokenizer())  # not through load_policy: every product is torch's own


def score_and_gradient(policy: Policy, layout: str = "tree") -> tuple[Tensor, Tensor]:
    policy.zero_grad()
    logps_PK = policy(GROUPS, layout=layout).logps_PK
    (logps_PK * torch.linspace(-1, 1, logps_PK.numel()).view_as(logps_PK)).sum().backward()
    return logps_PK.detach(), torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


GROUPS = ragged_groups((3, 3, 2), longest=60, seed=3)


def assert_same_policy(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-5


@pytest.mark.parametrize("layout", ["tree", "plain"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_policy_scores_and_learns_as_before(is_used: None, folder: Path, layout: str, checkpointing: bool) -> None:
    policy = load_policy(folder, gradient_checkpointing=checkpointing)
    swapped = [module for module in policy.modules() if type(module) is FastLinear]
    assert len(swapped) == 2 * 7 + 1  # q, k, v, o, gate, up, down in each layer, and the head
    found = score_and_gradient(policy, layout)
    assert policy.has_linear_head
    assert_same_policy(found, score_and_gradient(plain_policy(folder), layout))
    again = score_and_gradient(load_policy(folder, gradient_checkpointing=checkpointing), layout)
    for a, b in zip(again, found, strict=True):  # what a resumed run relies on
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_copies_and_files_are_a_plain_models(is_used: None, folder: Path, tmp_path: Path) -> None:
    policy = load_policy(folder)
    assert list(policy.model.state_dict()) == list(plain_policy(folder).model.state_dict())
    twin = copy.deepcopy(policy.model)
    assert type(twin.lm_head) is FastLinear
    assert twin.lm_head.weight is not policy.causal_lm.lm_head.weight
    policy.save(tmp_path / "saved")
    model = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert type(model.lm_head) is nn.Linear
    for ours, theirs in zip(policy.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_adapters_train(is_used: None, folder: Path) -> None:
    policy = load_policy(folder, lora_rank=8)
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.1)
    policy(GROUPS).logps_PK.sum().backward()
    optimizer.step()
    frozen = {name: p.grad for name, p in policy.named_parameters() if "lora_" not in name}
    assert set(frozen.values()) == {None}
    ours = score_and_gradient(policy)
    for module in policy.modules():
        if type(module) is FastLinear:
            module.__class__ = nn.Linear
    assert_same_policy(ours, score_and_gradient(policy))


def test_subclasses_stay_what_they_are(is_used: None) -> None:
    class Own(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(2, 2), Own(2, 2), nn.Bilinear(2, 2, 2))
    use_fast_products(model)
    assert [type(module) for module in model] == [FastLinear, Own, nn.Bilinear]


# -- the decision ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not onednn_is_faster(), reason="this machine's products stay with torch's BLAS")
def test_on_this_machine_a_loaded_model_uses_it(folder: Path) -> None:
    assert type(load_policy(folder).causal_lm.get_output_embeddings()) is FastLinear


@pytest.mark.parametrize(("vendor", "capability", "expected"), [
    ("AuthenticAMD", "AVX512", True),
    ("AuthenticAMD", "AVX2", False),  # MKL's AVX2 kernels are as good
    ("GenuineIntel", "AVX512", False),  # MKL uses AVX-512 there
    ("", "AVX512", False),  # nothing known
])  # fmt: skip
@needs_operation
def test_where_it_is_used(monkeypatch: pytest.MonkeyPatch, vendor: str, capability: str, expected: bool) -> None:
    monkeypatch.setattr(products, "_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert products.onednn_is_faster.__wrapped__() is expected


@needs_operation
@pytest.mark.parametrize("failure", ["raises", "wrong"])
def test_an_operation_that_fails_is_not_used_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failure: str
) -> None:
    def changed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if failure == "raises":
            raise RuntimeError("mkldnn::_linear_pointwise() expected at most 5 arguments")
        return F.linear(x, weight)  # the bias is lost

    monkeypatch.setattr(products, "_onednn", changed)
    with caplog.at_level("WARNING"):
        assert not products._agrees_with_linear()
    assert "stay with torch's BLAS" in caplog.text
