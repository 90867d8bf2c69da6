// What is said when something failed, when there is nothing, and while there is not yet anything.

import { button, h } from "./dom.js";

const TITLES = {
  0: "No answer from the server",
  400: "The server did not accept this",
  401: "A key is needed",
  403: "Not allowed",
  404: "Not found",
  409: "Not now",
  413: "Too large",
  429: "The server is busy",
  503: "The server is shutting down",
  504: "The server took too long",
};
const CODES = {
  read_only_key: "This key may only read",
  matches_changed: "The documents have changed meanwhile",
  writer_busy: "Someone else is writing to this bank",
  id_exists: "This id is taken",
  bank_exists: "This name is taken",
  bank_unavailable: "This bank cannot be opened",
  context_length_exceeded: "This is too long for the model",
};
// What to do, where the server's words do not say.
const ADVICE = {
  0: "Is it running? Nothing was lost on this page.",
  401: "Try again to give another key.",
  403: "Somebody with a key that may do this, or who runs the server, can help.",
  408: "The connection may be slow: try again.",
  429: "Others are asking too. Wait a moment, then try again.",
  500: "Try again. If it goes wrong again, the server's log says why.",
  503: "Try again when it has started again.",
  504: "Try again, with a shorter question; whoever runs the server can allow more time.",
  bank_unavailable: "Whoever runs the server can mend it; other banks can be asked.",
  context_length_exceeded: "Shorten the question, or ask it anew instead of further to earlier answers.",
  invalid_api_key: "Try again to give another key.",
};

/** An error, what to do about it and, where trying again can help, a button, which waits as long as
 * the server asked to. more: other buttons. */
export function failed(error, retry = null, ...more) {
  if (!("status" in error || "title" in error)) console.error(error); // a mistake of this page
  const title = error.title ?? CODES[error.code] ?? TITLES[error.status] ?? "Something went wrong";
  const notice = h("div", { class: "notice failed", role: "alert" },
    h("p", { class: "notice-title" }, title), h("p", {}, error.message));
  const advice = ADVICE[error.code] ?? ADVICE[error.status];
  if (advice && !error.title) notice.append(h("p", { class: "hint" }, advice));
  if (retry || more.length) {
    notice.append(h("div", { class: "notice-do" }, retry && retryButton(retry, error.retryAfter), ...more));
  }
  return notice;
}

function retryButton(retry, wait) {
  const again = button("Try again", retry);
  if (!wait) return again;
  let left = Math.ceil(wait);
  const tick = () => {
    again.disabled = left > 0;
    again.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
    left -= 1;
    if (left >= 0) setTimeout(tick, 1000);
  };
  tick();
  return again;
}

export function empty(title, text, ...actions) {
  return h("div", { class: "notice empty" },
    h("p", { class: "notice-title" }, title), h("p", {}, text), ...actions);
}

export function loading(text = "Loading…", lines = 3) {
  return h("div", { class: "loading", role: "status" }, h("span", { class: "unseen" }, text),
    Array.from({ length: lines }, () => h("span", { class: "bone", "aria-hidden": "true" })));
}

/** A passing word at the foot of the page. */
export function toast(text, ...actions) {
  const message = h("div", { class: "toast" }, h("span", {}, text), ...actions);
  document.getElementById("toasts").append(message);
  setTimeout(() => message.remove(), 8000);
  message.addEventListener("click", () => message.remove());
}
