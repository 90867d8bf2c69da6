// Answers kept in this tab, so that they survive a reload: the newest of each bank, within a bound.
// What finds no room is dropped, oldest first; nobody need be told.

import { names, storage } from "./storage.js";

const PREFIX = "msa-answer/";
export const MOST = 20; // of a bank
const LARGEST = 2_000_000; // characters, all banks together

let serial = 0;

/** Ids ascend with time, also over reloads. */
export function newId() {
  serial += 1;
  return `${String(Date.now()).padStart(15, "0")}-${String(serial).padStart(4, "0")}`;
}

const startOf = (bank) => `${PREFIX}${encodeURIComponent(bank)}/`;
const keyOf = (record) => `${startOf(record.bank)}${record.id}`;
const idOf = (key) => key.slice(key.lastIndexOf("/") + 1);
const short = (name, value) => (typeof value === "number" && !Number.isInteger(value) ? Number(value.toPrecision(6)) : value);

/** Keys of what is kept, the oldest first; of one bank only where given. */
function keys(bank = null) {
  const start = bank === null ? PREFIX : startOf(bank);
  return names().filter((key) => key.startsWith(start))
    .sort((a, b) => (idOf(a) < idOf(b) ? -1 : 1));
}

const size = () => keys().reduce((sum, key) => sum + storage.getItem(key).length, 0);

/** record: JSON with id, bank and created (of the bank: another one may take its name). */
export function keep(record) {
  const key = keyOf(record);
  const text = JSON.stringify(record, short);
  storage.removeItem(key);
  if (text.length > LARGEST) return;
  for (const old of keys(record.bank).slice(0, -(MOST - 1))) storage.removeItem(old);
  for (;;) {
    try {
      if (size() + text.length <= LARGEST) {
        storage.setItem(key, text);
        return;
      }
    } catch { /* the browser has less room than that */ }
    const [oldest] = keys();
    if (oldest === undefined) return;
    storage.removeItem(oldest);
  }
}

export const drop = (record) => storage.removeItem(keyOf(record));

/** Records of a bank, the oldest first. Those of another bank that had its name are dropped. */
export function kept(bank, created) {
  const found = [];
  for (const key of keys(bank)) {
    let record = null;
    try {
      record = JSON.parse(storage.getItem(key));
    } catch { /* not ours */ }
    if (record?.created === created) found.push(record);
    else storage.removeItem(key);
  }
  return found;
}

/** Of banks that are there no more. */
export function dropAllBut(banks) {
  const there = banks.map(startOf);
  for (const key of keys()) if (!there.some((start) => key.startsWith(start))) storage.removeItem(key);
}

/** With the key that let them be read. */
export function dropAll() {
  for (const key of keys()) storage.removeItem(key);
}
