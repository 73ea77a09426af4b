"""The endpoint client and sampler against servers that others wrote: `transformers serve`, and llama.cpp's.

llama.cpp's is run where llama-cpp-python with its server and gguf are installed: in this interpreter, or in the one
named by the environment variable LLAMA_CPP_PYTHON.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from models import build_model
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers.utils.import_utils import is_serve_available

from accord.endpoint import Endpoint, EndpointSettings
from accord.engines import EndpointSampler
from accord.errors import FeedbackError
from accord.feedback.judges import EndpointChat, PairwiseJudge, PolicyChat
from accord.policy.load import load_policy
from accord.policy.policy import Policy
from accord.policy.sampling import LocalSampler, SamplingSettings
from accord.records import FinishReason, Group, Message, Response

TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
BYTES = sorted(ByteLevel.alphabet())
LLAMA_PYTHON = os.environ.get("LLAMA_CPP_PYTHON", sys.executable)
GREEDY = SamplingSettings(max_tokens=10, temperature=0)
LLAMA_DEFAULTS_OFF = {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}  # it cuts the tail unless told not to


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama whose tokens are bytes, with a chat template."""
    words = {"<|end|>": 0, **{letter: i + 1 for i, letter in enumerate(BYTES)}, "zz": 257}
    tokenizer = Tokenizer(BPE(words, [("z", "z")]))  # one merge: the other format cannot do without
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    fast.chat_template = TEMPLATE
    path = tmp_path_factory.mktemp("bytes_model")
    model = build_model(
        vocab_size=258, hidden_size=32, head_dim=8, intermediate_size=64, max_position_embeddings=512, eos_token_id=0,
        bos_token_id=None, pad_token_id=0,
    ).float()  # fmt: skip
    with torch.no_grad():  # printable letters and the end alone, so that every answer is a text
        head = model.get_output_embeddings().weight
        letters = [0] + [i + 1 for i, letter in enumerate(BYTES) if letter.isascii()]
        head[[i for i in range(258) if i not in letters]] = 0
        head *= 3
    model.save_pretrained(path)
    fast.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    return load_policy(folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(command: list[str], port: int, model: str, log: Path) -> Iterator[Endpoint]:
    """Run a server until its list of models or its health answers, and end it afterwards."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + 180
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"no server after 180 s: {log.read_text()}"
            time.sleep(0.1)
        with Endpoint(EndpointSettings(url=f"http://127.0.0.1:{port}/v1", model=model)) as client:
            yield client
    finally:
        server.terminate()
        try:
            server.wait(timeout=30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@pytest.fixture(scope="module")
def transformers_server(folder: Path) -> Iterator[Endpoint]:
    if not is_serve_available():
        pytest.skip("transformers serve needs fastapi, uvicorn and openai (the extra `test` has them)")
    port = free_port()
    program = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", program, "serve", str(folder), "--port", str(port), "--host", "127.0.0.1"]
    with running([*command, "--device", "cpu"], port, str(folder), folder / "serve.log") as client:
        yield client


@pytest.fixture(scope="module")
def llama_server(folder: Path) -> Iterator[Endpoint]:
    probe = "import llama_cpp.server.app, gguf"
    if subprocess.run([LLAMA_PYTHON, "-c", probe], capture_output=True).returncode != 0:
        pytest.skip("llama-cpp-python[server] and gguf are not installed (LLAMA_CPP_PYTHON may name an interpreter)")
    weights = hf.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    np.savez(folder / "weights.npz", **{name: tensor.numpy() for name, tensor in weights.items()})  # type: ignore[arg-type]  # arrays by name
    writer = Path(__file__).with_name("write_gguf.py")
    subprocess.run([LLAMA_PYTHON, str(writer), str(folder)], check=True)
    port = free_port()
    command = [LLAMA_PYTHON, "-m", "llama_cpp.server", "--model", str(folder / "model.gguf"), "--model_alias", "tiny"]
    command += [
        "--port",
        str(port),
        "--host",
        "127.0.0.1",
        "--n_ctx",
        "512",
        "--n_threads",
        "1",
        "--logits_all",
        "true",
    ]
    with running(command, port, "tiny", folder / "llama.log") as client:
        yield client


def encoded(policy: Policy, *texts: str) -> list[list[int]]:
    return [policy.tokenizer(text).input_ids for text in texts]


def own_logps(policy: Policy, prompt: list[int], response: Response) -> tuple[torch.Tensor, list[int]]:
    """log-probabilities (T, V) at a response's places by one full forward pass, and its ids."""
    ids = list(response.token_ids or ())
    with torch.no_grad():
        logits = policy.causal_lm(torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.double().log_softmax(-1), ids


def test_transformers_serve_gives_the_local_sampler_s_text(transformers_server: Endpoint, policy: Policy):
    """It gives neither ids nor log-probabilities: text alone, and its lack of log-probabilities is not hidden."""
    prompts = encoded(policy, "hello", "a b c")
    local = LocalSampler(policy).sample(prompts, GREEDY)
    remote = EndpointSampler(transformers_server, policy.tokenizer).sample(prompts, GREEDY)
    for (ours,), (theirs,) in zip(local.responses, remote.responses, strict=True):
        assert (theirs.content, theirs.token_ids) == (ours.content, ours.token_ids)
        assert theirs.behaviour_logps is None
    assert transformers_server.usage.completion_tokens > 0


def test_transformers_serve_chats_and_says_what_it_cannot(transformers_server: Endpoint, policy: Policy):
    chat = EndpointChat(endpoint=transformers_server, max_tokens=6)
    (reply,) = chat.answer([(Message(role="user", content="hi"),)])
    (ids,) = encoded(policy, "hi\n")
    settings = SamplingSettings(max_tokens=6, temperature=0)
    ((expected,),) = LocalSampler(policy).sample([ids], settings).responses
    assert reply.text == expected.content
    group = Group(prompt="p", responses=(Response(content="a"), Response(content="b")))
    with pytest.raises(FeedbackError, match="no log-probabilities"):
        PairwiseJudge(chat=chat, mode="logprobs").judge([group])


def test_llama_cpp_gives_the_local_sampler_s_text_and_true_log_probabilities(llama_server: Endpoint, policy: Policy):
    assert llama_server.models() == ["tiny"]
    prompts = encoded(policy, "hello", "a b c")
    sampler = EndpointSampler(llama_server, policy.tokenizer, options=LLAMA_DEFAULTS_OFF)
    for prompt, (response,) in zip(prompts, sampler.sample(prompts, GREEDY).responses, strict=True):
        logps_TV, ids = own_logps(policy, prompt, response)
        lost_T = logps_TV.amax(-1) - logps_TV[torch.arange(len(ids)), torch.tensor(ids)]
        assert lost_T.max() < 0.02  # the likeliest, or as good as: its cache is in 16 bits
    drawn = sampler.sample(prompts, SamplingSettings(num_responses=3, max_tokens=6, seed=2))
    checked = 0
    for prompt, row in zip(prompts, drawn.responses, strict=True):
        for response in row:
            if response.behaviour_logps is None:
                # it gives no log-probability of the end, and bytes that are no text are lost
                assert response.finish_reason is FinishReason.STOP or len(response.token_ids or ()) < 6
                continue
            logps_TV, ids = own_logps(policy, prompt, response)
            expected = logps_TV[torch.arange(len(ids)), torch.tensor(ids)].tolist()
            assert response.behaviour_logps == pytest.approx(expected, abs=0.02)
            checked += 1
    assert checked >= 3


def test_a_judge_over_llama_cpp_reads_what_the_policy_says(llama_server: Endpoint, policy: Policy):
    talk = [(Message(role="user", content="which?"),)]
    (ids,) = encoded(policy, "which?\n")
    with torch.no_grad():
        best = policy.causal_lm(torch.tensor([ids])).logits[0, -1].topk(2).indices.tolist()
    options = [str(policy.tokenizer.decode([token])) for token in best]
    (theirs,) = EndpointChat(endpoint=llama_server, options=LLAMA_DEFAULTS_OFF).option_logps(talk, options)
    (ours,) = PolicyChat(policy=policy).option_logps(talk, options)
    assert ours is not None
    assert theirs == pytest.approx(ours, abs=0.02)
