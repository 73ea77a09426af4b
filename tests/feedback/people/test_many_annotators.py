"""Many annotators at once, in several processes and threads: every judgement is there once.

The size of the closing note: `ACCORD_TEST_ANNOTATORS=50 ACCORD_TEST_JUDGEMENTS=200 ACCORD_TEST_THINK_SECONDS=0.5
pytest -s -n 0 tests/feedback/people/test_many_annotators.py`, which also prints the times.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from questions import group

from accord.feedback.people import ProjectSettings, create_project, open_project

NUM_ANNOTATORS = int(os.environ.get("ACCORD_TEST_ANNOTATORS", "8"))
NUM_JUDGEMENTS = int(os.environ.get("ACCORD_TEST_JUDGEMENTS", "25"))
NUM_PROCESSES = int(os.environ.get("ACCORD_TEST_PROCESSES", "4"))
THINK_SECONDS = os.environ.get("ACCORD_TEST_THINK_SECONDS", "0")
WRITERS = Path(__file__).with_name("writers.py")


def test_every_judgement_of_many_annotators_is_there_once(database: str):
    per_item = 2
    num_items = NUM_ANNOTATORS * NUM_JUDGEMENTS // per_item + NUM_ANNOTATORS  # some to spare: leases, and none twice
    with create_project(database, "study", ProjectSettings(judgements_per_item=per_item)) as project:
        project.add_items([group(number) for number in range(num_items)])
        people = [project.add_annotator(f"person {number}").id for number in range(NUM_ANNOTATORS)]
    begin = time.perf_counter()
    programs = [
        subprocess.Popen(
            [sys.executable, str(WRITERS), "to-count", database, ",".join(map(str, share)), str(NUM_JUDGEMENTS),
             THINK_SECONDS],
            stdout=subprocess.PIPE,
            text=True,
        )
        for share in (people[start::NUM_PROCESSES] for start in range(NUM_PROCESSES))
    ]  # fmt: skip
    said = [line.split() for program in programs for line in program.communicate()[0].splitlines()]
    seconds = time.perf_counter() - begin
    assert [program.returncode for program in programs] == [0] * NUM_PROCESSES
    acknowledged = {words[1]: int(words[2]) for words in said}
    wanted = NUM_ANNOTATORS * NUM_JUDGEMENTS
    with open_project(database) as project:
        events = project.events()
        assert {event.idempotency_key: event.id for event in events} == acknowledged  # none lost
        assert len(events) == len({event.assignment_id for event in events}) == wanted  # none twice
        assert set(Counter((event.annotator_id, event.item_id) for event in events).values()) == {1}
        assert Counter(event.annotator_id for event in events) == dict.fromkeys(people, NUM_JUDGEMENTS)
        assert max(Counter(event.item_id for event in events).values()) == per_item  # leases: no work wasted
        progress = project.progress()
        assert progress.num_judgements == wanted
    for name, column in (("submit", 3), ("next", 4)):
        times = [float(words[column]) for words in said]
        cuts = statistics.quantiles(times, n=20)
        print(f"{name}: median {cuts[9]:.1f} ms, p95 {cuts[18]:.1f} ms, max {max(times):.0f} ms")
    print(f"{wanted} judgements in {seconds:.0f} s")
