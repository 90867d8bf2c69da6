// What an answer comes from: the documents whose texts were read or, where none was, those that the
// model attended to. A tap shows the text, at the chunk by which it was found.

import { placeOf } from "./banks.js";
import { button, fill, foreign, h } from "./dom.js";
import { firstWords, plainName } from "./format.js";
import { Reader } from "./reader.js";
import { bestOf } from "./texts.js";

const FIRST = 5; // shown before one asks for all
const LINK = /\[([^[\]\n]{1,120})\]/g; // `[41]`, as models write numbers

export class Sources {
  constructor(texts) {
    Object.assign(this, { texts, found: [], all: false });
    this.reader = new Reader(texts, "Source", { class: "reader source-reader", hidden: true });
    this.element = h("aside", { class: "sources", "aria-label": "Sources", hidden: true });
  }

  /** found: [{number, id?, title?, begins?, winners}], in their order; read: whether as texts. */
  show(found, read) {
    const before = new Map(this.found.map((each) => [each.number, each]));
    Object.assign(this, { read, found: found.map((each) => ({ ...before.get(each.number), ...each })) });
    this.draw();
    return this.learn();
  }

  draw() {
    this.element.hidden = !this.found.length;
    const shown = this.all ? this.found : this.found.slice(0, FIRST);
    const rest = this.found.length - FIRST;
    const more = () => { this.all = !this.all; this.draw(); this.learn(); };
    fill(this.element,
      h("h3", {}, this.read ? "Texts that were read" : "Attended to"),
      this.read ? null : h("p", { class: "hint" }, "No text was read: these are the documents whose compressed memory the model looked at."),
      h("ol", {}, shown.map((each) => this.entry(each))),
      rest > 0 ? button(this.all ? "Show fewer" : `Show ${rest} more`, more, { class: "link" }) : null);
  }

  entry(each) {
    return h("li", { "data-number": each.number }, this.link(each,
      h("span", { class: "source-number" }, `[${each.number}]`),
      h("span", { class: "source-main" },
        each.title ? foreign(plainName(each.title), { class: "source-title" }) : null,
        foreign(each.begins ?? "…", { class: "source-begins" }))));
  }

  /** A link to where the document stands; a plain tap shows it here. */
  link(each, ...children) {
    const tap = (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      this.look(each, event.currentTarget);
    };
    return h("a", { href: placeOf(this.texts.bank, "documents", each.number), class: "source", on: { click: tap } }, children);
  }

  look(each, from) {
    this.reader.element.hidden = false;
    this.mark(each.number);
    return this.reader.look(each.number, each.winners, {
      from, close: () => { this.reader.element.hidden = true; this.mark(null); },
    });
  }

  mark(number) {
    for (const item of this.element.querySelectorAll("li")) {
      const its = Number(item.dataset.number) === number;
      item.firstChild.setAttribute("aria-current", String(its));
    }
  }

  /** Titles and beginnings of what is shown, where they are not known yet. */
  async learn() {
    const shown = this.all ? this.found : this.found.slice(0, FIRST);
    await Promise.all(shown.filter((each) => each.begins === undefined).map(async (each) => {
      try {
        const doc = await this.texts.get(each.number);
        each.title = doc.title.trim();
        each.begins = beginningOf(doc, each.winners);
      } catch { /* it may be gone: its number stands for it */ }
      const item = this.element.querySelector(`li[data-number="${Number(each.number)}"]`);
      item?.replaceWith(this.entry(each));
    }));
  }

  /** An answer with links where it names one of these documents by number or id, in brackets. */
  linked(text) {
    const named = new Map(this.found.flatMap((each) => [[String(each.number), each], ...(each.id ? [[each.id, each]] : [])]));
    const parts = [];
    let done = 0;
    for (const match of text.matchAll(LINK)) {
      const each = named.get(match[1]);
      if (!each) continue;
      parts.push(text.slice(done, match.index), this.link(each, match[0]));
      done = match.index + match[0].length;
    }
    return [...parts, text.slice(done)];
  }

  /** As lines of plain text. */
  get lines() {
    if (!this.found.length) return [];
    const named = (each) => `[${each.number}] ${each.title || (each.begins ?? "")}${each.id && each.id !== each.title ? ` (${each.id})` : ""}`.trim();
    return [this.read ? "Texts that were read:" : "Attended to:", ...this.found.map(named)];
  }

  /** To be stored: what show() takes. */
  toJSON() {
    const plain = ({ winners, ...each }) => ({ ...each, winners: [...winners] });
    return { read: this.read, found: this.found.map(plain) };
  }
}

/** How the chunk begins by which a document was found; the text, where no layer chose it. */
function beginningOf(doc, winners) {
  const best = bestOf(winners);
  const [start] = doc.chunks?.[best] ?? [0];
  if (start > 0) return `…${firstWords(Array.from(doc.text).slice(start).join("").trim())}`;
  const rest = doc.text.startsWith(`${doc.title}\n`) ? doc.text.slice(doc.title.length).trim() : "";
  return firstWords(rest || doc.text); // the title stands above it
}
