"""The pieces of a web page that needs nothing but itself: styles, tables, pictures. Every text is escaped here."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

STYLE = """
:root { color-scheme: light dark; --ink: #1f2430; --soft: #5b6476; --ground: #f5f6f8; --card: #ffffff; --line: #dfe3ea;
  --accent: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ee; --soft: #9aa3b5; --ground: #12141a; --card: #1b1e26; --line: #343946; --accent: #56b4e9; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 2px; }
h2 { font-size: 18px; margin: 38px 0 10px; }
h3 { font-size: 15px; margin: 18px 0 8px; }
p { margin: 6px 0 12px; color: var(--soft); max-width: 78ch; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-top: 20px; }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }
.tile .value { font-size: 26px; font-weight: 650; font-variant-numeric: tabular-nums; line-height: 1.25; }
.tile .value.text { font-size: 16px; padding: 6px 0 5px; }
.tile .name { color: var(--soft); font-size: 13px; }
.scroll { overflow-x: auto; }
.card + .card { margin-top: 12px; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px 5px 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child, table.facts td { text-align: left; }
table.facts td:last-child { white-space: normal; overflow-wrap: anywhere; }
table.facts td:first-child { color: var(--soft); }
tr:last-child td { border-bottom: 0; }
details { margin: 2px 0; }
details details { margin-left: 18px; }
details > table { margin: 4px 0 8px 18px; }
summary { cursor: pointer; font-weight: 600; padding: 3px 0; }
img { max-width: 100%; height: auto; display: block; }
.card img { border-radius: 6px; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(480px, 100%), 1fr)); gap: 14px; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
figcaption { padding: 7px 12px; font-size: 13px; color: var(--soft); overflow-wrap: anywhere; }
figcaption b { color: var(--ink); font-variant-numeric: tabular-nums; }
"""


def page(title: str, body: str) -> str:
    """A whole document; `body` is HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def escape(text: object) -> str:
    """`text` as HTML, with no meaning of its own."""
    return html.escape(str(text), quote=True)


def number(value: Any, digits: int = 3) -> str:
    """A value for a table, as HTML; None is a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return escape(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    """A share of 1 in percent; None is a dash."""
    return "–" if value is None else f"{100 * value:.1f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls if it is too wide; `head` and the first cell of a row are text, the other cells HTML."""
    lines = ["<tr>" + "".join(f"<th>{escape(name)}</th>" for name in head) + "</tr>"]
    for first, *cells in rows:
        lines.append(f"<tr><td>{escape(first)}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<div class="card scroll"><table>{"".join(lines)}</table></div>'


def facts(values: Mapping[str, Any]) -> str:
    """Names and values below each other."""
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{number(value)}</td></tr>" for name, value in values.items())
    return f'<table class="facts">{rows}</table>'


def tree(values: Mapping[str, Any]) -> str:
    """Nested mappings as sections that open and close."""
    flat = {k: _flat(v) for k, v in values.items() if not isinstance(v, Mapping)}
    nested = {k: v for k, v in values.items() if isinstance(v, Mapping)}
    parts = [facts(flat)] if flat else []
    parts += [f"<details><summary>{escape(name)}</summary>{tree(value)}</details>" for name, value in nested.items()]
    return "".join(parts)


def _flat(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(f"({_flat(item)})" if isinstance(item, list) else _flat(item) for item in value)
    return str(value)


def tile(name: str, value: str, *, text: bool = False) -> str:
    """A headline figure; `text` is for words, which are set smaller than numbers."""
    kind = "value text" if text else "value"
    return f'<div class="tile"><div class="name">{escape(name)}</div><div class="{kind}">{escape(value)}</div></div>'


def image(png: bytes, description: str) -> str:
    """A picture within the page itself."""
    return f'<img alt="{escape(description)}" src="{_data(png)}">'


def themed_image(light: bytes, dark: bytes, description: str) -> str:
    """A picture for light and one for dark pages."""
    source = f'<source media="(prefers-color-scheme: dark)" srcset="{_data(dark)}">'
    return f'<picture class="card" style="display:block">{source}{image(light, description)}</picture>'


def figure(png: bytes, description: str, caption: str) -> str:
    """A picture with a caption, which is HTML."""
    return f"<figure>{image(png, description)}<figcaption>{caption}</figcaption></figure>"


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
