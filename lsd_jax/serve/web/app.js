// The page: wires the controls to a live session and shows what comes of it.

import { bindKeys, keyHelp, keyLabel } from "/web/bindings.js";
import { LiveClient } from "/web/client.js";
import * as sources from "/web/sources.js";

const EXAMPLES = ["make it night", "film noir", "make it snow", "oil painting", "thermal camera",
  "make it a pencil sketch", "sunset", "colour negative"];
const TYPING_MS = 600, TAP_MS = 200;
const $ = (id) => document.getElementById(id);
const token = new URLSearchParams(location.hash.slice(1)).get("token") ?? "";
const params = new URLSearchParams(location.search);
const client = new LiveClient({ token, media: params.get("media") ?? "webrtc" });
const kept = { prompt: "", reference: null, mask: null };
const shown = { times: [], latency: NaN, frames: 0 };
let stream = null, stopSending = () => {}, keys = { stop() {} }, recorder = null, painting = null;

function status(state, text) {
  $("status").dataset.state = state;
  $("status").textContent = text;
  $("notice").hidden = !(state === "bad" || (state === "busy" && client.wanted));
  $("notice").textContent = text;
  const live = state === "live";
  for (const id of ["pause", "full", "record"]) $(id).disabled = !live;
  $("brush").disabled = !live;
  $("compare").disabled = !(live && stream);
  $("stop").disabled = !client.wanted;
}

// ---- sources

async function choose(name, blob) {
  try {
    const next = await (name === "file" ? sources.file(blob) : sources[name]());
    stream?.getTracks().forEach((track) => track.stop());
    stream = next;
  } catch (error) {
    if (client.live) note(error.message, true);  // the source before goes on
    else status("bad", error.message);
    return;
  }
  for (const button of document.querySelectorAll("[data-source]")) {
    button.setAttribute("aria-pressed", button.dataset.source === name);
  }
  stream.getVideoTracks()[0].onended = () => stop("The source has ended.");
  $("before").srcObject = stream;
  client.start(stream);
}

function stop(text) {
  client.stop(text);
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  $("before").srcObject = $("video").srcObject = null;
}

for (const button of document.querySelectorAll("[data-source]")) {
  const name = button.dataset.source;
  button.onclick = () => (name === "file" ? $("file").click() : choose(name));
}
$("file").onchange = ({ target }) => {
  if (target.files[0]) choose("file", target.files[0]);
  target.value = "";
};
$("start").onclick = () => client.start(null);
$("stop").onclick = () => stop("Stopped.");

// ---- what comes back

client.addEventListener("state", ({ detail }) => {
  if (detail.state !== "live") stopSending();
  status(detail.state, detail.text);
});

client.addEventListener("started", ({ detail: manifest }) => {
  describe(manifest);
  $("media").textContent = client.media === "webrtc" ? "WebRTC" : "WebSocket";
  $("canvas").hidden = client.media === "webrtc";
  $("video").hidden = client.media !== "webrtc";
  $("sound").hidden = !(client.hasSound && client.media === "webrtc");
  if (client.media === "jpeg" && stream) stopSending = client.sendPictures($("before"));
  showPaused(client.paused);
  catchUp();
});

client.addEventListener("track", ({ detail }) => {
  $("video").srcObject = detail;
  count($("video"));
});

client.addEventListener("picture", ({ detail: { bitmap, tsMs } }) => {
  const canvas = $("canvas");
  if (canvas.width !== bitmap.width) canvas.width = bitmap.width;
  if (canvas.height !== bitmap.height) canvas.height = bitmap.height;
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  bitmap.close();
  frame(performance.now());
  if (stream) shown.latency = performance.now() - tsMs;
});

function count(video) {
  const next = (now) => {
    frame(now);
    if (video.srcObject) video.requestVideoFrameCallback?.(next);
  };
  video.requestVideoFrameCallback?.(next);
}

function frame(now) {
  shown.frames += 1;
  shown.times.push(now);
  if (shown.times.length > 31) shown.times.shift();
  document.body.dataset.frames = shown.frames;
}

const LATENCY = {
  estimated: "One round trip, the server's own time and what waits in this browser's decoder, added up. " +
    "The camera, this browser's encoder and the screen are not in it: it is not glass to glass.",
  measured: "From a picture drawn here to its return. The camera and the screen are not in it.",
};
const ms = (value) => (Number.isFinite(value) ? `${value.toFixed(0)} ms` : "–");

client.addEventListener("metrics", async ({ detail }) => {
  const { times } = shown;
  const fps = (1000 * (times.length - 1)) / (times.at(-1) - times[0]);
  $("fps").textContent = times.length > 1 ? fps.toFixed(1) : "–";
  if (client.peer && stream) shown.latency = await estimate(detail.age_ms_p50);
  $("latency").textContent = stream ? ms(shown.latency) : "–";
  const kind = client.peer ? "estimated" : "measured";
  $("latency-kind").textContent = `latency, ${kind}`;
  $("latency-kind").parentElement.title = LATENCY[kind];
  $("step").textContent = detail.inference_ms_p50 == null ? "–"
    : `${detail.inference_ms_p50.toFixed(0)} / ${ms(detail.inference_ms_p99)}`;
  $("dropped").textContent = detail.dropped;
  $("queue").textContent = detail.queue;
  $("size").textContent = detail.input_size ? detail.input_size.join("×") : "–";
});

/** Of a WebRTC frame: one round trip, the server's own time, and what waits in our decoder. */
async function estimate(serverMs) {
  let trip = NaN, buffered = 0;
  for (const one of (await client.peer?.getStats())?.values() ?? []) {
    if (one.type === "candidate-pair" && one.nominated) trip = 1000 * one.currentRoundTripTime;
    if (one.type === "inbound-rtp" && one.framesDecoded) {
      const perFrame = one.jitterBufferDelay / one.jitterBufferEmittedCount;
      buffered = 1000 * (perFrame + one.totalDecodeTime / one.framesDecoded);
    }
  }
  return trip + buffered + (serverMs ?? NaN);
}

// ---- what the model takes

function describe(manifest) {
  const inputs = new Map(manifest.inputs.map((one) => [one.name, one]));
  $("model").textContent = manifest.model.name;
  $("model").title = manifest.model.description;
  $("prompt-form").hidden = !inputs.has("set_prompt");
  $("reference").hidden = !inputs.has("set_image");
  $("brush").hidden = !inputs.has("set_mask");
  const watches = manifest.video_inputs.length > 0;
  $("sources").hidden = !watches;
  $("start").hidden = watches;
  const picture = manifest.outputs.find((one) => one.kind === "video");
  if (!watches && picture) shape(picture.width, picture.height);
  const help = keyHelp(manifest);
  $("keys").hidden = help.length === 0;
  keys.stop();
  keys = bindKeys(manifest, $("view"), (name, args) => {
    client.input(name, args).catch((error) => note(error.message, true));
  });
  $("key-list").replaceChildren(...help.map(({ codes, others, words }) => {
    const item = document.createElement("li");
    item.append(...codes.map((code) => keyButton(code, words, keys.press)),
      ...others.map((one) => Object.assign(document.createElement("kbd"), { textContent: one })), words);
    return item;
  }));
}

/** A key for those without a keyboard: down while it is touched. */
function keyButton(code, words, press) {
  const button = Object.assign(document.createElement("button"),
    { type: "button", textContent: keyLabel(code), ariaLabel: `${words}: ${keyLabel(code)}` });
  button.onpointerdown = (event) => {
    button.setPointerCapture(event.pointerId);
    press(code, true);
  };
  button.onlostpointercapture = () => press(code, false);
  button.oncontextmenu = (event) => event.preventDefault();  // of a long touch
  button.onclick = ({ detail }) => {
    if (detail) return;  // a pointer's; the others come from a keyboard or a screen reader
    press(code, true);
    setTimeout(() => press(code, false), TAP_MS);
  };
  return button;
}

function shape(width, height) {
  $("view").style.setProperty("--ratio", width / height);
}

$("before").onresize = () => {
  const { videoWidth, videoHeight } = $("before");
  if (videoWidth) shape(videoWidth, videoHeight);
};

const untold = new Set();  // what was chosen while nobody listened

/** How the session is told each of what is kept. */
const telling = {
  async reference() {
    if (!kept.reference) return client.input("clear_image");
    const id = await client.upload(kept.reference, "reference");
    await client.input("set_image", { image: id });
  },
  async prompt() {
    const { prompt } = kept;
    await client.input("set_prompt", { prompt });
    note(`Applied: ${prompt}`);
  },
  async mask() {
    if (!kept.mask) return client.input("clear_mask");
    const id = await client.upload(kept.mask, "mask");
    await client.input("set_mask", { mask: id });
  },
};

/** Tells the session of a choice, or the next one if this is lost. False where it was refused. */
async function tell(what) {
  untold.add(what);
  if (!client.live) return true;
  try {
    await telling[what]();
  } catch (error) {
    if (error.code === "ended") return true;
    note(error.message, true);
    untold.delete(what);
    return false;
  }
  untold.delete(what);
  return true;
}

/** After a reconnection: all that was asked for, or what the same session has missed. */
async function catchUp() {
  for (const what of Object.keys(telling)) {
    if (untold.has(what) || (kept[what] && !client.reclaimed)) await tell(what);
  }
}

function note(text, bad = false) {
  $("note").textContent = text;
  $("note").classList.toggle("bad", bad);
}

let typing = 0;
async function applyPrompt(text) {
  clearTimeout(typing);
  text = text.trim();
  if (!text) return;
  kept.prompt = text;
  await tell("prompt");
}

function remember(text) {
  const past = JSON.parse(localStorage.getItem("prompts") ?? "[]").filter((one) => one !== text);
  const all = text ? [text, ...past].slice(0, 20) : past;
  localStorage.setItem("prompts", JSON.stringify(all));
  $("history").replaceChildren(...all.map((value) => new Option(value, value)));
}

$("prompt").oninput = ({ target }) => {
  clearTimeout(typing);
  typing = setTimeout(() => applyPrompt(target.value), TYPING_MS);
};
$("prompt").onchange = ({ target }) => remember(target.value.trim());  // not each pause in typing
$("prompt-form").onsubmit = (event) => {
  event.preventDefault();
  const text = $("prompt").value.trim();
  if (!text) return note("Say what to do, for example: make it night.", true);
  remember(text);
  return applyPrompt(text);
};
$("examples").append(...EXAMPLES.map((text) => {
  const button = Object.assign(document.createElement("button"), { type: "button" });
  button.textContent = text;
  button.onclick = () => {
    $("prompt").value = text;
    remember(text);
    applyPrompt(text);
  };
  return button;
}));

const Recognition = window.SpeechRecognition ?? window.webkitSpeechRecognition;
if (Recognition) {
  $("voice").hidden = false;
  $("voice").onclick = () => {
    const listener = new Recognition();
    listener.onresult = ({ results }) => {
      $("prompt").value = results[0][0].transcript.trim();
      remember($("prompt").value);
      applyPrompt($("prompt").value);
    };
    listener.onerror = ({ error }) => note(`Nothing was understood (${error}).`, true);
    note("Listening …");
    listener.start();
  };
}

// ---- reference picture

async function takeReference(blob) {
  if (!blob?.type.startsWith("image/")) return note("That is no picture.", true);
  try {
    const bitmap = await createImageBitmap(blob);
    const scale = Math.min(1, 1024 / Math.max(bitmap.width, bitmap.height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    kept.reference = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
    $("thumb").src = URL.createObjectURL(kept.reference);
    $("thumb").hidden = $("remove").hidden = false;
    $("drop-text").textContent = "Prompts can now say: use the reference as the background";
    if (await tell("reference")) note("The reference picture is set.");
  } catch (error) {
    note(error.name === "InvalidStateError" ? "That picture is damaged." : error.message, true);
  }
}

const drop = $("drop");
drop.onclick = () => $("picture").click();
drop.onkeydown = (event) => {
  if (event.key !== "Enter" && event.key !== " ") return;
  event.preventDefault();
  $("picture").click();
};
drop.ondragover = () => drop.classList.add("over");
drop.ondragleave = () => drop.classList.remove("over");
/** Files anywhere on the page, which the browser would open in its place. */
window.ondragover = (event) => { if (event.dataTransfer.types.includes("Files")) event.preventDefault(); };
window.ondrop = (event) => {
  drop.classList.remove("over");
  const [dropped] = event.dataTransfer.files;
  if (!dropped) return;
  event.preventDefault();
  const isPicture = dropped.type.startsWith("image/");
  if (drop.contains(event.target) || (isPicture && !$("reference").hidden)) takeReference(dropped);
  else if (!$("sources").hidden) choose("file", dropped);
  else note("This model takes no file.", true);
};
document.onpaste = (event) => {
  const picture = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (picture) takeReference(picture);
};
$("picture").onchange = ({ target }) => { takeReference(target.files[0]); target.value = ""; };
$("remove").onclick = async () => {
  kept.reference = null;
  $("thumb").hidden = $("remove").hidden = true;
  $("drop-text").textContent = "Drop, paste or choose a picture";
  await tell("reference");
};

// ---- region brush

function brushAt({ offsetX, offsetY }) {
  const canvas = $("mask"), context = canvas.getContext("2d");
  const x = (offsetX / canvas.clientWidth) * canvas.width;
  const y = (offsetY / canvas.clientHeight) * canvas.height;
  Object.assign(context, { strokeStyle: "#fff", lineCap: "round", lineWidth: canvas.width / 8 });
  context.beginPath();
  context.moveTo(...(painting ?? [x, y]));  // without gaps, however fast
  context.lineTo(x, y);
  context.stroke();
  painting = [x, y];
}

$("brush").onclick = async () => {
  const canvas = $("mask");
  const on = canvas.hidden;
  canvas.hidden = !on;
  pressed("brush", on);
  if (on) {
    const { width, height } = client.manifest.video_inputs[0];
    Object.assign(canvas, { width, height });
    note("Paint where to edit. Press Brush again for the whole picture.");
  } else {
    kept.mask = null;
    if (await tell("mask")) note("The whole picture is edited.");
  }
};
$("mask").onpointerdown = (event) => {
  event.target.setPointerCapture(event.pointerId);
  brushAt(event);
};
$("mask").onpointermove = (event) => { if (painting) brushAt(event); };
$("mask").onpointerup = async ({ target }) => {
  painting = null;
  const opaque = document.createElement("canvas");
  Object.assign(opaque, { width: target.width, height: target.height });
  const context = opaque.getContext("2d");
  context.fillRect(0, 0, opaque.width, opaque.height);
  context.drawImage(target, 0, 0);
  kept.mask = await new Promise((done) => opaque.toBlob(done, "image/png"));
  await tell("mask");
};

// ---- stream controls

function pressed(id, on) {
  $(id).setAttribute("aria-pressed", on);
  return on;
}
const isPressed = (id) => $(id).getAttribute("aria-pressed") === "true";

function showPaused(on) {
  pressed("pause", on);
  $("pause").textContent = on ? "Resume" : "Pause";
}
$("pause").onclick = async () => {
  const on = !isPressed("pause");
  try {
    await client.ask({ type: on ? "pause" : "resume" });
    showPaused(on);
  } catch (error) {
    note(error.message, true);
  }
};

function split() {
  const on = isPressed("compare");
  const at = on ? $("split").value : 0;
  $("after").style.clipPath = `inset(0 0 0 ${at}%)`;
  $("divider").style.left = `${at}%`;
  $("divider").hidden = $("split-label").hidden = !on;
}
$("compare").onclick = () => { pressed("compare", !isPressed("compare")); split(); };
$("split").oninput = split;
$("sound").onclick = () => { $("video").muted = !pressed("sound", $("video").muted); };
$("full").onclick = () => {
  if (document.fullscreenElement) return document.exitFullscreen();
  if (!$("view").requestFullscreen) return note("This browser shows only videos in full screen.", true);
  return $("view").requestFullscreen().catch((error) => note(error.message, true));
};

$("record").onclick = () => {
  if (recorder) return recorder.stop();
  const taken = client.peer ? $("video").srcObject : $("canvas").captureStream(30);
  const kinds = ["video/mp4", "video/webm"].filter((one) => MediaRecorder.isTypeSupported(one));
  const parts = [];
  recorder = new MediaRecorder(taken, { mimeType: kinds[0] });
  recorder.ondataavailable = ({ data }) => parts.push(data);
  recorder.onstop = () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(parts, { type: kinds[0] }));
    link.download = `lsd.${kinds[0].split("/")[1]}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    recorder = null;
    pressed("record", false);
    $("record").textContent = "Record";
  };
  recorder.start(1000);
  pressed("record", true);
  $("record").textContent = "Save";
  return undefined;
};

const SHORTCUTS = { Space: "pause", KeyS: "compare", KeyF: "full", KeyR: "record" };
window.addEventListener("keydown", (event) => {  // after the model's own keys
  const { target, code } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (/^(INPUT|TEXTAREA)$/.test(target.tagName)) return;
  const isButton = /^(BUTTON|SUMMARY)$/.test(target.tagName) || target.role === "button";
  if (isButton && code === "Space") return;  // presses that button
  if (event.key === "/") {
    event.preventDefault();
    $("prompt").focus();
  } else if (SHORTCUTS[code] && !$(SHORTCUTS[code]).disabled) {
    event.preventDefault();
    $(SHORTCUTS[code]).click();
  }
});

// ---- begin

remember("");
try {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const { models } = await (await fetch("/models", { headers })).json();
  if (models[0]) describe(models[0]);
  else status("busy", "The model is loading; a source can be chosen already.");
  if (models[0]?.video_inputs.length === 0) status("idle", "Press Start.");
} catch {
  status("bad", "The server cannot be reached.");
}
