"use strict";
// The page of `lipcast serve`. The protocol is described in docs/live-protocol.md.

const $ = (id) => document.getElementById(id);
const FPS = 25;
const BLOCK = 12;
const RETRIES_S = [1, 2, 4];
const SAVED = "lipcast-settings";

function say(text, kind = "wait") {
  if ($("state").textContent !== text) $("state").textContent = text;
  $("state").dataset.kind = kind;
}

// ---- The player: fragments go into a MediaSource; what an interruption makes useless is thrown away.

class Player {
  constructor(video) {
    this.video = video;
    this.queue = [];
    this.cutTo = null;
    this.onPicture = () => {};
    setInterval(() => this.keepUp(), 100);
  }

  open(mime) {
    const Source = window.ManagedMediaSource ?? window.MediaSource;
    if (!Source || !Source.isTypeSupported(mime)) {
      throw new Error("This browser cannot play live streams (Media Source Extensions with H.264 and AAC).");
    }
    this.queue = [];
    this.buffer = null;
    this.cutTo = null;
    this.isFirst = true;
    this.ignoring = false;
    const source = (this.source = new Source());
    this.video.disableRemotePlayback = true;
    this.video.muted = false;
    this.video.src = URL.createObjectURL(source);
    source.addEventListener("sourceopen", () => {
      if (source !== this.source) return;
      this.buffer = source.addSourceBuffer(mime);
      this.buffer.addEventListener("updateend", () => this.next());
      this.next();
    }, { once: true });
  }

  append(data) {
    if (!this.ignoring) this.queue.push(() => this.buffer.appendBuffer(data));
    this.next();
  }

  next() {
    if (!this.buffer || this.buffer.updating || this.source.readyState !== "open") return;
    this.jump();
    const step = this.queue.shift();
    if (!step) return;
    try { step(); } catch (error) {
      if (error.name !== "QuotaExceededError") throw error;
      this.queue.unshift(step);
      this.forget(2);
    }
  }

  // Play from a time as soon as it is there.
  cut(time) {
    this.ignoring = false;
    this.cutTo = time;
  }

  // Be silent at once; nothing that was sent so far is played any more.
  interrupt() {
    this.video.muted = true;
    this.ignoring = true;
    this.queue = [() => this.buffer.remove(this.video.currentTime + 0.05, Infinity)];
    this.next();
  }

  jump() {
    const ranges = this.video.buffered;
    if (!ranges.length) return;
    const end = ranges.end(ranges.length - 1);
    if (this.cutTo !== null && end > this.cutTo + 0.1) {
      this.video.currentTime = this.cutTo + 0.001;
      this.video.muted = false;
      this.cutTo = null;
    }
    if (this.isFirst && end > 0.1) {
      this.isFirst = false;
      this.video.play().catch(() => say("Press any button: the browser waits for one before it plays sound."));
      if (this.video.requestVideoFrameCallback) this.video.requestVideoFrameCallback(() => this.onPicture());
      else this.video.addEventListener("playing", () => this.onPicture(), { once: true });
    }
  }

  get ahead() {
    const ranges = this.video.buffered;
    return ranges.length ? Math.max(0, ranges.end(ranges.length - 1) - this.video.currentTime) : 0;
  }

  // Stay near the newest picture, and step over gaps.
  keepUp() {
    const { video } = this;
    const ranges = video.buffered;
    if (!this.buffer || !ranges.length || this.isFirst) return;
    const start = ranges.start(ranges.length - 1);
    if (video.currentTime < start) video.currentTime = start + 0.001;
    else if (this.ahead > 4) video.currentTime = ranges.end(ranges.length - 1) - 1;
    else video.playbackRate = this.ahead > 1.8 ? 1.05 : 1;
    if (video.currentTime > 40 && ranges.start(0) < video.currentTime - 30) this.forget(10);
  }

  forget(seconds) {
    if (this.buffer && !this.buffer.updating && this.video.currentTime > seconds) {
      this.buffer.remove(0, this.video.currentTime - seconds);
    }
  }

  close() {
    this.queue = [];
    this.buffer = null;
    this.source = null;
    this.video.removeAttribute("src");
    this.video.load();
  }
}

// ---- The session: opened over HTTP, then a WebSocket, which is opened again after 1, 2 and 4 seconds.

async function request(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error(`The server at ${location.host} does not answer. Is "lipcast serve" still running, and its port open?`);
  }
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => ({}));
  const error = new Error(problem.error?.message ?? `The server answered ${answer.status}.`);
  error.status = answer.status;
  error.retry = Number(answer.headers.get("Retry-After")) || 0;
  throw error;
}

const ENDINGS = {
  idle: "The session was closed because nothing was said for a while.",
  "time limit": "The session has reached the server's time limit.",
  shutdown: "The server is shutting down.",
  replaced: "The session was opened in another window.",
  error: "The session has failed on the server; its log says why.",
  ended: "The session has ended.",
};

class Session {
  constructor(player, tracks) {
    this.fragments = this.player = player;
    this.tracks = tracks;
    this.key = null;
    this.socket = null;
    this.server = {};
    this.tries = 0;
    this.format = "";
    this.recorded = null;
    this.asked = 0;
  }

  // Over WebRTC the microphone is a track, in which the server finds the utterances.
  get hasTrack() { return Boolean(this.track) && this.player === this.tracks; }

  listen(track) {
    this.track = track;
    this.socket?.listen?.(track);
  }

  get isOpen() { return this.socket?.readyState === WebSocket.OPEN; }

  async start(settings) {
    if (this.isOpen) return;
    this.asked = performance.now();
    say("Opening a session.");
    const answer = await request("api/sessions", {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(settings),
    });
    this.key = (await answer.json()).session;
    localStorage.setItem(SAVED, JSON.stringify(settings));
    await this.connect();
  }

  connect() {
    const socket = (this.socket = this.open());
    this.format = "";
    return new Promise((resolve) => {
      socket.onopen = () => { this.tries = 0; show(); resolve(true); };
      socket.onmessage = (event) => this.receive(event.data);
      socket.onclose = (event) => { this.lost(event); resolve(false); };
    });
  }

  open() {
    const kind = $("transport").value;
    this.player = kind === "websocket" ? this.fragments : this.tracks;
    if (kind !== "websocket") {
      const address = `api/sessions/${this.key}/webrtc`;
      return new PeerSocket(address, { player: this.tracks, track: this.track, relayOnly: kind === "relay" });
    }
    const address = new URL(`api/sessions/${this.key}/stream`, location.href);
    address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    address.search = "";
    const socket = new WebSocket(address);
    socket.binaryType = "arraybuffer";
    return socket;
  }

  receive(data) {
    if (data instanceof ArrayBuffer) {
      if (this.recorded) this.recorded.parts.push(data);
      if (!this.first) this.first = data;
      this.player.append(data);
      return;
    }
    const message = JSON.parse(data);
    if (message.type === "stream") {
      this.first = null;
      this.epoch = message.epoch;
      this.player.onPicture = () => {
        $("n-first").textContent = `${((performance.now() - this.asked) / 1000).toFixed(2)} s`;
        $("video").hidden = false;
      };
      try { this.player.open(message.mime); } catch (error) { say(error.message, "bad"); this.end(); }
    } else if (message.type === "cut") {
      if (message.epoch >= this.epoch) this.player.cut(message.time_s);
      this.epoch = Math.max(this.epoch, message.epoch);
    } else if (message.type === "key" && this.wantsRecord) {
      this.wantsRecord = false;
      this.recorded = { parts: [this.first] };
      show();
    } else if (message.type === "state") {
      this.server = message;
      showNumbers(message);
    } else if (message.type === "error") {
      say(message.message, "bad");
      talk.receive(message);
    } else if (message.type === "closed") {
      this.reason = message.reason;
    } else {
      talk.receive(message);
    }
  }

  lost(event) {
    this.socket = null;
    const cannot = event.code === 4400; // no connection of this kind can be made; the event says why
    const isOver = event.code === 4404 || event.code === 1000 || this.reason || cannot;
    if (!this.key || isOver) {
      const text = cannot ? event.reason : ENDINGS[this.reason] ?? "The session has ended.";
      const isBad = cannot || (this.reason && this.reason !== "closed");
      this.forget();
      say(text, isBad ? "bad" : "wait");
      return;
    }
    const wait = RETRIES_S[this.tries++];
    if (wait === undefined) {
      this.forget();
      say(`The connection to ${location.host} is lost, and three tries did not bring it back. Is the server running?`, "bad");
      return;
    }
    say(`The connection is lost. Trying again in ${wait} s.`, "bad");
    setTimeout(() => this.key && this.connect(), wait * 1000);
    show();
  }

  // A new epoch is expected before anything is played again.
  interrupt() {
    if (!this.isOpen) return;
    this.epoch += 1;
    this.player.interrupt();
    this.send({ type: "interrupt" });
    say("Interrupted.", "good");
  }

  send(message) { if (this.isOpen) this.socket.send(JSON.stringify(message)); }

  // use: "speak" what was said, "ask" the portrait, or "watch" for a voice that interrupts.
  speak(samples, rate, use = "speak") {
    if (!this.isOpen) return;
    const format = JSON.stringify({ type: "audio", sample_rate: rate, channels: 1, use });
    if (format !== this.format) this.socket.send((this.format = format));
    const pcm = new Int16Array(samples.length);
    for (let i = 0; i < pcm.length; i++) pcm[i] = Math.max(-1, Math.min(1, samples[i])) * 32767;
    this.socket.send(pcm);
  }

  end() {
    this.send({ type: "close" });
    this.reason = this.reason ?? "closed";
    this.socket?.close();
  }

  forget() {
    this.key = this.reason = null;
    this.socket = null;
    this.player.close();
    if (this.recorded) saveRecording();
    $("video").hidden = true;
    stopMicrophone();
    show();
  }
}

// ---- Sound: a file, in pieces as the server has room; the microphone, while somebody speaks.

let reading = 0;

async function speakSound(content, name) {
  const turn = ++reading;
  const context = new AudioContext();
  let sound;
  try {
    sound = await context.decodeAudioData(content);
  } catch {
    throw new Error(`${name} holds no sound that this browser can read; try wav, mp3 or m4a.`);
  } finally {
    context.close();
  }
  const mono = new Float32Array(sound.length);
  for (let c = 0; c < sound.numberOfChannels; c++) {
    const channel = sound.getChannelData(c);
    for (let i = 0; i < mono.length; i++) mono[i] += channel[i] / sound.numberOfChannels;
  }
  const step = Math.round(sound.sampleRate / 2);
  let sent = 0;
  for (let at = 0; at < mono.length && session.isOpen && turn === reading; at += step, sent += 0.5) {
    session.speak(mono.subarray(at, at + step), sound.sampleRate);
    while (session.isOpen && turn === reading && (await settled()) > 15) await sleep(300);
  }
  if (turn === reading) session.send({ type: "end" });

  async function settled() {
    await sleep(sent < 8 ? 0 : 250);
    return sent < 8 ? 0 : session.server.pending_s ?? 0;
  }
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
let microphone = null;

async function openMicrophone(onPiece) {
  if (!window.isSecureContext || !navigator.mediaDevices) {
    throw new Error("Browsers give the microphone to https and localhost only. Start the server with --tls_cert and --tls_key, or reach it through ssh -L.");
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: true, noiseSuppression: true } });
  } catch (error) {
    if (error.name === "NotFoundError") throw new Error("No microphone was found. Plug one in and try again.");
    if (error.name === "NotAllowedError") throw new Error("The microphone was refused. Allow it for this page in the browser's settings, and try again.");
    throw new Error(`The microphone cannot be used: ${error.message}`);
  }
  const context = new AudioContext();
  await context.audioWorklet.addModule("assets/microphone.js");
  const node = new AudioWorkletNode(context, "microphone", { numberOfOutputs: 0 });
  context.createMediaStreamSource(stream).connect(node);
  node.port.onmessage = (event) => onPiece(event.data, context.sampleRate);
  microphone = { track: stream.getAudioTracks()[0], stop() { stream.getTracks().forEach((track) => track.stop()); context.close(); } };
  show();
}

function stopMicrophone() {
  session.listen(null);
  microphone?.stop();
  microphone = null;
  $("level").value = 0;
  show();
}

// Tells when somebody speaks: louder than the room, for 60 ms; until 0.8 s of quiet.
function gate({ onBegin, onPiece, onEnd }) {
  let floor = 0.004, loud = 0, quiet = 0, speaking = false;
  const before = [];
  return (piece, rate) => {
    let power = 0;
    for (const value of piece) power += value * value;
    const level = Math.sqrt(power / piece.length);
    $("level").value = Math.min(1, level * 6);
    floor = level < floor ? level : Math.min(0.03, floor * 1.002 + 1e-6);
    const isLoud = level > Math.max(0.01, 3.5 * floor);
    loud = isLoud ? loud + 1 : 0;
    quiet = isLoud ? 0 : quiet + 1;
    before.push(piece);
    if (before.length > 15) before.shift();
    if (!speaking && loud >= 3) {
      speaking = true;
      onBegin();
      before.forEach((early) => onPiece(early, rate));
    } else if (speaking) {
      onPiece(piece, rate);
      if (quiet > 40) { speaking = false; onEnd(); }
    }
  };
}

// ---- The page.

const player = new Player($("video"));
const session = new Session(player, new TrackPlayer($("video")));
let info = null;
let portrait = null;
let soundFile = null;
const uploads = new Map(); // files of the portraits that were chosen here

function settings() {
  const found = { portrait, prompt: $("prompt").value.trim() };
  if ($("seed").value !== "") found.seed = Number($("seed").value);
  return found;
}

function show() {
  const open = session.isOpen;
  $("interrupt").disabled = $("stop").disabled = $("apply").disabled = !open;
  $("record").disabled = !open || session.player === session.tracks;
  $("transport").disabled = Boolean(session.key) || !info?.webrtc;
  $("example").hidden = open;
  $("microphone").textContent = microphone ? "Stop the microphone" : "Start the microphone";
  $("speak-file").disabled = !soundFile || !info?.ready;
  $("record").setAttribute("aria-pressed", String(Boolean(session.recorded)));
  $("record").textContent = session.recorded ? "Save" : "Record";
  $("again").hidden = !localStorage.getItem(SAVED) || open;
  talk.show();
  gallery.show();
}

const DOINGS = {
  idle: "Listening. Say something, or choose a sound.",
  listening: "Hearing you; the first picture is on its way.",
  speaking: "Speaking.",
  draining: "Speaking the rest.",
  closed: "The session has ended.",
};

function showNumbers(state) {
  const speed = state.block_s ? BLOCK / state.block_s : null;
  $("n-speed").textContent = speed ? `${speed.toFixed(speed < 10 ? 1 : 0)} / ${FPS} fps` : "–";
  $("n-latency").textContent = state.first_frame_s === null ? "–" : `${state.first_frame_s.toFixed(2)} s`;
  $("n-ahead").textContent = `${session.player.ahead.toFixed(2)} s`;
  $("n-memory").textContent = state.memory_bytes ? `${(state.memory_bytes / 2 ** 20).toFixed(0)} MiB` : "–";
  let text = (state.state === "idle" && talk.doing) || (DOINGS[state.state] ?? state.state);
  if (speed && speed < FPS) text += ` This machine makes ${speed.toFixed(1)} of the ${FPS} pictures a second that live takes, so playback waits for it.`;
  if (state.dropped_sound_s > 0.05 && state.num_interrupts === 0) text += ` ${state.dropped_sound_s.toFixed(1)} s of sound found no room and were dropped.`;
  say(text, speed && speed < FPS ? "wait" : "good");
}

async function guarded(action) {
  try {
    await action();
  } catch (error) {
    say(error.retry ? `${error.message}. A place may be free in ${error.retry} s.` : error.message, "bad");
  }
  show();
}

const speakExample = () => guarded(async () => {
  await session.start(settings());
  const voice = await (await request(`api/examples/${info.voice}`)).arrayBuffer();
  await speakSound(voice, info.voice);
});

function choose(name, picture) {
  portrait = name;
  $("still").src = picture;
  for (const button of $("portraits").children) {
    const chosen = button.dataset.name === name;
    button.setAttribute("aria-checked", String(chosen));
    button.tabIndex = chosen ? 0 : -1;
  }
  prepare();
  if (session.isOpen) say("The new portrait is used by the next session: end this one first.");
}

// Have the session opened that is probably started next; without it, it only begins later.
function prepare() {
  if (!info?.ready || session.key) return;
  const body = JSON.stringify(settings());
  fetch("api/prepare", { method: "POST", headers: { "content-type": "application/json" }, body }).catch(() => {});
}

function addPortrait(name, picture, label) {
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.name = name;
  button.setAttribute("role", "radio");
  button.setAttribute("aria-label", label);
  const image = document.createElement("img");
  image.src = picture;
  image.alt = "";
  button.append(image);
  button.addEventListener("click", () => choose(name, picture));
  $("portraits").append(button);
}

const upload = (file) => guarded(async () => {
  if (!info) throw new Error("The server has not answered yet. Choose the picture again when it is ready.");
  if (file.size > info.limits.upload_bytes) {
    throw new Error(`${file.name} has ${(file.size / 2 ** 20).toFixed(1)} MiB; at most ${info.limits.upload_bytes / 2 ** 20} MiB are taken.`);
  }
  say(`Sending ${file.name}.`);
  const answer = await (await request("api/portraits", { method: "POST", body: file })).json();
  const picture = URL.createObjectURL(file);
  uploads.set(answer.portrait, file);
  addPortrait(answer.portrait, picture, file.name);
  choose(answer.portrait, picture);
  say(`${file.name} is ready: ${answer.width} × ${answer.height} pixels.`, "good");
});

function takeSound(file) {
  soundFile = file;
  say(`${file.name} is ready to be spoken.`, "good");
  show();
}

function droppable(element, kind, take) {
  for (const name of ["dragover", "dragleave", "drop"]) {
    element.addEventListener(name, (event) => {
      event.preventDefault();
      element.classList.toggle("over", name === "dragover");
      const file = name === "drop" ? event.dataTransfer.files[0] : null;
      if (file && file.type.startsWith(kind)) take(file);
      else if (file) say(`${file.name} cannot be used here.`, "bad");
    });
  }
}

function saveRecording() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(session.recorded.parts, { type: "video/mp4" }));
  link.download = `lipcast-${new Date().toISOString().slice(0, 19).replaceAll(":", "-")}.mp4`;
  link.click();
  session.recorded = null;
}

function selectTab(tab) {
  for (const other of document.querySelectorAll('[role="tab"]')) {
    const chosen = other === tab;
    other.setAttribute("aria-selected", String(chosen));
    other.tabIndex = chosen ? 0 : -1;
    $(other.getAttribute("aria-controls")).hidden = !chosen;
  }
}

// Arrow keys move in a group of which one element can be focused.
function arrows(group, act) {
  group.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...group.children];
    const next = all[(all.indexOf(document.activeElement) + step + all.length) % all.length];
    next.focus();
    act(next);
  });
}

const toggleMicrophone = () => guarded(async () => {
  if (microphone) {
    stopMicrophone();
    session.send({ type: "end" });
    return;
  }
  const listen = talk.asks ? talk.listener() : gate({
    onBegin() {},
    onPiece: (piece, rate) => session.hasTrack || session.speak(piece, rate),
    onEnd: () => session.hasTrack || session.send({ type: "end" }),
  });
  await openMicrophone(listen);
  await session.start(settings());
  if (!talk.asks) session.listen(microphone?.track ?? null);
});

const speakFile = () => guarded(async () => {
  if ($("barge-in").checked && !microphone) {
    await openMicrophone(talk.watcher());
  }
  await session.start(settings());
  await speakSound(await soundFile.arrayBuffer(), soundFile.name);
});

function stopSpeaking() {
  reading += 1;
  talk.line = null;
  session.interrupt();
}

function restore() {
  const saved = JSON.parse(localStorage.getItem(SAVED) ?? "{}");
  $("prompt").value = saved.prompt ?? "";
  $("seed").value = saved.seed ?? "";
  const known = [...$("portraits").children].find((button) => button.dataset.name === saved.portrait);
  if (known) known.click();
  say(known ? "The last settings are back." : "The last settings are back; choose the portrait again.", known ? "good" : "wait");
}

async function findServer() {
  try {
    info = await (await request("api/info")).json();
  } catch (error) {
    $("server").textContent = "no connection";
    $("server").dataset.kind = "bad";
    say(error.message, "bad");
    return void setTimeout(findServer, 4000);
  }
  if (!$("portraits").children.length) {
    info.examples.forEach((name, i) => addPortrait(name, `api/examples/${name}`, `Example portrait ${i + 1}`));
    if (info.examples.length) choose(info.examples[0], `api/examples/${info.examples[0]}`);
  }
  $("server").textContent = info.ready ? `ready, version ${info.version}` : "loading the model";
  $("server").dataset.kind = info.ready ? "good" : "wait";
  $("portrait-file").disabled = false;
  for (const id of ["example", "microphone"]) $(id).disabled = !info.ready;
  if (info.ready) say("Press “Hear the example”, or speak to the portrait.", "good");
  else { say("The server is loading its model; this takes a moment."); setTimeout(findServer, 1000); }
  show();
}

$("example").addEventListener("click", speakExample);
for (const id of ["prompt", "seed"]) $(id).addEventListener("change", prepare);
$("interrupt").addEventListener("click", stopSpeaking);
$("stop").addEventListener("click", () => session.end());
$("microphone").addEventListener("click", toggleMicrophone);
$("speak-file").addEventListener("click", speakFile);
$("again").addEventListener("click", restore);
$("apply").addEventListener("click", () => session.send({ type: "prompt", text: $("prompt").value.trim() }));
$("record").addEventListener("click", () => {
  if (session.recorded) saveRecording();
  else { session.wantsRecord = true; session.send({ type: "key" }); }
  show();
});
$("portrait-file").addEventListener("change", (event) => event.target.files[0] && upload(event.target.files[0]));
$("sound-file").addEventListener("change", (event) => event.target.files[0] && takeSound(event.target.files[0]));
for (const tab of document.querySelectorAll('[role="tab"]')) tab.addEventListener("click", () => selectTab(tab));
arrows(document.querySelector(".tabs"), (tab) => tab.click());
arrows($("portraits"), (button) => button.click());
droppable($("drop-portrait"), "image/", upload);
droppable($("frame"), "image/", upload);
droppable($("panel-file"), "", takeSound);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") stopSpeaking(); });
$("video").addEventListener("waiting", () => {
  const isFast = session.server.block_s && BLOCK / session.server.block_s >= FPS;
  if (session.isOpen && isFast && session.server.state === "speaking") say("Waiting for pictures: the connection is slow.");
});
document.addEventListener("DOMContentLoaded", () => { show(); findServer(); });
