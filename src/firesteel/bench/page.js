"use strict";

/* Tables: a click on a column's name sorts by it, a second one the other way; what has no number stays last. */
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => sort(button.parentElement));
}

function sort(head) {
  const body = head.closest("table").tBodies[0];
  const down = head.getAttribute("aria-sort") === "ascending";
  const numbers = head.classList.contains("number");
  const key = (row) => {
    const cell = row.cells[head.cellIndex];
    if (!numbers) return cell.textContent.trim();
    return "value" in cell.dataset ? Number(cell.dataset.value) : null;
  };
  const compare = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null);
    const order = numbers ? a - b || 0 : a.localeCompare(b, "en", { numeric: true });
    return down ? -order : order;
  };
  const rows = [...body.rows].map((row) => [key(row), row]);
  body.append(...rows.sort(([a], [b]) => compare(a, b)).map(([, row]) => row));
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
}

/* Long tables begin with their first eight rows, whichever these are by the order. */
for (const table of document.querySelectorAll("table[data-long]")) {
  const more = document.createElement("button");
  const cut = (on) => {
    table.classList.toggle("cut", on);
    more.textContent = on ? `Show all ${table.tBodies[0].rows.length} rows` : "Show the first 8 rows";
    more.setAttribute("aria-expanded", !on);
  };
  more.type = "button";
  more.className = "more";
  more.addEventListener("click", () => cut(!table.classList.contains("cut")));
  table.parentElement.after(more);
  cut(true);
}

/* Legends: a button shows or hides its series in all pictures of the section. */
for (const legend of document.querySelectorAll(".legend")) {
  const section = legend.closest("section");
  const buttons = [...legend.querySelectorAll("[data-series]")];
  const show = (button, on) => {
    button.setAttribute("aria-pressed", on);
    section.classList.toggle(`off-${button.dataset.series}`, !on);
  };
  const best = new Set(buttons.filter((button) => button.getAttribute("aria-pressed") === "true"));
  const sets = { best: (button) => best.has(button), all: () => true, none: () => false };
  for (const button of buttons) {
    button.addEventListener("click", () => show(button, button.getAttribute("aria-pressed") !== "true"));
  }
  for (const set of legend.querySelectorAll("[data-set]")) {
    set.addEventListener("click", () => buttons.forEach((button) => show(button, sets[set.dataset.set](button))));
  }
}

/* The theme: the system's until the button is pressed, then what was chosen, kept for the next time. */
const theme = document.getElementById("theme");
const system = matchMedia("(prefers-color-scheme: dark)");
const dark = () => (document.documentElement.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
const tell = () => theme.setAttribute("aria-pressed", dark());
theme.addEventListener("click", () => {
  const chosen = dark() ? "light" : "dark";
  document.documentElement.dataset.theme = chosen;
  try {
    localStorage.setItem("theme", chosen);
  } catch {
    /* no storage: until the page is left */
  }
  tell();
});
system.addEventListener("change", tell);
tell();

/* The contents tell which section is read. */
const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const seen = new IntersectionObserver(
  (entries) => {
    for (const entry of entries.filter((each) => each.isIntersecting)) {
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(entry.target.id).setAttribute("aria-current", "true");
    }
  },
  { rootMargin: "-15% 0px -80% 0px" },
);
document.querySelectorAll("section").forEach((section) => seen.observe(section));
