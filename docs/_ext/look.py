"""Screenshots of every page of a built site, wide and narrow, light and dark, and a list of what overflows or fails.

`python docs/_ext/look.py docs/_build/html OUT [part of a page's name ...]`, with Chromium installed.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tornado.websocket import websocket_connect

WIDTHS, THEMES = (1400, 400), ("light", "dark")
TALLEST = 12_000  # pixels of a screenshot
OVERFLOW = """(() => {
  const wide = document.documentElement.clientWidth;
  const inside = node => { for (let up = node.parentElement; up; up = up.parentElement) {
    if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(up).overflowX)) return true; } return false; };
  const out = [...document.querySelectorAll('article *')].filter(node => {
    const box = node.getBoundingClientRect();
    return box.width && box.right > wide + 1 && !inside(node); });
  return {wide, page: document.documentElement.scrollWidth, tall: document.documentElement.scrollHeight,
          out: out.slice(0, 3).map(node => node.outerHTML.slice(0, 90))};
})()"""

# Of each Plotly figure: parts that lie over another one, or stick out of it.
FIGURES = """(() => {
  const box = node => node.getBoundingClientRect();
  // Corners on the screen: texts may be turned, and then the boxes around two of them meet where they do not.
  const corners = node => {
    const at = node.getBBox(), turned = node.getScreenCTM();
    return [[0, 0], [1, 0], [1, 1], [0, 1]].map(([right, down]) =>
      new DOMPoint(at.x + right * at.width, at.y + down * at.height).matrixTransform(turned)); };
  const meet = (a, b, blank) => [a, b].every(shape => [0, 1].every(side => {
    const [x, y] = [shape[side + 1].x - shape[side].x, shape[side + 1].y - shape[side].y];
    const long = Math.hypot(x, y), along = each => each.map(one => (one.x * x + one.y * y) / long), least = Math.min;
    const [p, q] = [along(a), along(b)];
    return least(Math.max(...p), Math.max(...q)) - Math.max(least(...p), least(...q)) > blank; }));
  const found = [];
  for (const figure of document.querySelectorAll('.js-plotly-plot')) {
    const all = selector => [...figure.querySelectorAll(selector)].filter(node => box(node).width && box(node).height);
    const parts = {title: all('.g-gtitle text'), legend: all('.legend .scrollbox'), menu: all('.updatemenu-header'),
                   data: all('.nsewdrag'), bar: all('.cbaxis, .cbfills'), note: all('.annotation-text'),
                   axis: all('.xtitle, .ytitle'), tick: all('.xtick text, .ytick text')};
    if (!parts.title.length || !parts.data.length)
      found.push(`${figure.id}: no title or no data was found, so nothing was compared with them`);
    const over = (a, b) => !['note', 'tick'].includes(a) || b !== 'data';  // notes stand in the data, ticks at its edge
    const every = Object.entries(parts).flatMap(([name, nodes]) => nodes.map(node => [name, corners(node), node]));
    every.forEach(([one, a, node], at) => every.slice(at + 1).forEach(([other, b, next]) => {
      if (over(one, other) && over(other, one) && meet(a, b, one === 'tick' && other === 'tick' ? 4 : 2))
        found.push(`${figure.id}: its ${one} (${node.textContent}) lies over its ${other} (${next.textContent})`); }));
    const whole = box(figure);
    for (const [name, nodes] of Object.entries(parts)) for (const node of nodes) {
      const at = box(node);
      if (at.right > whole.right + 2 || at.left < whole.left - 2 || at.bottom > whole.bottom + 2 || at.top < whole.top)
        found.push(`${figure.id}: its ${name} (${node.textContent}) sticks out`);
    }
    for (const node of all('text')) if (parseFloat(getComputedStyle(node).fontSize) < 11)
      found.push(`${figure.id}: ${node.textContent} is too small to read`);
  }
  return [...new Set(found)];
})()"""


class Browser:
    """One tab, spoken to by the DevTools protocol."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.count, self.errors = socket, 0, []

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to one command; errors of scripts that come before it are kept."""
        self.count += 1
        asked = self.count
        await self.socket.write_message(json.dumps({"id": asked, "method": method, "params": params}))
        while True:
            said = json.loads(await self.socket.read_message())
            if said.get("method") == "Runtime.exceptionThrown":
                self.errors.append(said["params"]["exceptionDetails"].get("exception", {}).get("description", "error"))
            if said.get("id") == asked:
                return said.get("result", {})

    async def show(self, url: str, width: int, theme: str) -> dict[str, Any]:
        """Load a page at a width in a theme, and measure it."""
        self.errors.clear()
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        await self.ask("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": theme}]
        await self.ask("Emulation.setEmulatedMedia", features=features)
        await self.ask("Page.navigate", url=url)
        for _ in range(60):
            await asyncio.sleep(0.1)
            state = await self.ask("Runtime.evaluate", expression="document.readyState + location.href")
            if state["result"]["value"] == f"complete{url}":
                break
        await asyncio.sleep(0.4)
        found = await self.ask("Runtime.evaluate", expression=OVERFLOW, returnByValue=True)
        measured = found["result"]["value"]
        drawn = await self.ask("Runtime.evaluate", expression=FIGURES, returnByValue=True)
        measured["out"] += drawn["result"]["value"]
        return measured

    async def shot(self, path: Path, width: int, tall: int) -> None:
        """A picture of the whole page."""
        clip = {"x": 0, "y": 0, "width": width, "height": min(tall, TALLEST), "scale": 1}
        made = await self.ask("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(made["data"]))


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@asynccontextmanager
async def browsing() -> AsyncIterator[Browser]:
    """A browser that is there until the block ends."""
    if CHROMIUM is None:
        raise SystemExit("there is no chromium here")
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        options += ["--hide-scrollbars", "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen([CHROMIUM, *options], stderr=subprocess.PIPE, text=True)
        socket = None
        try:
            port = _port(process)
            tab = json.loads(_get(f"http://127.0.0.1:{port}/json/list"))[0]["webSocketDebuggerUrl"]
            socket = await websocket_connect(tab, max_message_size=1 << 28)
            browser = Browser(socket)
            await browser.ask("Page.enable")
            await browser.ask("Runtime.enable")
            yield browser
        finally:
            if socket is not None:
                socket.close()
            process.kill()
            process.communicate()
            await asyncio.sleep(0.1)  # the socket closes in the meantime


async def look(site: Path, out: Path, parts: list[str]) -> int:
    """Look at all pages; returns how many faults were found."""
    faults = 0
    async with browsing() as browser:
        for path in sorted(site.rglob("*.html")):
            name = str(path.relative_to(site).with_suffix(""))
            if parts and not any(part in name for part in parts):
                continue
            for width in WIDTHS:
                for theme in THEMES:
                    found = await browser.show(path.resolve().as_uri(), width, theme)
                    await browser.shot(out / f"{name.replace('/', '_')}-{width}-{theme}.png", width, found["tall"])
                    wrong = [*found["out"], *browser.errors]
                    if found["page"] > found["wide"] or wrong:
                        faults += 1
                        print(f"{name} at {width}, {theme}: {found['page']} of {found['wide']} wide {wrong}")
    return faults


def _port(process: subprocess.Popen[str]) -> str:
    if process.stderr is not None:
        for line in process.stderr:
            if "DevTools listening on" in line:
                return line.split(":")[-1].split("/")[0]
    raise SystemExit("chromium did not start")


def _get(url: str) -> bytes:
    from urllib.request import urlopen

    with urlopen(url) as answer:
        return answer.read()


if __name__ == "__main__":
    sys.exit(bool(asyncio.run(look(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))))
