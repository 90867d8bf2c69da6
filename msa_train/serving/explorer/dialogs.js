// Small questions to the person: are you sure, which name, which key.

import { button, fill, h, uniqueId } from "./dom.js";
import { failed } from "./notices.js";

// Title and text of what is asked before somebody leaves a dialog.
export const WRITTEN = ["Leave without saving?", "What you wrote here would be lost."];
export const ON_ITS_WAY = ["Leave while it is saved?", "What was sent may be saved all the same: look for it in the list."];

/**
 * A modal dialog with a heading; closes on Escape. held(): what would become of its content, as one of
 * the texts above, or false; who leaves is told then, and asked once. Returns {dialog, close, leave}.
 */
export function openDialog(title, build, { wide = false, onClose = () => {}, held = () => false } = {}) {
  const heading = uniqueId("dialog");
  const asked = h("div", { class: "notice leaving", role: "alert" });
  const close = () => dialog.close();
  const leave = (event) => {
    const told = held();
    if (!told || asked.hasChildNodes()) return close();
    event.preventDefault();
    fill(asked, h("p", { class: "notice-title" }, told[0]), h("p", {}, told[1]),
      button("Leave", close));
    return asked.scrollIntoView({ block: "nearest" });
  };
  const dialog = h("dialog", { class: wide ? "wide" : "", "aria-labelledby": heading, on: { cancel: leave } },
    h("div", { class: "dialog-head" },
      h("h2", { id: heading }, title),
      button("×", leave, { class: "quiet round", "aria-label": "Close" })),
    asked, build(close));
  dialog.addEventListener("close", () => { dialog.remove(); onClose(); });
  document.body.append(dialog);
  dialog.showModal();
  return { dialog, close, leave };
}

/** Asks before something that cannot be undone; act() runs with the dialog open, errors show in it. */
export function confirmed(title, text, doIt, act) {
  openDialog(title, (close) => {
    const problem = h("div");
    const yes = button(doIt, async () => {
      yes.disabled = true;
      try {
        await act();
        close();
      } catch (error) {
        fill(problem, failed(error));
        yes.disabled = false;
      }
    }, { class: "danger" });
    return [h("p", {}, text), problem,
      h("div", { class: "actions" }, button("Keep it", close, { autofocus: true }), yes)];
  });
}

/** One line of text, given to act(value); errors show in the dialog. */
export function askLine(title, { label, hint, doIt, type = "text", act, onClose }) {
  return openDialog(title, (close) => {
    const problem = h("div");
    const input = h("input", {
      type, id: uniqueId("line"), required: true, autofocus: true, autocomplete: "off",
      spellcheck: "false", dir: "auto",
    });
    const submit = async (event) => {
      event.preventDefault();
      try {
        await act(input.value.trim());
        close();
      } catch (error) {
        fill(problem, failed(error));
        input.select();
      }
    };
    return h("form", { on: { submit } },
      h("label", { for: input.id }, label), input, h("p", { class: "hint" }, hint), problem,
      h("div", { class: "actions" },
        button("Cancel", close), h("button", { type: "submit", class: "primary" }, doIt)));
  }, { onClose });
}

/** Promise of a key, or null when the person closed the dialog. */
export function askKey(wrong) {
  return new Promise((resolve) => {
    let given = null;
    askLine(wrong ? "That key was not accepted" : "This server asks for a key", {
      label: "Key", type: "password", doIt: "Use key",
      hint: "It is kept in this tab only, and forgotten when the tab closes.",
      act: async (key) => { given = key || null; },
      onClose: () => resolve(given),
    });
  });
}
