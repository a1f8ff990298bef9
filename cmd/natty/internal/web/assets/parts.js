// Numbers as people read them, and elements.

export function count(n) {
  if (n < 10000) return String(Math.round(n));
  return n < 1e7 ? (n / 1e3).toFixed(1) + "k" : (n / 1e6).toFixed(1) + "M";
}

export function rate(r) {
  if (r === undefined || r === null) return "–";
  if (r === 0) return "0/s";
  return (r < 10 ? r.toFixed(1) : count(r)) + "/s";
}

export function span(ms) {
  const s = Math.max(0, Math.floor(ms / 1000));
  if (s < 1) return "<1s";
  if (s < 60) return s + "s";
  const m = Math.floor(s / 60);
  if (m < 60) return `${m}m ${String(s % 60).padStart(2, "0")}s`;
  const h = Math.floor(m / 60);
  return h < 48 ? `${h}h ${String(m % 60).padStart(2, "0")}m` : Math.floor(h / 24) + "d";
}

export function ago(ms) {
  return ms < 1000 ? "just now" : span(ms) + " ago";
}

export function clock(time) {
  return new Date(time).toLocaleTimeString([], { hourCycle: "h23" });
}

export function bytes(n) {
  if (n < 1024) return n + " B";
  return n < 1 << 20 ? (n / 1024).toFixed(1) + " KiB" : (n / (1 << 20)).toFixed(1) + " MiB";
}

export function el(name, attributes = {}, content = []) {
  const e = document.createElement(name);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  e.append(...[content].flat());
  return e;
}

// lacks reports whether something of a kind may be missing in a snapshot.
export function lacks(s, kind) {
  return (s.problems ?? []).some((p) => p.kind === kind || p.kind === "streams");
}

// nothing shows the text of an empty list, unless it is empty because it could not be read.
export function nothing(p, empty, unread) {
  p.dataset.nothing ??= p.textContent;
  p.textContent = unread ? "Not known: see What could not be read, below." : p.dataset.nothing;
  p.hidden = !empty;
}

function svg(name, attributes) {
  const e = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  return e;
}

// chart draws numbers as a line, the newest at the right, and says in words what it shows.
export function chart(values, title, text) {
  const width = 120, height = 28, most = Math.max(...values, 0), top = most || 1;
  const step = width / Math.max(values.length - 1, 30); // what there is fills the width, but for the first minute
  const first = width - step * Math.max(values.length - 1, 0);
  const at = values.map((v, i) => `${(first + i * step).toFixed(1)},${(height - 2 - (v / top) * (height - 4)).toFixed(1)}`);
  const now = values.at(-1) ?? 0;
  const e = svg("svg", {
    class: "chart", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img",
    "aria-label": `${title}: now ${text(now)}, highest ${text(most)}`,
  });
  if (at.length > 1) {
    e.append(svg("path", { d: `M${first.toFixed(1)},${height} L${at.join(" L")} L${width},${height} Z` }), svg("polyline", { points: at.join(" ") }));
  }
  return e;
}
