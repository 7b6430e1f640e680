"""The interactive timeline where VS Code and Colab put it: inside a frame that may run scripts, and nothing else."""

from __future__ import annotations

import asyncio
import html
import json
import os
from pathlib import Path
from typing import Any

import pytest

from sinklens import HookedDLM, Plan, denoise, plots
from sinklens.probes import ReceivedAttention
from tests.site_parts import part

# Run inside the picture: step through it, try to get out, and tell whoever is outermost.
INSIDE = """<script>(() => {
  const root = document.querySelector('.sinklens-timeline').shadowRoot;
  const words = () => [...root.querySelectorAll('.text .w')].map(each => each.textContent);
  const slider = root.querySelector('input[type=range]');
  const turn = new Event('input', {bubbles: true});
  const to = step => { slider.value = step; slider.dispatchEvent(turn); return words(); };
  const first = to(0), last = to(slider.max);
  let outside = 'open';
  try { parent.document.title; } catch (error) { outside = error.name; }
  let stored = 'open';
  try { localStorage.length; } catch (error) { stored = error.name; }
  const fetched = performance.getEntriesByType('resource').map(each => each.name);
  top.postMessage({first, last, outside, stored, fetched}, '*');
})()</script>"""


@pytest.mark.skipif(part("look").CHROMIUM is None, reason="needs chromium")
def test_the_timeline_works_in_a_sandboxed_frame(tmp_path: Path) -> None:
    dlm = HookedDLM.from_pretrained("tiny-dlm")
    run = denoise(dlm, "molma telme", Plan(new_tokens=6), probes=[ReceivedAttention()], progress=False)
    picture = plots.text_timeline(run.record)
    shown, page = picture._repr_html_(), picture.page()
    assert html.escape(page) in shown  # what a notebook shows is the page in a frame
    inner = page.replace("</body>", f"{INSIDE}</body>")
    output = shown.replace(html.escape(page), html.escape(inner))
    notebook = tmp_path / "notebook.html"
    notebook.write_text(
        "<!DOCTYPE html><title>notebook</title><script>window.told = null; addEventListener('message', said => "
        "{ window.told = said.data; });</script>"
        f'<iframe sandbox="allow-scripts" width="900" height="600" srcdoc="{html.escape(output)}"></iframe>',
        encoding="utf-8",
    )
    told = asyncio.run(_told(notebook))
    first, last = told["first"], told["last"]
    assert [len(first), len(last)] == [run.tokens.shape[1]] * 2
    assert first[:3] == last[:3] == dlm.token_strings(run.tokens[0].tolist())[:3]  # the prompt
    written = dlm.token_strings(run.tokens[0].tolist())[3:]
    assert sum(one == other for one, other in zip(last[3:], written, strict=True)) >= 5  # the text has filled in
    assert sum(one == other for one, other in zip(first[3:], written, strict=True)) <= 1  # masks at first
    assert told["outside"] == told["stored"] == "SecurityError"
    assert told["fetched"] == []


async def _told(page: Path) -> dict[str, Any]:
    async with part("look").browsing() as browser:
        await browser.show(page.as_uri(), 1000, "light")
        for _ in range(50):
            found = await browser.ask("Runtime.evaluate", expression="JSON.stringify(window.told)")
            if found["result"]["value"] != "null":
                return json.loads(found["result"]["value"])
            await asyncio.sleep(0.1)
    raise AssertionError(f"the picture told nothing{os.linesep}{browser.errors}")
