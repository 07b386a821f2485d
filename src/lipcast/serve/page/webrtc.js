"use strict";
// Live sessions over WebRTC: what the page needs of a WebSocket and of its player, on a peer connection.

// Shows the tracks of a peer. The browser plays them as they come; an interruption mutes it.
class TrackPlayer {
  constructor(video) {
    this.video = video;
    this.stream = null;
    this.ahead = 0;
    this.onPicture = () => {};
  }

  take(track) {
    this.stream ??= new MediaStream();
    this.stream.addTrack(track);
  }

  open() {
    const { video } = this;
    video.muted = false;
    video.srcObject = this.stream;
    video.play().catch(() => say("Press any button: the browser waits for one before it plays sound."));
    if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(() => this.onPicture());
    else video.addEventListener("playing", () => this.onPicture(), { once: true });
  }

  append() {}

  // Sound of the old epoch that is on its way has been played by then; a new epoch begins silent.
  cut() { setTimeout(() => { this.video.muted = false; }, 200); }

  interrupt() { this.video.muted = true; }

  close() {
    this.stream = null;
    this.video.srcObject = null;
  }
}

// Opens a peer connection with an offer, and has the interface of a WebSocket.
class PeerSocket {
  constructor(address, { player, track, relayOnly }) {
    this.readyState = WebSocket.CONNECTING;
    this.isOver = false;
    player.stream = null;
    this.connect(address, player, track, relayOnly).catch((error) => {
      this.end(error.status === undefined ? 1006 : 4400, `WebRTC: ${error.message}`);
    });
  }

  async connect(address, player, track, relayOnly) {
    const { ice_servers: iceServers } = await (await request(address)).json();
    if (relayOnly && !iceServers.some((each) => each.username)) {
      return this.end(4400, "This server names no relay. Start it with --turn_url, or choose another connection.");
    }
    const peer = (this.peer = new RTCPeerConnection({ iceServers, iceTransportPolicy: relayOnly ? "relay" : "all" }));
    const channel = (this.channel = peer.createDataChannel("lipcast"));
    channel.onopen = () => { this.readyState = WebSocket.OPEN; this.onopen(); };
    channel.onmessage = (event) => {
      this.isOver ||= JSON.parse(event.data).type === "closed";
      this.onmessage(event);
    };
    channel.onclose = () => this.end(this.isOver ? 1000 : 1006);
    peer.ontrack = (event) => player.take(event.track);
    peer.onconnectionstatechange = () => {
      if (peer.connectionState !== "failed") return;
      if (this.readyState === WebSocket.OPEN) this.end(1006);
      else this.end(4400, "WebRTC found no way to the server: UDP may be blocked. Choose the automatic connection, or a relay.");
    };
    this.sound = peer.addTransceiver(track ?? "audio", { direction: "sendrecv" });
    peer.addTransceiver("video", { direction: "recvonly" });
    await peer.setLocalDescription();
    await this.gathered(peer);
    const { type, sdp } = peer.localDescription;
    const answer = await request(address, {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ type, sdp }),
    });
    await peer.setRemoteDescription(await answer.json());
  }

  // The offer names all addresses: those that are found in 2 s.
  gathered(peer) {
    return new Promise((resolve) => {
      const look = () => { if (peer.iceGatheringState === "complete") resolve(); };
      peer.onicegatheringstatechange = look;
      setTimeout(resolve, 2000);
      look();
    });
  }

  // The microphone as a track of the connection; null ends it.
  listen(track) {
    if (this.readyState !== WebSocket.CLOSED) this.sound?.sender.replaceTrack(track);
  }

  send(data) {
    const step = 2 ** 15; // bytes of a message that every browser sends whole
    if (typeof data === "string") this.channel.send(data);
    else for (let at = 0; at < data.byteLength; at += step) this.channel.send(data.slice(at / 2, (at + step) / 2));
  }

  close() {
    // What was said last is still sent.
    setTimeout(() => this.end(1000), 100);
  }

  end(code, reason = "") {
    if (this.readyState === WebSocket.CLOSED) return;
    this.readyState = WebSocket.CLOSED;
    this.peer?.close();
    this.onclose({ code, reason });
  }
}
