// One round of an answer: what was chosen, what the model wrote, what was read.

import { placeOf } from "./banks.js";
import { button, fill, foreign, h } from "./dom.js";
import { counted, firstWords, headingOf, layersText, plainName, titleOf } from "./format.js";
import { HeatMap } from "./heatmap.js";
import { failed, loading } from "./notices.js";
import { chunkedText } from "./texts.js";

const TITLES_AT_ONCE = 4;

export class Round {
  /** texts: of the bank that is asked. fused: the documents in another order than that of the vote,
   * with some that no layer chose, where BM25 chose too. */
  constructor(place, { layers, voted, fused }, texts) {
    const ranked = fused ?? voted.map(({ number, score }) => ({ number, vote: score }));
    Object.assign(this, { place, layers, ranked, fused, texts, written: "", evidence: null });
    this.summary = h("span", { class: "round-summary" });
    this.wrote = h("p", { class: "wrote", hidden: true });
    this.evidenceLine = h("p", { class: "evidence", hidden: true });
    this.reader = h("section", { class: "reader", "aria-label": "Chosen document" });
    this.heat = ranked.length ? new HeatMap(layers, ranked, (number, layer) => this.look(number, layer)) : null;
    this.element = h("details", { class: "round", open: true },
      h("summary", {}, h("h3", {}, `Round ${place + 1}`), this.summary),
      this.wrote, this.evidenceLine,
      this.heat
        ? h("div", { class: this.heat.many ? "chosen wide" : "chosen" }, this.heat.element, this.reader)
        : h("p", { class: "hint" }, "The memory is empty: there was nothing to choose from."));
    this.summarize();
  }

  /** Looks at the best document and fetches the others' titles. */
  async begin() {
    if (!this.heat) return;
    this.heat.choose(this.ranked[0].number);
    const left = this.ranked.slice(0, 48).map((each) => each.number);
    const worker = async () => {
      while (left.length) await this.nameOf(left.shift());
    };
    await Promise.all(Array.from({ length: TITLES_AT_ONCE }, worker));
  }

  async nameOf(number) {
    try {
      const doc = await this.texts.get(number);
      this.heat.name(number, titleOf(doc), doc.title ? firstWords(doc.text) : "");
    } catch {
      this.heat.name(number, `document ${number}`);
    }
  }

  write(text) {
    this.written += text;
    this.wrote.hidden = false;
    fill(this.wrote, h("span", { class: "label" }, "The model wrote"), h("code", { dir: "auto" }, this.written));
    this.summarize();
  }

  read(documents) {
    this.evidence = documents;
    this.evidenceLine.hidden = false;
    const chips = documents.map((doc) => button("", () => this.look(doc.number), { class: "chip" }));
    documents.forEach((doc, place) => fill(chips[place], `[${doc.number}] `, foreign(titleOf(doc))));
    fill(this.evidenceLine, h("span", { class: "label" }, "Texts read"),
      chips.length ? chips : "none: no document of the memory was named");
    this.heat?.markRead(documents.map((doc) => doc.number));
    this.summarize();
  }

  summarize() {
    const parts = [`${counted(this.ranked.length, "document")} chosen`];
    if (this.fused) parts[0] += " by routers and BM25";
    if (this.evidence) parts.push(this.evidence.length ? `${counted(this.evidence.length, "text")} read` : "no text read");
    fill(this.summary, parts.join(" · "));
  }

  /** Chunk of document -> layers that chose it by that chunk; of one layer only where given. */
  winners(number, only) {
    const found = new Map();
    for (const [layer, chosen] of Object.entries(this.layers)) {
      const each = chosen.find((one) => one.number === number);
      if (!each || (only !== null && Number(layer) !== only)) continue;
      found.set(each.chunk, [...(found.get(each.chunk) ?? []), Number(layer)]);
    }
    return found;
  }

  async look(number, layer = null) {
    this.looking = number;
    fill(this.reader, loading("Loading the document…", 5));
    let doc;
    try {
      doc = await this.texts.get(number);
    } catch (error) {
      if (this.looking === number) fill(this.reader, failed(error, () => this.look(number, layer)));
      return;
    }
    if (this.looking !== number) return;
    const winners = this.winners(number, layer);
    const body = h("div", { class: "reader-text", tabindex: "0", role: "region", "aria-label": "Text" }, chunkedText(doc, winners));
    fill(this.reader,
      h("h4", {}, foreign(headingOf(doc))),
      h("p", { class: "facts" }, foreign(plainName(doc.id || "no id")), ` · number ${number} · ${counted(doc.chunks.length, "chunk")} · `,
        h("a", { href: placeOf(this.texts.bank, "documents", number) }, "open")),
      this.marks(number, winners, layer), body);
    const mark = body.querySelector("mark");
    if (mark) body.scrollTop = mark.offsetTop - body.offsetTop - 40;
  }

  marks(number, winners, layer) {
    if (!winners.size) return h("p", { class: "marks" }, "No layer chose it in this round.");
    const lines = [...winners].sort(([a], [b]) => a - b).map(([chunk, layers]) =>
      h("li", {}, h("strong", {}, `chunk ${chunk + 1}`), ` best for ${layersText(layers)}`));
    const all = layer === null ? null : button("all layers", () => this.look(number), { class: "link" });
    return h("div", { class: "marks" }, h("span", { class: "mark-sample", "aria-hidden": "true" }), h("ul", {}, lines), all);
  }
}

