"""Check a built site: links and anchors are there, nothing is loaded from a network, every picture has a text."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src"}


class Page(HTMLParser):
    """What a page links to, loads, and can be linked at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.anchors: set[str] = {"", "top"}
        self.bare: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser."""
        said = {name: value or "" for name, value in attrs}
        self.anchors |= {said[name] for name in ("id", "name") if name in said}
        if tag == "a" and "href" in said:
            self.links.add(said["href"])
        if tag == "link" and "href" in said and said.get("rel") != "canonical":
            self.loads.add(said["href"])
        if LOADED.get(tag, "") in said:
            self.loads.add(said[LOADED[tag]])
        if tag == "img" and not said.get("alt", "").strip():
            self.bare.append(said.get("src", "?"))


def faults(site: Path) -> list[str]:
    """One line per fault: page, and what is wrong."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site)
        found += [f"{name}: a picture without a text: {source}" for source in page.bare]
        found += [f"{name}: loaded from a network: {each}" for each in sorted(page.loads) if urlsplit(each).netloc]
        for link in sorted(page.links | page.loads):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                found.append(f"{name}: dead link: {link}")
            elif target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{name}: no such place: {link}")
    return found


def main() -> None:
    """Print faults; exit status 1 if there is one."""
    site = Path(sys.argv[1]).resolve()
    found = faults(site)
    print("\n".join(found) or f"{len(list(site.rglob('*.html')))} pages: every link is there, nothing from a network")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
