// One round of an answer: what was chosen, what the model wrote, what was read.

import { button, fill, foreign, h } from "./dom.js";
import { counted, firstWords, titleOf } from "./format.js";
import { HeatMap } from "./heatmap.js";
import { Reader } from "./reader.js";

const TITLES_AT_ONCE = 4;

export class Round {
  /** texts: of the bank that is asked. fused: the documents in another order than that of the vote,
   * with some that no layer chose, where BM25 chose too. open: at once. */
  constructor(place, { layers, voted, fused }, texts, open = true) {
    const ranked = fused ?? voted.map(({ number, score }) => ({ number, vote: score }));
    Object.assign(this, { place, layers, voted, ranked, fused, texts, written: "", evidence: null, begun: false });
    this.summary = h("span", { class: "round-summary" });
    this.wrote = h("p", { class: "wrote", hidden: true });
    this.evidenceLine = h("p", { class: "evidence", hidden: true });
    this.reader = new Reader(texts, "Chosen document");
    this.heat = ranked.length ? new HeatMap(layers, ranked, (number, layer, from) => this.look(number, layer, from)) : null;
    this.element = h("details", { class: "round", open, on: { toggle: () => { if (this.element.open) this.begin(); } } },
      h("summary", {}, h("h3", {}, `Round ${place + 1}`), this.summary),
      this.wrote, this.evidenceLine,
      this.heat
        ? h("div", { class: this.heat.many ? "chosen wide" : "chosen" }, this.heat.element, this.reader.element)
        : h("p", { class: "hint" }, "The memory is empty: there was nothing to choose from."));
    this.summarize();
  }

  /** Once it is open: looks at the best document and fetches the others' titles. */
  async begin() {
    if (!this.heat || this.begun) return;
    this.begun = true;
    this.heat.mark(this.ranked[0].number);
    this.look(this.ranked[0].number);
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
    const chips = documents.map((doc) => button("", (event) => this.look(doc.number, null, event.currentTarget), { class: "chip" }));
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
  winners(number, only = null) {
    const found = new Map();
    for (const [layer, chosen] of Object.entries(this.layers)) {
      const each = chosen.find((one) => one.number === number);
      if (!each || (only !== null && Number(layer) !== only)) continue;
      found.set(each.chunk, [...(found.get(each.chunk) ?? []), Number(layer)]);
    }
    return found;
  }

  /** from: what was tapped; null where nobody has. */
  look(number, layer = null, from = null) {
    const all = layer === null ? null : () => this.look(number, null, from);
    return this.reader.look(number, this.winners(number, layer), { from, all });
  }

  /** To be stored: the event that it began with, and what was written and read. */
  toJSON() {
    const { layers, voted, fused, written, evidence } = this;
    return { layers, voted, fused, written, evidence };
  }
}
