"use strict";
// Draws search trees from the JSON beside it. Text reaches the page through textContent alone.
function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function nodeRow(tree, id) {
  const node = tree.nodes[id];
  const row = element("span", "row" + (node.pivot ? " pivot" : ""));
  const text = element("span", "text", id === 0 ? "(question)" : node.text.trim() || "(empty step)");
  for (const end of node.ends) {
    text.append(" ", element("span", "verdict " + end.verdict, end.verdict));
    if (end.answer) text.append(element("span", "aside", "answer " + end.answer));
  }
  if (node.pivot) text.append(" ", element("span", "badge", "pivot"));
  const stats = element("span", "stats", "N " + node.visits);
  const meter = element("span", "meter");
  const fill = element("i");
  fill.style.width = Math.round(100 * Math.max(0, Math.min(1, node.q))) + "%";
  meter.append(fill);
  stats.append(meter, "Q " + node.q.toFixed(2));
  stats.title = `node ${id}, round ${node.round}, ${node.tokens} tokens, log-probability ${node.logprob.toFixed(2)}`;
  row.append(text, stats);
  return row;
}

function subtree(tree, id, depth) {
  const node = tree.nodes[id];
  if (!node.children.length) {
    const leaf = element("div", "leaf o-" + node.outcome);
    leaf.append(nodeRow(tree, id));
    return leaf;
  }
  const branch = element("details", "o-" + node.outcome);
  branch.open = tree.nodes.length <= 80 || depth < 2 || node.abovePivot;
  const summary = element("summary");
  summary.append(nodeRow(tree, id));
  branch.append(summary);
  for (const child of node.children) branch.append(subtree(tree, child, depth + 1));
  return branch;
}

function showTree(tree, view) {
  view.replaceChildren();
  view.append(element("div", "text", tree.question));
  view.append(element("div", "counts",
    `gold answer ${tree.gold}; ${tree.nodes.length} nodes, ${tree.tokens} generated tokens, ${tree.rounds} expansions`));
  const bar = element("div", "bar");
  const drawing = element("div", "tree");
  for (const [label, open] of [["Open all", true], ["Close all", false]]) {
    const button = element("button", "", label);
    button.type = "button";
    button.addEventListener("click", () => drawing.querySelectorAll("details").forEach(item => { item.open = open; }));
    bar.append(button);
  }
  const legend = element("span", "legend");
  for (const [kind, name] of [["correct", "leads to correct"], ["wrong", "leads to wrong"], ["mixed", "both"], ["pivot", "pivot"]]) {
    const entry = element("span");
    entry.append(element("i", "swatch " + kind), name);
    legend.append(entry);
  }
  bar.append(legend);
  drawing.append(subtree(tree, 0, 0));
  view.append(bar, drawing);
}

function browser(root) {
  const trees = JSON.parse(root.querySelector("script").textContent);
  const picker = element("div", "picker");
  const search = element("input");
  search.type = "search";
  search.placeholder = "Find a question";
  search.setAttribute("aria-label", "Find a question");
  const outcome = element("select");
  outcome.setAttribute("aria-label", "Outcome");
  for (const [value, label] of [["", "all outcomes"], ["mixed", "right and wrong paths"], ["correct", "right paths only"], ["wrong", "wrong paths only"], ["none", "no verdict"]]) {
    const option = element("option", "", label);
    option.value = value;
    outcome.append(option);
  }
  const list = element("ul", "list");
  const view = element("div", "view");
  picker.append(search, outcome, list);
  root.append(picker, view);
  const buttons = trees.map(tree => {
    const item = element("li");
    const button = element("button");
    button.type = "button";
    button.append(element("div", "", tree.question.length > 120 ? tree.question.slice(0, 117) + "..." : tree.question));
    button.append(element("div", "counts", `${tree.task}: ${tree.correct} right, ${tree.wrong} wrong`));
    button.addEventListener("click", () => {
      buttons.forEach(other => other.button.removeAttribute("aria-current"));
      button.setAttribute("aria-current", "true");
      showTree(tree, view);
    });
    item.append(button);
    list.append(item);
    return {tree, item, button};
  });
  const filter = () => {
    const words = search.value.toLowerCase();
    for (const {tree, item} of buttons) {
      item.hidden = !(tree.question.toLowerCase().includes(words) || tree.task.toLowerCase().includes(words))
        || (outcome.value !== "" && tree.outcome !== outcome.value);
    }
  };
  search.addEventListener("input", filter);
  outcome.addEventListener("change", filter);
  if (buttons.length) buttons[0].button.click();
}

document.querySelectorAll("[data-trees]").forEach(browser);
