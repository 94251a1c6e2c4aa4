"use strict";
(function () {
  // Every text is put in as text (textContent), never as HTML.
  const parts = JSON.parse(document.getElementById("data").textContent);
  const get = (id) => document.getElementById(id);
  const PAGE = 20;
  let page = 0;
  let shown = [];

  function element(tag, name, text) {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function fill(select, entries) {
    select.replaceChildren(...entries.map(([value, text]) => {
      const option = element("option", "", text);
      option.value = value;
      return option;
    }));
  }

  function counted(values) {
    const counts = new Map();
    values.forEach((value) => counts.set(value, (counts.get(value) || 0) + 1));
    return [...counts].sort((a, b) => (a[0] < b[0] ? -1 : 1)).map(([value, n]) => [value, value + " (" + n + ")"]);
  }

  const current = () => parts.find((part) => part.key === get("part").value);

  function words(item) {
    if (item.words === undefined) {
      item.words = (item.id + "\n" + item.t + "\n" + item.b.map((one) => one.h + "\n" + one.m + "\n" + one.x).join("\n")).toLowerCase();
    }
    return item.words;
  }

  function choosePart() {
    const items = current().items;
    const offer = (id, values) => {
      fill(get(id), [["", "all"], ...counted(values)]);
      get(id).disabled = get(id).length === 1;
    };
    offer("category", items.map((item) => item.c).filter(Boolean));
    offer("principle", items.flatMap((item) => item.p));
    offer("show", items.flatMap((item) => item.m));
    const judged = items.some((item) => item.u !== null);
    const made = items.some((item) => item.b.some((block) => block.k === "revision"));
    const offered = { file: true, unsure: judged, gap: judged, change: made };
    [...get("order").options].forEach((option) => { option.hidden = option.disabled = !offered[option.value]; });
    get("order").disabled = !judged && !made;
    if (!offered[get("order").value]) get("order").value = "file";
    select();
  }

  function select() {
    const part = current();
    const category = get("category").value;
    const principle = get("principle").value;
    const mark = get("show").value;
    const terms = get("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    shown = part.items.filter((item) =>
      (!category || item.c === category) &&
      (!principle || item.p.includes(principle)) &&
      (!mark || item.m.includes(mark)) &&
      terms.every((term) => words(item).includes(term)));
    const order = get("order").value;
    if (order === "unsure") shown = [...shown].sort((a, b) => (a.u ?? 2) - (b.u ?? 2));
    if (order === "gap") shown = [...shown].sort((a, b) => Math.abs(b.g ?? 0) - Math.abs(a.g ?? 0));
    if (order === "change") shown = [...shown].sort((a, b) => changed(b) - changed(a));
    const sampled = part.total > part.items.length
      ? " An even sample of " + part.total.toLocaleString("en") + "; all are in " + part.file + "."
      : " From " + part.file + ".";
    get("status").textContent = shown.length.toLocaleString("en") + " of " + part.items.length.toLocaleString("en") + " rows." + sampled;
    page = 0;
    draw();
  }

  const isAnswer = (block) => block.k === "response" || block.k === "revision";

  // How far the last revision is from the first response: words of either that the other lacks, over all, in [0, 1].
  function changed(item) {
    if (item.changed === undefined) {
      const texts = item.b.filter(isAnswer).map((block) => block.x.split(/\s+/));
      const counts = new Map();
      const first = texts[0] || [], last = texts[texts.length - 1] || [];
      first.forEach((word) => counts.set(word, (counts.get(word) || 0) + 1));
      last.forEach((word) => counts.set(word, (counts.get(word) || 0) - 1));
      item.changed = [...counts.values()].reduce((sum, n) => sum + Math.abs(n), 0) / (first.length + last.length || 1);
    }
    return item.changed;
  }

  // The words of both texts in order, as [tag, words]: "" in both, "del" in the first alone, "ins" in the second alone.
  // By their longest common subsequence; of long texts the marks are left out.
  function difference(before, after) {
    const a = before.match(/\s*\S+/g) || [], b = after.match(/\s*\S+/g) || [];
    if (a.length * b.length > 1e6) return [["", after]];
    const same = (i, j) => a[i].trim() === b[j].trim();
    const width = b.length + 1;
    const longest = new Uint16Array((a.length + 1) * width);
    for (let i = a.length - 1; i >= 0; i--) {
      for (let j = b.length - 1; j >= 0; j--) {
        longest[i * width + j] = same(i, j)
          ? longest[(i + 1) * width + j + 1] + 1
          : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
      }
    }
    const found = [];
    const add = (tag, word) => {
      if (found.length && found[found.length - 1][0] === tag) found[found.length - 1][1] += word;
      else found.push([tag, word]);
    };
    let i = 0, j = 0;
    while (i < a.length || j < b.length) {
      if (i < a.length && j < b.length && same(i, j)) { add("", b[j]); i++; j++; }
      else if (i < a.length && (j === b.length || longest[(i + 1) * width + j] >= longest[i * width + j + 1])) add("del", a[i++]);
      else add("ins", b[j++]);
    }
    return found;
  }

  function revised(before, after) {
    const node = element("p");
    difference(before, after).forEach(([tag, text]) => node.append(tag ? element(tag, "", text) : text));
    return node;
  }

  function body(item) {
    const inside = element("div", "body");
    let before = null;
    item.b.forEach((block) => {
      const node = element("div", "block " + block.k);
      const heading = element("h4", "", block.h);
      if (block.m) heading.append(" ", element("span", "mark", block.m));
      const revision = block.k === "revision" && before !== null;
      if (revision && before.trim() === block.x.trim()) heading.append(" ", element("span", "mark", "no change"));
      node.append(heading, revision ? revised(before, block.x) : element("p", "", block.x));
      if (isAnswer(block)) before = block.x;
      inside.append(node);
    });
    const link = element("a", "link", "link to this row");
    link.href = "#row=" + encodeURIComponent(current().key + "/" + item.id);
    inside.append(link);
    return inside;
  }

  function card(item, open) {
    const details = element("details", "card");
    const summary = element("summary");
    summary.append(element("span", "title", item.t || item.id));
    if (item.c) summary.append(element("span", "mark", item.c));
    if (item.u !== null) summary.append(element("span", "mark", "p = " + item.u.toFixed(2)));
    details.append(summary);
    const show = () => { if (details.open && details.children.length === 1) details.append(body(item)); };
    details.addEventListener("toggle", show);
    details.open = open;
    show();
    return details;
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(shown.length / PAGE));
    get("items").replaceChildren(...shown.slice(page * PAGE, (page + 1) * PAGE).map((item, i) => card(item, page === 0 && i === 0)));
    get("where").textContent = "page " + (page + 1) + " of " + pages;
    get("previous").disabled = page === 0;
    get("next").disabled = page >= pages - 1;
  }

  function turn(by) {
    page += by;
    draw();
    get("h-browser").scrollIntoView();
    const first = get("items").querySelector("summary");
    if (first) first.focus({ preventScroll: true });
  }

  function follow() {
    const match = /^#row=(.*)$/.exec(location.hash);
    if (!match) return;
    let name;
    try { name = decodeURIComponent(match[1]); } catch { return; }
    const key = name.slice(0, name.indexOf("/"));
    const part = parts.find((one) => one.key === key);
    const item = part && part.items.find((one) => key + "/" + one.id === name);
    if (!item) return;
    get("part").value = key;
    get("search").value = "";
    get("order").value = "file";
    choosePart();
    page = Math.floor(shown.indexOf(item) / PAGE);
    draw();
    const node = get("items").children[shown.indexOf(item) % PAGE];
    node.open = true;
    node.scrollIntoView();
    node.firstChild.focus({ preventScroll: true });
  }

  if (!parts.length) {
    get("controls").hidden = true;
    document.querySelector(".pager").hidden = true;
    get("status").textContent = "No dialogues have been written yet.";
    return;
  }
  fill(get("part"), parts.map((part) => [part.key, part.title + " (" + part.items.length.toLocaleString("en") + ")"]));
  get("controls").addEventListener("submit", (event) => event.preventDefault());
  get("part").addEventListener("change", choosePart);
  ["category", "principle", "show", "order"].forEach((id) => get(id).addEventListener("change", select));
  let waiting;
  get("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(select, 150); });
  get("previous").addEventListener("click", () => turn(-1));
  get("next").addEventListener("click", () => turn(1));
  window.addEventListener("hashchange", follow);
  choosePart();
  follow();
})();
