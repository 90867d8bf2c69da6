// The "?" beside a term: a button that tells what it means, and is quiet again on Escape, a second
// tap, or a tap elsewhere. Its sign is drawn by the style sheet, so that it adds no text to a line.

import { fill, h, uniqueId } from "./dom.js";
import { GLOSSARY } from "./glossary.js";

const EDGE = 12; // px that stay free at the window's sides

let open = null; // {ask, said} of the one that is told

/** key: of the glossary. */
export function term(key) {
  const [name, about] = GLOSSARY[key];
  const ask = h("button", {
    type: "button", class: "term", "aria-label": `What does “${name}” mean?`, "aria-expanded": "false",
    on: {
      click: (event) => {
        event.preventDefault(); // it may stand within a line that does something too
        event.stopPropagation();
        if (open?.ask === ask) close();
        else tell(ask, name, about);
      },
    },
  });
  return ask;
}

function tell(ask, name, about) {
  close();
  const said = h("span", { id: uniqueId("term"), class: "term-said", role: "status", popover: "manual" });
  ask.after(said);
  open = { ask, said };
  said.showPopover();
  fill(said, h("strong", {}, name), h("span", {}, about)); // after it is shown: a live region tells changes
  ask.setAttribute("aria-expanded", "true");
  ask.setAttribute("aria-controls", said.id);
  place(ask, said);
}

function place(ask, said) {
  const from = ask.getBoundingClientRect();
  const size = said.getBoundingClientRect();
  const room = document.documentElement.clientWidth - size.width - EDGE;
  const below = from.bottom + 6;
  const fits = below + size.height < window.innerHeight || from.top < size.height;
  said.style.setProperty("--x", `${Math.max(EDGE, Math.min(from.left - EDGE, room)) + window.scrollX}px`);
  said.style.setProperty("--y", `${(fits ? below : from.top - size.height - 6) + window.scrollY}px`);
}

function close() {
  if (open === null) return;
  open.said.remove();
  open.ask.setAttribute("aria-expanded", "false");
  open.ask.removeAttribute("aria-controls");
  open = null;
}

document.addEventListener("pointerdown", (event) => {
  if (open && !open.said.contains(event.target) && !open.ask.contains(event.target)) close();
});
document.addEventListener("keydown", (event) => {
  if (open === null || event.key !== "Escape") return;
  event.preventDefault(); // a dialog around it stays
  open.ask.focus();
  close();
});
window.addEventListener("resize", close);
window.addEventListener("hashchange", close);
