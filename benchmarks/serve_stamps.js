// Evaluated in the page of `lsd serve`: sends pictures that bear the time in their pixels, over WebRTC,
// and reads it from those that come back. 24 bits of milliseconds and 8 of a checksum, in 16 x 2 cells.
async ([seconds, width, height]) => {
  const { LiveClient } = await import("/web/client.js");
  const CELLS = [16, 2];
  const cell = { w: width / CELLS[0], h: height / 4 };
  const check = (bits) => ((bits ^ (bits >> 8) ^ (bits >> 16)) & 255) ^ 0xa5;
  const made = Object.assign(document.createElement("canvas"), { width, height });
  const draw = made.getContext("2d");
  const stamp = () => {
    const time = Math.floor(performance.now()) & 0xffffff;
    const bits = [...Array(24).keys()].map((i) => (time >> i) & 1)
      .concat([...Array(8).keys()].map((i) => (check(time) >> i) & 1));
    draw.fillStyle = `hsl(${performance.now() / 20} 60% 50%)`;
    draw.fillRect(0, 0, width, height);
    bits.forEach((bit, i) => {
      draw.fillStyle = bit ? "#fff" : "#000";
      draw.fillRect((i % 16) * cell.w, (i >> 4) * cell.h, cell.w, cell.h);
    });
  };
  stamp();
  const timer = setInterval(stamp, 1000 / 30);
  const video = Object.assign(document.createElement("video"), { muted: true, autoplay: true });
  const seen = Object.assign(document.createElement("canvas"), { width: 64, height: 16 });
  const look = seen.getContext("2d", { willReadFrequently: true });
  const found = { latency_ms: [], frames: 0, unreadable: 0, first_frame_ms: null, step_ms: null };
  const began = performance.now();
  const read = () => {
    const now = performance.now();
    if (found.first_frame_ms === null) found.first_frame_ms = now - began;
    look.drawImage(video, 0, 0, 64, 16);
    const pixels = look.getImageData(0, 0, 64, 8).data;
    const bit = (i) => Number(pixels[4 * (64 * (2 + 4 * (i >> 4)) + 4 * (i % 16) + 2) + 1] > 127);
    let time = 0, sum = 0;
    for (let i = 0; i < 24; i++) time |= bit(i) << i;
    for (let i = 0; i < 8; i++) sum |= bit(24 + i) << i;
    if (now - began > 2000) {
      found.frames += 1;
      if (sum === check(time)) found.latency_ms.push(now - time);
      else found.unreadable += 1;
    }
    video.requestVideoFrameCallback(read);
  };
  const client = new LiveClient({ media: "webrtc" });
  client.addEventListener("track", ({ detail }) => {
    video.srcObject = detail;
    video.requestVideoFrameCallback(read);
  });
  client.addEventListener("metrics", ({ detail: { inference_ms_p50: p50, inference_ms_p99: p99 } }) => {
    if (p50 != null) found.step_ms = { p50, p99 };  // of the model's last steps
  });
  client.start(made.captureStream(30));
  await new Promise((done) => setTimeout(done, 2000 + 1000 * seconds));
  client.stop();
  clearInterval(timer);
  return found;
};
