"use strict";
// The gallery: whole videos that the server makes, from /v1/videos.

const STATUS = { queued: "Waiting", in_progress: "Being made", completed: "Finished", failed: "Failed" };
const LOOK_MS = { busy: 1000, quiet: 10000 };
const MOST = 50;

class Gallery {
  constructor(list) {
    this.list = list;
    this.items = new Map();
    this.timer = null;
    this.look();
  }

  show() { $("make-video").disabled = !soundFile || !info; }

  // Ask for all videos; again soon while one is not finished.
  async look() {
    clearTimeout(this.timer);
    let videos = null;
    try {
      videos = (await (await request(`v1/videos?limit=${MOST}`)).json()).data;
      this.problem("");
    } catch (error) {
      this.problem(error.message);
    }
    if (videos) this.update(videos);
    const busy = videos?.some((video) => video.status === "queued" || video.status === "in_progress");
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.look(), document.hidden || !busy ? LOOK_MS.quiet : LOOK_MS.busy);
  }

  problem(text) { if ($("gallery-problem").textContent !== text) $("gallery-problem").textContent = text; }

  update(videos) {
    const known = new Set(videos.map((video) => video.id));
    for (const [id, item] of this.items) {
      if (!known.has(id)) this.forget(id, item);
    }
    videos.forEach((video, place) => {
      const item = this.items.get(video.id) ?? this.add(video);
      if (this.list.children[place] !== item.element) this.list.insertBefore(item.element, this.list.children[place] ?? null);
      item.update(video);
    });
    $("no-videos").hidden = videos.length > 0;
  }

  add(video) {
    const item = new GalleryItem(video.id, () => this.remove(video.id));
    this.items.set(video.id, item);
    return item;
  }

  async remove(id) {
    try {
      await request(`v1/videos/${id}`, { method: "DELETE" });
    } catch (error) {
      if (error.status !== 404) return this.problem(error.message);
    }
    const item = this.items.get(id);
    if (item) this.forget(id, item);
    say("The video is deleted.", "good");
    $("no-videos").hidden = this.items.size > 0;
  }

  // The focus goes to a neighbour: it must not be lost with what is removed.
  forget(id, item) {
    const { element } = item;
    if (element.contains(document.activeElement)) {
      const next = element.nextElementSibling ?? element.previousElementSibling;
      (next?.querySelector(".delete") ?? $("gallery-title")).focus();
    }
    element.remove();
    this.items.delete(id);
  }

  async make() {
    const picture = uploads.get(portrait) ?? (await (await request(`api/examples/${portrait}`)).blob());
    const form = new FormData();
    form.append("input_reference", picture, "portrait");
    form.append("audio_reference", soundFile, soundFile.name);
    const { prompt, seed } = settings();
    if (prompt) form.append("prompt", prompt);
    if (seed !== undefined) form.append("seed", String(seed));
    say(`Sending ${soundFile.name}.`);
    await request("v1/videos", { method: "POST", body: form });
    say("The video waits in the gallery below; you can go on talking.", "good");
    await this.look();
  }
}

class GalleryItem {
  constructor(id, onDelete) {
    this.path = `v1/videos/${id}/content`;
    this.element = document.createElement("li");
    this.picture = this.append("img", "", { alt: "" });
    const text = this.append("div", "about");
    this.title = this.append("p", "title", {}, text);
    this.line = this.append("p", "hint", {}, text);
    this.bar = this.append("progress", "", { max: 100 }, text);
    this.error = this.append("p", "problem", {}, text);
    const buttons = this.append("div", "row", {}, text);
    this.play = this.append("button", "", { type: "button", textContent: "Play" }, buttons);
    this.download = this.append("a", "button", { textContent: "Download", href: this.path, download: `${id}.mp4` }, buttons);
    this.delete = this.append("button", "delete", { type: "button", textContent: "Delete" }, buttons);
    this.picture.hidden = true;
    this.play.addEventListener("click", () => this.toggle());
    // A second press, so that a video is not lost by one.
    this.delete.addEventListener("click", () => {
      if (this.delete.textContent === "Delete") this.delete.textContent = "Really delete";
      else onDelete();
    });
    this.delete.addEventListener("blur", () => { this.delete.textContent = "Delete"; });
  }

  append(tag, name, properties = {}, to = this.element) {
    const element = Object.assign(document.createElement(tag), properties);
    element.className = name;
    to.append(element);
    return element;
  }

  update(video) {
    const { status, progress } = video;
    const title = video.prompt || "Without a prompt";
    this.title.textContent = title;
    for (const [button, does] of [[this.play, "Play"], [this.download, "Download"], [this.delete, "Delete"]]) {
      button.setAttribute("aria-label", `${does}: ${title}`);
    }
    const length = `${Number(video.seconds).toFixed(1)} s`;
    const part = status === "in_progress" ? `, ${progress} %` : "";
    this.line.textContent = `${STATUS[status]}${part} · ${length} · ${new Date(video.created_at * 1000).toLocaleString()}`;
    this.bar.hidden = status !== "in_progress" && status !== "queued";
    this.bar.value = progress;
    this.bar.setAttribute("aria-label", `Progress: ${title}`);
    this.error.textContent = video.error?.message ?? "";
    this.play.hidden = this.download.hidden = status !== "completed";
    if (status === "completed" && this.picture.hidden) {
      this.picture.hidden = false;
      this.picture.src = `${this.path}?variant=thumbnail`;
    }
  }

  toggle() {
    if (this.video) {
      this.video.remove();
      this.video = null;
    } else {
      this.video = this.append("video", "", { controls: true, playsInline: true, src: this.path });
      this.video.setAttribute("aria-label", this.title.textContent);
      this.video.addEventListener("error", () => { this.error.textContent = "The video cannot be played. Download it, or look whether the server runs."; });
      this.video.play().catch(() => {});
    }
    this.play.textContent = this.video ? "Close" : "Play";
  }
}

const gallery = new Gallery($("videos"));
$("make-video").addEventListener("click", () => guarded(() => gallery.make()));
document.addEventListener("visibilitychange", () => { if (!document.hidden) gallery.look(); });
