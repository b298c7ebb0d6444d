"""The diffusion stream behind the server: a process of its own, real frames, nothing recompiles."""

import asyncio
import io
import json

import numpy as np
from harness import connected, scenario, serving
from PIL import Image

from benchmarks import serve_faults
from lsd_jax.cli.main import main
from lsd_jax.data.video import VideoSource
from lsd_jax.serve import protocol


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def test_every_input_while_it_streams_and_nothing_recompiles(small_checkpoint, tmp_path):
    """Two sessions; a snapshot goes on in another one, picture for picture; what was recorded of
    them is shown again; what is not finite is counted, healed and never shown."""
    image = np.full((32, 32, 3), 90, np.uint8)
    image[8:20, 8:20] = (200, 40, 30)

    async def run():
        config = {"checkpoint": small_checkpoint, "slots": 2, "record": str(tmp_path / "records")}
        async with serving(serve_faults.POISONED, config) as server:
            async with connected(server) as a, connected(server) as b:
                await a.start(seed=3)
                await b.start(seed=4)
                for name, args in (("set_prompt", {"prompt": "make it night"}), ("restart", {})):
                    await a.show(image)
                    await b.show(image)
                    assert (await a.ask("input", name=name, args=args))["ok"]
                for name, argument in (("set_image", "image"), ("set_mask", "mask")):
                    id = (await a.upload(png(image)))["upload_id"]
                    assert (await a.ask("input", name=name, args={argument: id}))["ok"]
                    await a.show(image)
                for name in ("clear_image", "clear_mask"):
                    assert (await a.ask("input", name=name))["ok"]
                    await a.show(image)
                assert (await a.ask("snapshot"))["ok"]
                kind, kept = a.binaries[-1]
                assert kind == protocol.SNAPSHOT
                expected = (await a.show(image))[2]
                await b.socket.send_json({"type": "restore", "id": 99})
                await b.socket.send_bytes(protocol.pack(protocol.SNAPSHOT, kept))
                assert (await b.until("ack", id=99))["ok"]
                np.testing.assert_array_equal((await b.show(image))[2], expected)
                await b.socket.send_json({"type": "restore", "id": 100})
                await b.socket.send_bytes(protocol.pack(protocol.SNAPSHOT, kept[:-50]))
                refused = await b.until("ack", id=100)
                assert refused["code"] == "invalid_args" and "snapshot" in refused["message"]
                await asyncio.sleep(1.2)  # the engine reports once a second
                text = server.metrics.text().decode()
                assert "lsd_recompiles_total 0.0" in text and "lsd_nonfinite_total 0.0" in text
            recorded = list((tmp_path / "records").iterdir())
            found = await serve_faults.nonfinite(server.url, 32, 32)
            for where, one in found.items():
                assert 1 <= one["last_good_shown_again"] == one["counted"] <= 3, where
            return recorded

    for folder in scenario(run(), 120):
        video, report = folder / "shown.mp4", folder / "report.json"
        assert main(["replay", str(folder), "-o", str(video), "--json", str(report)]) == 0
        found = json.loads(report.read_text())
        assert found["equal"] == found["frames"] >= 3 and found["first_difference"] is None
        with VideoSource(video, 32, 32) as source:
            assert len(list(source)) == found["frames"]
