"""The loop that people close: sample → judge at the page → export → align → sample again, with simulated annotators."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from accord.data import load_groups
from accord.errors import ConfigError
from accord.feedback.people import Project, ProjectSettings, create_project
from accord.lab.annotators import GOLD
from accord.lab.journeys.parts import BASE, Tell, compare_with_base, learn_from, measure, sample_groups
from accord.lab.text_world import split_requests
from accord.policy.load import load_policy

PAIRS_PER_REQUEST = 12
NUM_ANNOTATORS = 4
ROUNDS = 2
DPO: dict[str, Any] = {
    "objective": "dpo", "objective.beta": 0.1, "train.batch_size": 32, "train.lr": 1e-4, "train.epochs": 3,
    "train.warmup": 0.1,
}  # fmt: skip


def collect(out: Path, *, seed: int, tell: Tell) -> dict[str, Any]:
    """Two rounds: the policy's own pairs are judged at the page over HTTP, exported, and DPO learns from the export.

    Raises ConfigError without the extra `web`.
    """
    base = load_policy(BASE)
    requests, _ = split_requests()
    before = measure(base, seed=seed)
    policy, stages, counts = base, {}, []
    model = BASE
    for number in range(1, ROUNDS + 1):
        folder = out / f"round-{number}"
        folder.mkdir(exist_ok=True)
        pairs = sample_groups(
            policy, requests, num_responses=2, repeats=PAIRS_PER_REQUEST, seed=1000 * seed + number
        )  # fmt: skip
        database = folder / "people.sqlite3"
        database.unlink(missing_ok=True)
        with create_project(database, "answers", ProjectSettings()) as project:
            project.add_items(pairs)
            counts.append(judge_over_http(project, seed=seed + number))
            project.export(folder / "judged.jsonl")
        tell(f"round {number}: {counts[-1]} judgements over HTTP")
        judged = load_groups(folder / "judged.jsonl").groups
        done = learn_from(judged, folder / "dpo", seed=seed, model=model, **DPO)
        policy, model = done.policy, str(folder / "dpo" / "model")
        stages[f"round {number}"] = compare_with_base(policy, base, before, seed=seed)
    return {"stages": stages, "judgements": counts}


def judge_over_http(project: Project, *, seed: int) -> int:
    """Have simulated annotators work the page of a project until nothing is left; return their answers."""
    try:
        from accord.lab.http_annotators import work_together
    except ImportError as error:
        raise ConfigError(f"got no module {error.name} — the page needs it — pip install 'accord[web]'") from error
    tastes = [replace(GOLD, name=f"annotator-{number}") for number in range(NUM_ANNOTATORS)]
    with _page_of(project) as url:
        reports = work_together(url, [project.create_invitation() for _ in tastes], tastes, seed=seed)
    return sum(len(report.events) for report in reports)


@contextmanager
def _page_of(project: Project) -> Iterator[str]:
    """Serve the judging page on a free port of this machine and yield its address."""
    import uvicorn

    from accord.web.app import create_app
    from accord.web.security import WebSettings
    from accord.web.serving import listen

    with listen("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        fast = {"requests_per_second": 1e4, "burst": 10_000, "address_requests_per_second": 1e5}  # faster than people
        settings = WebSettings(secret=secrets.token_urlsafe(48), port=port, **fast)
        server = uvicorn.Server(uvicorn.Config(create_app(project, settings), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join()
