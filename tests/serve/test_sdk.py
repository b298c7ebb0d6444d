"""Decart's public JavaScript SDKs in a browser, unchanged but for their host."""

import asyncio
import json
import shutil
import subprocess
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from browser import absent, needed, opened
from harness import scenario, serving
from test_engines import HERE

pytestmark = needed
LEGACY, CURRENT = "0.0.46", "0.1.20"  # SDP on the socket; media by LiveKit
IMPORTS = {
    "livekit-client": "/npm/livekit-client/dist/livekit-client.esm.mjs",
    "@decartai/sdk": "/npm/@decartai/sdk/dist/index.js",
    "mitt": "/npm/mitt/dist/mitt.mjs",
    "zod": "/npm/zod/index.js",
    "p-retry": "/npm/p-retry/index.js",
    "is-network-error": "/npm/is-network-error/index.js",
    "retry": "/retry.mjs",
}
PAGE = f"""<!doctype html><script type="importmap">{json.dumps({"imports": IMPORTS})}</script>
<canvas width="%d" height="%d"></canvas><video muted autoplay playsinline></video>"""
SESSION = """async ([key, realtimeBaseUrl, model, waits]) => {
    const { createDecartClient, models } = await import("@decartai/sdk");
    const canvas = document.querySelector("canvas"), context = canvas.getContext("2d");
    setInterval(() => {
        context.fillStyle = `hsl(${performance.now() / 10} 90% 50%)`;
        context.fillRect(0, 0, canvas.width, canvas.height);
    }, 33);
    const video = document.querySelector("video"), states = [], errors = [], ticks = [];
    const began = performance.now(), found = { queue: [] };
    const client = createDecartClient({ apiKey: key, realtimeBaseUrl, telemetry: false });
    const live = await client.realtime.connect(canvas.captureStream(30), {
        model: models.realtime(model),
        onRemoteStream: (stream) => { video.srcObject = stream; },
        onQueuePosition: ({ position }) => found.queue.push(position),
        initialState: { prompt: { text: "make it night", enhance: false } },
    });
    found.connected_ms = performance.now() - began;
    live.on("connectionChange", (state) => states.push(state));
    live.on("error", (error) => errors.push(error.message));
    live.on("generationTick", ({ seconds }) => ticks.push(seconds));
    await new Promise((done) => video.requestVideoFrameCallback(done));
    found.first_frame_ms = performance.now() - began;
    await live.setPrompt("film noir");
    const picture = await new Promise((done) => canvas.toBlob(done, "image/png"));
    await live.setImage(picture);
    const told = (work) => work.then(() => "", (error) => error.message);
    found.refused = [await told(live.setImage("%%%")), await told(live.setPrompt(" "))];
    while (ticks.length < waits) await new Promise((done) => setTimeout(done, 50));
    const pixel = document.createElement("canvas").getContext("2d");
    pixel.drawImage(video, 0, 0, 1, 1);
    Object.assign(found, { errors, ticks, id: live.sessionId, state: live.getConnectionState(),
        pixel: [...pixel.getImageData(0, 0, 1, 1).data],
        sounds: video.srcObject.getAudioTracks().length,
        size: [video.videoWidth, video.videoHeight] });
    live.disconnect();
    return found;
}"""
FAILURE = """async ([key, realtimeBaseUrl, model]) => {
    const { createDecartClient, models } = await import("@decartai/sdk");
    const client = createDecartClient({ apiKey: key, realtimeBaseUrl, telemetry: false });
    const stream = document.querySelector("canvas").captureStream(30);
    const options = { model: models.realtime(model), onRemoteStream: () => {} };
    return client.realtime.connect(stream, options).then(() => "", (error) => String(error));
}"""
HASTE = """const wait = window.setTimeout;
window.setTimeout = (work, ms, ...rest) => wait(work, ms / 20, ...rest);"""
KEY = "a key of some length"


@pytest.fixture(scope="module")
def packages(request, tmp_path_factory):
    """The SDK of a version and what it imports, from npm's registry."""
    if shutil.which("npm") is None:
        absent("no npm, so no SDK to run")
    folder, sdk = tmp_path_factory.mktemp("npm"), f"@decartai/sdk@{request.param}"
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", sdk]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=90)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        absent(f"npm does not get {sdk}: {error}")
    return folder / "node_modules"


def as_module(folder):
    """`retry`, which is CommonJS, as a module that browsers take."""
    operation, retry = (
        (folder / f"retry/lib/{n}.js").read_text() for n in ("retry_operation", "retry")
    )
    return f"""const a = {{ exports: {{}} }}, b = {{ exports: {{}} }};
(function (module, exports) {{ {operation}\n }})(a, a.exports);
(function (module, exports, require) {{ {retry}\n }})(b, b.exports, () => a.exports);
export default b.exports;"""


@asynccontextmanager
async def hosting(packages, host, size=(320, 180)):
    """A page of somebody else's that uses the SDK, with `host` in place of Decart's."""

    async def show(request):
        if request.path == "/":
            return web.Response(text=PAGE % size, content_type="text/html")
        if request.path == "/retry.mjs":
            return web.Response(text=as_module(packages), content_type="text/javascript")
        text = (packages / request.path.removeprefix("/npm/")).read_text()
        text = text.replace("wss://api3.decart.ai", host())
        return web.Response(text=text, content_type="text/javascript")

    application = web.Application()
    application.router.add_get("/{path:.*}", show)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


MODELS = pytest.mark.parametrize(
    ("packages", "model"), [(LEGACY, "mirage_v2"), (CURRENT, "lucy-2.1")], indirect=["packages"]
)


@asynccontextmanager
async def visiting(packages, width=320, height=180, **settings):
    """A server, a page of another origin that may use it, and its address for the SDK."""
    target = []
    async with hosting(packages, lambda: target[0], (width, height)) as page_url:
        size = {"width": width, "height": height, "slots": 1}
        settings = {"api_key": KEY, "origins": (page_url,), **settings}
        async with serving("image_models:HummingModel", size, **settings) as server:
            target.append(server.url.replace("http", "ws"))
            async with opened(page_url) as page:
                yield server, page, target[0]


@MODELS
def test_connect_prompt_image_and_errors(packages, model, monkeypatch):
    """The current one sends several sizes, of which the largest must reach the model."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    current = model.startswith("lucy")
    size = (1280, 720) if current else (320, 180)

    async def run():
        async with visiting(packages, *size) as (server, page, url):
            session = page.evaluate(SESSION, [KEY, url, model, int(current)])
            playing, sizes = asyncio.create_task(session), set()
            while not playing.done():
                sizes |= {one.input_size for one in server.registry.sessions.values()}
                await asyncio.sleep(0.05)
            found = await playing
            assert found["size"] == list(size) and size in sizes and found["id"]
            assert found["state"] in ("connected", "generating") and found["errors"] == []
            assert bool(found["ticks"]) == current  # the older one tells of none
            assert found["sounds"] == int(current)
            assert all(found["refused"]) and max(found["pixel"][:3]) > 100
            while server.registry.sessions:
                await asyncio.sleep(0.02)

    scenario(run(), 120)


@MODELS
def test_a_wrong_key_is_an_error(packages, model, monkeypatch):
    """The SDK tries again for half a minute, of a clock that runs 20 times as fast."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))

    async def run():
        async with visiting(packages) as (server, page, url):
            said = []
            page.on("console", lambda message: said.append(message.text))
            await page.evaluate(HASTE)
            assert await page.evaluate(FAILURE, ["wrong", url, model])
            assert sum("no valid credentials" in text for text in said) == 6
            assert not server.registry.sessions

    scenario(run(), 120)
