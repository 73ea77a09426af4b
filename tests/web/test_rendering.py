"""A response can hold anything; the page shows it and lets it do nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from page_visits import enter

from accord.records import Group, Message, Response
from accord.web.rendering import MAX_MARKDOWN_CHARACTERS, TAGS, render_markdown, turns_of

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    '<iframe srcdoc="<script>alert(1)</script>"></iframe>',
    '<a href="javascript:alert(1)">x</a>',
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "[x](vbscript:msgbox(1))",
    "<javascript:alert(1)>",
    "[x](/manage/export/judged.jsonl)",
    "![x](https://evil.example/pixel.png)",
    '![x](x "onerror=alert(1)")',
    '[x](https://a.example/"onclick="alert(1))',
    "<style>body{display:none}</style>",
    '<div style="position:fixed;inset:0">x</div>',
    '<form action="/leave" method="post"><button>x</button></form>',
    "<meta http-equiv=refresh content=0;url=https://evil.example>",
    "<base href=https://evil.example>",
    "<!--><script>alert(1)</script>-->",
    "```html onload=alert(1)\n</code></pre><script>alert(1)</script>\n```",
    '``` "><script>alert(1)</script>\nx\n```',
    "</div></section></main><h1>You have won</h1>",
    "{{ csrf }} {% include 'manage.html.jinja' %}",
    "\x00<scr\x00ipt>alert(1)</script>",
    "&lt;script&gt;alert(1)&lt;/script&gt; &#60;script&#62;",
]


class _Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def check_harmless(html: str) -> None:
    seen = _Seen()
    seen.feed(html)
    allowed = {"a": {"href", "rel", "target"}, "ol": {"start"}}
    for tag, attributes in seen.tags:
        assert tag in TAGS
        assert set(attributes) <= allowed.get(tag, set()), (tag, attributes)
        href = attributes.get("href")
        assert href is None or re.match(r"(https?|mailto):", href, re.IGNORECASE), href
        assert tag != "a" or "noopener" in (attributes["rel"] or "")


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_hostile_comes_through(text):
    check_harmless(render_markdown(text))


@given(st.text(alphabet=st.sampled_from("<>[]()!\"'`*_#-= \n/:&;abcjsrciptvon"), max_size=200))
def test_nothing_hostile_comes_through_whatever_it_is(text):
    check_harmless(render_markdown(text))


def test_markdown_is_shown_as_meant():
    html = render_markdown("**bold**\n\n1. one\n\n```python\nif a < b: pass\n```\n\n| a |\n|---|\n| 1 |\n\n~~gone~~")
    for part in ("<strong>bold</strong>", "<li>one</li>", "if a &lt; b: pass", "<td>1</td>", "<s>gone</s>"):
        assert part in html


def test_what_a_text_says_of_itself_stays_visible():
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in render_markdown("<script>alert(1)</script>")
    assert "⟨U+202E⟩" in render_markdown("abc\u202edlrow")
    assert "\u202e" not in render_markdown("abc\u202edlrow")


def test_a_very_long_text_is_shown_whole_without_a_parser():
    text = "[" * (MAX_MARKDOWN_CHARACTERS + 1) + "<b>"
    assert render_markdown(text) == f"<pre>{'[' * (MAX_MARKDOWN_CHARACTERS + 1)}&lt;b&gt;</pre>"
    check_harmless(render_markdown(">" * 5000 + "x"))
    check_harmless(render_markdown("[a](" * 5000))


def test_turns_keep_their_roles():
    turns = turns_of((Message(role="user", content="*a*"), Message(role="assistant", content="b")))
    assert [turn["role"] for turn in turns] == ["user", "assistant"]
    assert "<em>a</em>" in turns[0]["html"]
    assert turns_of("x") == [{"role": "", "html": render_markdown("x")}]


def test_a_hostile_response_does_nothing_on_the_whole_page(make_project, open_page):
    texts = HOSTILE if len(HOSTILE) % 2 == 0 else HOSTILE[:-1]
    pairs = [
        Group(prompt=texts[i], responses=(Response(content=texts[i] + "1"), Response(content=texts[i + 1] + "2")))
        for i in range(0, len(texts), 2)
    ]
    project = make_project(pairs)
    client = enter(open_page(project), project, name="<script>alert(9)</script>")
    for number in range(len(pairs)):
        page = client.get("/judge").text
        assert page.count("<script") == page.count('<script type="module" src="/static/judge.js"') == 1
        assert not re.search(r"<(img|iframe|svg|style|object|base)\b", page)
        assert page.count("<form") == 2  # signing out, and the answer
        found = client.get("/api/next?form=texts").json()
        body = {"assignment": found["assignment"], "key": f"hostile-page-{number:06d}", "payload": {"level": 1}}
        assert client.post("/api/answer", json=body).status_code == 200
