// Requests to the server, in one place: keys, errors, and the stream of an answer.

import { dropAll } from "./answers.js";
import { storage } from "./storage.js";

const ROOT = new URL("../", import.meta.url);
const KEY = "msa-key";
const READ_TIMEOUT = 30_000;
const WRITE_TIMEOUT = 600_000; // documents are encoded while we wait

/** What went wrong. status: HTTP's, 0 when there was no answer. retryAfter: seconds, or null. */
export class ApiError extends Error {
  constructor(status, message, { code = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }
}

let askForKey = async () => null;
let asking = null;

/** ask(wrong: bool) -> Promise of a key, or null when the person declined. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

export const hasKey = () => storage.getItem(KEY) !== null;
/** And all that is kept of what it let one read. */
export const forgetKey = () => {
  storage.removeItem(KEY);
  dropAll();
};

async function newKey(used) {
  if (storage.getItem(KEY) !== used) return true; // another request has asked meanwhile
  asking ??= askForKey(used !== null).finally(() => { asking = null; });
  const key = await asking;
  if (key === null) return false;
  storage.setItem(KEY, key);
  return true;
}

async function request(method, path, body, signal) {
  for (;;) {
    const key = storage.getItem(KEY);
    const headers = key === null ? {} : { Authorization: `Bearer ${key}` };
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(new URL(path, ROOT), {
        method, headers, signal, cache: "no-store",
        body: body === undefined ? undefined : JSON.stringify(body),
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      const late = error.name === "TimeoutError";
      throw new ApiError(0, late ? "The server took too long to answer." : "The server does not answer.");
    }
    if (response.ok) return response;
    if (response.status !== 401 || !(await newKey(key))) throw await failure(response);
  }
}

async function failure(response) {
  let said = {};
  try {
    said = (await response.json()).error ?? {};
  } catch { /* no JSON: a proxy answered, or nothing */ }
  const after = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  return new ApiError(response.status, said.message || `The server answered ${response.status}.`, {
    code: said.code ?? null, retryAfter: Number.isFinite(after) ? after : null,
  });
}

async function json(method, path, body, stop = null) {
  const limit = AbortSignal.timeout(method === "GET" ? READ_TIMEOUT : WRITE_TIMEOUT);
  const response = await request(method, path, body, stop ? AbortSignal.any([stop, limit]) : limit);
  return response.status === 204 ? null : response.json();
}

const BANKS = "v1/memory/banks";
const at = (bank, rest = "") => `${BANKS}/${encodeURIComponent(bank)}${rest}`;

export const model = async () => (await json("GET", "v1/models")).data[0]?.id ?? "";
/** {banks, retrieval}: the second is how this server answers unless it is told. */
export const banks = () => json("GET", BANKS);
export const createBank = (name) => json("POST", BANKS, { name });
export const dropBank = (bank) => json("DELETE", at(bank));
export const addDocuments = (bank, documents, update = false) =>
  json(update ? "PUT" : "POST", at(bank, "/documents"), { documents });
/** Another title, text or metadata; of a split document, in place of all its parts. */
export const replaceDocument = (bank, number, content) => json("PUT", at(bank, `/documents/${number}`), content);
/** {removed}: parts count. wanted: {ids, numbers}, or {matching: {filter, words, count}}. */
export const removeDocuments = (bank, wanted) => json("POST", at(bank, "/documents/remove"), wanted);
export const getDocument = (bank, number) => json("GET", at(bank, `/documents/${number}`));
/** With the text of all its `parts`. */
export const wholeDocument = (bank, number) => json("GET", at(bank, `/documents/${number}/whole`));
export const search = async (bank, query, limit, filter = null, stop = null) =>
  (await json("POST", at(bank, "/search"), { query, limit, filter }, stop)).documents;

/** Questions that can be asked: [{question, number}]. */
export const examples = async (bank, limit) =>
  (await json("GET", at(bank, `/examples?limit=${limit}`))).examples;

/** {documents, next, total, first}; options: after (number), skip, limit, id, filter, words. */
export function listDocuments(bank, options, stop = null) {
  const given = Object.entries(options).filter(([, value]) => value !== null && value !== undefined && value !== "");
  if (options.filter || options.words) {
    return json("POST", at(bank, "/documents/find"), Object.fromEntries(given), stop);
  }
  return json("GET", at(bank, `/documents?${new URLSearchParams(given)}`), undefined, stop);
}

/** The chunks of a streamed answer, as they come. Raises ApiError, AbortError. */
export async function* answer(body, signal) {
  const response = await request("POST", "v1/chat/completions", { ...body, stream: true }, signal);
  let finished = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.status ?? 500, chunk.error.message, chunk.error);
    finished ||= Boolean(chunk.choices?.[0]?.finish_reason);
    yield chunk;
  }
  if (!finished) throw new ApiError(0, "The answer broke off: the server closed the connection.");
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, "The answer broke off: the connection was lost.");
    }
    if (piece.done) return;
    const lines = (rest + piece.value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}
