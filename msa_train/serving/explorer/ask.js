// The question box and the answers under it, the newest first.

import * as api from "./api.js";
import { placeOf } from "./banks.js";
import { button, fill, foreign, h, segmented, uniqueId } from "./dom.js";
import { FilterForm } from "./filter.js";
import { titleOf } from "./format.js";
import { empty, failed } from "./notices.js";
import { Run } from "./run.js";

const MODES = [
  ["generate", "Written ids", "The model writes the ids of documents it wants, reads their texts, then answers."],
  ["router", "Router's votes", "The documents that the router ranks highest are read in full, then the model answers."],
  ["memory", "Memory alone", "The model answers from its compressed memory, without reading any text again."],
];
const KEPT = 20; // answers on the page
const GLIMPSE = 40; // documents among whose titles a few are shown

export class AskView {
  constructor(bank, mode) {
    Object.assign(this, { bank, mode, run: null, welcomed: null });
    this.box = h("textarea", {
      id: uniqueId("question"), class: "question-box", rows: 2, dir: "auto",
      placeholder: "Ask this memory a question", "aria-label": "Question",
      "aria-describedby": "keys", on: { keydown: (event) => this.key(event), input: () => this.fit() },
    });
    this.filter = new FilterForm((parts) => {
      this.filterButton.textContent = parts ? `Filter · ${parts}` : "Filter";
    });
    this.problem = h("div");
    this.runs = h("div", { class: "runs" });
    this.start = h("div");
    this.element = h("div", { class: "ask" }, this.composer(), this.problem, this.runs, this.start);
  }

  /** What stands under the box before anything was asked: a glimpse of what there is. */
  async welcome(info) {
    if (!this.start.isConnected || this.welcomed === info.generation) return;
    this.welcomed = info.generation;
    if (!info.documents) {
      fill(this.start, empty("This memory is empty", "Add documents, and ask about them right away.",
        h("a", { href: placeOf(this.bank, "documents") }, "Add documents")));
      return;
    }
    const text = "The answer appears here as it is written, with the documents that each layer of the model chose.";
    fill(this.start, empty("Nothing asked yet", text));
    try {
      const { documents } = await api.listDocuments(this.bank, { limit: GLIMPSE });
      const titled = new Map(documents.filter((doc) => doc.title).map((doc) => [titleOf(doc), doc.number]));
      const chips = [...titled].slice(0, 8).map(([title, number]) => h("li", {},
        h("a", { class: "chip", href: placeOf(this.bank, "documents", number) }, foreign(title))));
      if (chips.length) this.start.append(h("div", { class: "glimpse" }, h("p", { class: "hint" }, "It remembers, among others"), h("ul", {}, chips)));
    } catch { /* only a glimpse */ }
  }

  composer() {
    this.hint = h("p", { class: "hint" });
    this.submit = h("button", { type: "submit", class: "primary" }, "Ask");
    this.stop = button("Cancel", () => this.run?.cancel(), { hidden: true });
    const panel = h("div", { id: uniqueId("filter"), hidden: true }, this.filter.element);
    this.filterButton = button("Filter", () => {
      panel.hidden = !panel.hidden;
      this.filterButton.setAttribute("aria-expanded", String(!panel.hidden));
    }, { class: "quiet", "aria-expanded": "false", "aria-controls": panel.id });
    this.tell();
    return h("form", { class: "composer", on: { submit: (event) => { event.preventDefault(); this.ask(); } } },
      this.box,
      h("div", { class: "composer-line" },
        segmented("How the answer is found", MODES.map(([mode, name]) => [mode, name]), this.mode,
          (mode) => { this.mode = mode; this.tell(); }),
        this.temperature(), this.filterButton,
        h("div", { class: "composer-do" }, this.stop, this.submit)),
      panel,
      h("div", { class: "composer-foot" }, this.hint,
        h("p", { class: "hint keys", id: "keys" }, h("kbd", {}, "Enter"), " asks, ", h("kbd", {}, "Shift Enter"), " for a new line")));
  }

  temperature() {
    const shown = h("output", {}, "0");
    this.heat = h("input", {
      type: "range", min: 0, max: 1.5, step: 0.1, value: "0", id: uniqueId("temperature"),
      on: { input: () => { shown.textContent = String(Number(this.heat.value)); } },
    });
    return h("div", { class: "temperature", title: "0: always the likeliest words; higher: more variety" },
      h("label", { for: this.heat.id }, "Temperature"), this.heat, shown);
  }

  tell() {
    fill(this.hint, MODES.find(([mode]) => mode === this.mode)[2]);
  }

  fit() {
    this.box.style.setProperty("height", "auto");
    this.box.style.setProperty("height", `${Math.min(this.box.scrollHeight, 260)}px`);
  }

  key(event) {
    if (event.key === "ArrowUp" && !this.box.value && this.asked) this.suggest(this.asked);
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.ask();
  }

  focus() {
    this.box.focus({ preventScroll: true });
  }

  /** Ready to type where there is a keyboard; on a small screen one would come up unasked. */
  begin() {
    if (window.matchMedia("(min-width: 821px)").matches) this.focus();
  }

  /** Puts a question into the box, to be changed or sent. */
  suggest(question) {
    this.box.value = question;
    this.fit();
    this.focus();
  }

  ask() {
    const question = this.box.value.trim();
    if (!question || this.run) return;
    fill(this.problem);
    let filter;
    try {
      filter = this.filter.read();
    } catch (error) {
      fill(this.problem, failed(Object.assign(error, { title: "Not asked yet" })));
      return;
    }
    this.send(question, {
      messages: [{ role: "user", content: question }],
      temperature: Number(this.heat.value),
      memory: { bank: this.bank, retrieval: this.mode, ...(filter && { filter }) },
    });
  }

  async send(question, request) {
    const again = () => {
      if (this.run) return;
      run.element.remove();
      this.send(question, request);
    };
    const run = new Run(question, request, again);
    this.run = run;
    this.asked = question;
    this.suggest("");
    this.start.remove();
    this.runs.prepend(run.element);
    for (const old of [...this.runs.children].slice(1)) old.classList.add("earlier");
    for (const old of [...this.runs.children].slice(KEPT)) old.remove();
    this.submit.hidden = true;
    this.stop.hidden = false;
    await run.follow();
    this.run = null;
    this.submit.hidden = false;
    this.stop.hidden = true;
  }
}
