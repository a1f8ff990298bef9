// The dead letters: subjects, the letters of one, and what can be done with them.
import { ago, bytes, count, el, lacks, nothing } from "./parts.js";

const $ = (id) => document.getElementById(id);
const csrf = document.querySelector("meta[name=csrf]").content;
const readOnly = "readonly" in document.body.dataset;
let subject = null; // whose letters are shown
let letters = [];

export function showSubjects(s) {
  const list = s.dead_letters, now = Date.parse(s.time);
  nothing($("no-dead"), list.length === 0 && subject === null, lacks(s, "content"));
  const have = new Map([...$("dead").children].map((b) => [b.dataset.subject, b]));
  for (const d of list) {
    let b = have.get(d.subject);
    if (!b) {
      b = el("button", { type: "button", "aria-expanded": "false", "aria-controls": "letters" }, [el("b"), " ", el("span"), el("span", { class: "sub" })]);
      b.dataset.subject = d.subject;
      b.addEventListener("click", () => (subject === d.subject ? close() : openLetters(d.subject)));
      $("dead").append(b);
    }
    have.delete(d.subject);
    b.children[0].textContent = count(d.count);
    b.children[1].textContent = d.subject;
    b.children[2].textContent = d.newest ? `newest ${ago(now - Date.parse(d.newest))}: ${d.reason || "no reason"}` : "";
  }
  have.forEach((b) => b.remove());
}

function close() {
  const button = [...$("dead").children].find((b) => b.dataset.subject === subject);
  subject = null;
  $("letters").hidden = true;
  mark();
  button?.focus();
}

function mark() {
  for (const b of $("dead").children) b.setAttribute("aria-expanded", String(b.dataset.subject === subject));
}

export async function openLetters(name) {
  subject = name;
  mark();
  $("h-letters").textContent = "Letters on " + name;
  $("letters").hidden = false;
  $("filter").reset();
  await load();
  $("h-letters").focus();
}

function say(text, bad = false) {
  $("result").textContent = text;
  $("result").className = bad ? "bad" : "";
}

// load reads the letters that the filter takes. before is put in front of what it says.
async function load(before = "", bad = false) {
  const query = new URLSearchParams({ subject });
  for (const [k, v] of new FormData($("filter"))) if (v.trim()) query.set(k, v.trim());
  let text = "";
  try {
    const answer = await fetch("/letters?" + query);
    if (!answer.ok) throw new Error((await answer.text()).trim());
    const found = await answer.json();
    letters = found.letters;
    text = letters.length === 0 ? "No letters match." : `${letters.length} ${letters.length === 1 ? "letter" : "letters"}${found.more ? ", the oldest; there are more" : ""}.`;
  } catch (err) {
    letters = [];
    bad = true;
    text = err.message;
  }
  $("list").replaceChildren(...letters.map(item));
  say((before + " " + text).trim(), bad);
  chosen();
}

function item(l, i) {
  const id = `${l.stored_in}/${l.stored_at}`;
  const reason = l.reason || (l.foreign ? "not a dead letter of natty's" : "no reason");
  const box = el("input", { type: "checkbox", "aria-label": `Choose letter ${id}: ${reason}` });
  box.dataset.index = i;
  box.disabled = readOnly;
  const age = l.time ? ago(Date.now() - Date.parse(l.time)) : "";
  const meta = [l.subject, l.durable, age, bytes(l.payload.size), l.redrives ? `redriven ${l.redrives}×` : ""].filter(Boolean).join(" · ");
  const details = el("details", {}, el("summary", {}, [el("span", { class: "reason" }, reason), el("span", { class: "meta" }, meta)]));
  details.addEventListener("toggle", () => details.children.length === 1 && details.append(...content(l, id)), { once: true });
  return el("li", {}, [box, details]);
}

function content(l, id) {
  const rows = [
    ["Letter", id],
    ["Origin", `${l.subject}${l.origin_stream ? `, in stream ${l.origin_stream} at ${l.origin_sequence}` : ""}`],
    ["Durable", l.durable ? `${l.durable}, ${l.deliveries} ${l.deliveries === 1 ? "delivery" : "deliveries"}` : "–"],
    ["Time", l.time ? new Date(l.time).toLocaleString() : "–"],
    ...(l.problem ? [["Problem", l.problem]] : []),
    ...Object.keys(l.header ?? {}).sort().flatMap((k) => l.header[k].map((v) => ["Header " + k, v])),
  ];
  const list = el("dl", {}, rows.flatMap(([k, v]) => [el("dt", {}, k), el("dd", {}, v)]));
  const p = l.payload;
  if (p.size === 0) return [list, el("pre", {}, "(no payload)")];
  return [list, p.text !== undefined ? el("pre", { tabindex: "0", "aria-label": "Payload" }, pretty(p.text)) : el("pre", { class: "hex", tabindex: "0", "aria-label": "Payload as hex" }, dump(p.hex))];
}

function pretty(text) {
  if (!/^\s*[[{]/.test(text)) return text;
  try {
    // Numbers that JavaScript would round stay as they are.
    return /\d{16}/.test(text) ? text : JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

function dump(hex) {
  const lines = [];
  for (let i = 0; i < hex.length; i += 32) {
    const pairs = hex.slice(i, i + 32).match(/../g);
    const text = pairs.map((p) => String.fromCharCode(parseInt(p, 16))).map((c) => (c >= " " && c <= "~" ? c : ".")).join("");
    lines.push(`${(i / 2).toString(16).padStart(8, "0")}  ${pairs.join(" ").padEnd(47)}  ${text}`);
  }
  return lines.join("\n");
}

const boxes = () => [...$("list").querySelectorAll("li > input")];

function chosen() {
  const all = boxes(), on = all.filter((b) => b.checked);
  $("actions").hidden = readOnly || all.length === 0;
  $("all").checked = all.length > 0 && on.length === all.length;
  $("all").indeterminate = on.length > 0 && on.length < all.length;
  for (const [id, name] of [["redrive", "Redrive"], ["purge", "Purge"]]) {
    $(id).disabled = on.length === 0;
    $(id).textContent = on.length ? `${name} ${on.length}…` : `${name}…`;
  }
  return on.map((b) => letters[b.dataset.index]);
}

// confirmed asks, and resolves to the answer. Escape is no.
function confirmed(title, text, yes, danger) {
  const d = $("confirm");
  $("confirm-title").textContent = title;
  $("confirm-text").textContent = text;
  $("confirm-yes").textContent = yes;
  $("confirm-yes").className = danger ? "danger" : "";
  d.returnValue = "";
  d.showModal();
  return new Promise((resolve) => d.addEventListener("close", () => resolve(d.returnValue === "yes"), { once: true }));
}

$("confirm-no").addEventListener("click", () => $("confirm").close("no"));
$("confirm-yes").addEventListener("click", () => $("confirm").close("yes"));

async function change(path, verb, done, text, danger) {
  const some = chosen(), on = subject;
  const what = `${some.length} dead ${some.length === 1 ? "letter" : "letters"}`;
  if (!(await confirmed(`${verb} ${what}?`, text, verb, danger))) return;
  say("…");
  let before = "", bad = false;
  try {
    const answer = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Natty-CSRF": csrf },
      body: JSON.stringify({ subject: on, places: some.map(({ stored_in, stored_at }) => ({ stored_in, stored_at })) }),
    });
    if (!answer.ok) throw new Error((await answer.text()).trim());
    const result = await answer.json();
    before = `${result.done} of ${what} ${done}.`;
    if (result.error) [before, bad] = [`${before} ${result.error}.`, true];
  } catch (err) {
    [before, bad] = [err.message, true];
  }
  if (subject === on) await load(before, bad);
}

$("filter").addEventListener("submit", (e) => {
  e.preventDefault();
  load();
});
$("close").addEventListener("click", close);
$("list").addEventListener("change", chosen);
$("all").addEventListener("change", (e) => {
  boxes().forEach((b) => (b.checked = e.target.checked));
  chosen();
});
$("redrive").addEventListener("click", () =>
  change("/redrive", "Redrive", "redriven", "Their messages go back to the consumer that failed. Mend the cause first.", false));
$("purge").addEventListener("click", () =>
  change("/purge", "Purge", "purged", "They are deleted for good, with their messages.", true));
