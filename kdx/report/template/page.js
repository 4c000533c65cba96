"use strict";
// Sorting, the dialog of a run, copying, the filter and the switch of colours. Without it the page is whole, but still.

const rowsOf = (table) => [...table.tBodies[0].rows];

function sortBy(head) {
  const table = head.closest("table");
  const next = { none: "ascending", ascending: "descending", descending: "none" }[head.ariaSort];
  for (const other of table.tHead.rows[0].cells) if (other.ariaSort) other.ariaSort = "none";
  head.ariaSort = next;
  const sign = next === "descending" ? -1 : 1;
  const key = (row) => {
    if (next === "none") return Number(row.dataset.place);
    const cell = row.cells[head.cellIndex];
    if (!head.classList.contains("number")) return cell.textContent.trim().toLowerCase();
    return cell.dataset.value ? Number(cell.dataset.value) : null;
  };
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
  const missing = (value) => value === null || value === "";
  const keyed = rowsOf(table).map((row) => [key(row), row]);
  // What is missing stays last in both directions.
  keyed.sort(([a], [b]) => missing(a) - missing(b) || (missing(a) ? 0 : sign * compare(a, b)));
  table.tBodies[0].append(...keyed.map(([, row]) => row));
}

for (const table of document.querySelectorAll("table.sortable")) {
  rowsOf(table).forEach((row, place) => (row.dataset.place = place));
  for (const head of table.tHead.rows[0].cells) {
    const button = head.querySelector("button");
    if (!button) continue;
    head.ariaSort = "none";
    button.addEventListener("click", () => sortBy(head));
  }
}

// Runs leave the document and come back one at a time, so that hundreds of them weigh nothing.
const dialog = document.querySelector("dialog");
const stage = dialog.querySelector(".stage");
const runs = new Map([...document.querySelectorAll("article.run")].map((run) => [run.id, run]));
for (const run of runs.values()) {
  run.remove();
  // Else the browser would scroll to it, inside the dialog.
  run.removeAttribute("id");
}
document.querySelector(".store").remove();

function showRun() {
  const run = runs.get(decodeURIComponent(location.hash.slice(1)));
  if (!run) return dialog.close();
  stage.replaceChildren(run);
  dialog.setAttribute("aria-label", run.querySelector("h3").textContent);
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}
// The address of the page alone, without moving it.
dialog.addEventListener("close", () => {
  if (runs.has(decodeURIComponent(location.hash.slice(1)))) history.replaceState(null, "", location.pathname + location.search);
});
dialog.addEventListener("click", (event) => {
  if (event.target === dialog || event.target.closest(".close button")) dialog.close();
});
addEventListener("hashchange", showRun);
showRun();

async function copy(button) {
  const text = button.closest(".copyable").querySelector("pre");
  const said = button.textContent;
  try {
    await navigator.clipboard.writeText(text.textContent);
    button.textContent = "Copied";
  } catch {
    // A page from an address without https may not write to the clipboard: the user can.
    getSelection().selectAllChildren(text);
    button.textContent = "Selected, now press Ctrl+C";
  }
  setTimeout(() => (button.textContent = said), 2000);
}
addEventListener("click", (event) => {
  const button = event.target.closest("button.copy");
  if (button) copy(button);
});

for (const field of document.querySelectorAll("input.filter")) {
  const table = document.getElementById(field.dataset.table);
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/);
    for (const row of rowsOf(table)) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
}

const root = document.documentElement;
document.querySelector("button.theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

// On a phone the contents are closed to begin with.
if (matchMedia("(max-width: 60rem)").matches) document.querySelector(".side details").open = false;
