"""The page in a headless browser: every source, what it says when something fails, phones."""

import asyncio
import os
import signal
import socket
import time

import pytest
from browser import frames, holds, needed, opened
from harness import SMALL, connected, scenario, serving
from test_engines import HERE

from lsd_jax.serve import rtc, tokens

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


@pytest.fixture
def humming(monkeypatch):
    """A model that takes everything that the page can give, and hums."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    return "image_models:HummingModel", SIZE


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
                note = "document.getElementById('note').textContent"
                await holds(page, f"{note} == 'Applied: make it night'")
                await holds(page, "document.getElementById('fps').textContent != '–'")
                figures = await page.locator("#figures dd").all_inner_texts()
                assert float(figures[0]) > 3 and "ms" in figures[1] and "NaN" not in str(figures)
                assert figures[-1] == {"webrtc": "WebRTC", "jpeg": "WebSocket"}[media]
                kind = {"webrtc": "estimated", "jpeg": "measured"}[media]
                assert await page.locator("#latency-kind").inner_text() == f"latency, {kind}"
                await page.evaluate("document.activeElement.blur()")
                assert await page.evaluate(NEWEST) == "make it night"  # which nobody submitted
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


DROP = """([id, kind, event]) => {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 40;
    canvas.getContext("2d").fillRect(0, 0, 20, 40);
    return new Promise((done) => canvas.toBlob((blob) => {
        const data = new DataTransfer();
        data.items.add(new File([blob], "r.png", { type: kind }));
        const target = id ? document.getElementById(id) : document;
        const options = { dataTransfer: data, cancelable: true, bubbles: true };
        done(["dragover", "drop"].includes(event)
            ? ["dragover", "drop"].map((one) => target.dispatchEvent(new DragEvent(one, options)))
            : target.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data })));
    }));
}"""
IN_THE_GAP = """(prompt) => {
    const status = document.getElementById("status");
    new MutationObserver((_, observer) => {
        if (!status.textContent.includes("Connecting again")) return;
        observer.disconnect();
        const box = document.getElementById("prompt");
        box.value = prompt;
        box.form.requestSubmit();
    }).observe(status, { childList: true, subtree: true, characterData: true });
}"""
NEWEST = "document.querySelector('#history').options[0].value"
NOTE = "document.getElementById('note').textContent"


def taken(server):
    """How many inputs and uploads the model has taken."""
    lines = server.metrics.text().decode().splitlines()
    return sum(float(x.split()[-1]) for x in lines if x.startswith('lsd_inputs_total{code="ok"}'))


def test_what_is_lost_comes_back_with_prompt_and_reference(humming):
    """First the connection is, then the model's process."""

    async def run():
        async with serving(*humming) as server, opened(server.url) as page:
            await page.get_by_role("button", name="Scene").click()
            await frames(page, 3)
            await page.get_by_role("button", name="film noir").click()
            await holds(page, f"{NOTE} == 'Applied: film noir'")
            await page.evaluate(DROP, ["drop", "image/png", "drop"])
            await holds(page, f"{NOTE} == 'The reference picture is set.'")
            while taken(server) < 3:  # the prompt, the upload, the reference
                await asyncio.sleep(0.02)
            await page.get_by_role("button", name="Pause").click()
            await page.get_by_role("button", name="Resume", pressed=True).wait_for()
            sessions = set(server.registry.sessions)
            await page.evaluate(IN_THE_GAP, "make it snow")
            for door in list(server._sockets):
                door.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
            await status(page, "Connecting again; your prompt is kept")
            await status(page, "Live")
            assert set(server.registry.sessions) == sessions  # the same: only the new is said
            await holds(page, f"{NOTE} == 'Applied: make it snow'")
            await page.get_by_role("button", name="Resume", pressed=True).click()
            await frames(page)
            assert taken(server) == 3 + 1 + 2  # the new prompt, pause and resume
            await page.evaluate("document.getElementById('note').textContent = ''")
            await page.get_by_role("button", name="Pause").click()
            await page.get_by_role("button", name="Resume", pressed=True).wait_for()
            os.kill(server.registry.engines[0].pid, signal.SIGKILL)
            await status(page, "Connecting again; your prompt is kept")
            await holds(page, f"{NOTE} == 'Applied: make it snow'")
            await frames(page)
            await status(page, "Live")
            await page.get_by_role("button", name="Pause", pressed=False).wait_for()
            while taken(server) < 3 + 1 + 2 + 1 + 3:  # all of it is said to the new engine
                await asyncio.sleep(0.02)
            assert await page.locator("#media").inner_text() == "WebRTC"

    scenario(run())


def test_where_udp_does_not_pass_the_websocket_does():
    """Offer and answer are good, but no way between them is found in time."""

    async def run():
        policy = "--webrtc-ip-handling-policy=disable_non_proxied_udp"
        async with serving(config=SIZE) as server:
            async with opened(server.url, flags=[policy]) as page:
                await page.get_by_role("button", name="Scene").click()
                while not (begun := list(server.registry.sessions)):
                    await asyncio.sleep(0.02)
                await frames(page, 3)
                await status(page, "Live")
                assert await page.locator("#media").inner_text() == "WebSocket"
                assert "lsd_sessions_active 1.0" in server.metrics.text().decode()
                assert begun == list(server.registry.sessions)  # the one that was there before

    scenario(run())


def test_where_webrtc_is_refused_the_websocket_does_it(monkeypatch):
    async def refuse(*_):
        raise ValueError("no UDP here")

    monkeypatch.setattr(rtc.Peer, "answer", refuse)

    async def run():
        async with serving(config=SIZE) as server, opened(server.url) as page:
            await page.get_by_role("button", name="Scene").click()
            await frames(page, 3)
            await status(page, "Live")
            assert await page.locator("#media").inner_text() == "WebSocket"

    scenario(run())


ABSENT = """
    window.SpeechRecognition = class {
        start() {
            setTimeout(() => this.onresult({ results: [[{ transcript: "make it snow" }]] }));
        }
    };
    navigator.mediaDevices.getDisplayMedia = async () => {
        if (!window.screenAllowed) throw new DOMException("no", "NotAllowedError");
        const canvas = Object.assign(document.createElement("canvas"), { width: 64, height: 48 });
        setInterval(() => canvas.getContext("2d").fillRect(0, 0, 64, 48), 30);
        return canvas.captureStream(30);
    };
"""
HEARS = """async () => {
    const context = new AudioContext(), analyser = context.createAnalyser();
    analyser.fftSize = 4096;
    context.createMediaStreamSource(document.getElementById("video").srcObject).connect(analyser);
    const levels = new Float32Array(analyser.frequencyBinCount);
    let loudest = 0;
    for (let n = 0; n < 100 && Math.abs(loudest - 440) > 30; n++) {
        await new Promise((done) => setTimeout(done, 50));
        analyser.getFloatFrequencyData(levels);
        const at = levels.indexOf(Math.max(...levels));
        loudest = levels[at] > -40 ? at * context.sampleRate / analyser.fftSize : 0;
    }
    return loudest;
}"""


PAINTED = """([x, y]) => {
    const { width, clientWidth } = document.getElementById("mask"), scale = width / clientWidth;
    const context = document.getElementById("mask").getContext("2d");
    return context.getImageData(x * scale, y * scale, 1, 1).data[3];
}"""
BOXES = """() => ["frame", "before", "after", "video", "mask"].map((id) => {
    const one = document.getElementById(id), box = one.getBoundingClientRect();
    const fits = one.matches("div") || getComputedStyle(one).objectFit === "fill";
    return [box.x, box.y, box.width, box.height, fits];
})"""


def test_a_walk_through_everything_else(humming, tmp_path):
    """File, screen, history, voice, reference, region, sound, full screen. What a headless browser
    does not have, speech and a screen, is stood in for."""
    from PIL import Image

    Image.new("RGB", (60, 40), "red").save(tmp_path / "red.png")
    (tmp_path / "none.mp4").write_bytes(b"no video")

    async def run():
        async with serving(*humming) as server, opened("about:blank") as page:
            await page.add_init_script(ABSENT)
            await page.goto(server.url)
            button = lambda name: page.get_by_role("button", name=name, exact=True)  # noqa: E731
            await page.locator("#file").set_input_files(tmp_path / "none.mp4")
            await status(page, "does not play here")
            await button("Screen").click()
            await status(page, "No screen was chosen")
            await page.evaluate("window.screenAllowed = true")
            await button("Screen").click()
            await frames(page, 3)
            async with page.expect_file_chooser() as chooser:
                await button("File").click()
            await (await chooser.value).set_files(tmp_path / "red.png")
            red = f"({COLOURS})().every((level) => level > 60 && level < 110)"  # 255 / 3
            await holds(page, red)
            await button("Speak").click()
            await holds(page, f"{NOTE} == 'Applied: make it snow'")
            assert await page.evaluate(NEWEST) == "make it snow"
            await page.get_by_label("What to make of it").fill("sunset")
            await page.keyboard.press("Enter")
            await holds(page, f"{NOTE} == 'Applied: sunset'")
            assert await page.evaluate(NEWEST) == "sunset"
            assert await page.evaluate(DROP, [None, "video/mp4", "drop"]) == [False, False]
            await holds(page, f"{NOTE}.includes('does not play here')")  # nor opened by the browser
            await status(page, "Live")
            for event, id in (("drop", "drop"), ("drop", None), ("paste", None)):
                await page.evaluate(DROP, [id, "image/png", event])
                await holds(page, f"{NOTE} == 'The reference picture is set.'")
                await button("Remove").click()
                await holds(page, "document.getElementById('thumb').hidden")
            await page.evaluate(DROP, ["drop", "text/plain", "drop"])
            await holds(page, f"{NOTE} == 'That is no picture.'")
            count = taken(server)
            await button("Brush").click()
            box = await page.locator("#mask").bounding_box()
            await page.mouse.move(box["x"] + 30, box["y"] + 30)
            await page.mouse.down()
            await page.mouse.move(box["x"] + 90, box["y"] + 60)
            await page.mouse.up()
            assert await page.evaluate(PAINTED, [60, 45]) == 255  # between, in one stroke
            while taken(server) < count + 2:  # the mask, uploaded and set
                await asyncio.sleep(0.02)
            await button("Full screen").click()
            await holds(page, "document.fullscreenElement?.id == 'view'")
            boxes = await page.evaluate(BOXES)
            assert all(box == boxes[0] for box in boxes)  # one over the other, whatever their sizes
            assert boxes[0][2] / boxes[0][3] == pytest.approx(60 / 40, abs=0.01)
            await page.evaluate("document.exitFullscreen()")
            await button("Brush").click()
            await holds(page, f"{NOTE} == 'The whole picture is edited.'")
            await button("Sound").click()
            assert not await page.evaluate("document.getElementById('video').muted")
            assert abs(await page.evaluate(HEARS) - 440) < 30
            assert page.errors == []
            bad = "document.getElementById('note').classList.contains('bad')"
            assert not await page.evaluate(bad)
            await page.evaluate("Element.prototype.requestFullscreen = undefined")  # as on a phone
            await button("Full screen").click()
            await holds(page, f"{NOTE} == 'This browser shows only videos in full screen.'")

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


def test_a_token_that_is_none_any_more_is_told(monkeypatch):
    key = "a key of some length"
    now = time.time()
    with monkeypatch.context() as past:
        past.setattr(tokens.time, "time", lambda: now - 7200)
        expired = tokens.mint(key, tokens.Grant(), 60)

    async def run():
        async with serving(api_key=key) as server, opened(f"{server.url}/#token={expired}") as page:
            await page.get_by_role("button", name="Scene").click()
            await status(page, "The server refused: the token has expired; ask for another.")

    scenario(run())


def test_a_model_that_loads_is_not_a_full_one(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setenv("LATE_MODEL", str(tmp_path / "now"))

    async def run():
        async with serving("image_models:LateModel", SIZE, ready=False) as server:
            async with opened(server.url) as page:
                await page.get_by_role("button", name="Scene").click()
                await status(page, "The model is loading")
                (tmp_path / "now").touch()
                await frames(page, 3)

    scenario(run())


def test_a_model_of_keys_shows_its_keys_and_takes_them():
    async def run():
        async with serving(DRIVE, {}) as server, opened(server.url, has_touch=True) as page:
            await page.get_by_role("button", name="Start").click()
            await frames(page, 10)
            assert await page.locator("#media").inner_text() == "WebRTC"
            assert "Throttle" in await page.locator("#key-list").inner_text()
            assert not await page.get_by_label("What to make of it").is_visible()
            assert not await page.get_by_role("button", name="Camera", exact=True).is_visible()
            brightness = f"({COLOURS})()[1]"
            await holds(page, f"{brightness} > 60")
            await page.keyboard.press("n")  # night falls
            await holds(page, f"{brightness} < 50")
            await page.get_by_role("button", name="Night and day: N").tap()  # by a finger
            await holds(page, f"{brightness} > 60")
            count = taken(server)
            await page.get_by_role("button", name="Brake: Space").hover()
            for n, turn in enumerate((page.mouse.down, page.mouse.up), 1):  # the brake is held
                await turn()
                while taken(server) < count + n:
                    await asyncio.sleep(0.02)
            assert await page.evaluate(DROP, [None, "image/png", "drop"]) == [False, False]
            await holds(page, f"{NOTE} == 'This model takes no file.'")
            assert await page.locator("#note").is_visible()
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
