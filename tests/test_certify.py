"""The certificate of a model: it passes for models that are right, and fails where one part is made wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import build_policy, save_model
from toy_runs import BASE

from accord.certify import model_claims
from accord.claims import Claim
from accord.policy.load import Precision, load_policy
from accord.policy.policy import Policy


def by_topic(claims: list[Claim]) -> dict[str, bool]:
    """Whether all claims of a topic (the words before the first colon or sign) hold."""
    topics = {"layout": "layout", "score": "score", "template": "template", "sampler": "sampler"}
    return {
        topic: all(claim.passed for claim in claims if claim.name.startswith(start)) for topic, start in topics.items()
    }


def test_the_shipped_model_holds_every_claim():
    claims = model_claims(load_policy(BASE))
    assert all(claim.passed for claim in claims)
    assert {claim.name.split(":")[0].split(" =")[0] for claim in claims} == {"layout", "score", "template", "sampler"}
    assert max(claim.gap for claim in claims) < 1e-4  # float32: nats per token, shares and counts


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "gpt2"])
def test_other_architectures_hold_them_too(name: str, tmp_path: Path):
    assert all(by_topic(model_claims(load_policy(save_model(tmp_path / name, name)))).values())


@pytest.mark.parametrize("name", ["mamba", "bloom"])
def test_a_model_of_the_plain_path_passes_and_says_why(name: str, tmp_path: Path):
    claims = model_claims(load_policy(save_model(tmp_path / name, name)))
    (layout,) = [claim for claim in claims if claim.name.startswith("layout")]
    assert len(layout.note) > 20
    assert all(claim.passed for claim in claims), [claim for claim in claims if not claim.passed]


def test_a_prefix_that_leaks_between_siblings_is_seen():
    """A hook that adds the mean over the packed row mixes responses with each other: the layouts part ways."""
    policy = build_policy("llama")
    policy.causal_lm.base_model.layers[0].register_forward_hook(
        lambda module, arguments, output: output + output.mean(1, keepdim=True)
    )
    (layout,) = [claim for claim in model_claims(policy) if claim.name.startswith("layout")]
    assert policy.layout == "plain"
    assert "let a response see its sibling" in layout.note


def test_a_hybrid_model_is_certified_without_its_sampler(tmp_path: Path):
    claims = model_claims(load_policy(save_model(tmp_path, "lfm2")))
    assert all(claim.passed for claim in claims), [claim for claim in claims if not claim.passed]
    assert claims[-1].note.startswith("not sampled from here: Lfm2ForCausalLM keeps a recurrent state")


@pytest.mark.parametrize("precision", ["mixed", "bfloat16"])
def test_the_shipped_model_holds_them_in_low_precision(precision: Precision):
    claims = model_claims(load_policy(BASE, precision=precision))
    assert all(claim.passed for claim in claims), [claim for claim in claims if not claim.passed]
    assert "layout: tree = plain, log-probability per token (mean gap, nats)" in {claim.name for claim in claims}


def test_an_end_of_turn_that_is_not_the_eos_is_stopped_at():
    """ChatML on a tokenizer whose EOS is another token."""
    policy = load_policy(BASE)
    policy.tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    policy.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    (claim,) = [claim for claim in model_claims(policy) if "trained ends" in claim.name]
    assert (claim.passed, claim.reached) == (True, 0)


def test_a_head_that_is_not_the_models_own_is_caught():
    """Told that its logits are a bare linear map, a model that scales them scores something else."""
    policy = build_policy("granite")
    policy.has_linear_head = True
    assert by_topic(model_claims(policy)) == {"layout": True, "score": False, "template": True, "sampler": False}


def test_a_template_that_cannot_be_trained_on_fails_and_the_rest_is_still_said():
    """Its prompt for an answer is not how its answers begin: which tokens are trained cannot be known."""
    policy = load_policy(BASE)
    policy.tokenizer.chat_template = (
        "{% for m in messages %}<|user|> {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}<|assistant|> <|user|> {% endif %}"
    )
    claims = model_claims(policy)
    assert by_topic(claims) == {"layout": True, "score": True, "template": False, "sampler": True}
    assert "rewrites earlier text" in " ".join(claim.note for claim in claims)


class Restless(Policy):
    """A policy whose scores change from call to call, as with dropout left on."""

    def token_logps(self, *arguments, **named):
        logps_N, found = super().token_logps(*arguments, **named)
        return logps_N + 0.01 * torch.randn_like(logps_N), found


def test_scores_that_change_from_call_to_call_are_caught():
    base = load_policy(BASE)
    torch.manual_seed(0)
    found = by_topic(model_claims(Restless(base.model, base.tokenizer)))
    assert not found["score"]
    assert not found["sampler"]
