// A field for a document's metadata, checked while it is written.

import { field, fill, h, uniqueId } from "./dom.js";

const HINT = "JSON, optional.";

/** JSON as it was written; raises Error for what this page could not send on unchanged. */
export function readJson(text) {
  const value = JSON.parse(text);
  checkExact(value);
  return value;
}

function checkExact(value) {
  if (typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value)) {
    throw new Error(`has a number that a browser cannot keep exactly (${value}): put it in quotes`);
  }
  if (value !== null && typeof value === "object") Object.values(value).forEach(checkExact);
}

export class MetadataField {
  /** value: any JSON, undefined or null for none. */
  constructor(value = undefined) {
    const given = value === undefined || value === null ? "" : JSON.stringify(value, null, 2);
    this.input = h("textarea", {
      id: uniqueId("metadata"), rows: Math.min(8, Math.max(2, given.split("\n").length)), spellcheck: "false", class: "mono",
      placeholder: '{"source": "notes"}', value: given, on: { input: () => this.check() },
    });
    this.before = this.input.value;
    this.hint = h("p", { class: "hint", role: "status", id: uniqueId("metadata-hint") }, HINT);
    this.input.setAttribute("aria-describedby", this.hint.id);
    this.element = field("Metadata", this.input, this.hint);
  }

  /** Whether it is another than it was. */
  get changed() {
    return this.input.value !== this.before;
  }

  /** The metadata, undefined when none is given; raises Error. */
  read() {
    if (!this.input.value.trim()) return undefined;
    try {
      return readJson(this.input.value);
    } catch (error) {
      throw new Error(`The metadata ${error instanceof SyntaxError ? `is not JSON: ${error.message}` : error.message}`);
    }
  }

  check() {
    try {
      this.read();
      this.input.removeAttribute("aria-invalid");
      fill(this.hint, HINT);
    } catch (error) {
      this.input.setAttribute("aria-invalid", "true");
      fill(this.hint, error.message);
    }
  }
}
