"""Walks through the page of `lsd serve` in a headless Chromium, and keeps README's screenshots.

python -m benchmarks.page_walk --url http://localhost:8080 --out docs
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

SIZES = {"desktop": (1280, 760), "phone": (390, 844)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://localhost:8080")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--prompt", default="make it night")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    args = parser.parse_args()
    for name, size in SIZES.items():
        shown = walk(args.url, size, args.prompt, args.chromium, args.out / f"serve-{name}.png")
        print(f"{name}: {shown}")


def walk(url: str, size: tuple[int, int], prompt: str, chromium: str | None, path: Path) -> str:
    """The built-in scene under `prompt`, split; gives the live panel's words."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        width, height = size
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(60_000)
        page.goto(url)
        page.get_by_role("button", name="Scene").click()
        page.get_by_label("What to make of it").fill(prompt)
        page.get_by_text(f"Applied: {prompt}").wait_for()
        page.get_by_role("button", name="Split").click()
        page.wait_for_timeout(6_000)
        page.screenshot(path=path)
        shown = page.locator("#figures dl").inner_text()
        browser.close()
    return " ".join(shown.split())


if __name__ == "__main__":
    main()
