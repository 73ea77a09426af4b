"""Every door of the page, tried from outside."""

from __future__ import annotations

import json
import stat
import subprocess
import sys

import pytest
from itsdangerous import URLSafeTimedSerializer
from page_visits import ADDRESS, SECRET, csrf_of, enter, key

from accord.errors import ConfigError
from accord.feedback.people.values import Role
from accord.web.app import create_app
from accord.web.limits import RateLimit, host_name
from accord.web.security import WebSettings, check_settings, read_secret

MANAGER_PAGES = ("/manage", "/manage/agreement", "/manage/export/judged.jsonl")
ANNOTATOR_PAGES = ("/judge", "/guidelines", "/api/next", "/api/next?form=texts")


def next_texts(client):
    return client.get("/api/next?form=texts").json()


def say(client, found, number=1, *, path="/api/answer", headers=None, **changes):
    body = {"assignment": found["assignment"], "key": key(number), "payload": {"level": -4}} | changes
    return client.post(path, json=body, headers=headers)


def num_answers(project):
    return sum(str(event.kind) == "answer" for event in project.events())


def test_without_a_cookie_nothing_is_shown(project, open_page):
    client = open_page(project)
    for path in (*MANAGER_PAGES, *ANNOTATOR_PAGES):
        refused = client.get(path)
        assert refused.status_code == 401, path
        assert "prompt 0" not in refused.text
    assert client.get("/").status_code == 200
    token = csrf_of(client.get("/").text)
    refused = client.post("/api/undo", json={"key": key(1)}, headers={"x-csrf-token": token})
    assert refused.status_code == 401


def test_an_annotator_is_no_manager_and_a_manager_no_annotator(project, open_page):
    annotator = enter(open_page(project), project)
    token = {"csrf": annotator.headers["x-csrf-token"]}
    for path in MANAGER_PAGES:
        assert annotator.get(path).status_code == 403, path
    for path in ("/manage/invitations", "/manage/annotators/1/pause", "/manage/items/1/release"):
        assert annotator.post(path, data=token).status_code == 403, path
    manager = enter(open_page(project), project, role=Role.MANAGER)
    for path in ANNOTATOR_PAGES:
        assert manager.get(path).status_code == 403, path


def test_anothers_item_cannot_be_answered_skipped_or_flagged(project, open_page):
    ada, bo = (enter(open_page(project), project, name=name) for name in ("Ada", "Bo"))
    hers = next_texts(ada)
    for path, payload in (("/api/answer", {"level": 1}), ("/api/skip", None), ("/api/flag", None)):
        body = {"assignment": hers["assignment"], "key": key(1)}
        body |= {"payload": payload} if payload else {"reason": "mine"}
        assert bo.post(path, json=body).status_code == 404
        assert bo.post(path, json=body | {"assignment": "no-such-one"}).status_code == 404
    assert num_answers(project) == 0


@pytest.mark.parametrize("secret", ["another secret of forty characters 0123456", SECRET])
def test_a_forged_or_tampered_cookie_is_nobody(project, open_page, secret):
    client = open_page(project)
    serializer = URLSafeTimedSerializer(secret, salt="accord session")  # the right salt, but another derivation
    client.cookies.set("accord-8765", serializer.dumps({"key": "k", "token": "t"}))
    assert client.get("/judge").status_code == 401
    real = enter(open_page(project), project)
    (sealed,) = [cookie.value for cookie in real.cookies.jar if cookie.name == "accord-8765"]
    inside = len(sealed) - 9  # of the signature; some bits of its last character mean nothing
    other = sealed[:inside] + ("A" if sealed[inside] != "A" else "B") + sealed[inside + 1 :]
    for forged in (other, "A" + sealed[1:], sealed.split(".")[0], ""):
        client.cookies.clear()
        client.cookies.set("accord-8765", forged)
        assert client.get("/judge").status_code == 401, forged
    client.cookies.clear()
    client.cookies.set("accord-8765", sealed)
    assert client.get("/judge").status_code == 200


def test_a_session_that_was_left_or_revoked_is_over(project, open_page):
    left, revoked = (enter(open_page(project), project, name=name) for name in ("Ada", "Bo"))
    (sealed,) = [cookie.value for cookie in left.cookies.jar]
    assert left.post("/leave", data={"csrf": left.headers["x-csrf-token"]}).status_code == 303
    left.cookies.clear()
    left.cookies.set("accord-8765", sealed)
    assert left.get("/judge").status_code == 401
    project.revoke_annotator(next(one.id for one in project.annotators() if one.name == "Bo"))
    assert revoked.get("/judge").status_code == 401


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(project, open_page):
    plain = open_page(project).get("/").headers["set-cookie"]
    assert "HttpOnly" in plain
    assert "SameSite=lax" in plain
    assert "Secure" not in plain  # http on this machine
    behind_tls = open_page(project, public_url="https://judge.example.org")
    secure = behind_tls.get("/", headers={"host": "judge.example.org"})
    assert secure.headers["set-cookie"].startswith("__Host-accord=")
    assert "Secure" in secure.headers["set-cookie"]
    assert secure.headers["strict-transport-security"]


def test_a_replayed_form_counts_once(project, open_page):
    client = enter(open_page(project), project)
    found = next_texts(client)
    first, again = say(client, found), say(client, found)
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json() == again.json()
    assert say(client, found, payload={"level": 4}).status_code == 409  # the same key with another answer
    assert say(client, found, number=2).status_code == 409  # another key on what is answered
    assert num_answers(project) == 1


def test_a_request_needs_the_token_of_its_own_session(project, open_page):
    ada, bo = (enter(open_page(project), project, name=name) for name in ("Ada", "Bo"))
    found = next_texts(ada)
    for token in ("", "0" * 64, bo.headers["x-csrf-token"], "é"):
        assert say(ada, found, headers={"x-csrf-token": token.encode()}).status_code == 403, token
    assert ada.post("/leave", data={}).status_code == 403
    assert num_answers(project) == 0
    assert say(ada, found).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_a_request_from_another_site_is_refused(project, open_page, headers):
    client = enter(open_page(project), project)
    found = next_texts(client)
    assert say(client, found, headers=headers).status_code == 403
    assert say(client, found, headers={"origin": ADDRESS, "sec-fetch-site": "same-origin"}).status_code == 200


def test_an_invitation_works_once_and_not_by_looking_at_it(project, open_page):
    path = f"/i/{project.create_invitation()}"
    preview, first, second = (open_page(project) for _ in range(3))
    assert preview.get(path).status_code == 200  # a program that previews links must not use it up
    forms = [{"name": "Ada", "csrf": csrf_of(client.get(path).text)} for client in (first, second)]
    assert preview.post(path, data={"name": "Eve"}).status_code == 403
    assert first.post(path, data=forms[0]).status_code == 303
    assert second.post(path, data=forms[1]).status_code == 404
    assert second.get(path).status_code == 404
    assert second.get("/judge").status_code == 401


def test_a_session_key_known_before_the_sign_in_is_worth_nothing_after(project, open_page):
    client = open_page(project)
    before = csrf_of(client.get("/").text)
    enter(client, project)
    assert client.headers["x-csrf-token"] != before
    assert say(client, next_texts(client), headers={"x-csrf-token": before}).status_code == 403


def test_a_body_over_the_limit_is_413_whatever_it_says_of_itself(project, open_page):
    client = enter(open_page(project, max_body_bytes=2000), project)
    found = next_texts(client)
    assert say(client, found, payload={"level": 1, "comment": "x" * 3000}).status_code == 413
    said = json.dumps(
        {"assignment": found["assignment"], "key": key(1), "payload": {"level": 1, "comment": "x" * 3000}}
    )
    chunks = (said[i : i + 100].encode() for i in range(0, len(said), 100))  # no content-length
    assert client.post("/api/answer", content=chunks, headers={"content-type": "application/json"}).status_code == 413
    assert client.get("/judge").status_code == 200
    assert num_answers(project) == 0


@pytest.mark.parametrize(
    "body",
    [
        {"payload": {"level": 1}},
        {"assignment": "a", "payload": {"level": 1}, "key": "short"},
        {"assignment": "a", "payload": {"level": 1}, "key": "k" * 20, "seconds": -1},
        {"assignment": "a", "payload": {"level": 1}, "key": "k" * 20, "more": 1},
        {"assignment": "a" * 1000, "payload": {"level": 1}, "key": "k" * 20},
        [],
    ],
)
def test_a_malformed_answer_is_422_in_words(project, open_page, body):
    client = enter(open_page(project), project)
    refused = client.post("/api/answer", json=body)
    assert refused.status_code == 422
    assert isinstance(refused.json()["detail"], str)
    assert client.post("/api/answer", content=b"{", headers={"content-type": "application/json"}).status_code == 422


@pytest.mark.parametrize(
    "name",
    [
        "..%2f..%2fetc%2fpasswd", "../secret", "%2e%2e%2fjudgements.sqlite3", "judgements.sqlite3", "a%00.jsonl",
        "..jsonl", ".jsonl", "a.jsonl%2f..%2f..", "a.exe", "a%5c..%5cb.jsonl", "x" * 100 + ".jsonl", "a%0d%0ab.jsonl",
    ],
)  # fmt: skip
def test_an_export_name_cannot_leave_its_folder(project, open_page, name):
    manager = enter(open_page(project), project, role=Role.MANAGER)
    refused = manager.get(f"/manage/export/{name}")
    assert refused.status_code == 404
    assert "SQLite" not in refused.text
    assert manager.get("/manage/export/a-b_1.jsonl").status_code == 200


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static/", "/x"]
)
def test_static_files_are_the_ones_meant(project, open_page, path):
    client = open_page(project)
    assert client.get("/static/style.css").status_code == 200
    assert client.get(path).status_code == 404


def test_every_answer_forbids_what_it_does_not_need(project, open_page):
    client = enter(open_page(project), project)
    refused = client.get("/judge", headers={"host": "evil.example"})
    for response in (client.get("/judge"), client.get("/static/judge.js"), client.get("/nothing"), refused):
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "referrer-policy" in response.headers
    assert client.get("/judge").headers["cache-control"] == "no-store"
    assert "server" not in client.get("/judge").headers


def test_a_foreign_host_name_is_refused(project, open_page):
    client = open_page(project)
    for host, status in (("evil.example", 400), ("127.0.0.1.evil.example", 400), ("localhost:8765", 200), ("", 400)):
        assert client.get("/", headers={"host": host}).status_code == status, host
    assert host_name("[::1]:80") == "::1"


def test_too_many_requests_are_429_with_a_time_to_wait(project, open_page):
    client = enter(open_page(project, requests_per_second=0.001, burst=5), project)
    codes = [client.get("/api/next").status_code for _ in range(6)]
    assert codes[-1] == 429
    assert 200 in codes
    other = enter(open_page(project, requests_per_second=0.001, burst=5), project, name="Bo")
    assert other.get("/api/next").status_code == 200  # each session has its own
    guesser = open_page(project, entries_per_minute=3)
    assert [guesser.get(f"/i/guess-{i}").status_code for i in range(4)] == [404, 404, 404, 429]
    crowd = open_page(project, address_requests_per_second=2)
    assert [crowd.get("/").status_code for _ in range(4)][-1] == 429
    assert int(crowd.get("/").headers["retry-after"]) >= 1


def test_a_rate_limit_fills_up_again_and_forgets_old_keys():
    now = 0.0
    limit = RateLimit(per_second=2.0, burst=2, max_keys=2, clock=lambda: now)
    assert [limit.wait_seconds("a") for _ in range(3)] == [0.0, 0.0, 0.5]  # one token takes 1/2 s
    now = 0.5
    assert [limit.wait_seconds("a") for _ in range(2)] == [0.0, 0.5]
    for other in "bc":
        limit.wait_seconds(other)
    assert limit.wait_seconds("a") == 0.0  # forgotten, so it begins again


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"secret": "short"}, "secret of 5 characters"),
        ({"host": "192.0.2.1"}, "no secret for signing"),
        ({"host": "0.0.0.0"}, "no secret for signing"),
        ({"host": "0.0.0.0", "is_secret_given": True}, "no public address"),
        ({"host": "judge.example.org"}, "no secret for signing"),
        ({"public_url": "judge.example.org"}, "public address"),
        ({"public_url": "https://example.org/judge"}, "nothing behind it"),
    ],
)
def test_it_does_not_stand_open(project, changes, what):
    with pytest.raises(ConfigError, match=what):
        create_app(project, WebSettings(**{"secret": SECRET} | changes))


def test_it_may_be_public_with_a_secret_that_was_given():
    check_settings(WebSettings(secret=SECRET, is_secret_given=True, host="192.0.2.1"))
    for host in ("127.0.0.1", "localhost", "::1"):
        check_settings(WebSettings(secret=SECRET, host=host))


def test_the_secret_is_random_kept_and_nobody_elses(tmp_path, monkeypatch):
    monkeypatch.delenv("ACCORD_SECRET", raising=False)
    first, is_given = read_secret(tmp_path / "a")
    assert not is_given
    assert read_secret(tmp_path / "a") == (first, False)
    assert stat.S_IMODE((tmp_path / "a" / "secret").stat().st_mode) == 0o600
    assert read_secret(tmp_path / "b")[0] != first
    assert len(first) >= 32
    monkeypatch.setenv("ACCORD_SECRET", SECRET)
    assert read_secret(tmp_path / "a") == (SECRET, True)


def test_no_token_is_in_the_database_or_the_page(project, open_page, tmp_path):
    token = project.create_invitation()
    client = enter(open_page(project), project)
    (sealed,) = [cookie.value for cookie in client.cookies.jar]
    session = URLSafeTimedSerializer(SECRET, salt="accord session").loads_unsafe(sealed)[1]["token"]
    assert len(session) > 20
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("judgements-0.sqlite3*"))
    for secret in (token, session):
        assert secret.encode() not in stored
        assert secret not in client.get("/judge").text


def test_the_page_never_loads_torch():
    code = (
        "import sys, pkgutil, importlib, accord.web\n"
        "for module in pkgutil.iter_modules(accord.web.__path__, 'accord.web.'): importlib.import_module(module.name)\n"
        "import accord.cli.collect\n"
        "print(sorted({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
