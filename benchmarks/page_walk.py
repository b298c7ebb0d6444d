"""Walks through the page of `lsd serve` in a headless Chromium, and keeps README's pictures of it.

python -m benchmarks.page_walk --out docs

Starts its own servers on loopback. Four steps at each size: the built-in scene under a prompt,
split; a reference picture and a painted region; all places taken; a model driven by keys.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.serve import FLAGS, SHIPPED, server

SIZES = {"desktop": (1280, 760), "phone": (390, 844)}
SHOWN = {"desktop": (560, 2), "phone": (270, 4)}  # width of a picture, and how many in a row
DRIVE = "lsd_jax.live.drive:DriveModel"
SETTLED_MS, GAP = 5_000, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--prompt", default="make it night")
    parser.add_argument("--model", default=SHIPPED)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with (
        server(args.model, 1, []) as (url, _),
        server(DRIVE, None, []) as (drive_url, _),
        sync_playwright() as playwright,
    ):
        for name, size in SIZES.items():
            browser = playwright.chromium.launch(executable_path=args.chromium, args=FLAGS)
            pictures = [driven(browser, drive_url, size)]
            pictures = [*steered(browser, url, size, args.prompt), *pictures]
            browser.close()  # which frees the place
            path = args.out / f"serve-{name}.png"
            strip(pictures, *SHOWN[name]).save(path, optimize=True)
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def steered(browser, url: str, size: tuple[int, int], prompt: str):
    """The first three steps, of a server with one place."""
    page = visit(browser, url, size)
    page.get_by_role("button", name="Scene").click()
    page.get_by_label("What to make of it").fill(prompt)
    page.get_by_text(f"Applied: {prompt}").wait_for()
    page.get_by_role("button", name="Split").click()
    page.wait_for_timeout(SETTLED_MS)
    yield page.screenshot()

    page.get_by_role("button", name="Split").click()
    file = {"name": "dusk.png", "mimeType": "image/png", "buffer": dusk()}
    page.locator("#picture").set_input_files(file)
    page.get_by_text("The reference picture is set.").wait_for()
    page.get_by_label("What to make of it").fill("use the reference as the background")
    page.get_by_text("Applied: use the reference").wait_for()
    page.get_by_role("button", name="Brush").click()
    box = page.locator("#mask").bounding_box()
    at = lambda x, y: (box["x"] + x * box["width"], box["y"] + y * box["height"])  # noqa: E731
    page.mouse.move(*at(0.1, 0.15))
    page.mouse.down()
    for n in range(1, 9):
        page.mouse.move(*at(0.1 + 0.1 * n, 0.15 + 0.12 * (n % 2)))
    page.mouse.up()
    page.locator("#reference").scroll_into_view_if_needed()
    page.wait_for_timeout(SETTLED_MS)
    yield page.screenshot()

    second = visit(browser, url, size)
    second.get_by_role("button", name="Scene").click()
    second.locator("#status").get_by_text("You are number 1").wait_for()
    yield second.screenshot()


def driven(browser, url: str, size: tuple[int, int]) -> bytes:
    """A model that takes no picture, by the buttons that stand for its keys."""
    page = visit(browser, url, size)
    page.get_by_role("button", name="Start").click()
    for name, seconds in (("Throttle: W", 2), ("Steer: D", 1)):
        page.get_by_role("button", name=name, exact=True).hover()
        page.mouse.down()
        page.wait_for_timeout(1000 * seconds)
        if name.startswith("Throttle"):
            page.mouse.up()
    return page.screenshot()


def visit(browser, url: str, size: tuple[int, int]):
    width, height = size
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(60_000)
    page.goto(url)
    return page


def dusk() -> bytes:
    """A reference picture: from violet above to orange below, as a PNG."""
    share = np.linspace(0, 1, 128)[:, None, None]
    rows = (1 - share) * np.array([70, 30, 120]) + share * np.array([255, 150, 60])
    file = io.BytesIO()
    Image.fromarray((rows * np.ones((1, 128, 1))).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def strip(pictures: list[bytes], width: int, columns: int) -> Image.Image:
    """Screenshots as PNGs, scaled to `width`, in rows of `columns`, with few colours."""
    shown = [Image.open(io.BytesIO(one)).convert("RGB") for one in pictures]
    height = round(shown[0].height * width / shown[0].width)
    rows = -(-len(shown) // columns)
    size = (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP)
    sheet = Image.new("RGB", size, "white")
    for n, one in enumerate(shown):
        at = ((n % columns) * (width + GAP), (n // columns) * (height + GAP))
        sheet.paste(one.resize((width, height), Image.Resampling.LANCZOS), at)
    return sheet.quantize(256, kmeans=3, dither=Image.Dither.NONE)


if __name__ == "__main__":
    main()
