// Where the picture comes from: each gives a MediaStream, or an Error with words for people.

const FPS = 30;

export async function camera() {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Error("This page may not use a camera. Open it as https or on localhost.");
  }
  try {
    return await navigator.mediaDevices.getUserMedia({
      video: { width: { ideal: 1280 }, height: { ideal: 720 }, frameRate: { ideal: FPS } },
    });
  } catch (error) {
    const words = {
      NotAllowedError: "The browser may not use the camera. Allow it beside the address.",
      NotFoundError: "No camera was found. Plug one in, or choose another source.",
      NotReadableError: "The camera is in use by another program. Close that one.",
    };
    throw new Error(words[error.name] ?? `The camera does not start: ${error.message}`);
  }
}

export async function screen() {
  if (!navigator.mediaDevices?.getDisplayMedia) {
    throw new Error("This browser cannot share its screen. Choose another source.");
  }
  try {
    return await navigator.mediaDevices.getDisplayMedia({ video: { frameRate: FPS } });
  } catch (error) {
    throw new Error(error.name === "NotAllowedError"
      ? "No screen was chosen. Choose one, or another source."
      : `The screen cannot be shared: ${error.message}`);
  }
}

/** A video, over and over, or a picture that stands still. */
export async function file(blob) {
  const url = URL.createObjectURL(blob);
  const element = document.createElement(blob.type.startsWith("image/") ? "img" : "video");
  const ready = new Promise((resolve, reject) => {
    element.onload = element.onloadeddata = resolve;
    element.onerror = () => reject(new Error("This file does not play here. Choose another."));
  });
  if (element instanceof HTMLVideoElement) {
    Object.assign(element, { muted: true, loop: true, playsInline: true });
  }
  element.src = url;
  try {
    await ready;
    await element.play?.();
  } catch (error) {
    URL.revokeObjectURL(url);
    throw error;
  }
  const width = element.videoWidth || element.naturalWidth;
  const height = element.videoHeight || element.naturalHeight;
  return drawn(Math.min(width, 1280), Math.round(height * Math.min(1, 1280 / width)),
    (context, w, h) => context.drawImage(element, 0, 0, w, h),
    () => { element.pause?.(); URL.revokeObjectURL(url); });
}

/** A small landscape in motion, for those without a camera. */
export async function scene() {
  return drawn(640, 360, paintScene);
}

function paintScene(context, width, height, seconds) {
  const sky = context.createLinearGradient(0, 0, 0, height);
  sky.addColorStop(0, "#4f8fd8");
  sky.addColorStop(1, "#d8ecfa");
  context.fillStyle = sky;
  context.fillRect(0, 0, width, height);
  context.fillStyle = "#ffd34d";
  disc(context, width * (0.75 + 0.08 * Math.sin(seconds / 5)), height * 0.22, 34);
  for (const [base, colour, speed] of [[0.62, "#6f9a5a", 9], [0.74, "#4d7f45", 22]]) {
    context.fillStyle = colour;
    context.beginPath();
    context.moveTo(0, height);
    for (let x = 0; x <= width; x += 8) {
      const u = (x + seconds * speed) / 90;
      context.lineTo(x, height * base + 22 * Math.sin(u) + 9 * Math.sin(2.3 * u));
    }
    context.lineTo(width, height);
    context.fill();
  }
  context.fillStyle = "#c8432f";
  disc(context, width * (0.5 + 0.36 * Math.sin(seconds * 0.8)), height * 0.74, 38);
  context.fillStyle = "#2f56c8";
  const x = width * (0.5 + 0.3 * Math.cos(seconds * 0.6));
  const y = height * (0.5 + 0.12 * Math.sin(seconds * 1.3));
  context.fillRect(x - 30, y - 30, 60, 60);
}

function disc(context, x, y, radius) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fill();
}

function drawn(width, height, paint, release = () => {}) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  const started = performance.now();
  const tick = () => paint(context, width, height, (performance.now() - started) / 1000);
  tick();
  const stream = canvas.captureStream(FPS);
  const timer = setInterval(tick, 1000 / FPS);
  const track = stream.getVideoTracks()[0];
  const stop = track.stop.bind(track);
  track.stop = () => { clearInterval(timer); release(); stop(); };
  return stream;
}
