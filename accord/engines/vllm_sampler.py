"""vLLM as a sampler, in this process or over HTTP, its weights reloaded from a folder after a step of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.endpoint import Endpoint
from accord.engines.endpoint_sampler import BEYOND_PROTOCOL, EndpointSampler, LogprobsKind, row_seed
from accord.errors import PolicyError
from accord.policy.sampling import Samples, SamplingSettings
from accord.records import FinishReason, Response

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENDS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


class VllmServerSampler(EndpointSampler):
    """A vLLM server as a `Sampler`: token ids in and out.

    Start the server with `--logprobs-mode processed_logprobs`, else log-probabilities are of the model's own
    distribution: then say logprobs="raw", and tempered responses have none. `update_weights` needs a server started
    with VLLM_SERVER_DEV_MODE=1 that sees the folder.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        tokenizer: PreTrainedTokenizerBase,
        *,
        policy_version: int = 0,
        logprobs: LogprobsKind = "processed",
    ) -> None:
        if endpoint.settings.cache_folder is not None:
            raise PolicyError(
                "got an endpoint with a cache of answers for a sampler whose weights change — expected cache_folder "
                "None: an answer kept from earlier weights is not the policy's"
            )
        super().__init__(
            endpoint, tokenizer, policy_version=policy_version, sends_token_ids=True, logprobs=logprobs,
            knows=tuple(BEYOND_PROTOCOL), options={"return_token_ids": True},
        )  # fmt: skip

    def update_weights(self, folder: str | Path, *, policy_version: int) -> None:
        """Have the server read a saved policy's weights, and forget what it computed with the old ones.

        Raises FeedbackError where the server refuses or stays down, PolicyError where it keeps its old cache.
        """
        root = self.endpoint.url.removesuffix("/v1")
        request = {"method": "reload_weights", "kwargs": {"weights_path": str(Path(folder).resolve())}}
        self.endpoint.post(f"{root}/collective_rpc", request)
        if self.endpoint.post(f"{root}/reset_prefix_cache", {}).get("success") is not True:
            raise PolicyError(
                f"{root} kept its prefix cache — expected it to be emptied after an update of weights — "
                "update when no request is running"
            )
        self.policy_version = policy_version


class VllmSampler:
    """vLLM in this process as a `Sampler`; `options` go to `vllm.LLM` (gpu_memory_utilization, dtype, …).

    Log-probabilities are of the distribution sampled from (processed_logprobs). Needs the package vllm and a device
    it supports.
    """

    def __init__(self, folder: str | Path, *, policy_version: int = 0, **options: Any) -> None:
        try:
            import vllm  # type: ignore[import-not-found]  # not a dependency: heavy, and for few machines
        except ImportError as error:
            raise PolicyError(
                "got a vLLM sampler without the package vllm — expected it — pip install vllm, or sample locally"
            ) from error
        self._vllm, self.source, self.policy_version = vllm, str(folder), policy_version
        self._engine = vllm.LLM(model=self.source, logprobs_mode="processed_logprobs", **options)

    def sample(
        self, prompts: Sequence[Sequence[int]], settings: SamplingSettings, *, streams: Sequence[int] | None = None
    ) -> Samples:
        """Draw K responses to each prompt of token ids, each with a seed of its own."""
        names, k = (range(len(prompts)) if streams is None else streams), settings.num_responses
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts for _ in range(k)]
        drawn = self._engine.generate(
            asked, [self._parameters(settings, name, i) for name in names for i in range(k)], use_tqdm=False
        )
        rows = [self._response(output.outputs[0], settings) for output in drawn]
        responses = tuple(tuple(rows[start : start + k]) for start in range(0, len(rows), k))
        return Samples(responses=responses, policy_version=self.policy_version, settings=settings)

    def update_weights(self, folder: str | Path, *, policy_version: int) -> None:
        """Read a saved policy's weights into the engine, and forget what was computed with the old ones."""
        self._engine.collective_rpc("reload_weights", kwargs={"weights_path": str(Path(folder).resolve())})
        if not self._engine.reset_prefix_cache():
            raise PolicyError("vLLM kept its prefix cache after an update of weights — update when nothing is running")
        self.policy_version = policy_version

    def _parameters(self, settings: SamplingSettings, stream: int, response: int) -> Any:
        return self._vllm.SamplingParams(
            max_tokens=settings.max_tokens, min_tokens=settings.min_tokens, temperature=settings.temperature,
            top_p=settings.top_p, top_k=settings.top_k, min_p=settings.min_p,
            repetition_penalty=settings.repetition_penalty, stop=list(settings.stop) or None, logprobs=0,
            seed=None if settings.is_greedy else row_seed(settings.seed, stream, response),
        )  # fmt: skip

    def _response(self, output: Any, settings: SamplingSettings) -> Response:
        ids = tuple(int(token) for token in output.token_ids)
        if settings.is_greedy:
            logps = (0.0,) * len(ids)
        else:
            logps = tuple(float(at[token].logprob) for token, at in zip(ids, output.logprobs, strict=True))
        return Response(
            content=output.text, token_ids=ids, behaviour_logps=logps, source=self.source,
            finish_reason=ENDS.get(output.finish_reason, FinishReason.UNKNOWN),
        )  # fmt: skip
