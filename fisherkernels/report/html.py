"""The few HTML pieces the page is made of; every text is escaped here, once."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def paragraph(text: str, css_class: str = "") -> str:
    attribute = f' class="{css_class}"' if css_class else ""
    return f"<p{attribute}>{escape(text)}</p>"


def bullets(items: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def section(anchor: str, title: str, *parts: str) -> str:
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>\n' + "\n".join(parts) + "</section>"


def figure(body: str, number: int, title: str, look_at: str) -> str:
    """A figure with its number, what it is and what to look at."""
    caption = f"<figcaption><b>Figure {number}. {escape(title)}</b> {escape(look_at)}</figcaption>"
    return f"<figure>{body}{caption}</figure>"


def panels(items: Sequence[str], css_class: str = "panels") -> str:
    return f'<div class="{css_class}">' + "".join(f'<div class="panel">{item}</div>' for item in items) + "</div>"


def strips(rows: Sequence[tuple[str, str, str]]) -> str:
    """rows: (label, css class of the label, img element)."""
    cells = "".join(f'<span class="{css}">{escape(label)}</span><div>{image}</div>' for label, css, image in rows)
    return f'<div class="strips">{cells}</div>'


def table(
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    numeric: bool = False,
    stack: bool = False,
) -> str:
    """A table whose first column names the row. numeric: right-aligned; stack: a row becomes a list on a phone."""
    css = ' class="number"' if numeric else ""
    head = f'<th scope="col">{escape(header[0])}</th>' + "".join(
        f'<th scope="col"{css}>{escape(cell)}</th>' for cell in header[1:]
    )
    body = ""
    for first, *rest in rows:
        cells = (
            f'<td{css} data-label="{escape(label)}">{escape(cell)}</td>'
            for label, cell in zip(header[1:], rest, strict=True)
        )
        body += f'<tr><th scope="row">{escape(first)}</th>{"".join(cells)}</tr>'
    table_css = ' class="stack"' if stack else ""
    head = f"<thead><tr>{head}</tr></thead>" if any(header) else ""
    return (
        f'<div class="scroll"><table{table_css}><caption>{escape(caption)}</caption>{head}'
        f"<tbody>{body}</tbody></table></div>"
    )
