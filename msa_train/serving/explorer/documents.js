// The documents of a bank: browse, find, filter, look at one, add, change, remove.

import * as api from "./api.js";
import { openAdding } from "./adding.js";
import { placeOf } from "./banks.js";
import { confirmed } from "./dialogs.js";
import { button, fill, h, segmented, uniqueId } from "./dom.js";
import { openEditing } from "./editing.js";
import { FilterForm } from "./filter.js";
import { counted, exactly, plainName, shortened, titleOf } from "./format.js";
import { Listing } from "./listing.js";
import { empty, failed, loading, toast } from "./notices.js";
import { documentPage } from "./opened.js";

const PAGE = 25;
const PATIENCE = 1000; // ms until one is offered to stop a search
const FAR = 0.8; // of the window's height: what was found stands below it
// kind -> [its name, label of the box, placeholder, what it does]
const FINDS = {
  id: ["Id", "Id of a document", "Exact id", "The whole id, as it was given."],
  words: ["Words", "Words of the documents", "Words in title or text",
    "Every word must stand in the title or the text. Upper and lower case are alike, and a part of a longer word counts."],
  meaning: ["Meaning", "What the documents are about", "What it is about",
    `Up to ${PAGE} documents that the model's routers choose, best first. They may have none of your words.`],
};
const ALL = { kind: "id", query: "", filter: null };

export class DocumentsView {
  /** onChanged(): the bank has other documents now. onDrop: null where the bank must stay. */
  constructor(bank, onChanged, onDrop) {
    Object.assign(this, { bank, onChanged, asked: ALL, find: "id", first: 0, open: null, pushed: false, stopping: null });
    this.listing = new Listing(PAGE, {
      onOpen: (number) => this.look(number), onTurn: (first) => this.turn(first),
      onJump: (number) => this.jump(number), onRemove: () => this.removeSelected(), onAll: () => this.clear(),
    });
    this.list = h("div", { class: "document-list" });
    this.reader = h("section", { class: "reader document-reader", "aria-label": "Document", tabindex: "-1" });
    this.split = h("div", { class: "split" }, this.list, this.reader);
    this.element = h("div", { class: "documents" }, this.toolbar(), this.split,
      onDrop && h("p", { class: "bank-foot" }, "No longer needed? ", button("Drop this bank", onDrop, { class: "link danger-text" })));
    this.nothingOpen();
  }

  toolbar() {
    this.hint = h("p", { class: "hint find-hint", id: uniqueId("find-hint") });
    this.query = h("input", { type: "search", id: uniqueId("find"), autocomplete: "off", dir: "auto", "aria-describedby": this.hint.id });
    const kind = (find) => {
      const [, label, placeholder, hint] = FINDS[find];
      this.find = find;
      this.query.placeholder = placeholder;
      this.query.setAttribute("aria-label", label);
      fill(this.hint, hint);
    };
    kind("id");
    this.filter = this.filtering();
    this.stop = button("Stop", () => this.stopping?.abort(), { hidden: true });
    const submit = (event) => { event.preventDefault(); this.search(); };
    const kinds = Object.entries(FINDS).map(([find, [name]]) => [find, name]);
    return h("form", { class: "finding", role: "search", novalidate: true, on: { submit } },
      h("div", { class: "toolbar" },
        h("div", { class: "find" }, segmented("Find by", kinds, "id", kind), this.query,
          h("button", { type: "submit" }, "Find"), this.stop, this.filter.toggle),
        button("Add documents", () => this.add(), { class: "primary" })),
      this.hint, this.filter.panel);
  }

  filtering() {
    this.filterProblem = h("div");
    const clear = () => { this.filter.clear(); this.search(); };
    return new FilterForm((fields) => [
      h("p", { class: "hint" }, "Only documents for which all of this holds are listed and found."), fields, this.filterProblem,
      h("div", { class: "actions" }, button("Clear filter", clear), h("button", { type: "submit", class: "primary" }, "Apply filter")),
    ], { class: "filter-panel" });
  }

  add(files = null) {
    openAdding(this.bank, (n, first) => {
      const what = n === 1 ? `“${shortened(titleOf(first))}” was added.` : `${counted(n, "document")} were added.`;
      toast(`${what} The next question can find ${n === 1 ? "it" : "them"}.`, h("a", { href: placeOf(this.bank) }, "Ask"));
      this.onChanged();
      this.showPage();
    }, files);
  }

  async search() {
    fill(this.filterProblem);
    let filter;
    try {
      filter = this.filter.read();
    } catch (error) {
      this.filter.show(true);
      fill(this.filterProblem, failed(Object.assign(error, { title: "The filter was not applied" })));
      return;
    }
    this.asked = { kind: this.find, query: this.query.value.trim(), filter };
    this.listing.untick();
    await this.turn(0);
    if (this.list.getBoundingClientRect().top > window.innerHeight * FAR) this.list.scrollIntoView();
  }

  clear() {
    this.query.value = "";
    this.filter.clear();
    return this.search();
  }

  turn(first) {
    this.first = first;
    return this.showPage();
  }

  /** The page that begins with a document's number, or with the next one there is. */
  async jump(number) {
    await this.show((stop) => this.read({ after: number - 1 }, stop));
    this.listing.focus();
  }

  /** The current page, read anew. */
  showPage() {
    return this.show((stop) => this.read({ skip: this.first }, stop));
  }

  /** What the list shows: by number from `place` on, or the nearest in meaning. */
  async read(place, stop) {
    const { kind, query, filter } = this.asked;
    if (kind === "meaning" && query) {
      return { documents: await api.search(this.bank, query, PAGE, filter, stop), total: null, first: 0 };
    }
    const page = await api.listDocuments(this.bank, { ...place, ...this.matching(), limit: PAGE }, stop);
    if (page.documents.length || !page.total) return page;
    return this.read({ skip: Math.floor((page.total - 1) / PAGE) * PAGE }, stop); // it has become shorter
  }

  /** What is asked for, as the server takes it. */
  matching() {
    const { kind, query, filter } = this.asked;
    if (!query || kind === "meaning") return { filter };
    if (kind === "words") return { filter, words: query };
    if (!filter) return { filter: { ids: [query] } };
    return { filter: { ...filter, ids: filter.ids && !filter.ids.includes(query) ? [] : [query] } };
  }

  /** Shows the page that read(stop) gives; a later call supersedes an earlier one, and stops it. */
  async show(read) {
    this.stopping?.abort();
    const mine = this.stopping = new AbortController();
    if (this.list.contains(this.listing.element)) this.listing.rows.setAttribute("aria-busy", "true");
    else fill(this.list, loading("Loading documents…", 8));
    const slow = setTimeout(() => { if (this.stopping === mine) this.stop.hidden = false; }, PATIENCE);
    let found;
    try {
      found = await read(mine.signal);
    } catch (error) {
      found = error.name === "AbortError" ? { title: "Stopped", message: "The search did not come to its end." } : error;
    }
    clearTimeout(slow);
    if (this.stopping !== mine) return;
    this.stopping = null;
    this.stop.hidden = true;
    this.listing.rows.removeAttribute("aria-busy");
    if (found.documents) this.fillWith(found);
    else fill(this.list, failed(found, () => this.show(read)));
    if (found.code === "bank_not_found") this.onChanged(); // dropped by somebody else
  }

  fillWith(page) {
    const { documents } = page;
    const part = Boolean(this.asked.query || this.asked.filter);
    this.split.classList.toggle("nothing", !documents.length && !part);
    if (!documents.length) return fill(this.list, this.nothing());
    this.first = page.first;
    this.listing.show(page, part);
    if (!this.list.contains(this.listing.element)) fill(this.list, this.listing.element);
    if (this.list.getBoundingClientRect().top < 0) this.list.scrollIntoView();
    return undefined;
  }

  nothing() {
    const { kind, query, filter } = this.asked;
    if (!query && !filter) {
      return empty("No documents yet", "Paste a text, or drop .txt, .md or .jsonl files anywhere on this page.",
        button("Add documents", () => this.add()));
    }
    const text = {
      id: `No document has the id “${shortened(plainName(query))}”`,
      words: "No document has all of these words in its title or text",
      meaning: "No document is there to choose from",
    };
    const also = filter ? " among those that match the filter" : "";
    return empty("Nothing found", query ? `${text[kind]}${also}.` : "No document matches the filter.",
      button("Show all documents", () => this.clear(), { class: "link" }));
  }

  /** Back to the list, as the browser's own button goes. */
  leave() {
    if (this.pushed) {
      history.back();
      return;
    }
    history.replaceState(null, "", placeOf(this.bank, "documents"));
    this.nothingOpen();
  }

  /** The address leads back from the first document to the list, not from each to the one before. */
  address(number) {
    const place = placeOf(this.bank, "documents", number);
    const known = location.hash === place; // it led here
    this.pushed = !known && (this.pushed || this.open === null);
    if (!known) history[this.open === null ? "pushState" : "replaceState"](null, "", place);
  }

  nothingOpen() {
    const left = this.open;
    Object.assign(this, { open: null, pushed: false });
    this.split.classList.remove("reading");
    fill(this.reader, empty("No document open", "Choose one to see its text, its chunks and its metadata."));
    this.listing.mark(null);
    this.list.querySelector(`.row[data-number="${left}"]`)?.focus({ preventScroll: true });
  }

  async look(number) {
    if (this.open === number) return;
    this.address(number);
    this.open = number;
    this.listing.mark(number);
    this.split.classList.add("reading");
    fill(this.reader, loading("Loading the document…", 6));
    let shown;
    try {
      const doc = await api.getDocument(this.bank, number);
      shown = documentPage(doc, { onEdit: () => this.edit(doc), onRemove: () => this.remove(doc) });
    } catch (error) {
      shown = failed(error, () => { this.open = null; this.look(number); });
    }
    if (this.open !== number) return;
    fill(this.reader, this.back(), shown);
    this.reader.focus({ preventScroll: true });
    if (this.reader.getBoundingClientRect().top < 0) this.reader.scrollIntoView();
  }

  back() {
    return button("← All documents", () => this.leave(), { class: "link back" });
  }

  async edit(doc) {
    try {
      const whole = doc.part ? await api.wholeDocument(this.bank, doc.number) : { ...doc, parts: 1 };
      openEditing(this.bank, whole, async (number) => {
        toast(`“${shortened(titleOf(whole))}” was changed. The next question reads it so.`);
        this.onChanged();
        await this.showPage();
        this.look(number);
      });
    } catch (error) {
      this.reader.prepend(failed(error, () => { this.open = null; this.look(doc.number); }));
    }
  }

  remove(doc) {
    const what = doc.part ? "It is a part of a long document: all parts are removed, and no" : "No";
    confirmed(`Remove “${shortened(titleOf(doc))}”?`,
      `${what} question will find it any more. Its number is never given to another document.`, "Remove", async () => {
        const { removed } = await api.removeDocuments(this.bank, { numbers: [doc.number] });
        toast(`“${shortened(titleOf(doc))}” was removed${removed > 1 ? `, with all its ${removed} parts` : ""}.`);
        await this.removed();
      });
  }

  removeSelected() {
    const { selected, everything, ticked } = this.listing;
    const many = `${exactly(selected)} ${selected === 1 ? "document" : "documents"}`;
    const wanted = everything ? { matching: { ...this.matching(), count: selected } } : { numbers: [...ticked] };
    confirmed(`Remove ${many}?`,
      "No question will find them any more, and their numbers are never given to other documents. "
      + "Of a document that was split, all parts are removed. Either all are removed, or none.",
      `Remove ${many}`, async () => {
        const removed = await this.take(wanted);
        const more = removed - selected;
        toast(`${many} ${selected === 1 ? "was" : "were"} removed${more > 0 ? `, with ${counted(more, "further part")} of split ones` : ""}.`);
        await this.removed();
      });
  }

  /** How many went. Where others have changed the bank, the list is read anew. */
  async take(wanted) {
    try {
      return (await api.removeDocuments(this.bank, wanted)).removed;
    } catch (error) {
      if (error.code === "matches_changed" || error.code === "document_not_found") {
        this.listing.untick();
        this.showPage();
      }
      throw error;
    }
  }

  async removed() {
    this.listing.untick();
    this.onChanged();
    await this.showPage();
    if (this.open !== null && await this.gone(this.open)) this.leave();
    if (document.activeElement === document.body) this.listing.focus();
  }

  async gone(number) {
    try {
      await api.getDocument(this.bank, number);
      return false;
    } catch (error) {
      return error.status === 404;
    }
  }
}
