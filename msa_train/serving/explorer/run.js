// One question and its answer, from the first event to the last; kept, and shown again from that.

import * as answers from "./answers.js";
import * as api from "./api.js";
import { button, fill, h } from "./dom.js";
import { counted, seconds } from "./format.js";
import { MODES } from "./glossary.js";
import { failed, toast } from "./notices.js";
import { Round } from "./rounds.js";
import { Sources } from "./sources.js";
import { term } from "./terms.js";
import { foldedText } from "./texts.js";

const FORCED = "The engine ended a stage by itself";
const LONG = 200; // characters of a question, above which its beginning stands for it
const HOPELESS = new Set([400, 403, 404, 413, "context_length_exceeded"]); // the same would be said again

export class Run {
  /**
   * request: the body without stream. of: {bank, created, thread}, what it belongs to. texts: of
   * the bank. deeds: what its buttons do, {again, further, edit, remove}, each called with the run.
   */
  constructor(question, request, of, texts, deeds) {
    Object.assign(this, { question, request, of, texts, deeds, id: answers.newId(), rounds: [], text: "", ending: null });
    this.aborter = new AbortController();
    this.sources = new Sources(texts);
    this.stage = h("span", {}, "Waiting for the server");
    this.clock = h("span", { class: "clock", "aria-hidden": "true" });
    this.spoken = h("span", { class: "unseen", role: "status" });
    this.status = h("p", { class: "run-status running" },
      h("span", { class: "pulse", "aria-hidden": "true" }), this.stage);
    this.answer = h("div", { class: "answer", dir: "auto", "aria-live": "polite", "aria-busy": "true" });
    this.problem = h("div", { class: "run-problem" });
    this.tools = h("div", { class: "run-tools", hidden: true });
    this.roundList = h("div", { class: "rounds" });
    this.element = h("article", { class: "run" }, this.heading(),
      h("div", { class: "run-body" },
        h("div", { class: "run-main" }, this.answer,
          h("div", { class: "run-line" }, this.status, this.clock, this.spoken), this.problem, this.tools),
        this.sources.element),
      this.sources.reader.element, this.roundList);
  }

  /** From what toJSON() gave. */
  static restored(record, texts, deeds) {
    const { id, bank, created, thread, question, request, rounds, text, sources, finished, ending } = record;
    const run = new Run(question, request, { bank, created, thread }, texts, deeds);
    Object.assign(run, { id, text, finished });
    for (const each of rounds) {
      const round = run.addRound(each, false);
      if (each.written) round.write(each.written);
      if (each.evidence) round.read(each.evidence);
    }
    const found = sources.found.map((each) => ({ ...each, winners: new Map(each.winners) }));
    run.sources.show(found, sources.read);
    run.end(ending.error ? { ...ending, error: { ...ending.error, retryAfter: null } } : ending);
    return run;
  }

  toJSON() {
    const { id, of, question, request, rounds, text, sources, finished, ending } = this;
    return { id, ...of, question, request, rounds, text, sources, finished, ending };
  }

  /** A long question is cut short, and whole on demand. */
  heading() {
    const [words, unfold] = foldedText(this.question, LONG, "bdi");
    return h("div", { class: "question-head" }, h("h2", { class: "question", dir: "auto" }, words), unfold);
  }

  cancel() {
    this.aborter.abort();
  }

  /** Runs to the end, whatever the end is; errors are shown, not raised. */
  async follow() {
    this.started = performance.now();
    const tick = setInterval(() => fill(this.clock, seconds(this.elapsed())), 100);
    let ending;
    try {
      for await (const chunk of api.answer(this.request, this.aborter.signal)) this.take(chunk);
      ending = { how: "finished", seconds: this.finished?.seconds ?? this.elapsed() };
    } catch (error) {
      if (error.name === "AbortError") ending = { how: "cancelled", seconds: this.elapsed() };
      else if (error.status === 0 && this.leaving) ending = { how: "left" };
      else ending = { how: "failed", error: told(error) };
    } finally {
      clearInterval(tick);
    }
    this.end(ending);
    if (ending.error) this.problem.scrollIntoView({ block: "nearest" });
    answers.keep(this.toJSON());
  }

  /** When the page goes away before it has ended; the browser may break its request off before that. */
  leave() {
    this.leaving = true;
    if (this.ending === null) answers.keep({ ...this.toJSON(), ending: { how: "left" } });
  }

  elapsed() {
    return (performance.now() - this.started) / 1000;
  }

  take(chunk) {
    const text = chunk.choices?.[0]?.delta?.content;
    if (text) this.append(text);
    const event = chunk.memory;
    if (event?.event === "routed") this.routed(event);
    else if (event?.event === "writes") this.last().write(event.text);
    else if (event?.event === "evidence") this.evidence(event.documents);
    else if (event?.event === "finished") {
      const { finish_reason, seconds, forced } = event;
      this.finished = { finish_reason, seconds, forced };
    }
  }

  last() {
    return this.rounds.at(-1);
  }

  append(text) {
    if (!this.text) {
      this.say("Answering");
      if (!this.sources.found.length) this.tellSources(); // of memory alone nothing says that none was read
    }
    this.text += text;
    this.answer.append(text);
  }

  addRound(event, open) {
    const round = new Round(this.rounds.length, event, this.texts, open);
    this.rounds.push(round);
    this.roundList.append(round.element);
    return round;
  }

  routed(event) {
    this.fold();
    const round = this.addRound(event, true);
    round.begin();
    this.say(`Round ${this.rounds.length}: ${counted(round.ranked.length, "document")} chosen`);
  }

  evidence(documents) {
    this.last().read(documents);
    this.tellSources();
    this.say(documents.length ? `Reading ${counted(documents.length, "text")}` : "Answering from the memory");
  }

  /** The texts that were read in any round; where there are none, what was attended to at last. */
  tellSources() {
    const read = new Map();
    for (const round of this.rounds) {
      for (const doc of round.evidence ?? []) if (!read.has(doc.number)) read.set(doc.number, { ...doc, winners: round.winners(doc.number) });
    }
    const attended = () => this.last()?.ranked.map(({ number }) => ({ number, winners: this.last().winners(number) })) ?? [];
    this.sources.show(read.size ? [...read.values()] : attended(), read.size > 0);
  }

  say(text) {
    fill(this.stage, text);
    fill(this.spoken, text);
  }

  finishedLine(took) {
    if (this.finished?.finish_reason === "no_documents") return ["The model was not asked"];
    const mode = this.request.memory.retrieval;
    const parts = [[seconds(took)], [counted(this.rounds.length, "round"), term("round")], [MODES[mode].told, term(mode)]];
    if (this.rounds.some((round) => round.fused)) parts[2].push(" and BM25", term("hybrid"));
    if (this.request.memory.filter) parts.push(["filtered"]);
    return parts.flatMap((each) => [" · ", ...each]).slice(1);
  }

  /** ending: {how: finished, cancelled, failed or left; seconds?, error?}. */
  end(ending) {
    this.ending = ending;
    const lines = {
      finished: () => this.finishedLine(ending.seconds),
      cancelled: () => [`Cancelled after ${seconds(ending.seconds)}`],
      failed: () => ["Stopped"],
      left: () => ["The page was left before the answer was whole"],
    };
    this.status.classList.remove("running");
    fill(this.stage, lines[ending.how]());
    fill(this.spoken, ending.how === "finished" ? "Answered" : this.stage.textContent);
    fill(this.clock);
    fill(this.answer, this.text ? this.sources.linked(this.text) : null);
    if (this.finished && !this.text.trim()) {
      fill(this.answer, h("span", { class: "hint" }, "The model wrote an empty answer."));
    }
    this.answer.setAttribute("aria-busy", "false");
    if (this.finished?.forced?.length) {
      this.problem.before(h("p", { class: "forced" }, `${FORCED}: ${this.finished.forced.join("; ")}.`));
    }
    if (ending.error) this.fail(ending.error);
    this.offer();
  }

  fail(error) {
    const retry = HOPELESS.has(error.status) || HOPELESS.has(error.code) ? null : () => this.deeds.again(this);
    fill(this.problem, failed(error, retry, button("Edit the question", () => this.deeds.edit(this))));
  }

  offer() {
    const said = Boolean(this.text.trim());
    const unasked = this.finished?.finish_reason === "no_documents";
    this.tools.hidden = false;
    fill(this.tools,
      said && !unasked ? button("Ask further", () => this.deeds.further(this), { class: "further" }) : null,
      said ? button("Copy", () => this.copy(), { class: "quiet" }) : null,
      this.ending.how === "cancelled" || this.ending.how === "left" ? button("Try again", () => this.deeds.again(this), { class: "quiet" }) : null,
      button("Delete", () => this.deeds.remove(this), { class: "quiet danger-text" }));
  }

  /** Another question follows: its rounds would stand between the two. */
  fold() {
    for (const round of this.rounds) round.element.open = false;
  }

  /** With its sources. */
  async copy() {
    const text = [this.question, "", this.text.trim(), ...(this.sources.found.length ? ["", ...this.sources.lines] : [])].join("\n");
    try {
      await navigator.clipboard.writeText(text);
      toast("Copied, with its sources.");
    } catch {
      toast("The browser does not let this page copy: mark the text instead.");
    }
  }

  drop() {
    this.cancel();
    answers.drop({ id: this.id, ...this.of });
    this.element.remove();
  }
}

/** What is kept of an error: a restored one does not wait again. */
function told(error) {
  if (!("status" in error)) console.error(error); // a mistake of this page
  return { status: error.status, code: error.code ?? null, message: error.message, retryAfter: error.retryAfter ?? null };
}
