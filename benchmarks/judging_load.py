"""The judging page under load: 50 annotators, 10 000 judgements, and whether every one of them is there once.

    python benchmarks/judging_load.py                      # 50 annotators who think 2 s on average, some 7 minutes
    python benchmarks/judging_load.py --think-seconds 0    # as fast as the page answers: its throughput

The page (Uvicorn, SQLite with every commit on disk) is a process of its own; the annotators are threads of this one,
on the same cores, so their own work is in the figures. Reported: percentiles of the time from sending a judgement to
its acknowledgement, judgements lost (acknowledged and not in the store) and duplicated. PostgreSQL: --database URL.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from accord.feedback.people import EventKind, ProjectSettings, create_project, open_project
from accord.lab.http_annotators import work_together
from accord.records import Group, Response

SECRET = "a secret of this benchmark and of nothing else"
NAME = "load"


def main() -> None:
    """Measure, print, and write the numbers where --json says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--judgements", type=int, default=10_000)
    parser.add_argument("--per-item", type=int, default=5, help="judgements of each item, by different annotators")
    parser.add_argument("--think-seconds", type=float, default=2.0, help="mean of an exponential; 0 = none")
    parser.add_argument("--database", help="postgresql://… instead of a new SQLite file")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--descriptor", type=int, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.serve:
        serve_page(parsed.serve, parsed.descriptor)
        return
    figures = measure(parsed)
    print(json.dumps(figures, indent=2))
    if parsed.json:
        parsed.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure(parsed: argparse.Namespace) -> dict[str, Any]:
    """Run the page and the annotators; return the figures."""
    num_items = -(-parsed.judgements // parsed.per_item)
    with tempfile.TemporaryDirectory() as folder:
        url = parsed.database or str(Path(folder) / "load.sqlite3")
        groups = [
            Group(prompt=f"Question {i}?", responses=(Response(content=f"Yes, {i}."), Response(content="No.\n\n" * 20)))
            for i in range(num_items)
        ]
        with create_project(url, NAME, ProjectSettings(judgements_per_item=parsed.per_item)) as project:
            project.add_items(groups)
            links = [project.create_invitation() for _ in range(parsed.annotators)]
        sock = socket.create_server(("127.0.0.1", 0), backlog=512)
        address = f"http://127.0.0.1:{sock.getsockname()[1]}"
        command = [sys.executable, __file__, "--serve", url, "--descriptor", str(sock.fileno())]
        page = subprocess.Popen(command, pass_fds=[sock.fileno()])
        try:
            began = time.perf_counter()
            reports = work_together(address, links, [thinker(parsed.think_seconds)] * parsed.annotators)
            elapsed = time.perf_counter() - began
        finally:
            page.terminate()
            page.wait()
            sock.close()
        with open_project(url, NAME) as project:
            answers = [event for event in project.events() if event.kind is EventKind.ANSWER]
    acknowledged = [event for report in reports for event in report.events]
    seconds = np.array([second for report in reports for second in report.seconds])
    return {
        "annotators": parsed.annotators,
        "think_seconds": parsed.think_seconds,
        "judgements_acknowledged": len(acknowledged),
        "judgements_stored": len(answers),
        "lost": len(set(acknowledged) - {event.id for event in answers}),
        "duplicated": sum(n - 1 for n in Counter((event.annotator_id, event.item_id) for event in answers).values())
        + len(acknowledged) - len(set(acknowledged)),
        "sent_again": sum(report.num_resent for report in reports),
        "seconds": round(elapsed, 1),
        "judgements_per_second": round(len(acknowledged) / elapsed, 1),
        "ms_to_acknowledge": {
            name: round(1000 * float(np.quantile(seconds, share)), 1)
            for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0))
        },
        "machine": {
            "cores": os.cpu_count(), "load_1_minute": round(os.getloadavg()[0], 1), "python": platform.python_version(),
        },
    }  # fmt: skip


def thinker(mean_seconds: float) -> Any:
    """Return somebody who thinks and then presses a key, any key."""

    def answer(question: Any, prompt: Any, responses: Any, rng: np.random.Generator) -> dict[str, Any]:
        if mean_seconds:
            time.sleep(random.expovariate(1 / mean_seconds))
        return {"level": int(rng.choice([-4, -3, -2, -1, 1, 2, 3, 4]))}

    return answer


def serve_page(url: str, descriptor: int) -> None:
    """Serve the page on a socket that is open already; limits are out of the way."""
    import uvicorn

    from accord.web.app import create_app
    from accord.web.security import WebSettings

    sock = socket.socket(fileno=descriptor)
    settings = WebSettings(
        secret=SECRET, requests_per_second=1e4, burst=10_000, address_requests_per_second=1e5, entries_per_minute=1e5
    )
    with open_project(url, NAME) as project:
        server = uvicorn.Server(uvicorn.Config(create_app(project, settings), log_level="warning", access_log=False))
        server.run(sockets=[sock])


if __name__ == "__main__":
    main()
