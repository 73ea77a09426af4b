"""Texts of a model or a person as HTML that can do nothing: Markdown without raw HTML, then an allow-list."""

from __future__ import annotations

import html
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import nh3
from markupsafe import Markup

from accord.records import Text

if TYPE_CHECKING:
    from jinja2 import Environment
    from markdown_it import MarkdownIt

MAX_MARKDOWN_CHARACTERS = 60_000  # beyond it a text is shown as it is: no parser is asked to bear any length
TAGS = {
    "a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre",
    "s", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul",
}  # fmt: skip
# Embeddings, overrides and isolates of direction: they can make a text read differently from what it says.
_DIRECTION_MARKS = {code: f"⟨U+{code:04X}⟩" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


@lru_cache(maxsize=4096)
def render_markdown(text: str) -> Markup:
    """Return Markdown as safe HTML: no script, style, image, form, class or identifier can come out of it.

    Links keep `http`, `https` and `mailto` targets, open elsewhere and tell the target nothing. Marks that change the
    direction of writing are shown as what they are. A text of more than 60 000 characters is shown without Markdown.
    """
    visible = text.translate(_DIRECTION_MARKS)
    if len(visible) > MAX_MARKDOWN_CHARACTERS:
        return Markup(f"<pre>{html.escape(visible)}</pre>")
    return Markup(
        nh3.clean(
            _markdown().render(visible),
            tags=TAGS,
            attributes={"*": set(), "a": {"href"}, "ol": {"start"}},
            url_schemes={"http", "https", "mailto"},
            url_relative="deny",
            link_rel="noopener noreferrer nofollow",
            set_tag_attribute_values={"a": {"target": "_blank"}},
        )
    )


def turns_of(text: Text) -> list[dict[str, Any]]:
    """Return a text as turns to show: {role, html}; plain text is one turn without a role."""
    if isinstance(text, str):
        return [{"role": "", "html": render_markdown(text)}]
    return [{"role": turn.role, "html": render_markdown(turn.content)} for turn in text]


@cache
def environment() -> Environment:
    """Return the templates of the page: everything is escaped unless it comes out of `render_markdown`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("accord", "web/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["markdown"] = render_markdown
    return templates


def render_page(template: str, values: Mapping[str, Any]) -> str:
    """Return one template, filled in."""
    return environment().get_template(template).render(**values)


@cache
def _markdown() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    return parser.disable("image")  # nothing is ever fetched from elsewhere; what is left of it is a link
