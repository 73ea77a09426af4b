"""Answers on disk, found again by what was asked: one small file per question, whole or not there."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accord.durable import atomic_write_text, dump_json, storing

LAYOUT = 1


def hash_request(url: str, request: Mapping[str, Any]) -> str:
    """Return the SHA-256 of an address and a request (whose `model` is part of it), whatever the order of its keys."""
    text = json.dumps([LAYOUT, url, request], sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class AnswerCache:
    """A folder of answers that several threads and processes may share: a file is written aside and renamed.

    Headers, and with them the key, are never part of a question. Of two processes that ask the same at once both
    are answered by the server and the later file stays.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._writing = threading.Lock()  # the temporary file's name tells processes apart, not threads

    def read(self, key: str) -> dict[str, Any] | None:
        """Return the answer kept under a key, None where there is none or it is damaged (it is then asked again)."""
        try:
            answer = json.loads(self._path(key).read_text("utf-8"))["answer"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return answer if isinstance(answer, dict) else None

    def write(self, key: str, request: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        """Keep an answer beside its question. Raises StoreError where the folder cannot be written."""
        path = self._path(key)
        with self._writing:
            with storing("the cache of answers", self.folder):
                path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(path, dump_json({"layout": LAYOUT, "request": request, "answer": answer}))

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key[2:]}.json"
