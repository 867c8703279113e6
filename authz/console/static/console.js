// How far a verification is, without loading the page again and again.
"use strict";
const bar = document.getElementById("progress");
if (bar) {
  const told = document.getElementById("progress-text");
  const look = async () => {
    try {
      const answer = await fetch("/verify/progress", { headers: { accept: "application/json" } });
      const state = await answer.json();
      if (!state.running) {
        location.reload();
        return;
      }
      bar.max = state.all || 1;
      bar.value = state.done;
      told.textContent = `${state.done.toLocaleString("en")} of ${state.all.toLocaleString("en")} records`;
    } catch (error) {
      told.textContent = "The console does not answer just now.";
    }
    setTimeout(look, 1000);
  };
  setTimeout(look, 1000);
}
