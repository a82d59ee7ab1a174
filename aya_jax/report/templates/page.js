"use strict";
// Without scripts every panel is shown; with them a picker shows one of its group at a time.
document.documentElement.classList.add("js");

for (const picker of document.querySelectorAll(".picker")) {
  const group = picker.dataset.group;
  const panels = [...document.querySelectorAll(`[data-panel="${group}"]`)];
  const show = (key) => {
    for (const panel of panels) panel.hidden = panel.dataset.key !== key;
  };
  const select = picker.querySelector("select");
  if (select) {
    for (const button of picker.querySelectorAll("[data-move]")) {
      button.addEventListener("click", () => {
        const count = select.options.length;
        select.selectedIndex = (select.selectedIndex + Number(button.dataset.move) + count) % count;
        show(select.value);
      });
    }
    select.addEventListener("change", () => show(select.value));
    show(select.value);
  } else {
    picker.addEventListener("change", (event) => show(event.target.value));
    show(picker.querySelector("input:checked").value);
  }
}

// A cell's interval, for those who cannot hover: a tap tells it, and so do the arrow keys.
const readout = document.getElementById("readout");
const tell = (event) => {
  const cell = event.target.closest("table.heat td");
  if (readout && cell) readout.textContent = cell.title;
};
for (const kind of ["pointerover", "click", "focusin"]) document.addEventListener(kind, tell);

const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
for (const table of document.querySelectorAll("table.heat")) {
  const rows = [...table.tBodies[0].rows].map((row) => [...row.querySelectorAll("td")]);
  rows.flat().forEach((cell, i) => { cell.tabIndex = i === 0 ? 0 : -1; });
  table.addEventListener("keydown", (event) => {
    const move = moves[event.key];
    const row = rows.findIndex((cells) => cells.includes(event.target));
    if (!move || row < 0) return;
    const next = rows[row + move[0]]?.[rows[row].indexOf(event.target) + move[1]];
    event.preventDefault();
    if (!next) return;
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}

const theme = document.getElementById("theme");
const themes = ["auto", "light", "dark"];
theme.hidden = false;
theme.addEventListener("click", () => {
  const root = document.documentElement;
  const next = themes[(themes.indexOf(root.dataset.theme || "auto") + 1) % themes.length];
  root.dataset.theme = next;
  theme.textContent = `Theme: ${next}`;
});
