"""The reference as an artefact: which weights, under which options, gave which log-probability to which tokens.

Its log-probabilities are computed on first use, kept on disk under a key of everything they depend on, and reused
across epochs, runs and objectives. The key never holds a setting that cannot change the values.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from accord.data.batching import chunked
from accord.data.tokens import TokenGroup
from accord.policy.policy import Policy
from accord.policy.tokens.position_kl import Readout

log = logging.getLogger(__name__)

SCORING_VERSION = 1  # part of the key: raise it when a change to the engine changes values beyond rounding


Level = Literal["sequence", "token"]
Logps = np.ndarray
"""Of one response, nats: a single sum over its trained tokens, or one number per token, trained or not."""


class LogpCache:
    """{response under its prompt: log-probabilities} on disk, one file per key, written atomically and grown in place.

    Numbers per token are kept beside the sums, in a file of their own.
    """

    def __init__(self, folder: Path | None, key: str, level: Level = "sequence") -> None:
        name = f"{key}.npz" if level == "sequence" else f"{key}.tokens.npz"
        self.path = folder / name if folder is not None else None
        self._level = level
        self._values: dict[bytes, Logps] = {}
        if self.path is not None and self.path.is_file():
            try:
                with self.path.open("rb") as stream, np.load(stream) as stored:
                    digests, logps = stored["digests"], stored["logps"]
                    lengths = stored["lengths"] if level == "token" else None
            except (OSError, ValueError, KeyError, EOFError, BadZipFile):
                return  # a truncated file holds nothing; it is computed again
            parts = list(logps[:, None]) if lengths is None else np.split(logps, np.cumsum(lengths)[:-1])
            self._values = {bytes(d): part for d, part in zip(digests, parts, strict=True)}

    def __len__(self) -> int:
        return len(self._values)

    def get(self, digest: bytes) -> Logps | None:
        """Return stored log-probabilities in nats, or None."""
        return self._values.get(digest)

    def update(self, values: dict[bytes, Logps]) -> None:
        """Add log-probabilities (in memory; `write` puts them on disk)."""
        self._values.update(values)

    def write(self) -> None:
        """Put everything on disk."""
        if self.path is None or not self._values:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(f".{os.getpid()}.part")
        values = list(self._values.values())
        arrays = {
            "digests": np.frombuffer(b"".join(self._values), dtype=np.uint8).reshape(-1, 16),
            "logps": np.concatenate(values),
        }
        if self._level == "token":
            arrays["lengths"] = np.array([len(value) for value in values])
        with part.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]  # its one option is not among the names
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(self.path)


class Reference:
    """A frozen policy, asked for log-probabilities of groups, `max_tokens` of them per forward pass.

    `scorer` opens the reference for a block: the base under the adapters, the policy itself before its first step, or
    a model loaded from its folder. It is opened only when the cache lacks something. `level` says whether sums are kept
    or, for objectives that read them, log-probabilities of every token.
    """

    def __init__(
        self,
        scorer: Callable[[], AbstractContextManager[Policy]],
        *,
        key: str,
        cache_folder: Path | None,
        max_tokens: int,
        level: Level = "sequence",
    ) -> None:
        self.key = key
        self.level: Level = level
        self.num_computed = 0
        self.num_reused = 0
        self._scorer = scorer
        self._cache = LogpCache(cache_folder, key, level)
        self.max_tokens = max_tokens  # halved when memory runs out

    def logps(self, groups: Sequence[TokenGroup], like_PK: Tensor, *, keep: bool = True) -> Tensor:
        """Return log π_ref(y|x) in nats, (P, K) like `like_PK`, without gradient; padding slots are 0.

        `keep=False` for passing groups (samples, mismatched pairs): what was computed in another batch shape may differ
        in the last bit, and a resumed run must not depend on what its first part had met before.
        """
        found, values = self._look_up(groups, keep=keep), torch.zeros(like_PK.shape, dtype=torch.float64)
        for row, (group, of_group) in enumerate(zip(groups, found, strict=True)):
            for column, (response, logps) in enumerate(zip(group.responses, of_group, strict=True)):
                is_trained = response.is_trained if self.level == "token" else None
                values[row, column] = float(logps[list(is_trained) if is_trained else ...].sum(dtype=np.float64))
        return values.to(like_PK.dtype).to(like_PK.device)  # not every device has float64

    def token_logps(self, groups: Sequence[TokenGroup], like_N: Tensor, *, keep: bool = True) -> Tensor:
        """Return log π_ref of every response token in nats, (N,) in (group, response, token) order, without gradient.

        `keep` as for `logps`. Only for a reference that keeps numbers per token.
        """
        assert self.level == "token", "a reference that keeps sums was asked for tokens"
        values = [logps for of_group in self._look_up(groups, keep=keep) for logps in of_group]
        return torch.from_numpy(np.concatenate(values)).to(like_N.dtype).to(like_N.device)

    def readout(self, groups: Sequence[TokenGroup]) -> Readout:
        """Return what the reference says at every response token, over the whole vocabulary: never kept."""
        with self._scorer() as policy:
            return policy.readout_of(groups)

    def _look_up(self, groups: Sequence[TokenGroup], *, keep: bool) -> list[list[Logps]]:
        passing: dict[bytes, Logps] = {}
        if keep:
            self.fill(groups)
        elif missing := self.missing(groups):
            passing = self._compute(missing)
        found: list[list[Logps]] = []
        for group in groups:
            of_group = [passing.get(digest, self._cache.get(digest)) for digest in _digests(group)]
            assert all(logps is not None for logps in of_group)
            found.append([logps for logps in of_group if logps is not None])
        return found

    def missing(self, groups: Sequence[TokenGroup]) -> list[TokenGroup]:
        """Return the groups with a response the cache does not hold."""
        return [group for group in groups if any(self._cache.get(digest) is None for digest in _digests(group))]

    def fill(
        self,
        groups: Sequence[TokenGroup],
        *,
        share: Callable[[list[TokenGroup]], list[TokenGroup]] = lambda groups: groups,
        merge: Callable[[dict[bytes, Logps]], dict[bytes, Logps]] = lambda values: values,
        write: bool = False,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Compute what is missing. `share` picks this process's part, `merge` joins all processes' values."""
        missing = self.missing(groups)
        self.num_reused += len(groups) - len(missing)
        # every process comes to `merge`, also one whose own cache on disk lacked nothing
        self._cache.update(merge(self._compute(share(missing), progress) if missing else {}))
        rest = self.missing(groups)  # what no other process lacked, and so did not compute
        if rest:
            self._cache.update(self._compute(rest))
        self.num_computed += len(missing)
        if write and missing:
            self._cache.write()

    def _compute(
        self, groups: Sequence[TokenGroup], progress: Callable[[int, int], None] = lambda done, total: None
    ) -> dict[bytes, Logps]:
        values: dict[bytes, Logps] = {}
        done = 0
        with self._scorer() as policy, torch.no_grad():
            todo = list(chunked(groups, self.max_tokens, layout=policy.layout))
            while todo:
                if (rows := self._score(policy, todo[0])) is None:
                    rest = [group for part in todo for group in part]
                    todo = list(chunked(rest, self.max_tokens, layout=policy.layout))
                    continue
                part = todo.pop(0)
                for group, of_group in zip(part, rows, strict=True):
                    values.update(zip(_digests(group), of_group, strict=True))
                done += len(part)
                progress(done, len(groups))
        return values

    def _score(self, policy: Policy, part: Sequence[TokenGroup]) -> list[list[Logps]] | None:
        """Score one pass; None where memory ran out, and the budget was halved. Raises where one group is too much."""
        try:
            scores = policy.score(part)
            if self.level == "sequence":
                sums_PK1 = scores.logps_PK.cpu().double().numpy()[:, :, None]
                return [list(sums_K1[: len(group.responses)]) for group, sums_K1 in zip(part, sums_PK1, strict=True)]
            lengths = [len(response.ids) for group in part for response in group.responses]
            parts = iter(np.split(scores.token_logps_N.cpu().numpy(), np.cumsum(lengths)[:-1]))
            return [[next(parts) for _ in group.responses] for group in part]
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or len(part) == 1:
                raise
        largest = max(group.num_tokens for group in part)
        # a budget beyond all there is would be halved without effect; below one group there is nothing to gain
        self.max_tokens = max(min(self.max_tokens, sum(group.num_tokens for group in part)) // 2, 1)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        log.warning(
            "out of memory: the reference is now scored with %d tokens per forward pass (the longest group has %d)",
            self.max_tokens, largest,
        )  # fmt: skip
        return None


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device ran out of memory; not every backend has an exception type for it."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in text or "not enough memory" in text


def reference_key(weights_hash: str, policy: Policy, *, vocabulary: int) -> str:
    """Return the name under which a reference's log-probabilities are kept: weights, precision and engine version."""
    dtype = next(p.dtype for p in policy.parameters() if p.is_floating_point())
    text = f"{SCORING_VERSION}/{weights_hash}/{dtype}/{policy.autocast}/{vocabulary}"
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _digests(group: TokenGroup) -> Iterator[bytes]:
    """Name each response by exactly what its log-probability depends on: prompt, tokens, which of them count."""
    prompt = np.asarray(group.prompt_ids, dtype=np.int64).tobytes()
    for response in group.responses:
        digest = hashlib.blake2b(digest_size=16)
        digest.update(len(prompt).to_bytes(8, "little"))
        digest.update(prompt)
        digest.update(len(response.ids).to_bytes(8, "little"))
        digest.update(np.asarray(response.ids, dtype=np.int64).tobytes())
        if response.is_trained is not None and not all(response.is_trained):
            digest.update(bytes(response.is_trained))
        yield digest.digest()


@contextmanager
def opened(policy: Policy) -> Iterator[Policy]:
    """The policy as its own reference: true before its first step."""
    yield policy


@contextmanager
def base_of(policy: Policy) -> Iterator[Policy]:
    """The base under a policy's adapters."""
    with policy.as_base():
        yield policy


def default_cache_folder() -> Path:
    """Where reference log-probabilities are kept between runs."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "accord" / "reference"
