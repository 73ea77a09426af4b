"""What annotators and managers see and do, through HTTP."""

from __future__ import annotations

import re
from pathlib import Path

from page_visits import ADDRESS, MODEL_NAME, csrf_of, enter, key, known, make_groups

import accord.web
from accord.data import load_groups
from accord.feedback.people.values import ItemRole, ProjectSettings, QuestionKind, Role
from accord.records import Comparison, Group, Message, Response


def answer(client, number, level=-4, **more):
    """Answer the next item; return the reply."""
    found = client.get("/api/next?form=texts").json()
    body = {"assignment": found["assignment"], "key": key(number), "payload": {"level": level}, "seconds": 1.5} | more
    return client.post("/api/answer", json=body)


def test_from_the_invitation_to_the_last_item(project, open_page):
    client = enter(open_page(project), project)
    assert "<strong>true</strong>" in client.get("/guidelines").text
    page = client.get("/judge").text
    assert MODEL_NAME not in page
    assert '<b id="judged">0</b>' in page
    assert page.count("data-choice=") == 8
    for number in range(3):
        done = answer(client, number)
        assert (done.status_code, done.json()["saved"]) == (200, True)
    assert "Thank you" in client.get("/judge").text
    assert '<b id="judged">3</b>' in client.get("/judge").text
    assert [event.seconds for event in project.events() if event.seconds is not None] == [1.5] * 3


def test_the_answer_is_about_the_place_shown_and_the_order_is_recorded(project, open_page):
    client = enter(open_page(project), project)
    found = client.get("/api/next?form=texts").json()
    assert answer(client, 1, level=-4).status_code == 200  # A, whatever is shown there
    (event,) = [event for event in project.events() if event.assignment_id == found["assignment"]]
    texts = project.item(event.item_id).responses
    assert found["responses"] == [texts[index] for index in event.shown_order]
    assert event.payload["level"] == -4


def test_undo_gives_the_item_again_and_keeps_both_events(project, open_page):
    client = enter(open_page(project), project)
    first = client.get("/api/next?form=texts").json()
    answer(client, 1, level=-4)
    undone = client.post("/api/undo", json={"key": key(2)})
    assert (undone.status_code, undone.json()["num_judged"]) == (200, 0)
    assert client.get("/api/next?form=texts").json()["assignment"] == first["assignment"]
    assert answer(client, 3, level=2).status_code == 200
    kinds = [str(event.kind) for event in project.events() if event.assignment_id == first["assignment"]]
    assert kinds == ["answer", "undo", "answer"]
    assert client.post("/api/undo", json={"key": key(4)}).status_code == 200
    assert client.post("/api/undo", json={"key": key(5)}).status_code == 409  # nothing is left to take back


def test_skips_and_flags_carry_their_reason(project, open_page):
    client = enter(open_page(project), project)
    for number, path in enumerate(("/api/skip", "/api/flag")):
        found = client.get("/api/next?form=texts").json()
        body = {"assignment": found["assignment"], "key": key(number), "reason": "because of the test"}
        assert client.post(path, json=body).status_code == 200
    reasons = {str(event.kind): event.payload["reason"] for event in project.events() if event.assignment_id}
    assert reasons == {"skip": "because of the test", "flag": "because of the test"}
    manager = enter(open_page(project), project, role=Role.MANAGER, name="Max")
    page = manager.get("/manage").text
    assert "because of the test" in page
    (path,) = re.findall(r'action="(/manage/items/\d+/release)"', page)
    assert manager.post(path, data={"csrf": csrf_of(page)}).status_code == 303
    assert project.progress().num_aside == 0


def test_qualification_comes_first_and_opens_the_work(make_project, open_page):
    project = make_project(make_groups(1), ProjectSettings())
    project.add_items(known(make_groups(2, first="known")), role=ItemRole.QUALIFICATION)
    client = enter(open_page(project), project)
    assert "items whose answers are known" in client.get("/guidelines").text
    for number in range(2):
        found = client.get("/api/next?form=texts").json()
        assert any("known" in text for text in found["responses"])
        assert "Qualification" in client.get("/judge").text
        answer(client, number, level=-4 if "known" in found["responses"][0] else 4)
    assert "Qualification" not in client.get("/judge").text
    assert any("first 0" in text for text in client.get("/api/next?form=texts").json()["responses"])


def test_who_fails_the_qualification_is_told_so(make_project, open_page):
    project = make_project(make_groups(1), ProjectSettings())
    project.add_items(known(make_groups(1, first="known")), role=ItemRole.QUALIFICATION)
    client = enter(open_page(project), project)
    found = client.get("/api/next?form=texts").json()
    answer(client, 1, level=4 if "known" in found["responses"][0] else -4)
    assert client.get("/api/next?form=texts").json()["reason"] == "paused"
    assert "You are paused" in client.get("/judge").text


def test_every_kind_of_question_can_be_asked_and_answered(make_project, open_page):
    payloads = {
        QuestionKind.PAIRWISE8: {"level": 1},
        QuestionKind.PAIRWISE_TIES: {"level": 0},
        QuestionKind.THUMBS: {"is_desirable": False},
        QuestionKind.RANKING: {"order": [[2], [0, 1]]},
        QuestionKind.RATING: {"ratings": {"helpful": 4, "honest": 5, "harmless": 1}},
        QuestionKind.CRITIQUE: {"text": "too short", "edited": "longer"},
        QuestionKind.EDIT: {"edited": "better"},
    }
    assert set(payloads) == set(QuestionKind)
    marks = {
        QuestionKind.PAIRWISE8: 'data-keys="8 ;"',
        QuestionKind.PAIRWISE_TIES: 'data-keys="0 g"',
        QuestionKind.THUMBS: "Not good",
        QuestionKind.RANKING: "data-order",
        QuestionKind.RATING: 'data-attribute="harmless"',
        QuestionKind.CRITIQUE: "data-text",
        QuestionKind.EDIT: "data-edited",
    }
    for kind, payload in payloads.items():
        count = 3 if kind is QuestionKind.RANKING else 2
        project = make_project(make_groups(1, num_responses=count), ProjectSettings(kinds=(kind,)))
        client = enter(open_page(project), project)
        assert marks[kind] in client.get("/judge").text, kind
        done = answer(client, 1, payload=payload)
        assert done.status_code == 200, (kind, done.text)
        assert project.export()[0].judgements or project.progress().num_judgements == 1


def test_a_conversation_is_shown_turn_by_turn(make_project, open_page):
    turns = (
        Message(role="system", content="be kind"),
        Message(role="user", content="hello"),
        Message(role="assistant", content="good day"),
        Message(role="user", content="1. one\n2. two"),
    )
    group = Group(prompt=turns, responses=(Response(content="a"), Response(content="b")))
    project = make_project([group])
    client = enter(open_page(project), project)
    page = client.get("/judge").text
    roles = re.findall(r'<p class="role">(.*?)</p>', page)
    assert roles == ["system", "user", "assistant", "user"]
    assert "<li>two</li>" in page


def test_a_manager_invites_watches_pauses_and_exports(project, open_page, tmp_path):
    manager = enter(open_page(project), project, role=Role.MANAGER, name="Max")
    page = manager.get("/manage").text
    made = manager.post("/manage/invitations", data={"csrf": csrf_of(page), "count": "2", "role": "annotator"})
    links = re.findall(rf"{ADDRESS}(/i/[\w-]+)", made.text)
    assert len(links) == 2
    assert "/i/" not in manager.get("/manage").text  # shown once
    people = []
    for link in links:
        client = open_page(project)
        token = csrf_of(client.get(link).text)
        assert client.post(link, data={"name": "Bo <b>", "csrf": token}).headers["location"] == "/guidelines"
        client.headers["x-csrf-token"] = csrf_of(client.get("/judge").text)
        people.append(client)
    for number, client in enumerate(people):
        for item in range(3):
            assert answer(client, 10 * number + item).status_code == 200
    page = manager.get("/manage").text
    assert "<b>6</b> of 6 judgements" in page
    assert "Bo &lt;b&gt;" in page
    (pause, _) = re.findall(r'action="(/manage/annotators/\d+/pause)"', page)[-2:]
    assert manager.post(pause, data={"csrf": csrf_of(page)}).status_code == 303
    assert people[0].get("/api/next?form=texts").json()["reason"] == "paused"
    for name in ("judged.jsonl", "judged.jsonl.gz", "judged.parquet"):
        sent = manager.get(f"/manage/export/{name}")
        assert sent.headers["content-disposition"] == f'attachment; filename="{name}"'
        (tmp_path / name).write_bytes(sent.content)
        groups = load_groups(tmp_path / name).groups
        judgements = [one for group in groups for one in group.judgements]
        assert len(judgements) == 6
        assert all(isinstance(one, Comparison) and one.strength == 4 and one.shown_order for one in judgements)


def test_a_wrong_answer_can_be_mended(project, open_page):
    client = enter(open_page(project), project)
    assert answer(client, 1, level=0).status_code == 422  # no ties on this scale
    assert answer(client, 2, level=1).status_code == 200


def test_the_manager_is_told_how_far_judgements_agree(project, open_page):
    manager = enter(open_page(project), project, role=Role.MANAGER, name="Max")
    assert "without a comparison" in manager.get("/manage/agreement").text  # nothing yet, said in words
    people = [enter(open_page(project), project, name=name) for name in ("Ada", "Bo")]
    for number, client in enumerate(people):
        for item in range(3):
            shown = client.get("/api/next?form=texts").json()["responses"]
            answer(client, 10 * number + item, level=-3 if shown[0].startswith("first") else 3)
    page = manager.get("/manage/agreement").text
    assert "Krippendorff" in page
    assert "annotator-2" in page  # the pseudonym that the page of progress puts a name to
    assert "annotator-2" in manager.get("/manage").text


def test_text_is_readable_in_both_colour_schemes():
    """WCAG 2 AA: (L₁ + 0.05)/(L₂ + 0.05) ≥ 4.5 between the relative luminances of text and ground."""
    style = (Path(accord.web.__file__).parent / "static" / "style.css").read_text("utf-8")
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part)) for part in style.split("@media", 2)[:2])
    assert set(light) == set(dark)
    pairs = [(ink, ground) for ink in ("ink", "muted", "accent", "good", "bad") for ground in ("surface", "ground")]
    pairs += [("on-accent", "accent"), ("ink", "tint"), ("ink", "warn"), ("accent", "tint")]
    for colours in (light, dark):
        for ink, ground in pairs:
            high, low = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground, colours)
        high, low = sorted((luminance(colours["edge"]), luminance(colours["surface"])), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 3.0  # the edge of a control


def luminance(colour: str) -> float:
    """Relative luminance of sRGB."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
