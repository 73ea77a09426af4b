"""The endpoint client against real local servers: one that has a model, and one that fails in every way there is."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from model_server import ModelServer
from models import build_policy

from accord.endpoint import AnswerCache, Endpoint, EndpointDown, EndpointSettings, RequestRefused
from accord.endpoint.cache import hash_request
from accord.endpoint.client import retry_after
from accord.errors import FeedbackError

FINE = {"choices": [{"index": 0, "text": "yes", "finish_reason": "stop"}]}
COUNTED = FINE | {"usage": {"prompt_tokens": 30, "completion_tokens": 2}}
TURNS = [{"role": "user", "content": "w3 w4 w5"}]


@dataclass
class FailingServer:
    """Answers requests by a script of (status, headers, body), the last of which repeats; a status of 0 hangs up."""

    script: list[tuple[int, dict[str, str], Any]]
    wait_seconds: float = 0.0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    most_at_once: int = 0

    def __enter__(self) -> FailingServer:
        owner, lock, now = self, threading.Lock(), [0]

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                with lock:
                    now[0] += 1
                    owner.most_at_once = max(owner.most_at_once, now[0])
                    body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                    owner.bodies.append(body)
                    status, headers, said = owner.script.pop(0) if len(owner.script) > 1 else owner.script[0]
                time.sleep(owner.wait_seconds)
                with lock:
                    now[0] -= 1
                if status == 0:
                    self.connection.close()
                    return
                data = said.encode() if isinstance(said, str) else json.dumps(said).encode()
                self.send_response(status)
                for name, value in (headers | {"content-length": str(len(data))}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def handle(self) -> None:
                with suppress(OSError, ValueError):  # hung up on purpose, by us or by a client out of patience
                    super().handle()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # the same, when the reply is flushed
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with ModelServer(build_policy()) as running:
        yield running


def client(url: str, *, waits: list[float] | None = None, **changes: Any) -> Endpoint:
    """A client whose waits are written down instead of waited."""
    settings = EndpointSettings(url=url, model=changes.pop("model", "tiny"), **({"num_attempts": 3} | changes))
    return Endpoint(settings, sleep=(waits if waits is not None else []).append, jitter=random.Random(0))


def test_a_real_model_answers_chats_and_completions(server: ModelServer):
    with client(server.url) as endpoint:
        assert endpoint.models() == ["tiny"]
        ((chat,),) = endpoint.chat([TURNS], max_tokens=4, temperature=0.0, logprobs=True, top_logprobs=3)
        ((again,),) = endpoint.chat([TURNS], max_tokens=4, temperature=0.0)
        assert chat.text == again.text != ""
        assert again.tokens is None
        assert chat.tokens is not None
        for token in chat.tokens:  # greedy: each token is the likeliest of its place
            assert token.likeliest[token.text] == pytest.approx(token.logp) == max(token.likeliest.values())
        ((text,), (ids,)) = endpoint.complete(["w3 w4", [3, 4]], max_tokens=4, temperature=0.0, logprobs=1)
        assert (text.text, text.tokens) == (ids.text, ids.tokens)
        assert endpoint.usage.num_requests == 4
        assert endpoint.usage.cost is None  # no prices: tokens alone
        assert endpoint.usage.prompt_tokens >= 4


def test_several_choices_keep_their_order_and_equal_questions_are_asked_once(server: ModelServer):
    with client(server.url) as endpoint:
        asked = len(server.requests)
        found = endpoint.complete(["w3 w4", "w5", "w3 w4"], n=3, max_tokens=3, seed=1, temperature=1.0)
        assert [len(answers) for answers in found] == [3, 3, 3]
        assert found[0] == found[2]
        assert len(server.requests) - asked == 2


def test_retries_wait_longer_each_time_and_as_long_as_the_server_says():
    script = [(503, {}, ""), (429, {"retry-after": "7"}, {"error": "slow down"}), (0, {}, ""), (200, {}, COUNTED)]
    waits: list[float] = []
    with FailingServer(script) as failing, client(failing.url, waits=waits, num_attempts=4) as endpoint:
        ((answer,),) = endpoint.complete(["?"])
        assert answer.text == "yes"
        assert len(failing.bodies) == 4
        assert endpoint.usage.num_retries == 3
    assert 0.5 <= waits[0] <= 1.0  # 1 s · U(½, 1)
    assert waits[1] == 7.0  # what was asked for, more than 2 s · U
    assert 2.0 <= waits[2] <= 4.0


def test_backoff_has_a_ceiling():
    waits: list[float] = []
    changes = {"backoff_seconds": 1.0, "max_backoff_seconds": 5.0, "num_attempts": 8}
    failing = FailingServer([(500, {}, "")])
    with failing, client(failing.url, waits=waits, **changes) as endpoint, pytest.raises(EndpointDown):
        endpoint.complete(["?"])
    assert len(waits) == 7
    assert all(2.5 <= wait <= 5.0 for wait in waits[3:])  # from 2³ s on: the ceiling, times the jitter


def test_what_stays_down_says_what_came_from_where_and_what_to_do():
    with FailingServer([(503, {"retry-after": "3"}, {"error": {"message": "loading"}})]) as failing:
        with client(failing.url) as endpoint, pytest.raises(EndpointDown) as caught:
            endpoint.complete(["?"])
        address = f"{failing.url}/completions"
    assert str(caught.value).startswith(f"got 503 (loading) from {address} after 3 attempts, and asks to wait 3 s — ")
    assert (caught.value.url, caught.value.num_attempts) == (address, 3)
    assert caught.value.retry_after_seconds == 3.0
    with client(failing.url) as endpoint, pytest.raises(EndpointDown, match="ConnectError"):  # nobody there any more
        endpoint.complete(["?"])


def test_a_server_that_asks_to_wait_too_long_is_down_at_once():
    with FailingServer([(429, {"retry-after": "86400"}, "")]) as failing, client(failing.url) as endpoint:
        with pytest.raises(EndpointDown, match=r"asks to wait 86400 s") as caught:
            endpoint.complete(["?"])
        assert (caught.value.num_attempts, len(failing.bodies)) == (1, 1)


def test_a_server_that_does_not_answer_in_time_is_asked_again():
    with FailingServer([(200, {}, FINE)], wait_seconds=1.0) as failing:
        endpoint = client(failing.url, timeout_seconds=0.1, num_attempts=2)
        with endpoint, pytest.raises(EndpointDown, match="ReadTimeout"):
            endpoint.complete(["?"])
        assert len(failing.bodies) == 2


@pytest.mark.parametrize(
    ("status", "said", "kind", "words"),
    [
        (401, {"error": {"message": "bad key"}}, FeedbackError, r"401 \(bad key\).*environment variable"),
        (404, "no such page", FeedbackError, r"404 \(no such page\).*/v1"),
        (400, {"detail": "unknown field seed"}, RequestRefused, r"400 \(unknown field seed\).*settings"),
        (302, "", FeedbackError, r"302 \(Found\)"),
        (200, "<html>hello</html>", FeedbackError, r"not a JSON object.*<html>"),
        (200, {"choices": []}, FeedbackError, "no choices"),
        (200, {"choices": [{"index": 0}]}, FeedbackError, "does not follow the protocol"),
        (200, {"error": "out of memory"}, FeedbackError, r"it says: out of memory"),
    ],
)
def test_what_will_not_change_is_not_asked_again(status: int, said: Any, kind: type[Exception], words: str):
    with FailingServer([(status, {}, said)]) as failing, client(failing.url) as endpoint:
        with pytest.raises(kind, match=words):
            endpoint.complete(["?"])
        assert len(failing.bodies) == 1


def test_one_refused_request_does_not_take_the_others_along(server: ModelServer):
    """The model has 128 positions: one conversation is too long for it."""
    with client(server.url) as endpoint:
        requests = [{"prompt": "w3 " * length, "max_tokens": 2, "temperature": 0} for length in (3, 200, 5)]
        short, long, other = endpoint.ask("/completions", requests)
    assert isinstance(long, RequestRefused)
    assert long.status == 400
    assert isinstance(short, list)
    assert isinstance(other, list)
    assert len(short) == len(other) == 1


def test_no_more_requests_at_once_than_allowed():
    with FailingServer([(200, {}, FINE)], wait_seconds=0.05) as failing:
        with client(failing.url, max_concurrent=3) as endpoint:
            endpoint.complete([f"question {number}" for number in range(12)])
        assert failing.most_at_once <= 3
        assert len(failing.bodies) == 12


def test_the_cache_answers_what_was_asked_before_and_nothing_else(tmp_path: Path):
    with FailingServer([(200, {}, COUNTED)]) as failing:
        with client(failing.url, cache_folder=tmp_path) as endpoint:
            first = endpoint.complete(["?"], temperature=0.0)
        with client(failing.url, cache_folder=tmp_path, prompt_price=1.0, completion_price=1.0) as endpoint:
            again = endpoint.complete(["?"], temperature=0.0)
            assert len(failing.bodies) == 1
            assert endpoint.usage == replace(endpoint.usage, num_requests=0, num_cached=1, prompt_tokens=0, cost=0.0)
            endpoint.complete(["?"], temperature=0.5)  # another request
            assert len(failing.bodies) == 2
        with client(failing.url, cache_folder=tmp_path, model="other") as endpoint:
            endpoint.complete(["?"], temperature=0.0)  # another model
            assert len(failing.bodies) == 3
    assert [replace(answer, is_cached=False) for answer in again[0]] == first[0]
    assert again[0][0].is_cached


def test_answers_had_before_a_server_went_down_are_kept(tmp_path: Path):
    with FailingServer([(200, {}, FINE), (200, {}, FINE), (503, {}, "")]) as failing:
        with client(failing.url, cache_folder=tmp_path, max_concurrent=1) as endpoint, pytest.raises(EndpointDown):
            endpoint.complete(["a", "b", "c", "d"])
        asked = len(failing.bodies)
        assert asked == 2 + 3  # a, b, three attempts at c, and d not at all
        failing.script = [(200, {}, FINE)]
        with client(failing.url, cache_folder=tmp_path, max_concurrent=1) as endpoint:
            assert len(endpoint.complete(["a", "b", "c", "d"])) == 4
            assert (endpoint.usage.num_cached, endpoint.usage.num_requests) == (2, 2)


def test_a_damaged_answer_is_asked_again(tmp_path: Path):
    with FailingServer([(200, {}, FINE)]) as failing, client(failing.url, cache_folder=tmp_path) as endpoint:
        endpoint.complete(["?"])
        (kept,) = tmp_path.rglob("*.json")
        kept.write_text(kept.read_text()[:-20])
        endpoint.complete(["?"])
        assert len(failing.bodies) == 2
        assert json.loads(kept.read_text())["answer"] == FINE


WRITER = """
import sys
from accord.endpoint.cache import AnswerCache, hash_request
folder, text = sys.argv[1:]
cache = AnswerCache(folder)
for number in range(60):
    request = {"n": number % 3}
    cache.write(hash_request("u", request), request, {"choices": [text * 2000]})
"""


def test_two_processes_write_one_cache_and_every_file_is_whole(tmp_path: Path):
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), text]) for text in "ab"]
    cache = AnswerCache(tmp_path)
    whole = {"a" * 2000, "b" * 2000}
    while any(writer.poll() is None for writer in writers):
        kept = cache.read(hash_request("u", {"n": 1}))
        assert kept is None or kept["choices"][0] in whole
        time.sleep(0.001)
    assert [writer.returncode for writer in writers] == [0, 0]
    for number in range(3):
        kept = cache.read(hash_request("u", {"n": number}))
        assert kept is not None
        assert kept["choices"][0] in whole
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 3  # nothing temporary is left


def test_what_is_asked_is_counted_and_priced():
    """Two answers of 30 + 2 tokens: (60 · 2 + 4 · 10) / 10⁶."""
    prices = {"prompt_price": 2.0, "completion_price": 10.0}
    with FailingServer([(200, {}, COUNTED)]) as failing, client(failing.url, **prices) as endpoint:
        endpoint.complete(["a", "b"])
        assert endpoint.usage.cost == pytest.approx((60 * 2 + 4 * 10) / 1e6, rel=1e-12)
        failing.script = [(200, {}, FINE)]  # a server that does not count
        endpoint.complete(["c"])
        assert (endpoint.usage.num_uncounted, endpoint.usage.cost) == (1, None)


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(
    server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("JUDGE_KEY", "sk-secret-1234")
    with ModelServer(server.policy, required_key="sk-secret-1234") as guarded:
        settings = {"api_key_variable": "JUDGE_KEY", "cache_folder": tmp_path}
        with client(guarded.url, **settings) as endpoint:
            endpoint.complete(["w3"], max_tokens=2)
            assert "sk-secret" not in repr(endpoint.settings)
        monkeypatch.setenv("JUDGE_KEY", "sk-secret-wrong")
        with client(guarded.url, **settings) as endpoint, pytest.raises(FeedbackError, match="401") as caught:
            endpoint.complete(["w4"], max_tokens=2)
        assert "sk-secret" not in str(caught.value)  # this server repeats the key it was given
        monkeypatch.delenv("JUDGE_KEY")
        with client(guarded.url, **settings) as endpoint, pytest.raises(FeedbackError, match="JUDGE_KEY is not set"):
            endpoint.complete(["w5"], max_tokens=2)
    kept = [path.read_text() for path in tmp_path.rglob("*.json")]
    assert len(kept) == 1
    assert "sk-secret" not in kept[0]


def test_tokens_of_one_text_have_the_sum_of_their_probabilities():
    tops = [{"token": "A", "logprob": -1.0}, {"token": "A", "logprob": -2.0}]
    choice = {
        "message": {"content": "A"},
        "logprobs": {"content": [{"token": "A", "logprob": -1.0, "top_logprobs": tops}]},
    }
    with FailingServer([(200, {}, {"choices": [choice]})]) as failing, client(failing.url) as endpoint:
        ((answer,),) = endpoint.chat([TURNS])
    assert answer.tokens is not None
    assert answer.tokens[0].likeliest == {"A": pytest.approx(-0.6867383124818)}  # ln(e⁻¹ + e⁻²)


def test_retry_after_is_seconds_or_a_date():
    assert retry_after({"retry-after": "12.5"}) == 12.5
    assert 50 < (retry_after({"retry-after": formatdate(time.time() + 60, usegmt=True)}) or 0) <= 60
    assert retry_after({"retry-after": formatdate(time.time() - 60, usegmt=True)}) == 0.0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


@pytest.mark.parametrize(
    "wrong", [{"url": "localhost:8000"}, {"num_attempts": 0}, {"timeout_seconds": 0}, {"prompt_price": -1.0}]
)
def test_settings_out_of_range_are_named(wrong: dict[str, Any]):
    with pytest.raises(FeedbackError, match=str(next(iter(wrong.values())))):
        EndpointSettings(**({"url": "http://x/v1", "model": "m"} | wrong))


def test_the_client_and_the_judges_load_no_torch():
    code = (
        "import sys, accord.endpoint, accord.feedback.judges, accord.cli.judge; "
        "sys.exit(bool({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
