"use strict";
document.documentElement.classList.add("js");

for (const box of document.querySelectorAll("[data-table]")) {
  const table = box.querySelector("table");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const heads = Array.from(table.tHead.rows[0].cells);
  const search = box.querySelector("input[type=search]");
  const only = box.querySelector("input[type=checkbox]");
  const said = box.querySelector("output");

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const number = head.classList.contains("number");
      const value = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
      const order = (a, b) => {
        const x = value(a), y = value(b);
        if (x === "" || y === "") return (x === "") - (y === "");
        const sign = down ? -1 : 1;
        return sign * (number ? Number(x) - Number(y) : x.localeCompare(y, undefined, { numeric: true }));
      };
      body.append(...rows.slice().sort(order));
    });
  });

  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let n = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = (only.checked && !row.classList.contains("hit")) || !words.every((word) => text.includes(word));
      n += row.hidden ? 0 : 1;
    }
    said.textContent = n + " of " + rows.length + " rows shown";
  };
  search.addEventListener("input", filter);
  only.addEventListener("change", filter);
}
