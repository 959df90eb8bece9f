"use strict";
// Sort and filter long tables and galleries. The page is complete without this script.
function makeFilter(items, what) {
  const filter = document.createElement("input");
  filter.type = "search";
  filter.className = "filter";
  filter.placeholder = `Filter ${what}`;
  filter.setAttribute("aria-label", filter.placeholder);
  filter.addEventListener("input", () => {
    const wanted = filter.value.toLowerCase();
    for (const item of items) item.hidden = !item.textContent.toLowerCase().includes(wanted);
  });
  return filter;
}
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      const value = (row) => {
        const cell = row.cells[column];
        return "sort" in cell.dataset ? Number(cell.dataset.sort) : cell.textContent.trim();
      };
      const order = (a, b) => (typeof a === "number" ? a - b : String(a).localeCompare(String(b)));
      const rows = [...body.rows].sort((a, b) => order(value(a), value(b)));
      body.append(...(descending ? rows.reverse() : rows));
      for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    });
  });
  if (body.rows.length > 20) table.parentElement.before(makeFilter(body.rows, "rows"));
}
for (const gallery of document.querySelectorAll(".gallery")) {
  const cards = [...gallery.children];
  const orders = {
    "in the order of the data": () => 0,
    "by name": (a, b) => a.dataset.video.localeCompare(b.dataset.video),
    "by label, best score first": (a, b) => a.dataset.label.localeCompare(b.dataset.label) || b.dataset.score - a.dataset.score,
    "by best score": (a, b) => b.dataset.score - a.dataset.score,
    "by best score, least certain first": (a, b) => a.dataset.score - b.dataset.score,
  };
  const select = document.createElement("select");
  select.setAttribute("aria-label", "Sort videos");
  for (const order of Object.keys(orders)) select.append(new Option(order));
  select.addEventListener("change", () => gallery.append(...[...cards].sort(orders[select.value])));
  const tools = document.createElement("div");
  tools.className = "tools";
  tools.append(makeFilter(cards, "videos by name or label"), select);
  gallery.before(tools);
}
