"""A headless Chromium, if this machine has one."""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
    "--autoplay-policy=no-user-gesture-required", "--use-fake-device-for-media-stream",
]  # fmt: skip
ALLOW = "--use-fake-ui-for-media-stream"


def find() -> str | None:
    """LSD_CHROMIUM, one that is installed, or the one that Playwright has fetched."""
    found = os.environ.get("LSD_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found:
        return found
    fetched = Path.home().glob(".cache/ms-playwright/chromium*/chrome-linux*/*hrome*")
    return next((str(p) for p in fetched if os.access(p, os.X_OK) and p.is_file()), None)


needed = pytest.mark.usefixtures("chromium")


def absent(reason: str) -> None:
    """Skips a test for what this machine lacks; fails it where LSD_BROWSER_TESTS=required, as in
    the gate, which would otherwise be green with none of them run."""
    if os.environ.get("LSD_BROWSER_TESTS") == "required":
        pytest.fail(f"{reason}; LSD_BROWSER_TESTS=required asks for it")
    pytest.skip(reason)


@asynccontextmanager
async def opened(url, width=1280, height=800, allow=True, flags=(), **context):
    """A page at `url`; what its scripts say goes wrong is in `page.errors`."""
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=find(), args=[*FLAGS, *flags, *([ALLOW] if allow else [])]
        )
        try:
            made = await browser.new_context(viewport={"width": width, "height": height}, **context)
            page = await made.new_page()
            page.errors = []
            page.on("pageerror", lambda error: page.errors.append(str(error)))
            page.on("requestfailed", lambda r: page.errors.append(f"{r.url}: {r.failure}"))
            page.set_default_timeout(20_000)
            await page.goto(url)
            yield page
        finally:
            await browser.close()


async def frames(page, more=10):
    """Waits until the page has shown `more` frames than now."""
    now = int(await page.evaluate("document.body.dataset.frames ?? 0"))
    await holds(page, f"(document.body.dataset.frames ?? 0) >= {now + more}")


async def holds(page, expression):
    """Waits until a JavaScript expression is true. (Playwright's own way to wait evaluates within
    the page, which our Content-Security-Policy forbids.)"""
    async with asyncio.timeout(25):
        while not await page.evaluate(expression):
            await asyncio.sleep(0.05)
