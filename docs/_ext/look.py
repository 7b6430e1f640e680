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
        return found["result"]["value"]

    async def shot(self, path: Path, width: int, tall: int) -> None:
        """A picture of the whole page."""
        clip = {"x": 0, "y": 0, "width": width, "height": min(tall, TALLEST), "scale": 1}
        made = await self.ask("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(made["data"]))


async def look(site: Path, out: Path, parts: list[str]) -> int:
    """Look at all pages; returns how many faults were found."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("there is no chromium here")
    faults = 0
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        options += ["--hide-scrollbars", "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen([chromium, *options], stderr=subprocess.PIPE, text=True)
        try:
            port = _port(process)
            tab = json.loads(_get(f"http://127.0.0.1:{port}/json/list"))[0]["webSocketDebuggerUrl"]
            browser = Browser(await websocket_connect(tab, max_message_size=1 << 28))
            await browser.ask("Page.enable")
            await browser.ask("Runtime.enable")
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
        finally:
            process.kill()
            process.wait()
    return faults


def _port(process: subprocess.Popen[str]) -> str:
    if process.stderr is not None:
        for line in process.stderr:
            if "DevTools listening on" in line:
                return line.split(":")[-1].split("/")[0]
    raise SystemExit("chromium did not start")


def _get(url: str) -> bytes:
    from urllib.request import urlopen

    return urlopen(url).read()


if __name__ == "__main__":
    sys.exit(bool(asyncio.run(look(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))))
