// A page of a bank's documents: how many there are, rows to choose and to tick, and the way to other pages.

import { button, fill, foreign, h, uniqueId } from "./dom.js";
import { exactly, firstWords, plainName, score, shortened, titleOf } from "./format.js";

/** Stays while its pages change, so that nothing jumps and the focus is not lost. */
export class Listing {
  /**
   * size: documents a page. onOpen(number), onTurn(place of the first document to show), onJump(number),
   * onRemove(), onAll(): all documents again.
   */
  constructor(size, { onOpen, onTurn, onJump, onRemove, onAll }) {
    Object.assign(this, { size, onOpen, onTurn, onJump, page: null, open: null });
    this.count = h("p", { class: "list-count", role: "status" });
    this.every = h("input", { type: "checkbox", "aria-label": "Select all on this page", on: { change: () => this.tickPage() } });
    this.rest = button("", () => this.tickEverything(), { class: "link" });
    this.none = button("Clear", () => this.untick(), { class: "link", "aria-label": "Clear the selection" });
    this.remove = button("Remove", onRemove, { class: "quiet danger-text" });
    this.actions = h("div", { class: "list-do" }, this.rest, this.none, this.remove);
    this.all = button("Show all", onAll, { class: "link" });
    this.head = h("div", { class: "list-head" }, h("label", { class: "tick" }, this.every), this.count, this.all, this.actions);
    this.rows = h("ul", { class: "rows", "aria-label": "Documents" });
    this.element = h("div", {}, this.head, this.rows, this.pager());
    this.untick();
  }

  pager() {
    const turn = (text, place) => button(text, () => this.onTurn(place()));
    const last = () => Math.floor((this.page.total - 1) / this.size) * this.size;
    this.back = [turn("First", () => 0), turn("Previous", () => Math.max(0, this.page.first - this.size))];
    this.forth = [turn("Next", () => this.page.first + this.page.documents.length), turn("Last", last)];
    this.number = h("input", { id: uniqueId("jump"), inputmode: "numeric", autocomplete: "off", pattern: "\\d{1,15}", required: true });
    const jump = (event) => { event.preventDefault(); this.onJump(Number(this.number.value)); };
    this.turning = h("nav", { class: "pager", "aria-label": "Pages of documents" },
      h("div", { class: "turns" }, this.back, this.forth),
      h("form", { class: "jump", on: { submit: jump } }, h("label", { for: this.number.id, class: "hint" }, "Go to number"),
        this.number, h("button", { type: "submit" }, "Go")));
    return this.turning;
  }

  /** Shows {documents, total, first}; total: null where nobody counted. part: they are not all there are. */
  show(page, part) {
    Object.assign(this, { page, part });
    const { documents, total, first } = page;
    fill(this.rows, documents.map((doc) => this.row(doc)));
    this.turning.hidden = total === null || (first === 0 && total <= documents.length);
    const focused = document.activeElement;
    for (const each of this.back) each.disabled = first === 0;
    for (const each of this.forth) each.disabled = first + documents.length >= (total ?? 0);
    if (focused?.disabled && this.turning.contains(focused)) this.rows.querySelector(".row")?.focus();
    this.tell();
  }

  row(doc) {
    const facts = doc.id === doc.title ? [] : [foreign(plainName(doc.id || "no id"))];
    if (doc.part) facts.push(`part ${doc.part}`);
    if (doc.score !== undefined) facts.push(`score ${score(doc.score)}`);
    if (doc.title) facts.push(foreign(firstWords(doc.text)));
    const tick = h("input", {
      type: "checkbox", "aria-label": `Select [${doc.number}] ${shortened(titleOf(doc))}`, "data-tick": doc.number,
      on: { change: () => this.tick(doc.number, tick.checked) },
    });
    return h("li", {}, h("label", { class: "tick" }, tick), h("button", {
      type: "button", class: "row", "data-number": doc.number,
      "aria-current": String(doc.number === this.open), on: { click: () => this.onOpen(doc.number) },
    },
    h("span", { class: "row-number" }, `[${doc.number}]`),
    h("span", { class: "row-main" }, foreign(titleOf(doc), { class: "row-title" }),
      h("span", { class: "row-facts" }, facts.flatMap((each) => [" · ", each]).slice(1)))));
  }

  mark(number) {
    this.open = number;
    for (const row of this.rows.querySelectorAll(".row")) {
      row.setAttribute("aria-current", String(Number(row.dataset.number) === number));
    }
  }

  /** Focus to the first row. */
  focus() {
    this.rows.querySelector(".row")?.focus();
  }

  get selected() {
    return this.everything ? this.page.total : this.ticked.size;
  }

  tick(number, yes) {
    if (this.everything) {
      this.everything = false;
      this.ticked = new Set(this.onPage());
    }
    if (yes) this.ticked.add(number);
    else this.ticked.delete(number);
    this.tell();
  }

  tickPage() {
    const { checked } = this.every;
    this.onPage().forEach((number) => this.tick(number, checked));
  }

  tickEverything() {
    this.everything = true;
    this.tell();
    this.none.focus();
  }

  untick() {
    Object.assign(this, { ticked: new Set(), everything: false });
    if (this.page) this.tell();
  }

  onPage() {
    return this.page.documents.map((doc) => doc.number);
  }

  tell() {
    const { documents, total } = this.page;
    const here = this.onPage().filter((number) => this.everything || this.ticked.has(number)).length;
    this.every.checked = here > 0 && here === documents.length;
    this.every.indeterminate = here > 0 && here < documents.length;
    for (const tick of this.rows.querySelectorAll("[data-tick]")) {
      tick.checked = this.everything || this.ticked.has(Number(tick.dataset.tick));
    }
    const { selected } = this;
    this.actions.hidden = selected === 0;
    this.rest.hidden = this.everything || !this.every.checked || total === null || total <= selected;
    this.rest.textContent = `All ${exactly(total ?? 0)}`;
    this.rest.setAttribute("aria-label", `Select all ${exactly(total ?? 0)}${this.part ? " that match" : ""}`);
    this.all.hidden = selected > 0 || !this.part;
    fill(this.count, selected ? `${exactly(selected)} selected` : rangeOf(this));
  }
}

function rangeOf({ page: { documents, total, first }, part }) {
  const shown = documents.length;
  if (total === null) return `${exactly(shown)} nearest in meaning`;
  if (total === 1) return part ? "1 document matches" : "1 document";
  return `${exactly(first + 1)}–${exactly(first + shown)} of ${exactly(total)}${part ? " that match" : ""}`;
}
