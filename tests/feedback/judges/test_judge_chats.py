"""The two kinds of chat, over one real model: what an endpoint says of it is what the policy says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model_server import ModelServer

from accord.data import encode_prompts
from accord.endpoint import Endpoint, EndpointDown, EndpointSettings
from accord.errors import FeedbackError
from accord.feedback.judges import EndpointChat, PairwiseJudge, PointwiseJudge, PolicyChat
from accord.policy.policy import Policy
from accord.records import Comparison, Group, Message, Response

TALKS = [(Message(role="user", content="w5 w6 w7"),), (Message(role="user", content="w9 w4"),)]
GROUPS = [
    Group(prompt="w4 w5", responses=(Response(content="w6 w7"), Response(content="w8"), Response(content="w9 w9"))),
    Group(prompt="w10", responses=(Response(content="w11"), Response(content="w12 w13"))),
]


def endpoint_chat(server: ModelServer, cache: Path | None = None, **changes: object) -> EndpointChat:
    settings = EndpointSettings(url=server.url, model=server.name, cache_folder=cache, num_attempts=1)
    return EndpointChat(endpoint=Endpoint(settings), **changes)  # type: ignore[arg-type]  # settings of the chat


def test_options_are_scored_as_the_model_has_them(judge_policy: Policy):
    """By one full forward pass of our own: log-softmax at the last position of the prompt."""
    found = PolicyChat(policy=judge_policy).option_logps(TALKS, ("A", "B", "w4 w5"))
    asked = [Group(prompt=talk, responses=(Response(token_ids=()),)) for talk in TALKS]
    for ids, logps in zip(encode_prompts(asked, judge_policy.tokenizer), found, strict=True):
        assert logps is not None
        with torch.no_grad():
            logits = judge_policy.causal_lm(torch.tensor([[*ids, 4]]), use_cache=False).logits[0].double()
        next_V, after_V = logits[-2].log_softmax(-1), logits[-1].log_softmax(-1)
        expected = [next_V[2], next_V[3], next_V[4] + after_V[5]]  # A, B, and w4 followed by w5
        assert list(logps) == pytest.approx([value.item() for value in expected], abs=1e-5)


def test_an_endpoint_and_the_policy_behind_it_say_the_same(judge_policy: Policy, judge_server: ModelServer):
    chat, local = endpoint_chat(judge_server, max_tokens=6), PolicyChat(policy=judge_policy, max_tokens=6)
    with chat.endpoint:
        remote = chat.option_logps(TALKS, ("A", "B"))
        for ours, theirs in zip(local.option_logps(TALKS, ("A", "B")), remote, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)
        assert chat.answer(TALKS)[0].text == local.answer(TALKS)[0].text
        assert chat.name == "tiny"
        verdicts = [PairwiseJudge(chat=which, mode="logprobs").judge(GROUPS) for which in (chat, local)]
    for ours, theirs in zip(*verdicts, strict=True):
        for a, b in zip(ours.judgements, theirs.judgements, strict=True):
            assert isinstance(a, Comparison)
            assert isinstance(b, Comparison)
            assert (a.better, a.worse, a.strength) == (b.better, b.worse, pytest.approx(b.strength, abs=1e-4))


def test_the_same_response_twice_is_a_tie_for_any_judge(judge_policy: Policy):
    """Both orders are one question: ½ (x − x) = 0, whatever the bias of the place."""
    same = Group(prompt="w4", responses=(Response(content="w5"), Response(content="w5")))
    (judged,) = PairwiseJudge(chat=PolicyChat(policy=judge_policy), mode="logprobs").judge([same])
    (comparison,) = judged.judgements
    assert isinstance(comparison, Comparison)
    assert comparison.is_tie
    assert comparison.strength == pytest.approx(0.0, abs=1e-6)


def test_a_model_that_writes_no_verdict_gives_no_score(judge_server: ModelServer, tmp_path: Path):
    chat = endpoint_chat(judge_server, tmp_path, max_tokens=4)
    with chat.endpoint:
        findings = PointwiseJudge(chat=chat, num_attempts=2)(GROUPS)
        assert [finding.score for row in findings for finding in row] == [None] * 5
        first = chat.endpoint.usage
        assert first.num_requests == 10  # five responses, two attempts: the second one is another question
        PointwiseJudge(chat=chat, num_attempts=2)(GROUPS)
        assert chat.endpoint.usage.num_requests == 10
        assert chat.endpoint.usage.num_cached == 10


def test_a_conversation_that_does_not_fit_is_unknown_and_the_others_are_judged(
    judge_policy: Policy, judge_server: ModelServer
):
    long = Group(prompt="w4", responses=(Response(content="w5 " * 2000), Response(content="w6")))
    chat = endpoint_chat(judge_server, max_tokens=4)
    with chat.endpoint:
        for which in (chat, PolicyChat(policy=judge_policy, max_tokens=4)):
            (too_long, fine) = PairwiseJudge(chat=which, mode="logprobs").judge([long, GROUPS[1]])
            assert (len(too_long.judgements), len(fine.judgements)) == (0, 1)
            found = PointwiseJudge(chat=which, num_attempts=2)([long, GROUPS[1]])
            assert "1024 positions" in found[0][0].reason
        (alone,) = PolicyChat(policy=judge_policy).answer([(Message(role="user", content="w5 " * 2000),)])
        assert alone.text is None
        with pytest.raises(FeedbackError, match="400"):  # all are refused: it is not one conversation's fault
            PairwiseJudge(chat=chat).judge([long])


def test_a_server_without_log_probabilities_is_named(judge_policy: Policy):
    with ModelServer(judge_policy, gives_logprobs=False) as server:
        chat = endpoint_chat(server)
        with chat.endpoint, pytest.raises(FeedbackError, match=r"no log-probabilities.*mode verdict"):
            PairwiseJudge(chat=chat, mode="logprobs").judge(GROUPS)


def test_a_judge_that_is_down_says_so_to_who_must_pause(judge_policy: Policy):
    with ModelServer(judge_policy) as server:
        chat = endpoint_chat(server)
    with chat.endpoint, pytest.raises(EndpointDown) as caught:  # the server has gone
        PointwiseJudge(chat=chat)(GROUPS)
    assert caught.value.url == f"{server.url}/chat/completions"
    assert "do the same again" in str(caught.value)


def test_another_attempt_asks_for_another_answer(judge_server: ModelServer):
    chat = endpoint_chat(judge_server, max_tokens=8, options={"top_p": 0.9, "seed": None})
    with chat.endpoint:
        chat.answer(TALKS[:1])
        chat.answer(TALKS[:1], attempt=1)
    first, second = (body for _, body in judge_server.requests[-2:])
    assert (first["temperature"], second["temperature"]) == (0.0, 0.7)
    assert first["top_p"] == second["top_p"] == 0.9
    assert "seed" not in first  # an option that is None is left out
