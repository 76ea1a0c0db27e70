"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const pick = document.getElementById("feature");
const find = document.getElementById("find");
const only = document.getElementById("active");
const about = document.getElementById("about");
const list = document.getElementById("texts");
const said = document.getElementById("said");
const make = (tag, text, kind) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  return node;
};
const odd = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g;
const plain = (piece) => piece.replace(/\n/g, "\u23ce").replace(/\t/g, "\u21e5").replace(odd, (c) => "\u2039" + c.codePointAt(0).toString(16) + "\u203a");

data.features.forEach((feature, i) => {
  const option = make("option", feature.name + (feature.label ? "  " + feature.label : ""));
  option.value = String(i);
  pick.append(option);
});

const draw = () => {
  const number = Number(pick.value), feature = data.features[number];
  about.replaceChildren(...feature.lines.map((line) => make("li", plain(line))));
  const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = data.texts
    .map((text) => ({ text, cells: text.a[number] || [] }))
    .filter((row) => (!only.checked || row.cells.length) && words.every((w) => row.text.p.join("").toLowerCase().includes(w)));
  const most = (row) => row.cells.reduce((best, cell) => Math.max(best, cell[1]), 0);
  rows.sort((a, b) => most(b) - most(a));
  list.replaceChildren(...rows.map((row) => {
    const item = make("li"), values = new Map(row.cells), head = make("p", undefined, "cite");
    head.append(make("bdi", plain(row.text.n)), make("b", most(row) ? most(row).toPrecision(3) : "silent"));
    const line = make("p", undefined, "line");
    line.dir = "auto";
    row.text.p.forEach((piece, i) => {
      const value = values.get(i) || 0, shade = Math.ceil((9 * value) / (feature.largest || 1));
      const token = make("span", plain(piece), value ? "s" + Math.min(Math.max(shade, 1), 9) : "");
      token.title = value ? value.toPrecision(3) : "0";
      line.append(token);
    });
    item.append(head, line);
    return item;
  }));
  said.textContent = rows.length + " of " + data.texts.length + " texts";
};
pick.addEventListener("change", draw);
find.addEventListener("input", draw);
only.addEventListener("change", draw);
draw();
