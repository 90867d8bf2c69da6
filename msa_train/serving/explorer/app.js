// The page as a whole: which bank and which view, told by the address (#/bank/view, or .../number).

import { dropAllBut } from "./answers.js";
import * as api from "./api.js";
import { AskView } from "./ask.js";
import { BankList, placeOf } from "./banks.js";
import { askKey } from "./dialogs.js";
import { DocumentsView } from "./documents.js";
import { button, fill, foreign, h } from "./dom.js";
import { plainName } from "./format.js";
import { empty, failed, loading } from "./notices.js";

const main = document.getElementById("main");
const asks = new Map(); // bank -> AskView: answers stay while one looks elsewhere
let shown = null; // {bank, view, documents}

const list = new BankList(document.getElementById("banks"), () => {
  show();
  nameModel();
}, (error) => fill(main, failed(error, begin)));

function begin() {
  fill(main, loading("Loading the memory…", 4));
  list.refresh();
}

async function nameModel() {
  const line = document.getElementById("model");
  if (line.textContent) return;
  try {
    line.textContent = plainName(await api.model());
  } catch { /* what is wrong is said where it matters */ }
}

function place() {
  const [, bank, view, number] = /^#\/([^/]+)\/(ask|documents)(?:\/(\d+))?$/.exec(location.hash) ?? [];
  try {
    return bank ? { bank: decodeURIComponent(bank), view, number: number ? Number(number) : null } : null;
  } catch {
    return null; // % that encodes nothing
  }
}

/** Draws what the address says; the first bank where it says nothing. */
function show() {
  const { banks } = list;
  if (banks === null) return;
  // A bank that was dropped and made anew is another one.
  const same = ({ bank, created }) => banks.some((each) => each.name === bank && each.created === created);
  for (const [name, ask] of asks) if (!same(ask)) asks.delete(name);
  if (shown && !same(shown)) shown = null;
  dropAllBut(banks.map((bank) => bank.name));
  const wanted = place() ?? (banks.length ? { bank: banks[0].name, view: "ask", number: null } : null);
  list.choose(wanted?.bank ?? null);
  if (wanted === null) {
    shown = null;
    fill(main, empty("This server has no bank", "Create one, then add documents: questions are answered from them.",
      button("New bank", () => list.create(), { class: "primary" })));
    return;
  }
  const info = banks.find((bank) => bank.name === wanted.bank);
  if (!info) {
    shown = null;
    fill(main, empty("No such bank", `There is no bank “${plainName(wanted.bank)}” here (any more).`,
      banks.length ? h("a", { href: placeOf(banks[0].name) }, "Go to the first one") : null));
    return;
  }
  if (info.problem) {
    shown = null;
    const why = { title: "This bank cannot be opened", message: `${info.problem}. Mend it, then start the server again.` };
    fill(main, h("h1", {}, foreign(plainName(info.name))), failed(why), info.droppable
      ? h("p", { class: "bank-foot" }, button("Drop this bank", () => list.drop(info), { class: "link danger-text" })) : null);
    return;
  }
  if (shown?.bank !== wanted.bank || shown.view !== wanted.view) draw(info, wanted.view);
  else if (wanted.view === "ask") asks.get(info.name).welcome(info);
  const { documents } = shown;
  if (wanted.number !== null) documents?.look(wanted.number);
  else if (documents && documents.open !== null) documents.nothingOpen();
}

function draw(info, view) {
  const name = info.name;
  document.title = `${plainName(name)} · Memory explorer`;
  const tab = (key, text) => h("a", { href: placeOf(name, key), "aria-current": key === view ? "page" : null }, text);
  const head = h("div", { class: "head" },
    h("h1", {}, foreign(plainName(name))),
    h("nav", { class: "tabs", "aria-label": "Views of this bank" }, tab("ask", "Ask"), tab("documents", "Documents")));
  shown = { bank: name, created: info.created, view };
  if (view === "ask") {
    if (!asks.has(name)) asks.set(name, new AskView(name, list.retrieval, info.created));
    fill(main, head, asks.get(name).element);
    asks.get(name).welcome(info);
    asks.get(name).begin();
  } else {
    const drop = () => list.drop(list.banks.find((bank) => bank.name === name) ?? info);
    shown.documents = new DocumentsView(name, () => list.refresh(), info.droppable === false ? null : drop);
    fill(main, head, shown.documents.element);
    shown.documents.showPage();
  }
}

function acceptDrops() {
  const over = (on) => document.body.classList.toggle("dropping", on);
  const withFiles = (event) => shown && [...(event.dataTransfer?.types ?? [])].includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!withFiles(event)) return;
    event.preventDefault();
    over(true);
  });
  document.addEventListener("dragleave", (event) => { if (event.relatedTarget === null) over(false); });
  document.addEventListener("drop", (event) => {
    over(false);
    if (!withFiles(event)) return;
    event.preventDefault();
    const files = [...event.dataTransfer.files];
    if (shown.view !== "documents") {
      history.pushState(null, "", placeOf(shown.bank, "documents"));
      show();
    }
    shown.documents.add(files);
  });
}

function narrowMenu() {
  const toggle = document.getElementById("bank-toggle");
  const open = (yes) => {
    toggle.setAttribute("aria-expanded", String(yes));
    document.body.classList.toggle("banks-open", yes);
  };
  toggle.addEventListener("click", () => open(toggle.getAttribute("aria-expanded") !== "true"));
  window.addEventListener("hashchange", () => open(false));
}

document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address tells the view
  main.focus();
});
window.addEventListener("hashchange", show);
api.onKeyNeeded(askKey);
acceptDrops();
narrowMenu();
begin();
