"""A real OpenAI-compatible server over HTTP: a policy sampled by Accord's own sampler, nothing canned."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
import transformers as hf

from accord.data import encode_prompts
from accord.policy.policy import Policy
from accord.policy.sampling import SamplingSettings, sample_responses
from accord.records import FinishReason, Group, Message, Response

ENDS = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}


class Refused(Exception):
    """What the server answers with a status of its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class ModelServer:
    """Serves one policy at `url` while its `with` block runs, in a thread of this process.

    Log-probabilities are the model's own, before temperature and cuts, as most servers give them. `required_key` is
    asked for when given; `knows_token_ids=False` takes and gives texts alone, as many servers do.
    """

    policy: Policy
    name: str = "tiny"
    gives_logprobs: bool = True
    knows_token_ids: bool = True
    required_key: str | None = None
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def __enter__(self) -> ModelServer:
        owner, self._one_at_a_time = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._reply(lambda: owner.get(self.path))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                self._reply(lambda: owner.post(self.path, body, self.headers.get("authorization")))

            def _reply(self, answer: Any) -> None:
                try:
                    status, found = 200, answer()
                except Refused as refused:
                    status, found = refused.status, {"error": {"message": str(refused)}}
                data = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def get(self, path: str) -> dict[str, Any]:
        """Answer a GET request."""
        if path != "/v1/models":
            raise Refused(404, f"no such path: {path}")
        return {"object": "list", "data": [{"id": self.name, "object": "model"}]}

    def post(self, path: str, body: dict[str, Any], authorization: str | None) -> dict[str, Any]:
        """Answer a POST request."""
        with self._one_at_a_time:
            self.requests.append((path, body))
            if self.required_key is not None and authorization != f"Bearer {self.required_key}":
                raise Refused(401, f"the key {authorization!r} is not known here")
            match path:
                case "/collective_rpc":
                    return self._reload(body)
                case "/reset_prefix_cache":
                    return {"success": True}
                case "/v1/completions" | "/v1/chat/completions":
                    return self._generate(body, is_chat=path.startswith("/v1/chat"))
            raise Refused(404, f"no such path: {path}")

    def _reload(self, body: dict[str, Any]) -> dict[str, Any]:
        assert body["method"] == "reload_weights"
        model = hf.AutoModelForCausalLM.from_pretrained(body["kwargs"]["weights_path"])
        self.policy.causal_lm.load_state_dict(model.state_dict())
        return {"results": [None]}

    def _generate(self, body: dict[str, Any], *, is_chat: bool) -> dict[str, Any]:
        if body.get("model") != self.name:
            raise Refused(404, f"the model {body.get('model')!r} does not exist")
        prompt = self._chat_ids(body["messages"]) if is_chat else self._prompt_ids(body["prompt"])
        settings = SamplingSettings(
            num_responses=body.get("n", 1), max_tokens=body.get("max_tokens", 16), seed=body.get("seed", 0),
            temperature=body.get("temperature", 1.0), top_p=body.get("top_p", 1.0), stop=tuple(body.get("stop") or ()),
            top_k=body.get("top_k", 0),
        )  # fmt: skip
        window = self.policy.causal_lm.config.max_position_embeddings
        if len(prompt) >= window:
            raise Refused(400, f"this model has {window} positions; the prompt has {len(prompt)} tokens")
        (responses,) = sample_responses(self.policy, [prompt], settings)
        choices = [
            self._choice(index, prompt, response, body, is_chat=is_chat) for index, response in enumerate(responses)
        ]
        made = sum(len(response.token_ids or ()) for response in responses)
        usage = {"prompt_tokens": len(prompt), "completion_tokens": made, "total_tokens": len(prompt) + made}
        return {"object": "text_completion", "model": self.name, "choices": choices, "usage": usage}

    def _chat_ids(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        turns = tuple(Message(role=turn["role"], content=turn["content"]) for turn in messages)
        (ids,) = encode_prompts([Group(prompt=turns, responses=(Response(token_ids=()),))], self.policy.tokenizer)
        return ids

    def _prompt_ids(self, prompt: str | list[int]) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return tuple(self.policy.tokenizer(prompt).input_ids)
        if not self.knows_token_ids:
            raise Refused(400, "prompt must be a string")
        return tuple(prompt)

    def _choice(
        self, index: int, prompt: tuple[int, ...], response: Response, body: dict[str, Any], *, is_chat: bool
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": ENDS[response.finish_reason]}
        choice |= (
            {"message": {"role": "assistant", "content": response.content}} if is_chat else {"text": response.content}
        )
        if body.get("return_token_ids") and self.knows_token_ids:
            choice["token_ids"] = list(response.token_ids or ())
        if self.gives_logprobs and body.get("logprobs") not in (None, False):
            width = body.get("top_logprobs", 0) if is_chat else body["logprobs"]
            choice["logprobs"] = self._logprobs(prompt, response, width, is_chat=is_chat)
        return choice

    @torch.no_grad()
    def _logprobs(self, prompt: tuple[int, ...], response: Response, width: int, *, is_chat: bool) -> dict[str, Any]:
        ids = response.token_ids or ()
        logits = self.policy.causal_lm(torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0]
        logps_TV = logits[len(prompt) - 1 : -1].double().log_softmax(-1)
        texts = [self.policy.tokenizer.decode([token]) for token in ids]
        own = logps_TV[torch.arange(len(ids)), torch.tensor(ids)].tolist()
        best = logps_TV.topk(width, dim=-1)
        tops = [
            [(self.policy.tokenizer.decode([token]), logp) for token, logp in zip(*pair, strict=True)]
            for pair in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        if not is_chat:
            return {"tokens": texts, "token_logprobs": own, "top_logprobs": [dict(top) for top in tops]}
        return {
            "content": [
                {"token": text, "logprob": logp, "top_logprobs": [{"token": t, "logprob": x} for t, x in top]}
                for text, logp, top in zip(texts, own, tops, strict=True)
            ]
        }
