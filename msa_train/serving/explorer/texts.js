// Documents by number, fetched once; and their text with chunks marked.

import * as api from "./api.js";
import { button, h } from "./dom.js";
import { counted, layersText, shortened } from "./format.js";

const KNOWN = 300; // documents that are held at once

/** What was fetched from a bank, the newest of it. A document never changes under its number: it can only be removed. */
export class Texts {
  constructor(bank) {
    this.bank = bank;
    this.known = new Map();
  }

  get(number) {
    if (!this.known.has(number)) {
      const fetched = api.getDocument(this.bank, number);
      fetched.catch(() => this.known.delete(number)); // to be tried again
      this.known.set(number, fetched);
      if (this.known.size > KNOWN) this.known.delete(this.known.keys().next().value);
    }
    return this.known.get(number);
  }
}

/**
 * A document's text, cut at its chunks. winners: Map of chunk place -> layers that chose by it.
 * Spans count characters (code points), as the server does, not JavaScript's UTF-16 units.
 */
export function chunkedText(doc, winners = new Map()) {
  if (!doc.text) return h("p", { class: "hint" }, "This document has no text.");
  const characters = Array.from(doc.text);
  const pieces = [];
  let done = 0;
  (doc.chunks ?? []).forEach(([start, end], place) => {
    if (start > done) pieces.push(characters.slice(done, start).join(""));
    pieces.push(chunkOf(characters.slice(Math.max(start, done), end).join(""), place, winners.get(place)));
    done = Math.max(done, end);
  });
  pieces.push(characters.slice(done).join(""));
  return h("div", { class: "text", dir: "auto" }, pieces);
}

function chunkOf(text, place, layers) {
  if (!layers) return h("span", { class: "chunk", title: `chunk ${place + 1}` }, text);
  return h("mark", { class: "chunk", "data-chunk": place, title: `chunk ${place + 1}, best for ${layersText(layers)}` }, text);
}

/** The chunk by which most layers chose a document, of several the first; null where none did. */
export function bestOf(winners) {
  const [best] = [...winners].sort(([a, first], [b, second]) => second.length - first.length || a - b);
  return best ? best[0] : null;
}

const METADATA_ROWS = 6;
const METADATA_TEXT = 400; // characters in all
const METADATA_VALUE = 120; // of one, where there are more

/** Metadata as rows of name and value, nested values as JSON; what is long is folded. */
export function metadataTable(metadata) {
  if (metadata === null || metadata === undefined) return null;
  const plain = typeof metadata === "object" && !Array.isArray(metadata);
  const rows = plain ? Object.entries(metadata) : [["metadata", metadata]];
  if (!rows.length) return null;
  const shown = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  const size = rows.slice(0, METADATA_ROWS).reduce((sum, [name, value]) => sum + name.length + shown(value).length, 0);
  const most = size > METADATA_TEXT ? METADATA_VALUE : METADATA_TEXT;
  const row = ([name, value]) => h("div", {},
    h("dt", { dir: "auto" }, foldedText(name, most)), h("dd", { dir: "auto" }, foldedText(shown(value), most)));
  const list = h("dl", { class: "metadata" }, rows.slice(0, METADATA_ROWS).map(row));
  return h("div", { class: "metadata-fold" }, list, unfolding(rows.length - METADATA_ROWS,
    (left) => `Show ${counted(left, "more row")}`, () => list.append(...rows.slice(METADATA_ROWS).map(row)),
    () => list.replaceChildren(...[...list.children].slice(0, METADATA_ROWS))));
}

/** Its text; of a long one the beginning, and a button that shows the rest in place. */
export function foldedText(text, most, tag = "span") {
  const short = shortened(text, most);
  const element = h(tag, {}, short);
  return [element, unfolding(text.length - most, () => `Show all ${counted(text.length, "character")}`,
    () => { element.textContent = text; }, () => { element.textContent = short; })];
}

/** A button between short and whole; none where nothing is left out. */
function unfolding(left, label, open, close) {
  if (left <= 0) return null;
  const more = button(label(left), () => {
    const opens = more.getAttribute("aria-expanded") === "false";
    (opens ? open : close)();
    more.setAttribute("aria-expanded", String(opens));
    more.textContent = opens ? "Show less" : label(left);
  }, { class: "link unfold", "aria-expanded": "false" });
  return more;
}
