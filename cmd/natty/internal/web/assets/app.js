// The page of natty ui. Everything that comes from the server becomes text, never HTML.
import { ago, chart, clock, count, el, lacks, nothing, rate, span } from "./parts.js";
import { examine } from "./findings.js";
import { openLetters, showSubjects } from "./letters.js";

history.replaceState(null, "", "/"); // the token stays out of the address bar

const points = []; // of the charts
const maxPoints = 120;
const $ = (id) => document.getElementById(id);
let last = null; // snapshot
let quietSince = null;

function remember(p) {
  points.push(p);
  if (points.length > maxPoints) points.shift();
}

// row returns the row of a key; rows that are there stay, so that readers keep their place.
function rows(body, items, key, fill) {
  const have = new Map([...body.children].map((tr) => [tr.dataset.key, tr]));
  items.forEach((item, i) => {
    const k = key(item);
    const tr = have.get(k) ?? el("tr");
    have.delete(k);
    tr.dataset.key = k;
    fill(tr, item);
    if (body.children[i] !== tr) body.insertBefore(tr, body.children[i] ?? null);
  });
  have.forEach((tr) => tr.remove());
}

// cells sets the cells of a row: [label, content, classes].
function cells(tr, list) {
  while (tr.children.length < list.length) tr.append(tr.children.length === 0 ? el("th", { scope: "row" }) : el("td"));
  list.forEach(([label, content, classes], i) => {
    const cell = tr.children[i];
    cell.className = classes ?? "";
    if (i > 0) cell.dataset.label = label;
    if (content instanceof Node || Array.isArray(content)) cell.replaceChildren(...[content].flat());
    else if (cell.textContent !== content) cell.textContent = content;
  });
}

function showConsumers(s) {
  const now = Date.parse(s.time);
  const all = [...s.consumers].sort((a, b) => b.lag - a.lag || (a.stream + a.name).localeCompare(b.stream + b.name));
  nothing($("no-consumers"), all.length === 0, lacks(s, "consumers"));
  $("consumers").hidden = all.length === 0;
  rows($("consumers").tBodies[0], all, (c) => c.stream + "/" + c.name, (tr, c) => {
    const k = c.stream + "/" + c.name;
    const lag = points.map((p) => p.consumers[k]?.[0] ?? 0);
    const rates = points.map((p) => p.consumers[k]?.[1] ?? 0);
    const state = c.warning ? el("span", { class: "pill warn" }, c.warning) : el("span", { class: "pill ok" }, c.lag ? "working" : "idle");
    cells(tr, [
      ["Consumer", [document.createTextNode(c.name), el("span", { class: "sub" }, c.stream + (c.filters ? ": " + c.filters.join(", ") : ""))]],
      ["Lag", count(c.lag), "n"],
      ["Lag, last minutes", chart(lag, "Lag of " + c.name, count)],
      ["Delivered", rate(c.delivered_per_second), "n"],
      ["Rate, last minutes", chart(rates, "Rate of " + c.name, rate)],
      ["In flight", c.in_flight + (c.max_in_flight > 0 ? " of " + count(c.max_in_flight) : ""), "n"],
      ["Oldest", c.oldest ? span(now - Date.parse(c.oldest)) : "–", "n"],
      ["State", state, "wide"],
    ]);
  });
}

function showLeases(s) {
  const now = Date.parse(s.time);
  nothing($("no-leases"), s.leases.length === 0, lacks(s, "content"));
  $("leases").hidden = s.leases.length === 0;
  rows($("leases").tBodies[0], s.leases, (l) => l.bucket + "/" + l.key, (tr, l) => cells(tr, [
    ["Key", [document.createTextNode(l.key), el("span", { class: "sub" }, l.bucket)]],
    ["Kind", l.kind], ["Owner", l.owner], ["Renewed", ago(now - Date.parse(l.renewed)), "n"],
  ]));
}

function showTotals(s) {
  const sum = (list, f) => list.reduce((n, x) => n + f(x), 0);
  const stalled = s.consumers.filter((c) => c.warning).length;
  const dead = sum(s.dead_letters, (d) => d.count);
  // What could not be read may hold more.
  const known = (n, kind, text = count) => !lacks(s, kind) ? text(n) : n ? "≥ " + text(n) : "?";
  const totals = [
    [known(sum(s.consumers, (c) => c.lag), "consumers"), "messages to handle"],
    [known(sum(s.consumers, (c) => c.delivered_per_second ?? 0), "consumers", rate), "delivered"],
    [known(stalled, "consumers"), stalled === 1 ? "consumer with a warning" : "consumers with a warning", stalled > 0],
    [known(dead, "content"), dead === 1 ? "dead letter" : "dead letters", dead > 0],
    [known(s.leases.length, "content"), "leaders and locks"],
  ];
  const list = $("totals");
  while (list.children.length < totals.length) list.append(el("li", {}, [el("b"), el("span")]));
  totals.forEach(([n, what, bad], i) => {
    const li = list.children[i];
    li.className = bad ? "bad" : "";
    li.children[0].textContent = n;
    li.children[1].textContent = what;
  });
}

function show(s) {
  last = s;
  quietSince = null;
  $("server").textContent = `${s.server.name} ${s.server.version}, ${s.server.url}` + (s.server.cluster ? `, cluster ${s.server.cluster}` : "");
  $("alarm").hidden = true;
  document.body.classList.remove("stale");
  $("state").textContent = (s.problems ? "live, incomplete, " : "live, ") + clock(s.time);
  $("state").className = s.problems ? "pill warn" : "pill ok";
  showTotals(s);
  showConsumers(s);
  showLeases(s);
  showSubjects(s);
  $("problems").hidden = !s.problems;
  $("problems").querySelector("ul").replaceChildren(...(s.problems ?? []).map((p) => el("li", {}, p.text)));
}

// alarm says that there is no news, once: a screen reader would read each change aloud.
function alarm(why) {
  quietSince ??= last ? clock(last.time) : "the start";
  const text = `No news since ${quietSince}: ${why}`;
  if ($("alarm").hidden || $("alarm").textContent !== text) $("alarm").textContent = text;
  $("alarm").hidden = false;
  document.body.classList.add("stale");
  $("state").textContent = "no news";
  $("state").className = "pill bad";
}

function listen() {
  const source = new EventSource("/events");
  source.addEventListener("history", (e) => {
    points.length = 0;
    JSON.parse(e.data)?.forEach(remember);
    if (points.length) points.pop(); // the event that follows has it
  });
  source.onmessage = (e) => {
    const { snapshot, trouble } = JSON.parse(e.data);
    if (!snapshot) return alarm(trouble);
    remember({ consumers: Object.fromEntries(snapshot.consumers.map((c) => [c.stream + "/" + c.name, [c.lag, c.delivered_per_second ?? 0]])) });
    show(snapshot);
  };
  source.onerror = () => {
    alarm("natty ui does not answer. Start it again, and open the URL that it prints.");
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 2000);
  };
}

$("examine").addEventListener("click", examine);
examine();
document.addEventListener("open-letters", (e) => openLetters(e.detail));
listen();
