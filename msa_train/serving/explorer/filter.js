// Which documents a question may use, or a list shows: ids, numbers, metadata, dates.

import { button, field, h, uniqueId } from "./dom.js";

/**
 * Form of a filter: `toggle`, a button that tells how many parts are given, and `panel`, which it shows.
 * read() gives the server's filter, or null; raises Error for what is not one.
 */
export class FilterForm {
  /** around(fields): what the panel holds. */
  constructor(around = (fields) => fields, props = {}) {
    const on = { input: () => this.tell() };
    this.ids = h("textarea", { id: uniqueId("ids"), rows: 2, spellcheck: "false", placeholder: "one id a line", on });
    this.metadata = h("textarea", {
      id: uniqueId("metadata"), rows: 2, spellcheck: "false", placeholder: "language = en\nyear = 1973, 1974", on,
    });
    this.numbers = h("input", {
      id: uniqueId("numbers"), spellcheck: "false", autocomplete: "off", placeholder: "3, 17, 40", on,
    });
    this.after = h("input", { type: "datetime-local", id: uniqueId("after"), on });
    this.before = h("input", { type: "datetime-local", id: uniqueId("before"), on });
    this.inputs = [this.ids, this.metadata, this.numbers, this.after, this.before];
    const hint = (text) => h("p", { class: "hint" }, text);
    const fields = h("div", { class: "filter" },
      field("Ids", this.ids, hint("Only documents with these ids.")),
      field("Metadata", this.metadata, hint("One name = value a line; commas between values of which one must match.")),
      field("Numbers", this.numbers, hint("Only documents with these numbers.")),
      field("Added after", this.after), field("Added before", this.before));
    this.panel = h("div", { id: uniqueId("filter"), hidden: true, ...props }, around(fields));
    this.toggle = button("Filter", () => this.show(this.panel.hidden),
      { class: "quiet", "aria-expanded": "false", "aria-controls": this.panel.id });
  }

  show(yes) {
    this.panel.hidden = !yes;
    this.toggle.setAttribute("aria-expanded", String(yes));
  }

  tell() {
    const parts = this.inputs.filter((each) => each.value.trim() || each.validity.badInput).length;
    this.toggle.textContent = parts ? `Filter · ${parts}` : "Filter";
  }

  clear() {
    for (const each of this.inputs) each.value = "";
    this.tell();
  }

  read() {
    const filter = {};
    const ids = lines(this.ids.value);
    if (ids.length) filter.ids = ids;
    const numbers = this.numbers.value.split(/[\s,]+/).filter(Boolean).map(wholeNumber);
    if (numbers.length) filter.numbers = numbers;
    const metadata = lines(this.metadata.value).map(pair);
    if (metadata.length) filter.metadata = named(metadata);
    const after = moment(this.after, "Added after");
    if (after !== null) filter.added_after = after;
    const before = moment(this.before, "Added before");
    if (before !== null) filter.added_before = before;
    return Object.keys(filter).length ? filter : null;
  }
}

const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

function wholeNumber(text) {
  if (!/^\d{1,15}$/.test(text)) throw new Error(`The filter's number “${text}” is no document's number: give whole numbers`);
  return Number(text);
}

function pair(line) {
  const at = line.indexOf("=");
  if (at < 1) throw new Error(`The filter's metadata line “${line}” is not of the form: name = value`);
  const values = line.slice(at + 1).split(",").map((value) => typed(value.trim()));
  return [line.slice(0, at).trim(), values.length === 1 ? values[0] : values];
}

/** An object of pairs. A name that came twice would silently count once. */
function named(pairs) {
  const twice = pairs.find(([name], place) => pairs.findIndex(([other]) => other === name) < place);
  if (twice) throw new Error(`The filter's metadata names “${twice[0]}” twice: give its values in one line, with commas between`);
  return Object.fromEntries(pairs);
}

/** Milliseconds since 1970, null where none is given. A date that is half written has no value either. */
function moment(input, label) {
  if (!input.value && !input.validity.badInput) return null;
  const time = new Date(input.value).getTime();
  if (!Number.isFinite(time)) throw new Error(`The filter's “${label}” is no whole date with a time: complete it, or clear it`);
  return time;
}

/** 1973, true and "1973" as JSON has them; anything else is text. */
function typed(value) {
  try {
    const read = JSON.parse(value);
    return read === null || typeof read === "object" ? value : read;
  } catch {
    return value;
  }
}
