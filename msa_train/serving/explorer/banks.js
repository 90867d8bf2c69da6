// The side list: which memories there are, and how large.

import * as api from "./api.js";
import { askLine, confirmed } from "./dialogs.js";
import { button, fill, foreign, h } from "./dom.js";
import { bytes, count, counted, plainName } from "./format.js";
import { empty, failed, loading, toast } from "./notices.js";

/** The address of a bank's view; of one document where its number is given. */
export const placeOf = (bank, view = "ask", number = null) =>
  `#/${encodeURIComponent(bank)}/${view}${number === null ? "" : `/${number}`}`;

const MANY = 8; // banks, from which on they are searched

/** The list in `nav`. onChange(): it was read anew. onFailure(error): it never could be. */
export class BankList {
  constructor(nav, onChange, onFailure) {
    Object.assign(this, { nav, onChange, onFailure, banks: null, retrieval: null, current: null });
    this.list = h("div", { class: "bank-list" });
    this.keyed = h("div");
    this.finding = this.search();
    new ResizeObserver(() => this.showCurrent()).observe(this.list); // it opens on a narrow screen
    for (const each of [this.query, this.list]) each.addEventListener("keydown", (event) => this.step(event));
  }

  async refresh() {
    if (this.banks === null) fill(this.nav, loading("Loading banks…"));
    try {
      Object.assign(this, await api.banks());
    } catch (error) {
      if (this.banks === null) {
        fill(this.nav, this.keyLine());
        this.onFailure(error);
      } else fill(this.nav, failed(error, () => this.refresh()), this.keyLine());
      return;
    }
    this.draw();
    this.onChange();
  }

  choose(name) {
    this.current = name;
    if (this.banks !== null) this.draw();
  }

  draw() {
    const many = this.banks.length >= MANY;
    if (!this.list.isConnected) {
      fill(this.nav, h("h2", { class: "side-title" }, "Banks"), this.finding, this.list,
        button("New bank", () => this.create(), { class: "quiet new-bank" }), this.keyed);
    }
    this.finding.hidden = !many;
    if (!many) this.query.value = "";
    fill(this.keyed, this.keyLine());
    this.drawList();
  }

  /** The banks whose names have what is searched, and the current one always. */
  drawList() {
    const wanted = this.query.value.trim().toLowerCase();
    const found = this.banks.filter((bank) => bank.name.toLowerCase().includes(wanted));
    const current = this.banks.find((bank) => bank.name === this.current);
    const shown = !current || found.includes(current) ? found : [current, ...found];
    fill(this.told, wanted ? `${counted(found.length, "bank")} of ${count(this.banks.length)}` : counted(this.banks.length, "bank"));
    const { scrollTop } = this.list;
    const focused = this.list.contains(document.activeElement) ? document.activeElement.dataset.name : null;
    fill(this.list, this.banks.length ? h("ul", {}, shown.map((bank) => this.entry(bank)))
      : empty("No banks yet", "A bank holds the documents a model remembers."));
    this.list.scrollTop = scrollTop;
    if (focused) this.links().find((each) => each.dataset.name === focused)?.focus({ preventScroll: true });
    this.showCurrent();
  }

  /** Scrolls the list alone, not the page. */
  showCurrent() {
    const current = this.list.querySelector("[aria-current]");
    if (!current) return;
    const [frame, entry] = [this.list, current].map((each) => each.getBoundingClientRect());
    if (entry.top < frame.top) this.list.scrollTop -= frame.top - entry.top;
    else if (entry.bottom > frame.bottom) this.list.scrollTop += entry.bottom - frame.bottom;
  }

  /** A field over the list, where there are many. Arrows lead from it through the list. */
  search() {
    this.told = h("p", { class: "hint unseen", role: "status" });
    this.query = h("input", {
      type: "search", placeholder: "Find a bank", "aria-label": "Find a bank", autocomplete: "off", spellcheck: "false",
      on: { input: () => this.drawList() },
    });
    const submit = (event) => { event.preventDefault(); this.links()[0]?.click(); };
    return h("form", { class: "find-bank", role: "search", "aria-label": "Banks", hidden: true, on: { submit } }, this.query, this.told);
  }

  /** Those that were searched for, the current one only if it is among them. */
  links() {
    const wanted = this.query.value.trim().toLowerCase();
    return [...this.list.querySelectorAll("a.bank")].filter((each) => each.dataset.name.toLowerCase().includes(wanted));
  }

  step(event) {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!by || this.finding.hidden) return;
    const links = [...this.list.querySelectorAll("a.bank")];
    const at = links.indexOf(document.activeElement) + by;
    event.preventDefault();
    (at < 0 ? this.query : links[Math.min(at, links.length - 1)])?.focus();
  }

  entry(bank) {
    const size = (value, name) => h("div", {}, h("dt", {}, name), h("dd", {}, value));
    return h("li", {},
      h("a", {
        href: placeOf(bank.name), class: "bank", "data-name": bank.name,
        "aria-current": bank.name === this.current ? "page" : null,
      },
      foreign(plainName(bank.name), { class: "bank-name" }),
      bank.problem ? h("span", { class: "hint danger-text" }, "cannot be opened") : h("dl", { class: "sizes" },
        size(count(bank.documents), "documents"), size(count(bank.tokens), "tokens"),
        size(count(bank.chunks), "chunks"), size(bytes(bank.bytes), "on disk")),
      bank.removed ? h("span", { class: "hint" }, `${count(bank.removed)} removed still count until it is compacted`) : null));
  }

  keyLine() {
    if (!api.hasKey()) return null;
    const forget = () => { api.forgetKey(); location.reload(); };
    return h("p", { class: "key-line" }, "A key is in use. ", button("Forget it", forget, { class: "link" }));
  }

  create() {
    askLine("New bank", {
      label: "Name", doIt: "Create",
      hint: "It starts empty, on the server's disk, built for the model that is served.",
      act: async (name) => {
        await api.createBank(name);
        await this.refresh();
        location.hash = placeOf(name, "documents");
      },
    });
  }

  drop(bank) {
    const what = bank.problem ? "The bank and its documents" : `The bank and its ${counted(bank.documents, "document")}`;
    confirmed(`Drop “${plainName(bank.name)}”?`,
      `${what} are deleted from the server's disk. This cannot be undone.`,
      "Drop bank", async () => {
        await api.dropBank(bank.name);
        toast(`Bank “${plainName(bank.name)}” is gone.`);
        await this.refresh();
      });
  }
}
