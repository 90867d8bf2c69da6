// One document as it is read in the documents' view.

import { button, h, uniqueId } from "./dom.js";
import { counted, headingOf, moment, plainName } from "./format.js";
import { chunkedText, foldedText, metadataTable } from "./texts.js";

const HEADING = 200; // characters of a title
const ID = 80;

/** Elements of a page about a document; onEdit(), onRemove(). */
export function documentPage(doc, { onEdit, onRemove }) {
  const text = chunkedText(doc);
  const chunks = h("label", { class: "check" },
    h("input", { type: "checkbox", on: { change: (event) => text.classList.toggle("show-chunks", event.target.checked) } }),
    `show its ${counted(doc.chunks.length, "chunk")}`);
  return [
    heading(doc),
    h("p", { class: "facts" }, foldedText(plainName(doc.id || "no id"), ID, "bdi"), ` · number ${doc.number}`,
      doc.part ? ` · part ${doc.part}` : "", doc.added ? ` · added ${moment(doc.added)}` : ""),
    metadataTable(doc.metadata),
    h("div", { class: "reader-tools" }, chunks, h("div", { class: "reader-do" },
      button("Edit", onEdit, { class: "quiet" }), button("Remove", onRemove, { class: "quiet danger-text" }))),
    h("div", { class: "reader-text" }, text)];
}

function heading(doc) {
  const [title, unfold] = foldedText(headingOf(doc), HEADING, "bdi");
  return [h("h2", { id: uniqueId("document") }, title), unfold];
}
