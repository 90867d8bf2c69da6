// Changing a document: another title, text or metadata in its place.

import * as api from "./api.js";
import { button, field, fill, foreign, h, uniqueId } from "./dom.js";
import { ON_ITS_WAY, openDialog, WRITTEN } from "./dialogs.js";
import { counted, plainName, shortened, titleOf } from "./format.js";
import { MetadataField } from "./metadata.js";
import { failed } from "./notices.js";

/** A dialog; onChanged(number of the document that took its place). doc: with the text of all `parts`. */
export function openEditing(bank, doc, onChanged) {
  const form = new Editing(bank, doc, onChanged);
  Object.assign(form, openDialog(`Edit “${shortened(titleOf(doc))}”`, () => form.element,
    { wide: true, held: () => form.held() }));
}

class Editing {
  constructor(bank, doc, onChanged) {
    Object.assign(this, { bank, doc, onChanged, busy: false });
    this.title = h("input", { id: uniqueId("title"), dir: "auto", autocomplete: "off", value: doc.title ?? "" });
    this.text = h("textarea", { id: uniqueId("text"), rows: 12, dir: "auto", value: doc.text });
    this.metadata = new MetadataField(doc.metadata);
    this.problem = h("div", { class: "actions-problem" });
    this.progress = h("p", { class: "hint", role: "status" });
    this.submit = h("button", { type: "submit", class: "primary" }, "Save");
    this.element = h("form", { class: "pasting", on: { submit: (event) => this.save(event) } },
      h("p", { class: "hint" }, this.told()), field("Title", this.title), field("Text", this.text), this.metadata.element,
      h("div", { class: "actions" }, this.problem, this.progress, button("Cancel", (event) => this.leave(event)), this.submit));
    this.inputs = [[this.title, doc.title ?? ""], [this.text, doc.text]].map(([input, stored]) =>
      ({ input, stored, before: input.value }));
  }

  told() {
    const { id, number, parts } = this.doc;
    const whole = parts > 1
      ? [` It was cut into ${counted(parts, "part")}. Here they stand one after another, each on a line of its own, `,
        "because the space at a cut is not kept. Saving replaces all of them."]
      : [];
    const name = id ? [foreign(shortened(plainName(id), 40)), " stays its id, "] : ["It has no id, "];
    return [...name, `and in place of ${number} it gets a new number.`, ...whole];
  }

  held() {
    return this.busy ? ON_ITS_WAY : this.changed() && WRITTEN;
  }

  changed() {
    return this.metadata.changed || this.inputs.some(({ input, before }) => input.value !== before);
  }

  /** What was not touched is sent as it was stored: a field of a page would tidy its line ends. */
  content() {
    if (!this.text.value.trim()) throw new Error("The text is empty. To take the document away, remove it.");
    const [title, text] = this.inputs.map(({ input, stored, before }) => (input.value === before ? stored : input.value));
    return { title, text, ...(this.metadata.changed && { metadata: this.metadata.read() ?? null }) };
  }

  async save(event) {
    event?.preventDefault();
    if (this.busy) return;
    fill(this.problem);
    this.working(true);
    try {
      const { numbers } = await api.replaceDocument(this.bank, this.doc.number, this.content());
      this.working(false);
      this.close();
      this.onChanged(numbers[0]);
    } catch (error) {
      this.working(false);
      this.refused(error);
    }
  }

  /** What was written stays in the form. */
  refused(error) {
    const ours = !("status" in error);
    const gone = error.code === "document_not_found"; // and stays so
    const notice = failed(ours ? Object.assign(error, { title: "Not saved yet" }) : error, ours || gone ? null : () => this.save());
    if (gone) {
      notice.append(h("p", {}, "It was changed or removed meanwhile. What you wrote is still here: copy it before you leave."));
    }
    fill(this.problem, notice);
  }

  working(busy) {
    this.busy = this.submit.disabled = busy;
    this.element.classList.toggle("busy", busy);
    fill(this.progress, busy ? "Encoding…" : "");
  }
}
