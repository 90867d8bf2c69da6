// The side list: which memories there are, and how large.

import * as api from "./api.js";
import { askLine, confirmed } from "./dialogs.js";
import { button, fill, foreign, h } from "./dom.js";
import { bytes, count, counted, plainName } from "./format.js";
import { empty, failed, loading, toast } from "./notices.js";

/** The address of a bank's view; of one document where its number is given. */
export const placeOf = (bank, view = "ask", number = null) =>
  `#/${encodeURIComponent(bank)}/${view}${number === null ? "" : `/${number}`}`;

/** The list in `nav`. onChange(): it was read anew. onFailure(error): it never could be. */
export class BankList {
  constructor(nav, onChange, onFailure) {
    Object.assign(this, { nav, onChange, onFailure, banks: null, retrieval: null, current: null });
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
    const list = this.banks.length
      ? h("ul", {}, this.banks.map((bank) => this.entry(bank)))
      : empty("No banks yet", "A bank holds the documents a model remembers.");
    fill(this.nav, h("h2", { class: "side-title" }, "Banks"), list,
      button("New bank", () => this.create(), { class: "quiet new-bank" }), this.keyLine());
  }

  entry(bank) {
    const size = (value, name) => h("div", {}, h("dt", {}, name), h("dd", {}, value));
    return h("li", {},
      h("a", {
        href: placeOf(bank.name), class: "bank",
        "aria-current": bank.name === this.current ? "page" : null,
      },
      foreign(plainName(bank.name), { class: "bank-name" }),
      bank.problem ? h("span", { class: "hint danger-text" }, "cannot be opened") : h("dl", { class: "sizes" },
        size(count(bank.documents), "documents"), size(count(bank.tokens), "tokens"),
        size(count(bank.chunks), "chunks"), size(bytes(bank.bytes), "on disk"))));
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
