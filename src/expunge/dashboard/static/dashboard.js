/* SPDX-License-Identifier: Apache-2.0
   What the pages do by themselves: the theme, one click a form, and parts that follow a run. All works without it. */
(function () {
  "use strict";
  const root = document.documentElement, wants = matchMedia("(prefers-color-scheme: dark)");
  const theme = document.querySelector(".theme");
  root.classList.add("js");
  try { if (localStorage.theme) root.dataset.theme = localStorage.theme; } catch (e) { /* storage is shut off */ }
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : wants.matches;
  const label = () => {
    theme.textContent = dark() ? "Light" : "Dark";
    theme.setAttribute("aria-label", "Switch to the " + (dark() ? "light" : "dark") + " theme");
  };
  theme.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.theme = root.dataset.theme; } catch (e) { /* storage is shut off */ }
    label();
  });
  wants.addEventListener("change", label);
  label();

  document.querySelectorAll("form[data-once]").forEach((form) => form.addEventListener("submit", () => {
    form.querySelectorAll("button").forEach((button) => { button.disabled = true; });
  }));
  addEventListener("pageshow", (event) => {  // back from another page: the form may be sent again
    if (event.persisted) document.querySelectorAll("form[data-once] button").forEach((b) => { b.disabled = false; });
  });

  const EVERY = 2000, SLOWER = 15000;
  let wait = EVERY;
  async function follow() {
    const part = document.querySelector("[data-poll]");
    if (!part) return;
    if (!document.hidden) {
      try {
        const answer = await fetch(part.dataset.poll, {credentials: "same-origin", redirect: "manual"});
        if (answer.type === "opaqueredirect") return location.reload();  // the session has ended
        if (answer.ok) {
          const next = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("#live");
          if (!next || next.dataset.state !== part.dataset.state) return location.reload();
          const open = Array.from(part.querySelectorAll("details")).map((fold) => fold.open);
          next.querySelectorAll("details").forEach((fold, i) => { fold.open = Boolean(open[i]); });
          if (next.innerHTML !== part.innerHTML) part.replaceWith(next);
          wait = EVERY;
        } else if (answer.status === 429) {
          wait = SLOWER;
        } else {
          return;
        }
      } catch (e) {
        wait = SLOWER;
      }
    }
    setTimeout(follow, wait);
  }
  setTimeout(follow, wait);
})();
