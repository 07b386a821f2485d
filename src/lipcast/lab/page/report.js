"use strict";
// Players that are scrubbed, played and stopped together.
document.querySelectorAll("[data-players]").forEach((group) => {
  const videos = [...group.querySelectorAll("video")];
  const slider = group.querySelector("input[type=range]");
  const button = group.querySelector("button");
  const clock = group.querySelector("output");
  const frame = 1 / 25;
  const length = () => Math.max(0, ...videos.map((video) => video.duration || 0));
  const show = (t) => { clock.textContent = t.toFixed(2) + " s, frame " + Math.round(t / frame); };
  const seek = (t) => {
    videos.forEach((video) => { video.currentTime = Math.min(t, video.duration || t); });
    show(t);
  };
  const stop = () => {
    videos.forEach((video) => video.pause());
    button.textContent = "Play";
  };
  slider.addEventListener("input", () => { stop(); seek(slider.value * length()); });
  button.addEventListener("click", () => {
    if (!videos[0].paused) { stop(); return; }
    seek(slider.value >= 1 ? 0 : slider.value * length());
    videos.forEach((video, i) => { video.muted = i > 0; video.play(); });
    button.textContent = "Pause";
  });
  videos[0].addEventListener("timeupdate", () => {
    if (videos[0].paused) { return; }
    slider.value = videos[0].currentTime / (length() || 1);
    show(videos[0].currentTime);
  });
  videos[0].addEventListener("ended", () => { stop(); slider.value = 1; });
  slider.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -frame, ArrowRight: frame }[event.key];
    if (!step) { return; }
    event.preventDefault();
    stop();
    const t = Math.min(length(), Math.max(0, videos[0].currentTime + step));
    slider.value = t / (length() || 1);
    seek(t);
  });
  show(0);
});
