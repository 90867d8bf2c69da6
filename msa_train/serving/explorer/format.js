// Numbers, sizes, times and names, as they are shown.

const whole = new Intl.NumberFormat("en");
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });
const minute = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

export const count = (n) => (n < 100000 ? whole.format(n) : compact.format(n));

/** In full, where it matters how many. */
export const exactly = (n) => whole.format(n);

export const counted = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

export function bytes(n) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (n >= 999.5 && unit < units.length - 1) {
    n /= 1000;
    unit += 1;
  }
  return `${unit === 0 || n >= 100 ? Math.round(n) : n.toFixed(1)} ${units[unit]}`;
}

export function seconds(s) {
  if (s < 10) return `${s.toFixed(2)} s`;
  if (s < 60) return `${s.toFixed(1)} s`;
  return `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`;
}

export const date = (ms) => day.format(new Date(ms));
export const moment = (ms) => minute.format(new Date(ms));

/** A number with a true minus sign, four digits that count. */
export function score(value) {
  const digits = Math.abs(value) >= 100 ? 1 : Math.abs(value) >= 10 ? 2 : 3;
  return value.toFixed(digits).replace(/^-/, "−");
}

// Characters that are invisible or turn text around: in a name they could make it look like another.
const DECEIVING = /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/gu;

/** A title, id or name on one line, with its invisible characters shown by their codes. */
export function plainName(text) {
  return text.replace(DECEIVING, (each) =>
    /[\t\n\r]/.test(each) ? " " : `⟨${each.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
}

export const titleOf = (doc) => plainName(doc.title || "") || firstWords(doc.text) || "Untitled";

/** A name that goes on, in a sentence. */
export const shortened = (text, most = 80) => (text.length > most ? `${beginning(text, most)}…` : text);

/** Its first characters, none of them halved. */
export const beginning = (text, most) => text.slice(0, most).replace(/[\ud800-\udbff]$/, "");

/** Above a document's text, which need not be told twice. */
export const headingOf = (doc) => plainName(doc.title || "") || `Document ${doc.number}`;

/** How a text begins, on one line. */
export function firstWords(text) {
  if (!text) return "";
  const start = plainName(beginning(text, 120)).trim();
  return text.length > 120 ? `${start}…` : start;
}

export const layersText = (layers) =>
  `${layers.length === 1 ? "layer" : "layers"} ${layers.join(", ")}`;
