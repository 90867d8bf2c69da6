// Adding documents: pasted, or from files.

import * as api from "./api.js";
import { button, field, fill, foreign, h, segmented, uniqueId } from "./dom.js";
import { ON_ITS_WAY, openDialog, WRITTEN } from "./dialogs.js";
import { bytes, counted, plainName } from "./format.js";
import { batches, readFile } from "./files.js";
import { MetadataField } from "./metadata.js";
import { failed } from "./notices.js";

const ERRORS_SHOWN = 5;
let current = null; // the open form: files that are dropped go to it

/** A dialog; onAdded(number of documents, the first of them) when it is done. files: already dropped ones. */
export function openAdding(bank, onAdded, files = null) {
  if (files && current?.element.isConnected && !current.busy) {
    current.showFiles(files);
    return;
  }
  const form = new Adding(bank, onAdded);
  const held = () => (form.busy ? ON_ITS_WAY : Boolean(form.text.value.trim()) && WRITTEN);
  Object.assign(form, openDialog(`Add to “${plainName(bank)}”`, () => form.element, { wide: true, held }));
  current = form;
  if (files) form.showFiles(files);
}

class Adding {
  constructor(bank, onAdded) {
    Object.assign(this, { bank, onAdded, read: [], busy: false });
    this.problem = h("div", { class: "actions-problem" });
    this.submit = h("button", { type: "submit", class: "primary" }, "Add document");
    this.progress = h("p", { class: "hint", role: "status" });
    this.paste = this.pasting();
    this.files = this.dropping();
    this.kinds = h("div", {});
    this.element = h("form", { class: "adding", on: { submit: (event) => this.add(event) } },
      this.kinds, this.paste, this.files,
      h("div", { class: "actions" }, this.problem, this.progress, button("Cancel", (event) => this.leave(event)), this.submit));
    this.show("paste");
  }

  show(kind) {
    this.kind = kind;
    fill(this.kinds, segmented("Where the documents come from", [["paste", "Paste"], ["files", "Files"]], kind,
      (chosen) => this.show(chosen)));
    this.paste.hidden = kind !== "paste";
    this.files.hidden = kind !== "files";
    this.count();
  }

  pasting() {
    const line = (name, more = {}) => h("input", { id: uniqueId(name), dir: "auto", autocomplete: "off", ...more });
    this.title = line("title");
    this.id = line("id", { placeholder: "none if empty", spellcheck: "false" });
    this.text = h("textarea", { id: uniqueId("text"), rows: 9, dir: "auto" });
    this.metadata = new MetadataField();
    return h("div", { class: "pasting" },
      h("div", { class: "pair" }, field("Title", this.title), field("Id", this.id)),
      field("Text", this.text), this.metadata.element);
  }

  dropping() {
    this.list = h("ul", { class: "files" });
    const input = h("input", {
      type: "file", multiple: true, accept: ".txt,.md,.jsonl", class: "unseen", id: uniqueId("files"),
      on: { change: () => { this.showFiles([...input.files]); input.value = ""; } },
    });
    const zone = h("label", { class: "drop", for: input.id },
      h("strong", {}, "Drop files here, or choose them"),
      h("span", { class: "hint" }, ".txt and .md: a document each. .jsonl: a document a line, with text and, if you like, id, title, metadata."));
    return h("div", {}, input, zone, this.list);
  }

  async showFiles(files) {
    this.show("files");
    fill(this.problem);
    this.read.push(...await Promise.all(files.map(readFile)));
    this.draw();
  }

  draw() {
    fill(this.list, this.read.map((file) => this.line(file)));
    this.count();
  }

  line(file) {
    const without = () => { this.read = this.read.filter((each) => each !== file); this.draw(); };
    const more = file.errors.length - ERRORS_SHOWN;
    const found = file.documents.length ? counted(file.documents.length, "document") : "nothing to add";
    return h("li", {},
      h("div", { class: "file-line" }, foreign(plainName(file.name), { class: "file-name" }),
        h("span", { class: "hint" }, `${found} · ${bytes(file.size)}`),
        button("×", without, { class: "quiet round", "aria-label": `Leave out ${plainName(file.name)}` })),
      file.errors.length
        ? h("ul", { class: "file-errors" }, file.errors.slice(0, ERRORS_SHOWN).map((each) => h("li", {}, each)),
          more > 0 ? h("li", {}, `and ${more} more`) : null)
        : null);
  }

  count() {
    const n = this.read.reduce((sum, file) => sum + file.documents.length, 0);
    this.submit.textContent = this.kind === "paste" ? "Add document" : `Add ${counted(n, "document")}`;
    this.submit.disabled = this.busy || (this.kind === "files" && n === 0);
  }

  documents() {
    if (this.kind === "files") return this.read.flatMap((file) => file.documents);
    if (!this.text.value.trim()) throw new Error("The text is empty: paste what is to be remembered.");
    const metadata = this.metadata.read();
    const title = this.title.value.trim();
    const id = this.id.value.trim();
    return [{
      ...(id && { id }), ...(title && { title }), text: this.text.value, ...(metadata !== undefined && { metadata }),
    }];
  }

  async add(event, update = false) {
    event?.preventDefault();
    if (this.busy) return;
    fill(this.problem);
    let documents;
    try {
      documents = this.documents();
    } catch (error) {
      fill(this.problem, failed(Object.assign(error, { title: "Not added yet" })));
      return;
    }
    this.working(true);
    try {
      const added = await this.send(documents, update);
      this.onAdded(added, documents[0]);
      this.close();
    } catch (error) {
      this.refused(error);
    } finally {
      this.working(false);
    }
  }

  /** Sends what is left of the documents; those that arrived are not sent again when one repeats it. */
  async send(documents, update) {
    this.arrived ??= new Set();
    const left = documents.filter((doc) => !this.arrived.has(doc));
    let sent = documents.length - left.length;
    for (const batch of batches(left)) {
      fill(this.progress, `Encoding: ${sent} of ${counted(documents.length, "document")}`);
      await (update ? this.replace(batch) : api.addDocuments(this.bank, batch));
      batch.forEach((doc) => this.arrived.add(doc));
      sent += batch.length;
    }
    return documents.length;
  }

  /** Documents whose ids are stored take their place, the others are added. */
  async replace(batch) {
    const known = await Promise.all(batch.map(async ({ id }) =>
      Boolean(id) && (await api.listDocuments(this.bank, { id, limit: 1 })).documents.length > 0));
    const [stored, fresh] = [true, false].map((want) => batch.filter((_, place) => known[place] === want));
    if (stored.length) await api.addDocuments(this.bank, stored, true);
    if (fresh.length) await api.addDocuments(this.bank, fresh);
  }

  refused(error) {
    const notice = failed(error, () => this.add());
    if (error.code === "id_exists") {
      notice.append(button("Replace the stored ones", () => this.add(null, true)));
    }
    fill(this.problem, notice);
  }

  working(busy) {
    this.busy = busy;
    this.element.classList.toggle("busy", busy);
    if (!busy) fill(this.progress);
    this.count();
  }
}
