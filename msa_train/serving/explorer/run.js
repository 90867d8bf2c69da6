// One question and its answer, from the first event to the last.

import * as api from "./api.js";
import { fill, foreign, h } from "./dom.js";
import { counted, seconds } from "./format.js";
import { failed } from "./notices.js";
import { Round } from "./rounds.js";
import { Texts } from "./texts.js";

const MODES = { generate: "ids written", router: "router's votes", memory: "memory alone" };
const FORCED = "The engine ended a stage by itself";

export class Run {
  /** request: the body without stream. */
  constructor(question, request, retry) {
    Object.assign(this, { request, retry, rounds: [], text: "" });
    this.texts = new Texts(request.memory.bank);
    this.aborter = new AbortController();
    this.stage = h("span", {}, "Waiting for the server");
    this.clock = h("span", { class: "clock", "aria-hidden": "true" });
    this.status = h("p", { class: "run-status running", role: "status" },
      h("span", { class: "pulse", "aria-hidden": "true" }), this.stage);
    this.answer = h("div", { class: "answer", dir: "auto", "aria-live": "polite", "aria-busy": "true" });
    this.problem = h("div");
    this.roundList = h("div", { class: "rounds" });
    this.element = h("article", { class: "run" },
      h("h2", { class: "question", dir: "auto" }, foreign(question)),
      this.answer, h("div", { class: "run-line" }, this.status, this.clock), this.problem, this.roundList);
  }

  cancel() {
    this.aborter.abort();
  }

  /** Runs to the end, whatever the end is; errors are shown, not raised. */
  async follow() {
    this.started = performance.now();
    const tick = setInterval(() => fill(this.clock, seconds(this.elapsed())), 100);
    try {
      for await (const chunk of api.answer(this.request, this.aborter.signal)) this.take(chunk);
      this.end(this.finishedLine());
    } catch (error) {
      this.end(error.name === "AbortError" ? `Cancelled after ${seconds(this.elapsed())}` : "Stopped");
      if (error.name !== "AbortError") fill(this.problem, failed(error, this.retry));
    } finally {
      clearInterval(tick);
    }
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
    else if (event?.event === "finished") this.finished = event;
  }

  last() {
    return this.rounds.at(-1);
  }

  append(text) {
    if (!this.text) this.say("Answering");
    this.text += text;
    this.answer.append(text);
  }

  routed(event) {
    for (const round of this.rounds) round.element.open = false;
    const round = new Round(this.rounds.length, event, this.texts);
    this.rounds.push(round);
    this.roundList.append(round.element);
    round.begin();
    this.say(`Round ${this.rounds.length}: ${counted(round.ranked.length, "document")} chosen`);
  }

  evidence(documents) {
    this.last().read(documents);
    this.say(documents.length ? `Reading ${counted(documents.length, "text")}` : "Answering from the memory");
  }

  say(text) {
    fill(this.stage, text);
  }

  finishedLine() {
    if (this.finished?.finish_reason === "no_documents") return "The model was not asked";
    const took = this.finished?.seconds ?? this.elapsed();
    const words = this.rounds.some((round) => round.fused) ? " and BM25" : "";
    const parts = [seconds(took), counted(this.rounds.length, "round"), MODES[this.request.memory.retrieval] + words];
    if (this.request.memory.filter) parts.push("filtered");
    return parts.join(" · ");
  }

  end(line) {
    this.status.classList.remove("running");
    this.say(line);
    fill(this.clock);
    this.answer.setAttribute("aria-busy", "false");
    if (this.finished && !this.text.trim()) {
      fill(this.answer, h("span", { class: "hint" }, "The model wrote an empty answer."));
    }
    if (this.finished?.forced?.length) {
      this.element.insertBefore(h("p", { class: "forced" }, `${FORCED}: ${this.finished.forced.join("; ")}.`), this.problem);
    }
  }
}
