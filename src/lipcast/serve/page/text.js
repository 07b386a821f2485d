"use strict";
// The tab Text, and the conversation: what is typed or said, and what the portrait answers.

const TURNS = { hearing: "Listening to you.", thinking: "Thinking about an answer." };

class Talk {
  constructor() {
    this.doing = null;
    this.line = null;
  }

  get services() { return info?.speech ?? {}; }

  // Whether what the microphone hears is answered, and not repeated.
  get asks() { return Boolean(this.services.asr) && $("asks").checked; }

  show() {
    const { tts, asr, llm } = this.services;
    const ready = Boolean(info?.ready && tts);
    $("no-speech").hidden = !info || Boolean(tts);
    $("text").disabled = !ready;
    $("say").disabled = !ready || !$("text").value.trim();
    $("ask").disabled = $("say").disabled || !llm;
    $("ask").hidden = $("conversation").hidden = !llm;
    $("asks-row").hidden = !asr;
    $("keys").hidden = !tts;
    $("keys").textContent = `Ctrl+Enter ${llm ? "asks" : "speaks"} it.`;
  }

  send(type) {
    const text = $("text").value.trim();
    return guarded(async () => {
      if (!text) return;
      $("problem").textContent = "";
      await session.start(settings());
      if (type === "ask") this.add("You", text);
      session.send({ type, text });
      $("text").value = "";
    });
  }

  // Listens to somebody who asks. The server finds the turns, or the page where it cannot.
  listener() {
    const speak = (piece, rate) => session.speak(piece, rate, "ask");
    if (this.services.vad) return this.metered(speak);
    const onBegin = () => { if (["speaking", "draining"].includes(session.server.state)) stopSpeaking(); };
    return gate({ onBegin, onPiece: speak, onEnd: () => session.send({ type: "end" }) });
  }

  // Interrupts when somebody speaks.
  watcher() {
    if (this.services.vad) return this.metered((piece, rate) => session.speak(piece, rate, "watch"));
    return gate({ onBegin: stopSpeaking, onPiece() {}, onEnd() {} });
  }

  metered(take) {
    return (piece, rate) => {
      $("level").value = Math.min(1, Math.hypot(...piece) / Math.sqrt(piece.length) * 6);
      take(piece, rate);
    };
  }

  receive(message) {
    if (message.type === "turn") {
      this.doing = TURNS[message.state] ?? null;
      if (this.doing) say(this.doing, "good");
      if (message.state === "thinking") $("problem").textContent = "";
    } else if (message.type === "transcript") {
      if (message.text) this.add("You", message.text);
      else say("Nothing was understood. Say it again.");
    } else if (message.type === "answer") {
      if (message.done) this.line = null;
      else if (this.line) this.line.textContent += message.text;
      else this.line = this.add("Portrait", message.text);
    } else if (message.type === "interrupted") {
      this.line = null;
      reading += 1;
      if (message.epoch <= session.epoch) return;
      session.epoch = message.epoch;
      session.player.interrupt();
      say("Interrupted.", "good");
    } else if (message.type === "error" && message.code === "speech") {
      this.line = null;
      $("problem").textContent = message.message;
    }
  }

  add(who, text) {
    const item = document.createElement("li");
    const name = document.createElement("b");
    const words = document.createElement("span");
    name.textContent = `${who}: `;
    words.textContent = text;
    item.append(name, words);
    $("turns").append(item);
    while ($("turns").children.length > 100) $("turns").firstChild.remove();
    item.scrollIntoView({ block: "nearest" });
    return words;
  }
}

const talk = new Talk();
$("text").addEventListener("input", () => talk.show());
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) talk.send(talk.services.llm ? "ask" : "say");
});
$("say").addEventListener("click", () => talk.send("say"));
$("ask").addEventListener("click", () => talk.send("ask"));
