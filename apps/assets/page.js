// The frame's own behaviour: theme, connection chip, copying of snippets. No state of the fleet lives here.
(function () {
  "use strict";
  const root = document.documentElement;
  const BEAT_LOST_MS = 7000; // the server sends a sign of life every 2 s
  let mark = { beat: null, at: performance.now() };
  let missing = 0;

  function statusElement() {
    const slot = document.getElementById("wb-status");
    const host = slot && slot.querySelector("[data-root-id] > *, .bk-root > *, *");
    let node = host;
    while (node && node.shadowRoot) {
      const found = node.shadowRoot.querySelector("i[data-beat]");
      if (found) return found;
      node = node.shadowRoot.querySelector("*");
    }
    return deep(slot);
  }

  function deep(node) {
    if (!node) return null;
    for (const child of node.querySelectorAll("*")) {
      if (child.matches("i[data-beat]")) return child;
      if (child.shadowRoot) { const found = deep(child.shadowRoot); if (found) return found; }
    }
    return null;
  }

  function seconds(value) {
    if (value < 90) return Math.round(value) + " s";
    return value < 5400 ? Math.round(value / 60) + " min" : Math.round(value / 3600) + " h";
  }

  function words(state, age, reason, cutFor) {
    const since = age === null ? "" : seconds(age);
    switch (state) {
      case "live": return ["live", "live · " + (age < 1.5 ? "now" : since + " ago"), ""];
      case "quiet": return ["quiet", "no data since " + since, "Nothing new since " + since + ". What you see is the last known state."];
      case "lost": return ["lost", since ? "no data since " + since : "no data yet",
        (since ? "No data since " + since + ": " : "No data yet: ") + reason + ". Trying again; what you see is the last known state."];
      case "cut": return ["cut", "dashboard is away", "This page lost its server " + seconds(cutFor) + " ago. It loads again by itself when the server is back."];
      default: return ["connecting", "connecting", ""];
    }
  }

  function show() {
    const element = statusElement();
    if (!element) return;
    if (!root.dataset.ready) root.dataset.ready = "1";
    const now = performance.now(), data = element.dataset;
    if (data.beat !== mark.beat) mark = { beat: data.beat, at: now };
    const waited = (now - mark.at) / 1000;
    const cut = now - mark.at > BEAT_LOST_MS && !document.hidden;
    const age = data.age === "" ? null : Number(data.age) + waited;
    const [state, chip, notice] = words(cut ? "cut" : data.state, age, data.reason, waited);
    root.dataset.live = state;
    root.dataset.failure = data.failure;
    setText("wb-chip", chip);
    setText("wb-notice", data.failure && !cut ? "A part of this page could not be drawn; the server's log says why under " + data.failure + "." : notice);
    missing = cut ? missing + 1 : 0;
    if (cut && missing % 4 === 0) comeBack();
  }

  // A table that was built while its card had not got its width yet keeps that narrow layout; Tabulator does not look again.
  function fitTables() {
    const visit = (view) => {
      const element = view.tabulator && view.tabulator.element;
      const holder = element && element.querySelector(".tabulator-tableholder");
      const rows = element && element.querySelector(".tabulator-table");
      if (holder && rows && rows.childElementCount && !view.is_drawing && rows.offsetWidth < holder.clientWidth - 12) view.redraw(true, true);
      for (const child of view.child_views || []) visit(child);
    };
    for (const view of (window.Bokeh && Bokeh.index && Bokeh.index.roots) || []) visit(view);
  }

  function setText(id, text) {
    const element = document.getElementById(id);
    if (element && element.textContent !== text) element.textContent = text;
  }

  // Only when the server has gone away and answers again; the session is gone with it, so the page starts anew.
  function comeBack() {
    fetch("healthz", { cache: "no-store" }).then((answer) => { if (answer.ok) location.reload(); }, () => {});
  }

  function copy(text) {
    if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
    const area = document.createElement("textarea");
    area.value = text;
    area.style.position = "fixed";
    document.body.appendChild(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done ? Promise.resolve() : Promise.reject(new Error("refused"));
  }

  function onClick(event) {
    const path = event.composedPath();
    const button = path.find((node) => node.dataset && node.dataset.copy !== undefined);
    if (button) {
      const label = button.querySelector("span") || button;
      const before = button.dataset.label || label.textContent;
      button.dataset.label = before;
      const shown = button.getRootNode().querySelector("pre[data-snippet]");
      if (shown && button.dataset.show !== undefined) { shown.hidden = !shown.hidden; button.setAttribute("aria-expanded", String(!shown.hidden)); }
      copy(button.dataset.copy).then(() => { label.textContent = "Copied"; }, () => { label.textContent = "Not copied"; })
        .finally(() => setTimeout(() => { label.textContent = before; }, 1500));
    }
    if (path.some((node) => node.id === "wb-theme")) {
      const next = root.dataset.theme === "dark" ? "light" : "dark";
      document.cookie = "workbench_theme=" + next + "; path=/; max-age=31536000; samesite=lax";
      location.reload();
    }
  }

  document.addEventListener("click", onClick);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) mark.at = performance.now(); });
  setInterval(show, 250);
  setInterval(fitTables, 1000);
})();
