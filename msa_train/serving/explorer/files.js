// Files that a person chose, read into documents: what will be added, and what is wrong with which.

import { readJson } from "./metadata.js";

const LARGEST = 64e6; // bytes of one file
const utf8 = () => new TextDecoder("utf-8", { fatal: true });

/** {name, documents, errors: [text]} of one file. Raises nothing. */
export async function readFile(file) {
  const result = { name: file.name, size: file.size, documents: [], errors: [] };
  try {
    await READERS[kindOf(file)](file, result);
  } catch (error) {
    result.errors.push(error.name === "TypeError" ? "This is not UTF-8 text." : error.message);
  }
  return result;
}

function kindOf(file) {
  const kind = /\.(txt|md|jsonl)$/i.exec(file.name)?.[1].toLowerCase();
  if (!kind) throw new Error("Only .txt, .md and .jsonl files can be added.");
  if (file.size > LARGEST) throw new Error("Larger than 64 MB: add it with `msa memory add` on the server.");
  return kind;
}

const textOf = async (file) => utf8().decode(await file.arrayBuffer());

async function readText(file, result) {
  const text = await textOf(file);
  if (!text.trim()) throw new Error("The file is empty.");
  const name = file.name.replace(/\.[^.]+$/, "");
  const heading = /^#\s+(.+?)\s*#*\s*$/m.exec(text.slice(0, 2000));
  const title = /\.md$/i.test(file.name) && heading ? heading[1] : name;
  result.documents.push({ id: file.name, title, text });
}

async function readLines(file, result) {
  const lines = (await textOf(file)).split("\n");
  lines.forEach((line, place) => {
    if (!line.trim()) return;
    try {
      result.documents.push(documentOf(readJson(line)));
    } catch (error) {
      const said = error instanceof SyntaxError ? "is not JSON" : error.message;
      result.errors.push(`Line ${place + 1} ${said}.`);
    }
  });
  if (!result.documents.length && !result.errors.length) throw new Error("The file is empty.");
}

const READERS = { txt: readText, md: readText, jsonl: readLines };

/** A line of a corpus as the server takes it. Raises Error saying what is wrong. */
function documentOf(line) {
  if (line === null || typeof line !== "object" || Array.isArray(line)) throw new Error("is no JSON object");
  if (typeof line.text !== "string") throw new Error("has no “text”");
  for (const name of ["id", "title"]) {
    if (line[name] !== undefined && typeof line[name] !== "string") throw new Error(`has a “${name}” that is no text`);
  }
  const { id, title, text, metadata } = line;
  return { ...(id && { id }), ...(title && { title }), text, ...(metadata !== undefined && { metadata }) };
}

const MOST = 64; // documents in a request
const BYTES = 1_000_000;

/** Documents in requests that a server's limits let pass. */
export function batches(documents) {
  const result = [];
  let size = Infinity;
  for (const doc of documents) {
    const bytes = doc.text.length * 2 + 200;
    if (!result.length || result.at(-1).length === MOST || size + bytes > BYTES) {
      result.push([]);
      size = 0;
    }
    result.at(-1).push(doc);
    size += bytes;
  }
  return result;
}
