// The question box and the answers under it: threads, the newest first, each with its turns in order.

import * as answers from "./answers.js";
import * as api from "./api.js";
import { placeOf } from "./banks.js";
import { button, fill, foreign, h, segmented, uniqueId } from "./dom.js";
import { FilterForm } from "./filter.js";
import { firstWords, titleOf } from "./format.js";
import { MODES } from "./glossary.js";
import { empty, failed } from "./notices.js";
import { Run } from "./run.js";
import { term } from "./terms.js";
import { Texts } from "./texts.js";

const GLIMPSE = 40; // documents among whose titles a few are shown
const EXAMPLES = 5; // questions

export class AskView {
  /** mode: how this server answers unless it is told. created: when the bank was. */
  constructor(bank, mode, created) {
    Object.assign(this, { bank, mode, created, run: null, info: null, welcomed: null, earlier: null, threads: [] });
    this.texts = new Texts(bank);
    this.box = h("textarea", {
      id: uniqueId("question"), class: "question-box", rows: 2, dir: "auto",
      placeholder: "Ask this memory a question", "aria-label": "Question",
      "aria-describedby": "keys", on: { keydown: (event) => this.key(event), input: () => this.fit() },
    });
    this.filter = new FilterForm();
    this.problem = h("div", { class: "composer-problem" });
    this.following = h("div", { class: "following", hidden: true });
    this.runs = h("div", { class: "runs" });
    this.start = h("div");
    this.element = h("div", { class: "ask" }, this.composer(), this.runs, this.start);
    this.deeds = {
      again: (run) => { if (!this.busy()) this.send(run.question, run.request, run.of.thread, run); },
      further: (run) => this.further(run),
      edit: (run) => this.suggest(run.question),
      remove: (run) => this.remove(run),
    };
    this.restore();
    for (const going of ["beforeunload", "pagehide"]) window.addEventListener(going, () => this.run?.leave());
  }

  restore() {
    for (const record of answers.kept(this.bank, this.created)) {
      this.place(Run.restored(record, this.texts, this.deeds));
    }
    this.settle();
  }

  /** What stands under the box before anything was asked: questions, and a glimpse of what there is. */
  async welcome(info) {
    this.info = info;
    if (this.start.hidden || this.welcomed === info.generation) return;
    this.welcomed = info.generation;
    if (!info.documents) {
      fill(this.start, empty("This memory is empty", "Add documents, and ask about them right away.",
        h("a", { href: placeOf(this.bank, "documents") }, "Add documents")));
      return;
    }
    const text = "The answer appears here as it is written, with the documents that it comes from.";
    const ways = h("div", { class: "glimpse" });
    fill(this.start, ways, empty("Nothing asked yet", text));
    await Promise.allSettled([this.examples(ways), this.glimpse()]); // neither is needed
  }

  async examples(place) {
    const found = await api.examples(this.bank, EXAMPLES);
    if (!found.length) return;
    fill(place, h("p", { class: "hint" }, "Try a question"),
      h("ul", { class: "examples" }, found.map(({ question }) =>
        h("li", {}, button(question, () => this.suggest(question), { class: "chip example", dir: "auto" })))));
  }

  async glimpse() {
    const { documents } = await api.listDocuments(this.bank, { limit: GLIMPSE });
    const titled = new Map(documents.filter((doc) => doc.title).map((doc) => [titleOf(doc), doc.number]));
    const chips = [...titled].slice(0, 8).map(([title, number]) => h("li", {},
      h("a", { class: "chip", dir: "auto", href: placeOf(this.bank, "documents", number) }, title)));
    if (chips.length) this.start.append(h("div", { class: "glimpse" }, h("p", { class: "hint" }, "It remembers, among others"), h("ul", {}, chips)));
  }

  composer() {
    this.hint = h("p", { class: "hint" });
    this.submit = h("button", { type: "submit", class: "primary" }, "Ask");
    this.stop = button("Cancel", () => this.run?.cancel(), { hidden: true });
    this.tell();
    return h("form", { class: "composer", novalidate: true, on: { submit: (event) => { event.preventDefault(); this.ask(); }, input: () => fill(this.problem) } },
      this.following, this.box,
      h("div", { class: "composer-line" },
        segmented("How the answer is found", Object.entries(MODES).map(([mode, { name }]) => [mode, name]), this.mode,
          (mode) => { this.mode = mode; this.tell(); }),
        this.temperature(), this.filter.toggle,
        h("div", { class: "composer-do" }, this.stop, this.submit)),
      this.problem, this.filter.panel,
      h("div", { class: "composer-foot" }, this.hint,
        h("p", { class: "hint keys", id: "keys" }, h("kbd", {}, "Enter"), " asks, ", h("kbd", {}, "Shift Enter"), " for a new line")));
  }

  temperature() {
    const shown = h("output", {}, "0");
    this.heat = h("input", {
      type: "range", min: 0, max: 1.5, step: 0.1, value: "0", id: uniqueId("temperature"),
      on: { input: () => { shown.textContent = String(Number(this.heat.value)); } },
    });
    return h("div", { class: "temperature" },
      h("label", { for: this.heat.id }, "Temperature"), term("temperature"), this.heat, shown);
  }

  tell() {
    fill(this.hint, MODES[this.mode].about, term(this.mode));
  }

  fit() {
    this.box.style.setProperty("height", "auto");
    this.box.style.setProperty("height", `${Math.min(this.box.scrollHeight, 260)}px`);
  }

  key(event) {
    if (event.key === "ArrowUp" && !this.box.value && this.asked) this.suggest(this.asked);
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.ask();
  }

  /** Into the box, which comes into view. */
  focus() {
    this.box.focus({ preventScroll: true });
    if (this.box.getBoundingClientRect().top < 0) this.element.scrollIntoView({ block: "start" });
  }

  get wide() {
    return window.matchMedia("(min-width: 821px)").matches;
  }

  /** Ready to type where there is a keyboard; on a small screen one would come up unasked. */
  begin() {
    if (this.wide) this.box.focus({ preventScroll: true });
  }

  /** Puts a question into the box, to be changed or sent. */
  suggest(question) {
    this.box.value = question;
    this.fit();
    this.focus();
  }

  /** The next question follows this answer and those before it; null: it stands alone. */
  further(run) {
    this.earlier = run && this.threads.find((thread) => thread.id === run.of.thread);
    this.following.hidden = !run;
    fill(this.following, run && [
      h("p", {}, h("strong", {}, "Asking further"), " after “", foreign(firstWords(run.question)), "”",
        button("Ask anew instead", () => { this.further(null); this.focus(); }, { class: "link" })),
      h("p", { class: "hint" }, "The model sees the earlier questions and answers, but the memory is searched for the new question alone: name what it is about."),
    ]);
    this.box.placeholder = run ? "Ask further" : "Ask this memory a question";
    if (run) this.focus();
  }

  /** Beside the box: why nothing was asked. */
  refuse(message) {
    fill(this.problem, failed({ title: "Not asked yet", message }));
    this.focus();
  }

  busy() {
    if (this.run) this.refuse("The answer before is still being written: wait for it, or cancel it.");
    return this.run !== null;
  }

  ask() {
    const question = this.box.value.trim();
    fill(this.problem);
    if (this.busy()) return;
    if (!question) {
      this.refuse("Write a question first.");
      return;
    }
    let filter;
    try {
      filter = this.filter.read();
    } catch (error) {
      this.filter.show(true);
      this.refuse(error.message);
      return;
    }
    const turns = this.earlier?.runs.filter((run) => run.text.trim()) ?? [];
    const messages = turns.flatMap((run) => [
      { role: "user", content: run.question }, { role: "assistant", content: run.text }]);
    this.send(question, {
      messages: [...messages, { role: "user", content: question }],
      temperature: Number(this.heat.value),
      memory: { bank: this.bank, retrieval: this.mode, ...(filter && { filter }) },
    }, this.earlier?.id);
    this.box.value = "";
    this.fit();
    this.further(null);
    if (!this.wide) this.box.blur(); // its keyboard would cover the answer
  }

  /** thread: its id, where the question follows others. old: the run that this one stands for. */
  async send(question, request, thread = answers.newId(), old = null) {
    const run = new Run(question, request, { bank: this.bank, created: this.created, thread }, this.texts, this.deeds);
    this.run = run;
    this.asked = question;
    this.place(run, old);
    this.settle();
    this.show(run);
    this.submit.hidden = true;
    this.stop.hidden = false;
    await run.follow();
    this.run = null;
    this.submit.hidden = false;
    this.stop.hidden = true;
  }

  /** Below the others of its thread, or in the place of `old`; its thread above all others. */
  place(run, old = null) {
    let thread = this.threads.find((each) => each.id === run.of.thread);
    if (!thread) {
      thread = { id: run.of.thread, runs: [], element: h("section", { class: "thread" }) };
      this.threads.push(thread);
    }
    if (old) {
      run.id = old.id; // where it was, also after a reload
      thread.runs[thread.runs.indexOf(old)] = run;
      old.element.replaceWith(run.element);
      return;
    }
    for (const before of thread.runs) before.fold();
    thread.runs.push(run);
    thread.element.append(run.element);
    this.threads = [...this.threads.filter((each) => each !== thread), thread];
    this.runs.prepend(thread.element);
    const all = this.threads.flatMap((each) => each.runs);
    for (const each of all.slice(0, -answers.MOST)) this.remove(each, false);
  }

  /** A new question stands right under the box; one further down is brought into view. */
  show(run) {
    const { top } = run.element.getBoundingClientRect();
    if (top < 0 || top > window.innerHeight - 200) run.element.scrollIntoView({ block: "start" });
  }

  remove(run, byHand = true) {
    const thread = this.threads.find((each) => each.id === run.of.thread);
    if (this.earlier === thread) this.further(null);
    run.drop();
    thread.runs = thread.runs.filter((each) => each !== run);
    if (!thread.runs.length) {
      thread.element.remove();
      this.threads = this.threads.filter((each) => each !== thread);
    }
    this.settle();
    if (byHand) this.box.focus({ preventScroll: true });
  }

  settle() {
    [...this.runs.children].forEach((thread, place) => thread.classList.toggle("earlier", place > 0));
    for (const thread of this.threads) {
      thread.runs.forEach((run, place) => run.element.classList.toggle("followed", place < thread.runs.length - 1));
    }
    this.start.hidden = this.threads.length > 0;
    if (this.info) this.welcome(this.info);
  }
}
