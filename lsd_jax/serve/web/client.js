// A client of /v1/live: one session, over WebRTC or as JPEGs, that comes back when it is lost.
//
// Events (CustomEvent, `detail` in brackets): state [{state, text}], started [manifest],
// track [MediaStream], picture [{bitmap, tsMs}], metrics, output [{name, value}].

const PICTURE = 1, FILE = 2;
const HEADER = 16;
const NEGOTIATION_MS = 5000;
const RETRIES_MS = [500, 1000, 2000, 4000, 8000];

export class InputError extends Error {
  constructor({ code, message }) {
    super(message);
    this.code = code;
  }
}

/** JSON that the server gives, be it a refusal; null where it gives none. */
async function found(path, headers = {}) {
  try {
    return await (await fetch(path, { headers })).json();
  } catch {
    return null;
  }
}

export class LiveClient extends EventTarget {
  constructor({ token = "", media = "webrtc" } = {}) {
    super();
    this.token = token;
    this.media = media;
    this.stream = null;
    this.wanted = false;
    this.retries = 0;
    this.timer = 0;
    this.claim = null;
    this.reset();
  }

  reset() {
    this.socket = null;
    this.peer = null;
    this.live = false;
    this.ids = 0;
    this.asked = new Map();
    this.wants = null;
  }

  emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  tell(state, text) {
    this.emit("state", { state, text });
  }

  /** Opens a session for `stream`, which may be null for models that take no picture. */
  start(stream) {
    this.stream = stream;
    this.wanted = true;
    this.retries = 0;
    clearTimeout(this.timer);
    this.close();
    this.claim = null;
    this.connect();
  }

  /** Ends the session for good. */
  stop(text = "Stopped.") {
    this.wanted = false;
    clearTimeout(this.timer);
    this.close();
    this.tell("idle", text);
  }

  /** Lets go of the connection; unless `hangUp`, the server does when the session is claimed. */
  close(hangUp = true) {
    const { socket, peer, asked } = this;
    this.reset();
    peer?.close();
    if (socket) {
      socket.onclose = socket.onmessage = null;
      if (hangUp) socket.close();
    }
    for (const { reject } of asked.values()) {
      reject(new InputError({ code: "ended", message: "The connection was lost." }));
    }
  }

  connect() {
    this.tell("busy", "Connecting …");
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const query = this.token ? `?api_key=${encodeURIComponent(this.token)}` : "";
    const socket = new WebSocket(`${scheme}://${location.host}/v1/live${query}`);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    let opened = false;
    socket.onopen = () => {
      opened = true;
      if (socket === this.socket) this.begin();
    };
    socket.onmessage = ({ data }) => {
      if (socket !== this.socket) return;
      if (typeof data === "string") this.onText(JSON.parse(data));
      else this.onBinary(data);
    };
    socket.onclose = ({ code }) => {
      if (socket !== this.socket) return;
      if (opened) this.lost(code);
      else this.shut(code);
    };
  }

  /** Asks for the session that was lost, if there was one, or else for a new one. */
  begin() {
    this.send({ type: "start", media: this.media, wait: true, ...this.claim });
  }

  send(message) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  sendBinary(kind, content, seq = 0, tsMs = 0) {
    const message = new Uint8Array(HEADER + content.byteLength);
    const head = new DataView(message.buffer);
    head.setUint8(0, kind);
    head.setUint32(4, seq, true);
    head.setFloat64(8, tsMs, true);
    message.set(new Uint8Array(content), HEADER);
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(message);
  }

  get hasSound() {
    return Boolean(this.manifest?.outputs.some((one) => one.kind === "audio"));
  }

  /** A request's answer; rejects with an InputError whose message is for people. */
  ask(message) {
    if (!this.live) {
      return Promise.reject(new InputError({ code: "ended", message: "Not connected." }));
    }
    const id = ++this.ids;
    this.send({ ...message, id });
    return new Promise((resolve, reject) => this.asked.set(id, { resolve, reject }));
  }

  input(name, args = {}) {
    return this.ask({ type: "input", name, args });
  }

  /** Uploads a Blob and gives its id, to be an argument of an input. */
  async upload(blob, filename = "") {
    const content = await blob.arrayBuffer();
    const answer = this.ask({ type: "upload", mime_type: blob.type, filename });
    this.sendBinary(FILE, content);
    return (await answer).upload_id;
  }

  onText(message) {
    switch (message.type) {
      case "started": return this.started(message);
      case "queue_position":
        return this.tell("busy", message.loading ? "The model is loading. It begins by itself."
          : `All places are taken. You are number ${message.position} of ` +
            `${message.queue_size} in the queue.`);
      case "ack": {
        const waiting = this.asked.get(message.id);
        this.asked.delete(message.id);
        if (message.ok) waiting?.resolve(message);
        else waiting?.reject(new InputError(message));
        return;
      }
      case "answer":
        return this.peer?.setRemoteDescription({ type: "answer", sdp: message.sdp });
      case "want": return this.wants?.();
      case "metrics": return this.emit("metrics", message);
      case "output": return this.emit("output", message);
      case "ended":
        this.reason = message.reason;
        this.claim = null;
        if (/time is over/.test(message.reason)) this.wanted = false;
        return;
      case "error": return this.failed(message);
    }
  }

  failed({ code, message }) {
    if (code === "bad_offer") return this.fallBack();
    if (code === "unknown_session" && this.claim) {
      this.close();
      this.claim = null;
      return this.connect();
    }
    this.wanted = false;
    const full = "All places are taken, and so is the queue. Try again in a minute.";
    this.close();
    this.tell("bad", code === "full" ? full : `The server refused: ${message}.`);
  }

  async started({ manifest, media, session_id, secret, reclaimed, paused }) {
    this.live = true;
    this.claim = { session: session_id, secret };
    this.reclaimed = reclaimed;
    this.paused = paused;
    this.retries = 0;
    this.manifest = manifest;
    this.emit("started", manifest);
    if (media === "webrtc") await this.negotiate();
    else this.tell("live", "Live.");
  }

  /** What /v1/ice-servers says, which takes whom /v1/live takes; null where nothing answers. */
  iceServers() {
    return found("/v1/ice-servers", this.token ? { Authorization: `Bearer ${this.token}` } : {});
  }

  async negotiate() {
    const { socket } = this;
    const { iceServers = [] } = await this.iceServers() ?? {};
    if (socket !== this.socket) return;
    const peer = this.peer = new RTCPeerConnection({ iceServers });
    const track = this.stream?.getVideoTracks()[0];
    if (track) {
      track.contentHint = "motion";
      peer.addTransceiver(track, { direction: "sendrecv", streams: [this.stream] });
    } else {
      peer.addTransceiver("video", { direction: "recvonly" });
    }
    if (this.hasSound) peer.addTransceiver("audio", { direction: "recvonly" });
    const got = new MediaStream();
    peer.ontrack = ({ receiver, track: one }) => {
      got.addTrack(one);
      if (one.kind !== "video") return;
      if ("jitterBufferTarget" in receiver) receiver.jitterBufferTarget = 0;
      this.emit("track", got);
    };
    peer.onicecandidate = ({ candidate }) => {
      if (socket === this.socket) this.send({ type: "candidate", candidate: candidate ? candidate.toJSON() : null });
    };
    const connected = new Promise((resolve) => {
      peer.onconnectionstatechange = () => {
        if (peer.connectionState === "connected") resolve(true);
        if (peer.connectionState === "failed") resolve(false);
      };
      setTimeout(() => resolve(peer.connectionState === "connected"), NEGOTIATION_MS);
    });
    await peer.setLocalDescription();
    if (socket !== this.socket) return;
    this.send({ type: "offer", sdp: peer.localDescription.sdp });
    const ok = await connected;
    if (peer !== this.peer) return;
    if (ok) this.tell("live", "Live.");
    else this.fallBack();
  }

  /** Where UDP does not pass: the same session over the WebSocket. */
  fallBack() {
    this.media = "jpeg";
    this.close(false);
    this.connect();
  }

  async onBinary(data) {
    const head = new DataView(data);
    if (head.getUint8(0) !== PICTURE) return;
    const seq = head.getUint32(4, true), tsMs = head.getFloat64(8, true);
    const { socket } = this;
    try {
      const picture = new Blob([data.slice(HEADER)], { type: "image/jpeg" });
      const bitmap = await createImageBitmap(picture);
      if (socket === this.socket) this.emit("picture", { bitmap, tsMs });
    } finally {
      if (socket === this.socket) this.send({ type: "shown", seq });
    }
  }

  /** Sends pictures of `video` as JPEGs, each when the server wants one. Gives what stops it. */
  sendPictures(video) {
    const canvas = document.createElement("canvas");
    const size = this.manifest.video_inputs[0];
    let going = true, waiting = true, timer = 0;
    const send = async () => {
      clearTimeout(timer);
      if (!going || !waiting) return;
      if (video.readyState < 2) {
        timer = setTimeout(send, 30);
        return;
      }
      waiting = false;
      const tsMs = performance.now();
      canvas.width = size.width;
      canvas.height = size.height;
      canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
      const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.9));
      if (going && blob) this.sendBinary(PICTURE, await blob.arrayBuffer(), 0, tsMs);
    };
    this.wants = () => { waiting = true; timer = setTimeout(send, 0); };
    send();
    return () => { going = false; clearTimeout(timer); };
  }

  /** No socket: the browser does not say why, but another request is told. */
  async shut(code) {
    const { socket } = this;
    const { error } = await this.iceServers() ?? {};
    if (socket !== this.socket) return;
    if (!error) this.lost(code);
    else if (/slow down|try again/.test(error.message)) this.again(`The server says: ${error.message}.`);
    else this.failed(error);
  }

  lost(code) {
    const reason = this.reason ?? "";
    this.reason = "";
    this.close();
    if (!this.wanted) {
      this.tell("bad", /time is over/.test(reason) ? "Your time is over." : "The session ended.");
      return;
    }
    const why = reason.startsWith("engine_lost") ? "The model was lost" : "The connection was lost";
    this.again(`${why} (${code}).`);
  }

  again(why) {
    this.close();
    if (this.retries >= RETRIES_MS.length) {
      this.wanted = false;
      this.tell("bad", "The server cannot be reached. Choose a source to try again.");
      return;
    }
    this.tell("busy", `${why} Connecting again; your prompt is kept.`);
    this.timer = setTimeout(() => this.connect(), RETRIES_MS[this.retries++]);
  }
}
