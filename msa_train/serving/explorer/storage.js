// What this tab keeps. A browser that lets pages store nothing (site data blocked, a sandboxed frame)
// gets a stand-in, which forgets at the next reload.

class StandIn {
  #held = new Map();

  get length() { return this.#held.size; }

  key(place) { return [...this.#held.keys()][place] ?? null; }

  getItem(name) { return this.#held.get(name) ?? null; }

  setItem(name, text) { this.#held.set(name, text); }

  removeItem(name) { this.#held.delete(name); }
}

function tab() {
  try {
    return window.sessionStorage;
  } catch {
    return new StandIn(); // even asking for it is refused
  }
}

export const storage = tab();

/** Of all that is kept. */
export const names = () => Array.from({ length: storage.length }, (_, place) => storage.key(place));
