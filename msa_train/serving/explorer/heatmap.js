// Documents x layers: which layer chose which document, how strongly, and what the gate made of it.

import { fill, foreign, h, segmented, uniqueId } from "./dom.js";
import { score } from "./format.js";
import { term } from "./terms.js";

const FIRST = 12; // documents shown before one asks for all
const WIDEST = 56; // px of a layer's column
const ROOM = 460; // px for all of them

const KINDS = {
  score: {
    name: "Router scores",
    about: "How well a document's best chunk fits the question, in each router layer.",
  },
  gate: {
    name: "Gate's weights",
    about: "What the gate adds to the attention logits of a document's best chunk: the higher, the more it is read.",
  },
};

/**
 * A table of a round's documents, best first, one column per router layer; hovering or focusing a
 * cell tells its values, choosing a row or a cell calls onChoose(number, layer or null, what was tapped).
 * ranked: [{number, vote}], with bm25 and score (both as z-scores) where BM25 chose too.
 */
export class HeatMap {
  constructor(layers, ranked, onChoose) {
    this.layers = Object.keys(layers).map(Number).sort((a, b) => a - b);
    this.cells = new Map(this.layers.map((layer) =>
      [layer, new Map(layers[layer].map((each) => [each.number, each]))]));
    Object.assign(this, { ranked, onChoose, kind: "score", all: false, titles: new Map(), begins: new Map(), read: new Set() });
    this.detail = h("p", { class: "heat-detail", "aria-live": "off" });
    this.table = h("table", {
      class: "heat", role: "grid", "aria-describedby": (this.detail.id = uniqueId("detail")),
      on: { keydown: (event) => this.move(event) },
    });
    this.legend = h("div", { class: "legend" });
    const gated = [...this.cells.values()].some((row) => [...row.values()].some((each) => each.gate !== null));
    const kinds = Object.entries(KINDS).map(([kind, { name }]) => [kind, name]);
    this.element = h("div", { class: "heat-figure" },
      h("div", { class: "heat-head" },
        gated ? segmented("What the colours show", kinds, "score", (kind) => this.show(kind)) : null,
        this.legend),
      this.table, this.detail, this.terms(gated));
    this.draw();
  }

  /** The words of this table, each with its "?". */
  terms(gated) {
    const words = { score: "score", vote: "vote", layer: "layer", chunk: "chunk", ...(gated && { gate: "gate" }), ...(this.words && { hybrid: "BM25" }) };
    return h("p", { class: "hint terms" }, Object.entries(words).map(([key, name]) => h("span", {}, name, term(key))));
  }

  get many() {
    return this.layers.length > 8;
  }

  get shown() {
    return this.all ? this.ranked : this.ranked.slice(0, FIRST);
  }

  get words() {
    return this.ranked.some((each) => each.bm25 !== undefined);
  }

  show(kind) {
    this.kind = kind;
    this.draw();
  }

  /** A title that has arrived, and how the text begins. */
  name(number, title, begins = "") {
    this.titles.set(number, title);
    this.begins.set(number, begins);
    const place = this.table.querySelector(`[data-name="${Number(number)}"]`);
    if (place) fill(place, this.nameOf(number));
  }

  nameOf(number) {
    const begins = this.begins.get(number);
    return [foreign(this.titles.get(number) ?? "…"), begins ? foreign(begins, { class: "doc-more" }) : null];
  }

  /** Documents whose texts were read in this round. */
  markRead(numbers) {
    this.read = new Set(numbers);
    this.draw();
  }

  choose(number, layer, from) {
    this.mark(number);
    this.onChoose(number, layer, from);
  }

  mark(number) {
    this.chosen = number;
    for (const row of this.table.querySelectorAll("tbody tr")) {
      row.setAttribute("aria-selected", String(Number(row.dataset.number) === number));
    }
  }

  draw() {
    const values = [...this.cells.values()].flatMap((row) =>
      [...row.values()].map((each) => each[this.kind]).filter((value) => value !== null));
    this.low = Math.min(...values);
    this.high = Math.max(...values);
    fill(this.legend,
      h("span", {}, score(this.low)), h("span", { class: "ramp", "aria-hidden": "true" }),
      h("span", {}, score(this.high)),
      h("span", { class: "legend-none" }, h("span", { class: "none-sample", "aria-hidden": "true" }), "not chosen"));
    fill(this.table, h("caption", { class: "unseen" },
      `${KINDS[this.kind].name} of the chosen documents in each router layer`),
    this.head(), h("tbody", {}, this.shown.map((each) => this.row(each))));
    const width = Math.min(WIDEST, Math.floor(ROOM / this.layers.length));
    this.table.style.setProperty("--layers", this.layers.length);
    this.table.style.setProperty("--votes", this.words ? 2 : 1);
    this.table.style.setProperty("--layer-width", `${width}px`);
    this.table.classList.toggle("many", this.many);
    if (this.ranked.length > FIRST) this.table.append(this.foot());
    const first = this.table.querySelector("td.cell");
    if (first) first.tabIndex = 0;
    this.tell(null);
  }

  head() {
    return h("thead", {}, h("tr", {},
      h("th", { scope: "col", class: "doc" }, "Document"),
      h("th", { scope: "col", class: "vote", title: "mean score over the router layers" }, "Vote"),
      this.words ? h("th", { scope: "col", class: "vote", title: "word search; rows are in the order of both together" }, "BM25") : null,
      this.layers.map((layer) => h("th", { scope: "col", class: "layer", title: `layer ${layer}` },
        h("span", { class: this.many ? "unseen" : "" }, "layer "), String(layer)))));
  }

  row({ number, vote, bm25 }) {
    return h("tr", {
      "data-number": number, "aria-selected": String(number === this.chosen),
      on: { click: (event) => { if (!event.target.closest("td.cell")) this.choose(number, null, event.currentTarget.querySelector("button")); } },
    },
    h("th", { scope: "row", class: "doc" },
      h("button", { type: "button", class: "doc-button", on: { click: (event) => { event.stopPropagation(); this.choose(number, null, event.currentTarget); } } },
        h("span", { class: "doc-number" }, `[${number}]`),
        h("span", { class: "doc-name", "data-name": number }, this.nameOf(number)),
        this.read.has(number) ? h("span", { class: "badge" }, "read") : null)),
    h("td", { class: "vote" }, score(vote)),
    bm25 === undefined ? null : h("td", { class: "vote" }, score(bm25)),
    this.layers.map((layer) => this.cell(number, layer)));
  }

  cell(number, layer) {
    const found = this.cells.get(layer).get(number);
    const value = found?.[this.kind] ?? null;
    const say = () => this.tell(number, layer);
    const on = { mouseenter: say, focus: say };
    if (found) on.click = (event) => this.choose(number, layer, event.currentTarget);
    if (value === null) {
      return h("td", { class: "cell none", tabindex: "-1", on }, h("span", { class: "unseen" },
        found ? "no gate" : "not chosen"));
    }
    const span = this.high - this.low;
    const heat = span > 0 ? (value - this.low) / span : 1;
    const ink = heat >= 0.6 ? "cell strong" : heat >= 0.45 ? "cell warm" : "cell"; // text stays readable
    return h("td", {
      class: ink, tabindex: "-1", on, vars: { "--heat": `${(100 * heat).toFixed(1)}%` },
    }, h("span", { class: "cell-value" }, score(value)));
  }

  tell(number, layer) {
    if (number === null) {
      fill(this.detail, KINDS[this.kind].about);
      return;
    }
    const found = this.cells.get(layer).get(number);
    const title = foreign(this.titles.get(number) ?? `document ${number}`);
    if (!found) {
      fill(this.detail, h("strong", {}, `Layer ${layer}`), " did not choose ", title, ".");
      return;
    }
    const gate = found.gate === null ? "" : ` · gate ${score(found.gate)}`;
    fill(this.detail, h("strong", {}, `Layer ${layer}`), " · ", title,
      ` · score ${score(found.score)}${gate} · chunk ${found.chunk + 1}`);
  }

  foot() {
    const rest = this.ranked.length - FIRST;
    const toggle = () => { this.all = !this.all; this.draw(); };
    return h("tfoot", {}, h("tr", {}, h("td", { colspan: this.layers.length + (this.words ? 3 : 2) },
      h("button", { type: "button", class: "link", on: { click: toggle } },
        this.all ? "Show fewer" : `Show ${rest} more`))));
  }

  move(event) {
    const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
    const cell = event.target.closest("td.cell");
    if (!cell) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      cell.click();
      return;
    }
    if (!(event.key in steps)) return;
    event.preventDefault();
    const [down, right] = steps[event.key];
    const rows = [...this.table.querySelectorAll("tbody tr")];
    const places = (row) => [...row.querySelectorAll("td.cell")];
    const row = rows[rows.indexOf(cell.parentElement) + down];
    const next = row && places(row)[places(cell.parentElement).indexOf(cell) + right];
    if (!next) return;
    cell.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}
