// What natty doctor finds. It is asked for when the page opens, and by the button.
import { clock, el } from "./parts.js";

const $ = (id) => document.getElementById(id);

export async function examine() {
  $("examine").disabled = true;
  $("examined").className = "";
  $("examined").textContent = "examining…";
  try {
    const answer = await fetch("/findings");
    if (!answer.ok) throw new Error((await answer.text()).trim());
    show(await answer.json());
  } catch (e) {
    $("examined").className = "bad";
    $("examined").textContent = `Not examined: ${e.message}`;
  }
  $("examine").disabled = false;
}

function show(all) {
  const n = all.length;
  const found = n === 0 ? "Nothing is wrong, as far as natty doctor looks" : n === 1 ? "1 finding" : `${n} findings`;
  $("examined").textContent = `${found}, at ${clock(Date.now())}.`;
  $("findings").replaceChildren(...all.map((f) => el("li", {}, [
    el("span", { class: f.level === "error" ? "pill bad" : "pill warn" }, f.level), " ",
    el("b", {}, f.about), `: ${f.problem}`,
    el("span", { class: "sub" }, `→ ${f.remedy}`),
  ])));
}
