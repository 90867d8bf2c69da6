// The documents of a bank: browse, find, look at one, add, remove.

import * as api from "./api.js";
import { openAdding } from "./adding.js";
import { placeOf } from "./banks.js";
import { confirmed } from "./dialogs.js";
import { button, fill, foreign, h, segmented, uniqueId } from "./dom.js";
import { counted, firstWords, headingOf, moment, plainName, score, titleOf } from "./format.js";
import { empty, failed, loading, toast } from "./notices.js";
import { chunkedText, metadataTable } from "./texts.js";

const PAGE = 25;

export class DocumentsView {
  /** onChanged(): the bank has other documents now. onDrop: null where the bank must stay. */
  constructor(bank, onChanged, onDrop) {
    Object.assign(this, { bank, onChanged, pages: [null], find: "id", open: null });
    this.list = h("div", { class: "document-list" });
    this.reader = h("section", { class: "reader document-reader", "aria-label": "Document", tabindex: "-1" });
    this.split = h("div", { class: "split" }, this.list, this.reader);
    this.element = h("div", { class: "documents" }, this.toolbar(), this.split,
      onDrop && h("p", { class: "bank-foot" }, "No longer needed? ", button("Drop this bank", onDrop, { class: "link danger-text" })));
    this.nothingOpen();
  }

  toolbar() {
    this.query = h("input", { type: "search", id: uniqueId("find"), autocomplete: "off", dir: "auto" });
    const kind = (find) => {
      this.find = find;
      this.query.placeholder = find === "id" ? "Exact id" : "What it is about";
      this.query.setAttribute("aria-label", find === "id" ? "Id of a document" : "What the documents are about");
    };
    kind("id");
    const submit = (event) => { event.preventDefault(); this.search(); };
    return h("div", { class: "toolbar" },
      h("form", { class: "find", role: "search", on: { submit } },
        segmented("Find by", [["id", "Id"], ["meaning", "Meaning"]], "id", kind),
        this.query, h("button", { type: "submit" }, "Find")),
      button("Add documents", () => this.add(), { class: "primary" }));
  }

  add(files = null) {
    openAdding(this.bank, (n, first) => {
      const what = n === 1 ? `“${titleOf(first)}” was added.` : `${counted(n, "document")} were added.`;
      toast(`${what} The next question can find ${n === 1 ? "it" : "them"}.`, h("a", { href: placeOf(this.bank) }, "Ask"));
      this.onChanged();
      this.showPage();
    }, files);
  }

  /** The current page, read anew. */
  async showPage() {
    const after = this.pages.at(-1);
    await this.show(async () => {
      const { documents, next } = await api.listDocuments(this.bank, { after, limit: PAGE });
      if (!documents.length && this.pages.length > 1) {
        this.pages.pop();
        return this.showPage();
      }
      this.split.classList.toggle("nothing", !documents.length);
      return documents.length ? [this.table(documents), this.pager(next)] : this.nothing();
    }, () => this.showPage());
  }

  async search() {
    const query = this.query.value.trim();
    if (!query) return this.clear();
    const back = button("Show all documents", () => this.clear(), { class: "link" });
    await this.show(async () => {
      const documents = this.find === "id"
        ? (await api.listDocuments(this.bank, { id: query, limit: PAGE })).documents
        : await api.search(this.bank, query, PAGE);
      if (documents.length) return [this.table(documents), h("p", { class: "pager" }, back)];
      const text = this.find === "id" ? `No document has the id “${plainName(query)}”.` : "The memory is empty.";
      return empty("Nothing found", text, back);
    }, () => this.search());
  }

  clear() {
    this.query.value = "";
    this.pages = [null];
    return this.showPage();
  }

  /** Shows what build() gives; a later call supersedes an earlier one. */
  async show(build, retry) {
    const mine = Symbol("request");
    this.request = mine;
    fill(this.list, loading("Loading documents…", 8));
    let shown;
    try {
      shown = await build();
    } catch (error) {
      shown = failed(error, retry);
    }
    if (this.request === mine && shown) fill(this.list, shown);
  }

  nothing() {
    return empty("No documents yet", "Paste a text, or drop .txt, .md or .jsonl files anywhere on this page.",
      button("Add documents", () => this.add()));
  }

  table(documents) {
    return h("ul", { class: "rows", "aria-label": "Documents" }, documents.map((doc) => {
      const facts = doc.id === doc.title ? [] : [foreign(plainName(doc.id || "no id"))];
      if (doc.part) facts.push(`part ${doc.part}`);
      if (doc.score !== undefined) facts.push(`score ${score(doc.score)}`);
      if (doc.title) facts.push(foreign(firstWords(doc.text)));
      return h("li", {}, h("button", {
        type: "button", class: "row", "data-number": doc.number,
        "aria-current": String(doc.number === this.open), on: { click: () => this.look(doc.number) },
      },
      h("span", { class: "row-number" }, `[${doc.number}]`),
      h("span", { class: "row-main" }, foreign(titleOf(doc), { class: "row-title" }), h("span", { class: "row-facts" }, facts.flatMap((each) => [" · ", each]).slice(1)))));
    }));
  }

  pager(next) {
    const turn = (change) => () => { change(); this.showPage(); };
    return h("div", { class: "pager" },
      button("Previous", turn(() => this.pages.pop()), { disabled: this.pages.length === 1 }),
      h("span", { class: "hint" }, `Page ${this.pages.length}`),
      button("Next", turn(() => this.pages.push(next)), { disabled: next === null || next === undefined }));
  }

  nothingOpen() {
    if (this.open !== null) history.replaceState(null, "", placeOf(this.bank, "documents"));
    this.open = null;
    this.split.classList.remove("reading");
    fill(this.reader, empty("No document open", "Choose one to see its text, its chunks and its metadata."));
    this.mark();
  }

  mark() {
    for (const row of this.list.querySelectorAll(".row")) {
      row.setAttribute("aria-current", String(Number(row.dataset.number) === this.open));
    }
  }

  async look(number) {
    if (this.open === number) return;
    this.open = number;
    history.replaceState(null, "", placeOf(this.bank, "documents", number));
    this.mark();
    this.split.classList.add("reading");
    fill(this.reader, loading("Loading the document…", 6));
    let shown;
    try {
      shown = this.page(await api.getDocument(this.bank, number));
    } catch (error) {
      shown = [this.back(), failed(error, () => { this.open = null; this.look(number); })];
    }
    if (this.open !== number) return;
    fill(this.reader, shown);
    this.reader.focus({ preventScroll: true });
    if (this.reader.getBoundingClientRect().top < 0) this.reader.scrollIntoView();
  }

  back() {
    return button("← All documents", () => this.nothingOpen(), { class: "link back" });
  }

  page(doc) {
    const text = chunkedText(doc);
    const chunks = h("label", { class: "check" },
      h("input", { type: "checkbox", on: { change: (event) => text.classList.toggle("show-chunks", event.target.checked) } }),
      `show its ${counted(doc.chunks.length, "chunk")}`);
    return [this.back(),
      h("h2", {}, foreign(headingOf(doc))),
      h("p", { class: "facts" }, foreign(plainName(doc.id || "no id")), ` · number ${doc.number}`,
        doc.part ? ` · part ${doc.part}` : "", doc.added ? ` · added ${moment(doc.added)}` : ""),
      metadataTable(doc.metadata),
      h("div", { class: "reader-tools" }, chunks, button("Remove", () => this.remove(doc), { class: "quiet danger-text" })),
      h("div", { class: "reader-text" }, text)];
  }

  remove(doc) {
    const what = doc.part ? "It is a part of a long document: all parts are removed, and no" : "No";
    confirmed(`Remove “${titleOf(doc)}”?`,
      `${what} question will find it any more. Its number is never given to another document.`, "Remove", async () => {
        const { removed } = await api.removeDocument(this.bank, doc.number);
        toast(`“${titleOf(doc)}” was removed${removed > 1 ? `, with all its ${removed} parts` : ""}.`);
        this.nothingOpen();
        this.onChanged();
        await this.showPage();
      });
  }
}
