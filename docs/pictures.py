"""The pictures of the README and of the site: `python docs/pictures.py`. Needs chromium and Pillow; no part of CI.

Both show one prompt, filled in by tiny-dlm and continued by tiny-arm: `timeline.png` one step of it, `timeline.webp`
all steps.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

import sinklens as sl

HERE = Path(__file__).parent
PROMPT, SEED, STEP = "dolko xy dolko tuste xu tuste minko wo tuste zate wu tuste", 3, 13
WIDTH, HEIGHT = 1080, 1000  # CSS pixels; what is blank below is cut off
OPTIONS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars", "--virtual-time-budget=2000"),
    "--blink-settings=preferredColorScheme=1",
]


def records() -> dict:
    """One record for each twin."""
    out = {}
    for name, said in (("tiny-dlm", "a diffusion model"), ("tiny-arm", "its autoregressive twin")):
        model = sl.HookedDLM.from_pretrained(name)
        plan = sl.Plan(new_tokens=24, temperature=1.0)
        plan = plan.for_causal() if model.is_causal else plan
        run = sl.denoise(model, PROMPT, plan, probes=[sl.probes.ReceivedAttention()], seed=SEED, progress=False)
        out[f"{name}, {said}"] = run.record
    return out


def photograph(picture: sl.plots.TextTimeline, folder: Path, scale: float) -> Image.Image:
    """What a browser shows of it, light, as wide as `WIDTH` CSS pixels."""
    page, file = picture.save(folder / "page.html"), folder / "shot.png"
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("chromium is not installed")
    where = [f"--user-data-dir={folder / 'user'}", f"--screenshot={file}", f"--window-size={WIDTH},{HEIGHT}"]
    scaled = f"--force-device-scale-factor={scale}"
    subprocess.run([browser, *OPTIONS, *where, scaled, page.as_uri()], check=True, capture_output=True, timeout=120)
    image = Image.open(file).convert("RGB")
    box = ImageChops.difference(image, Image.new("RGB", image.size, "white")).getbbox()
    return image.crop((0, 0, image.width, box[3] if box else image.height))


def main() -> None:
    """Make both."""
    runs = records()
    title = "Which tokens does a model attend to, while its text fills in?"
    steps = max(record.sizes["step"] for record in runs.values())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        still = photograph(sl.plots.text_timeline(runs, title=title, step=STEP), folder, 2)
        still.save(HERE / "timeline.png", optimize=True)
        frames = [photograph(sl.plots.text_timeline(runs, title=title, step=at), folder, 1.4) for at in range(steps)]
    first, *others = frames
    lasts = [1200, *[450] * (steps - 2), 3500]  # milliseconds
    several = {"save_all": True, "append_images": others, "duration": lasts, "loop": 0}
    first.save(HERE / "timeline.webp", lossless=True, quality=90, method=6, **several)  # a palette would bend the scale
    for made in ("timeline.png", "timeline.webp"):
        print(made, Image.open(HERE / made).size, f"{(HERE / made).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
