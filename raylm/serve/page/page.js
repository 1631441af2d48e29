"use strict";
// Texts of users and models only ever become text nodes.

const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const made = attributes.svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (key !== "svg") made.setAttribute(key, value);
  made.append(...children);
  return made;
}
const shape = (name, attributes, ...children) => element(name, { ...attributes, svg: true }, ...children);

async function ask(path, body) {
  const token = byId("token").value.trim();
  const headers = { ...(token && { Authorization: `Bearer ${token}` }), ...(body && { "Content-Type": "application/json" }) };
  const answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  const said = await answer.json().catch(() => null);
  if (!answer.ok) throw new Error(said?.error?.message ?? `the server answers with status ${answer.status}`);
  return said;
}

async function submit(form, place, work) {
  const button = form.querySelector("button");
  button.disabled = true;
  try {
    place.replaceChildren(...(await work(new FormData(form))));
  } catch (error) {
    place.replaceChildren(element("p", { class: "error", role: "alert" }, error.message));
  } finally {
    button.disabled = false;
  }
}

const signed = (number) => (number < 0 ? "−" : "+") + Math.abs(number).toFixed(2);

/** What each dimension adds to the score of A and of B: two bars from a common zero. */
function chart(a, b) {
  const names = [...new Set([...Object.keys(a.attribution), ...Object.keys(b.attribution)])];
  const both = (name) => [a.attribution[name] ?? 0, b.attribution[name] ?? 0];
  const gap = (name) => Math.abs(both(name)[0] - both(name)[1]);
  names.sort((one, other) => gap(other) - gap(one));
  const left = 150, right = 500, row = 40;
  const values = names.flatMap(both);
  const low = Math.min(0, ...values), high = Math.max(0, ...values);
  const x = (value) => left + 50 + ((value - low) / (high - low || 1)) * (right - left - 100);
  const height = names.length * row + 8;
  const drawn = shape("svg", { viewBox: `0 0 ${right} ${height}`, role: "img", "aria-label": "Contribution of each dimension to both scores" });
  drawn.append(shape("line", { x1: x(0), x2: x(0), y1: 0, y2: height }));
  names.forEach((name, place) => {
    const top = place * row + 8;
    const shown = name.length > 22 ? `${name.slice(0, 21)}…` : name;
    drawn.append(shape("text", { x: left - 8, y: top + 18, "text-anchor": "end" }, shape("title", {}, name), shown));
    both(name).forEach((value, which) => {
      const y = top + which * 14, kind = which ? "b" : "a", end = x(value);
      drawn.append(shape("rect", { class: kind, x: Math.min(x(0), end), y, width: Math.max(1, Math.abs(end - x(0))), height: 11, rx: 2 }));
      const outside = value < 0 ? { x: end - 4, "text-anchor": "end" } : { x: end + 4 };
      drawn.append(shape("text", { ...outside, y: y + 9.5, class: "quiet" }, signed(value)));
    });
  });
  return drawn;
}

function comparison(said) {
  const share = Math.round(said.probability * 1000) / 10;
  const verdict = element("p", { class: "verdict" });
  if (said.winner === "tie") verdict.append("Neither is better");
  else verdict.append(element("b", { class: said.winner }, said.winner.toUpperCase()), ` is better, with probability ${(Math.max(share, 100 - share)).toFixed(1)}%`);
  const odds = element("div", { class: "odds" }, element("div", { class: "a" }), element("div", { class: "b" }));
  odds.children[0].style.width = `${share}%`;
  odds.children[1].style.width = `${100 - share}%`;
  const key = element("p", { class: "note" }, "What each dimension adds to the score: ",
    element("b", { class: "key a" }, `A ${signed(said.a.score)}`), "  ", element("b", { class: "key b" }, `B ${signed(said.b.score)}`));
  const parts = [verdict, odds, key, chart(said.a, said.b)];
  for (const [name, item] of [["A", said.a], ["B", said.b]])
    if (item.flags.length) parts.push(element("p", { class: "note" }, `${name}: ${item.flags.join(", ").replaceAll("_", " ")}`));
  parts.push(element("p", { class: "note" }, `${said.model}, revision ${said.revision}`));
  return parts;
}

function hits(said) {
  const found = said.data[0].hits;
  if (!found.length) return [element("p", { class: "note" }, "Nothing was found.")];
  const best = Math.max(...found.map((hit) => hit.score));
  const list = element("ol");
  for (const hit of found) {
    const bar = element("div", { class: "bar" });
    bar.style.width = `${Math.max(0, (100 * hit.score) / (best || 1))}%`;
    list.append(element("li", {}, element("div", { class: "head" }, element("span", { class: "id" }, hit.id), element("span", {}, hit.score.toFixed(3))), bar, element("p", {}, hit.text)));
  }
  return [list];
}

async function start() {
  const served = byId("served");
  try {
    const { data } = await ask("v1/models");
    for (const kind of ["reward", "retriever"]) {
      const own = data.filter((model) => model.kind === kind);
      byId(kind).hidden = own.length === 0;
      byId(kind).querySelector("select[name=model]").replaceChildren(...own.map((model) => element("option", {}, model.id)));
    }
    served.textContent = data.map((model) => model.id + (model.error ? " (its newest files are damaged)" : "")).join(", ");
    served.className = "";
  } catch (error) {
    served.textContent = error.message;
    served.className = "error";
  }
}

byId("compare").addEventListener("submit", (event) => {
  event.preventDefault();
  submit(event.target, byId("comparison"), async (form) => comparison(await ask("v1/compare",
    { model: form.get("model"), prompt: form.get("prompt"), response_a: form.get("a"), response_b: form.get("b") })));
});
byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  submit(event.target, byId("found"), async (form) => hits(await ask("v1/search",
    { model: form.get("model"), query: form.get("query"), mode: form.get("mode"), k: Number(form.get("k")) })));
});
byId("token").addEventListener("change", start);

/** A link such as /#query=red or /#prompt=…&a=…&b=… fills the form of its fields and sends it. */
function follow() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const form of [byId("compare"), byId("search")]) {
    const fields = [...given.keys()].filter((name) => form.elements[name]);
    for (const name of fields) form.elements[name].value = given.get(name);
    if (fields.includes("query") || fields.includes("prompt")) form.requestSubmit();
  }
}
start().then(follow);
