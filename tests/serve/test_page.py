"""The page in a headless browser: every source, what it says when something fails, phones."""

import asyncio
import os
import signal

import pytest
from browser import frames, holds, needed, opened
from harness import SMALL, connected, scenario, serving

pytestmark = needed
DRIVE = "lsd_jax.live.drive:DriveModel"
SIZE = {"width": 320, "height": 180, "slots": 2}
COLOURS = """() => {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 32;
    const context = canvas.getContext("2d");
    const shown = [...document.querySelectorAll("#video, #canvas")].find((one) => !one.hidden);
    return ["before", shown.id].map((id) => {
        context.drawImage(document.getElementById(id), 0, 0, 32, 32);
        const data = [...context.getImageData(0, 0, 32, 32).data].filter((_, i) => i % 4 < 3);
        return data.reduce((sum, value) => sum + value, 0) / data.length;
    });
}"""


async def status(page, words):
    await holds(page, f"document.getElementById('status').textContent.includes({words!r})")


@pytest.mark.parametrize(("media", "source"), [("webrtc", "Camera"), ("jpeg", "Scene")])
def test_a_picture_goes_through_and_can_be_steered(media, source):
    async def run():
        async with serving(config=SIZE) as server:
            async with opened(f"{server.url}/?media={media}") as page:
                await page.get_by_role("button", name=source, exact=True).click()
                await frames(page, 15)
                await status(page, "Live")
                before, after = await page.evaluate(COLOURS)
                assert 20 < before < 235 and abs(before - after) < 12  # the model passes through
                await page.get_by_label("What to make of it").fill("make it night")
                note = "document.getElementById('prompt-note').textContent"
                await holds(page, f"{note} == 'Applied: make it night'")
                await holds(page, "document.getElementById('fps').textContent != '–'")
                figures = await page.locator("#figures dd").all_inner_texts()
                assert float(figures[0]) > 3 and "ms" in figures[1] and "NaN" not in str(figures)
                assert figures[-1] == {"webrtc": "WebRTC", "jpeg": "WebSocket"}[media]
                await page.evaluate("document.activeElement.blur()")
                await page.keyboard.press("Space")
                await page.get_by_role("button", name="Resume").wait_for()
                await page.get_by_role("button", name="Resume").click()
                await frames(page)
                await page.get_by_role("button", name="Split").click()
                await page.get_by_label("Before / after").fill("30")
                clip = "getComputedStyle(document.getElementById('after')).clipPath"
                assert "30%" in await page.evaluate(clip)
                await page.get_by_role("button", name="Record").click()
                await page.wait_for_timeout(1200)
                async with page.expect_download() as download:
                    await page.get_by_role("button", name="Save").click()
                saved = await download.value
                assert saved.suggested_filename.startswith("lsd.")
                assert os.path.getsize(await saved.path()) > 1000
                await page.get_by_role("button", name="Stop").click()
                await status(page, "Stopped")
                while server.registry.free < 2:
                    await asyncio.sleep(0.05)
                assert page.errors == []

    scenario(run())


def test_a_lost_model_comes_back_with_the_prompt():
    async def run():
        async with serving(config=SIZE) as server, opened(f"{server.url}/?media=jpeg") as page:
            await page.get_by_role("button", name="Scene").click()
            await frames(page, 3)
            await page.get_by_role("button", name="film noir").click()
            await status(page, "Live")
            note = "document.getElementById('prompt-note')"
            await holds(page, f"{note}.textContent == 'Applied: film noir'")
            await page.evaluate(f"{note}.textContent = ''")
            os.kill(server.registry.engines[0].pid, signal.SIGKILL)
            await status(page, "Connecting again; your prompt is kept")
            await holds(page, f"{note}.textContent == 'Applied: film noir'")
            await frames(page)
            await status(page, "Live")

    scenario(run())


def test_clear_words_for_no_camera_and_no_slot():
    async def run():
        one = {**SMALL, "slots": 1}
        async with (
            serving(config=one, queue=1, heartbeat_s=60.0) as server,
            connected(server) as first,
        ):
            await first.start()
            async with opened(server.url, allow=False) as page:  # nobody allows the camera
                await page.get_by_role("button", name="Camera", exact=True).click()
                await status(page, "Allow it beside the address")
                await page.get_by_role("button", name="Scene").click()
                await status(page, "You are number 1 of 1 in the queue")
                async with opened(server.url) as other:
                    await other.get_by_role("button", name="Scene").click()
                    await status(other, "Try again in a minute")
                await first.ask("end")
                await frames(page)

    scenario(run())


def test_a_token_that_is_none_is_told():
    async def run():
        async with serving(api_key="a key of some length") as server:
            async with opened(f"{server.url}/#token=a+key+of+some+length") as page:
                await page.get_by_role("button", name="Scene").click()
                await frames(page, 3)
            async with opened(server.url) as page:
                await page.get_by_role("button", name="Scene").click()
                await status(page, "Connecting again")

    scenario(run())


def test_a_model_of_keys_shows_its_keys_and_takes_them():
    async def run():
        async with serving(DRIVE, {}) as server, opened(server.url) as page:
            await page.get_by_role("button", name="Start").click()
            await frames(page, 10)
            assert "Throttle" in await page.locator("#key-list").inner_text()
            assert not await page.get_by_label("What to make of it").is_visible()
            assert not await page.get_by_role("button", name="Camera", exact=True).is_visible()
            brightness = f"({COLOURS})()[1]"
            await holds(page, f"{brightness} > 60")
            await page.keyboard.press("n")  # night falls
            await holds(page, f"{brightness} < 50")
            assert page.errors == []

    scenario(run())


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844), (320, 568)])
def test_it_fits_and_everything_has_a_name(width, height):
    async def run():
        async with serving() as server, opened(server.url, width, height) as page:
            await page.get_by_role("button", name="Scene").click()
            await frames(page, 3)
            wide = await page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width
            nameless = await page.evaluate(
                """() => [...document.querySelectorAll("button, input, video, canvas, [role]")]
                    .filter((one) => !(one.ariaLabel || one.textContent.trim()
                        || one.labels?.length || one.hasAttribute("aria-labelledby")
                        || one.role === "status"))
                    .map((one) => one.outerHTML)"""
            )
            assert nameless == []
            small = await page.evaluate(
                """() => [...document.querySelectorAll("button")]
                    .filter((one) => one.offsetParent && one.offsetHeight < 30)
                    .map((one) => one.textContent)"""
            )
            assert small == []  # a finger hits them
            await page.keyboard.press("/")
            assert await page.evaluate("document.activeElement.id") == "prompt"
            await page.goto(f"{server.url}/docs")
            await page.get_by_text("GET /healthz").wait_for()
            assert page.errors == []

    scenario(run())


def test_nothing_is_asked_of_another_host():
    async def run():
        async with serving() as server:
            async with opened("about:blank") as page:
                asked = []
                page.on("request", lambda request: asked.append(request.url))
                await page.goto(server.url)
                await page.get_by_role("button", name="Scene").click()
                await frames(page, 3)
                assert len(asked) >= 6
                assert [url for url in asked if not url.startswith((server.url, "blob:"))] == []

    scenario(run())
