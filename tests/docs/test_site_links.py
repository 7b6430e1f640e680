"""The check of the built site finds each kind of fault that it is for."""

from __future__ import annotations

from pathlib import Path

import pytest
from site_parts import part

OUT = '<a href="https://elsewhere.org/x">out</a>'
GOOD = f'<h1 id="top-of-it">a</h1><a href="b.html#there">b</a>{OUT}<img src="p.png" alt="p">'
OTHER = '<p id="there">b</p><a href="a.html">a</a><a href="#there">here</a>'


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "a.html").write_text(GOOD, encoding="utf-8")
    (tmp_path / "b.html").write_text(
        '<p id="there">b</p><a href="a.html">a</a><a href="#there">here</a>', encoding="utf-8"
    )
    (tmp_path / "p.png").write_bytes(b"")
    return tmp_path


def test_a_good_site_has_no_fault(site: Path) -> None:
    assert part("links").faults(site) == []


@pytest.mark.parametrize(
    ("html", "says"),
    [
        ('<a href="c.html">c</a>', "c.html: dead link: c.html"),
        ('<a href="b.html#gone">b</a>', "c.html: no such place: b.html#gone"),
        ('<a href="#gone">b</a>', "c.html: no such place: #gone"),
        ('<script src="https://cdn.example/x.js"></script>', "c.html: loaded from a network: https://cdn.example/x.js"),
        ('<link rel="stylesheet" href="//cdn.example/x.css">', "c.html: loaded from a network: //cdn.example/x.css"),
        ('<img src="p.png">', "c.html: a picture without a text: p.png"),
        ('<img src="q.png" alt="q">', "c.html: dead link: q.png"),
    ],
)
def test_a_fault_is_found(site: Path, html: str, says: str) -> None:
    name = "d.html" if 'href="c.html"' in html else "c.html"
    (site / name).write_text(html, encoding="utf-8")
    assert part("links").faults(site) == [says.replace("c.html:", f"{name}:", 1)]
