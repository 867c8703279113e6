// The overview goes on telling while it is looked at: its parts are asked for again and put in place.
"use strict";
const live = document.getElementById("live");
if (live) {
  const button = document.createElement("button");
  const state = document.createElement("span");
  let timer = 0;
  let over = false;

  const put = (fresh) => {
    for (const part of document.querySelectorAll("[data-live]")) {
      const other = fresh.querySelector(`[data-live="${part.dataset.live}"]`);
      // Nothing is taken away from under somebody's hands.
      if (!other || part.innerHTML === other.innerHTML || part.contains(document.activeElement)) continue;
      const known = new Set([...part.querySelectorAll("tr")].map((row) => row.innerHTML));
      part.className = other.className;
      part.replaceChildren(...other.childNodes);
      if (part.dataset.live !== "newest") continue;
      for (const row of part.querySelectorAll("tr")) row.classList.toggle("fresh", !known.has(row.innerHTML));
    }
  };

  const look = async () => {
    try {
      const headers = { "x-live": live.dataset.mark };
      const answer = await fetch("/live", { headers, redirect: "manual" });
      if (answer.ok) {
        put(new DOMParser().parseFromString(await answer.text(), "text/html"));
        state.textContent = `As of ${new Date().toISOString().slice(11, 19)}`;
      } else if (answer.status !== 503) {
        over = true;
        button.remove();
        state.textContent = "Not live any more: load the page again.";
      }
    } catch (error) {
      state.textContent = "The console does not answer just now.";
    }
    wait();
  };

  const paused = () => button.getAttribute("aria-pressed") === "true";
  const wait = (milliseconds = 5000) => {
    clearTimeout(timer);
    if (!over && !paused() && !document.hidden) timer = setTimeout(look, milliseconds);
  };

  button.type = "button";
  button.className = "quiet";
  button.textContent = "Pause";
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(!paused()));
    wait(0);
  });
  document.addEventListener("visibilitychange", () => wait(0));
  state.textContent = "Live";
  live.append(state, button);
  wait();
}
