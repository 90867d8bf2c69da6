// One document's text with its winning chunks marked, beside what led to it.

import { placeOf } from "./banks.js";
import { button, fill, foreign, h } from "./dom.js";
import { counted, headingOf, layersText, plainName } from "./format.js";
import { failed, loading } from "./notices.js";
import { term } from "./terms.js";
import { bestOf, chunkedText } from "./texts.js";

const SHOWN = 160; // px of it in the window, at least: else one would not see that it is there

export class Reader {
  constructor(texts, label, props = {}) {
    this.texts = texts;
    this.element = h("section", { class: "reader", "aria-label": label, tabindex: "-1", ...props });
  }

  /**
   * Shows a document, scrolled to its best chunk. winners: Map of chunk -> layers that chose by it.
   * from: what was tapped, null where nobody has: the reader comes into view, and leads back to it.
   * all(): shows all layers' winners where these are one layer's. close(): puts the reader away.
   */
  async look(number, winners, { from = null, all = null, close = null } = {}) {
    const mine = Symbol("look");
    this.looking = mine;
    fill(this.element, loading("Loading the document…", 5));
    let doc;
    try {
      doc = await this.texts.get(number);
    } catch (error) {
      if (this.looking !== mine) return;
      fill(this.element, this.lead(from, close), failed(error, () => this.look(number, winners, { from, all, close })));
      this.comeIntoView(from);
      return;
    }
    if (this.looking !== mine) return;
    const body = h("div", { class: "reader-text", tabindex: "0", role: "region", "aria-label": "Text" }, chunkedText(doc, winners));
    fill(this.element, this.lead(from, close),
      h("h4", {}, foreign(headingOf(doc))),
      h("p", { class: "facts" }, foreign(plainName(doc.id || "no id")), ` · number ${number} · ${counted(doc.chunks.length, "chunk")}`, term("chunk"), " · ",
        h("a", { href: placeOf(this.texts.bank, "documents", number) }, "open")),
      this.marks(winners, all), body);
    this.comeIntoView(from);
    const mark = body.querySelector(`mark[data-chunk="${bestOf(winners)}"]`);
    if (mark) body.scrollTop += mark.getBoundingClientRect().top - body.getBoundingClientRect().top - 40;
  }

  /** Where the reader stands far from what was tapped: the way back. */
  lead(from, close) {
    const back = () => {
      close?.();
      from.focus({ preventScroll: true });
      from.scrollIntoView({ block: "center" });
    };
    return from && h("p", { class: "reader-lead" }, button(close ? "Close" : "← Back", back, { class: "quiet" }));
  }

  comeIntoView(from) {
    if (from === null) return;
    const { top } = this.element.getBoundingClientRect();
    const there = top >= 0 && top < window.innerHeight - SHOWN;
    this.element.classList.toggle("beside", there);
    if (there) return;
    this.element.scrollIntoView({ block: "start" });
    this.element.focus({ preventScroll: true });
  }

  marks(winners, all) {
    if (!winners.size) return h("p", { class: "marks" }, "No layer chose it in this round.");
    const lines = [...winners].sort(([a], [b]) => a - b).map(([chunk, layers]) =>
      h("li", {}, h("strong", {}, `chunk ${chunk + 1}`), ` best for ${layersText(layers)}`));
    return h("div", { class: "marks" }, h("span", { class: "mark-sample", "aria-hidden": "true" }), h("ul", {}, lines),
      all && button("all layers", all, { class: "link" }));
  }
}
