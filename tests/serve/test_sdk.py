"""Decart's public JavaScript SDK in a browser, unchanged but for its host: connect, steer, fail."""

import json
import shutil
import subprocess
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from browser import needed, opened
from harness import scenario, serving
from test_engines import HERE

pytestmark = needed
SDK = "@decartai/sdk@0.0.46"
IMPORTS = {
    "@decartai/sdk": "/npm/@decartai/sdk/dist/index.js",
    "mitt": "/npm/mitt/dist/mitt.mjs",
    "zod": "/npm/zod/index.js",
    "p-retry": "/npm/p-retry/index.js",
    "is-network-error": "/npm/is-network-error/index.js",
    "retry": "/retry.mjs",
}
PAGE = f"""<!doctype html><script type="importmap">{json.dumps({"imports": IMPORTS})}</script>
<canvas width="320" height="180"></canvas><video muted autoplay playsinline></video>"""
SESSION = """async (key) => {
    const { createDecartClient, models } = await import("@decartai/sdk");
    const canvas = document.querySelector("canvas"), context = canvas.getContext("2d");
    setInterval(() => {
        context.fillStyle = `hsl(${performance.now() / 10} 90% 50%)`;
        context.fillRect(0, 0, 320, 180);
    }, 33);
    const video = document.querySelector("video"), states = [], errors = [];
    const client = createDecartClient({ apiKey: key });
    const live = await client.realtime.connect(canvas.captureStream(30), {
        model: models.realtime("mirage_v2"),
        onRemoteStream: (stream) => { video.srcObject = stream; },
        initialState: { prompt: { text: "make it night", enhance: false } },
    });
    live.on("connectionChange", (state) => states.push(state));
    live.on("error", (error) => errors.push(error.message));
    await new Promise((done) => video.requestVideoFrameCallback(done));
    await live.setPrompt("film noir");
    const picture = await new Promise((done) => canvas.toBlob(done, "image/png"));
    await live.setImage(picture);
    const refused = await live.setImage("%%%").then(() => "", (error) => error.message);
    await new Promise((done) => setTimeout(done, 500));
    const found = { refused, errors, id: live.sessionId, state: live.getConnectionState(),
        size: [video.videoWidth, video.videoHeight] };
    live.disconnect();
    return found;
}"""
FAILURE = """async () => {
    const { createDecartClient, models } = await import("@decartai/sdk");
    const client = createDecartClient({ apiKey: "wrong" });
    const stream = document.querySelector("canvas").captureStream(30);
    const options = { model: models.realtime("mirage_v2"), onRemoteStream: () => {} };
    return client.realtime.connect(stream, options).then(() => "", (error) => String(error));
}"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """The SDK and what it imports, from npm's registry."""
    if shutil.which("npm") is None:
        pytest.skip("no npm, so no SDK to run")
    folder = tmp_path_factory.mktemp("npm")
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", SDK]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=90)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"npm does not get {SDK}: {error}")
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
async def hosting(packages, host):
    """A page of somebody else's that uses the SDK, with `host` in place of Decart's."""

    async def show(request):
        if request.path == "/":
            return web.Response(text=PAGE, content_type="text/html")
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


def test_connect_prompt_image_and_errors(packages, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    key, target = "a key of some length", []

    async def run():
        async with hosting(packages, lambda: target[0]) as page_url:
            size = {"width": 320, "height": 180, "slots": 1}
            settings = {"api_key": key, "origins": (page_url,)}
            async with serving("image_models:ImagesModel", size, **settings) as server:
                target.append(server.url.replace("http", "ws"))
                async with opened(page_url) as page:
                    found = await page.evaluate(SESSION, key)
                    assert found["size"] == [320, 180] and found["id"]
                    assert found["state"] in ("connected", "generating")
                    assert found["refused"] and found["errors"] == []

    scenario(run(), 120)


@pytest.mark.slow
def test_a_wrong_key_is_an_error(packages):
    """Half a minute, since the SDK tries again."""
    target = []

    async def run():
        async with hosting(packages, lambda: target[0]) as page_url:
            settings = {"api_key": "a key of some length", "origins": (page_url,)}
            async with serving(**settings) as server:
                target.append(server.url.replace("http", "ws"))
                async with opened(page_url) as page:
                    page.set_default_timeout(60_000)
                    assert await page.evaluate(FAILURE)

    scenario(run(), 120)
