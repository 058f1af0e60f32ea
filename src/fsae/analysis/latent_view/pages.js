// The pages: which of them is shown follows the address, and keys move between them.

const content = JSON.parse(document.getElementById("content").textContent);
const meaning = name => content.meanings[name] ?? null;

class Pages {
  constructor() {
    this.dictionaries = content.dictionaries.map(each => new Dictionary(each, content));
    this.notes = this.dictionaries.map(each => new Notes(each.meta.weights));
    this.compares = this.dictionaries.length > 1;
    // A row of the table is a latent, or in a comparison a pair.
    this.noun = this.compares ? "pair" : "latent";
    this.view = document.getElementById("view");
  }

  async start() {
    await Promise.all(this.dictionaries.map(each => each.open()));
    if (this.compares) this.pairs = await unpack(await load("pairs", content.data));
    const columns = this.compares
      ? pairColumns(this.dictionaries, this.pairs)
      : latentColumns(this.dictionaries[0], this.notes[0]);
    this.selection = new Selection(columns[0].values.length, columns, query => this.search(query));
    this.overview = new Overview(this.dictionaries, this.selection, {
      noun: this.noun,
      address: row => this.address(row),
      isStarred: row => this.latents(row).some((latent, side) => latent >= 0 && this.notes[side].of(latent).star),
      axes: this.compares ? {x: "density_first", y: "density_second"} : {x: "density", y: "max"},
    });
    this.panels = this.dictionaries.map(
      (dictionary, side) => new LatentPanel(dictionary, this.notes[side], latent => this.addressOf(side, latent)),
    );
    this.makeBar();
    this.connectNotes();
    addEventListener("hashchange", () => this.route());
    addEventListener("keydown", event => this.key(event));
    await this.route();
    document.documentElement.dataset.ready = "";
  }

  // The latents of a row; -1 if a side has none.
  latents(row) {
    return this.compares ? [this.pairs.first[row], this.pairs.second[row]] : [row];
  }

  address(row) {
    return `#${this.noun}=${row}`;
  }

  // The address of a latent of one side: in a comparison that of its pair, if it has one.
  addressOf(side, latent) {
    const row = this.compares ? this.pairs[SIDES[side]].indexOf(latent) : latent;
    return row < 0 ? `#${SIDES[side]}=${latent}` : this.address(row);
  }

  // Finds rows with the text in the number, label, note or top tokens of a latent.
  search(query) {
    const finders = this.dictionaries.map((dictionary, side) => {
      const tokens = dictionary.tokensWith(query),
        notes = this.notes[side];
      return latent =>
        String(latent) === query ||
        dictionary.loweredLabels[latent].includes(query) ||
        (tokens.size > 0 && dictionary.hasTopToken(latent, tokens)) ||
        notes.of(latent).note.toLowerCase().includes(query);
    });
    return row => this.latents(row).some((latent, side) => latent >= 0 && finders[side](latent));
  }

  makeBar() {
    this.back = el("a", {href: "#", title: "back to the table (t)"}, "← table");
    this.place = el("span", {class: "soft place"});
    const move = (step, title, ...texts) =>
      el("button", {title, "aria-label": title, onclick: () => this.step(step)}, texts);
    const long = text => el("span", {class: "long"}, text);
    const jump = el("input", {
      inputmode: "numeric",
      size: 6,
      "aria-label": `go to ${this.noun}`,
      placeholder: this.noun,
      onchange: event => {
        if (/^\s*\d+\s*$/.test(event.target.value)) location.hash = this.address(Number(event.target.value));
        event.target.value = "";
      },
    });
    this.bar = el(
      "nav",
      {class: "bar", "aria-label": `${this.noun}s`},
      this.back,
      move(-1, "previous (k or ←)", "‹", long(" previous")),
      move(1, "next (j or →)", long("next "), "›"),
      this.place,
      jump,
    );
  }

  connectNotes() {
    document.getElementById("export").addEventListener("click", () => {
      const all = this.notes.map(notes => notes.exported());
      saveFile("fsae-notes.json", JSON.stringify(this.compares ? all : all[0], null, 2));
    });
    document.getElementById("import").addEventListener("change", async event => {
      const [file] = event.target.files;
      const text = await file?.text();
      // The same file may be chosen again.
      event.target.value = "";
      if (text !== undefined) await this.importNotes(text);
    });
    // Another tab may star a latent.
    addEventListener("storage", () => {
      this.notes.forEach(notes => notes.read());
      if (this.overview.element.isConnected) this.overview.fill();
    });
  }

  async importNotes(text) {
    try {
      const count = importNotes(this.notes, text);
      await this.route();
      say(`Notes imported: ${count}.`, 8000);
    } catch (error) {
      say(error instanceof SyntaxError ? "The file is no JSON file of notes." : error.message);
    }
  }

  async route() {
    const parts = new URLSearchParams(location.hash.slice(1));
    hover.hide();
    say("");
    const side = SIDES.findIndex(name => parts.has(name)),
      asked = parts.get(this.noun);
    if (asked == null && side < 0) return this.showTable(parts);
    const row = asked == null ? null : Number(asked);
    const latents =
      row == null
        ? this.dictionaries.map((_, own) => (own === side ? Number(parts.get(SIDES[side])) : -1))
        : row >= 0 && row < this.selection.count
          ? this.latents(row)
          : [];
    const there =
      latents.some(latent => latent >= 0) &&
      latents.every((latent, own) => Number.isInteger(latent) && latent < this.dictionaries[own].count);
    if (there) return this.showLatents(row, latents);
    this.view.replaceChildren(
      this.bar,
      el("p", {}, `There is no ${this.noun} ${asked ?? ""}: the ${this.noun}s are 0 to ${this.selection.count - 1}.`),
    );
  }

  showTable(parts) {
    this.row = null;
    this.view.replaceChildren(this.overview.element);
    document.title = content.title;
    this.selection.parse(parts);
    this.overview.fill();
    // The reader returns to the row that was open.
    const place = this.last == null ? -1 : this.selection.order.indexOf(this.last);
    if (place >= 0) this.overview.table.focus(place);
  }

  async showLatents(row, latents) {
    if (this.overview.element.isConnected) this.back.href = `#${this.selection.written()}`;
    this.row = row;
    this.last = row ?? this.last;
    try {
      await Promise.all(latents.map((latent, side) => (latent < 0 ? null : this.panels[side].show(latent))));
    } catch (error) {
      this.view.replaceChildren(this.bar, el("p", {class: "worse"}, error.message));
      return;
    }
    // The reader may have moved on while a shard was loaded.
    if (this.row !== row) return;
    const panels = latents.map((latent, side) =>
      latent < 0 ? el("article", {class: "soft"}, "The other latent has no match here.") : this.panels[side].element,
    );
    this.view.replaceChildren(this.bar, ...(this.compares ? this.sideBySide(row, panels) : panels));
    const place = this.selection.order.indexOf(row);
    this.place.textContent =
      row == null ? "" : place < 0 ? "not in the table" : `${place + 1} of ${this.selection.order.length}`;
    document.title = `${this.noun} ${row ?? ""} – ${content.title}`;
    document.documentElement.dataset.shown = row ?? "";
    this.prefetch();
  }

  sideBySide(row, panels) {
    const cosine =
      row == null || Number.isNaN(this.pairs.cosine[row])
        ? ""
        : el("p", {}, `cosine of the decoder rows ${readable(this.pairs.cosine[row])}`);
    const sides = panels.map((panel, side) =>
      el("div", {}, el("p", {class: "side-title"}, el("bdi", {}, plain(this.dictionaries[side].title))), panel),
    );
    return [cosine, el("div", {class: "both"}, sides)];
  }

  // The row that is so many steps away: in the order of the table, if the table has the present row.
  rowAt(step) {
    const {order, count} = this.selection,
      place = order.indexOf(this.row);
    const row = place < 0 ? this.row + step : order[place + step];
    return row >= 0 && row < count ? row : null;
  }

  step(step) {
    const row = this.row == null ? null : this.rowAt(step);
    if (row == null) return say(step > 0 ? "This is the last one." : "This is the first one.", 3000);
    location.hash = this.address(row);
  }

  // The neighbours' shards, so that the next page needs no file.
  prefetch() {
    const rows = this.row == null ? [] : [this.rowAt(1), this.rowAt(-1)].filter(row => row != null);
    for (const row of rows) {
      // A file that is missing is reported when its latent is wanted.
      this.latents(row).forEach((latent, side) => latent >= 0 && this.dictionaries[side].shard(latent).catch(() => {}));
    }
  }

  key(event) {
    if (
      event.ctrlKey ||
      event.metaKey ||
      event.altKey ||
      event.defaultPrevented ||
      document.querySelector("dialog[open]")
    )
      return;
    if (event.target.matches?.("input:not([type=checkbox]), textarea, select")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const act = (this.overview.element.isConnected ? this.tableKeys() : this.latentKeys())[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  tableKeys() {
    const first = () => this.overview.table.focus(0);
    return {"/": () => this.overview.searchBox.focus(), "?": showKeys, m: showTerms, j: first, ArrowDown: first};
  }

  latentKeys() {
    const [next, previous, back] = [() => this.step(1), () => this.step(-1), () => this.back.click()];
    const panels = this.panels.filter(panel => panel.element.isConnected);
    return {
      j: next,
      ArrowRight: next,
      k: previous,
      ArrowLeft: previous,
      t: back,
      Escape: back,
      "?": showKeys,
      m: showTerms,
      c: () => panels[0]?.copyCode(),
      l: () => panels[0]?.copyLink(),
      s: () => panels[0]?.toggleStar(),
      n: () => panels[0]?.note.focus(),
      w: () => panels.forEach(panel => panel.nextView()),
      "/": () => {
        addEventListener("hashchange", () => this.overview.searchBox.focus(), {once: true});
        back();
      },
    };
  }
}

const showKeys = () => document.getElementById("help").showModal();
const showTerms = () => document.getElementById("glossary").showModal();

appearance.start();
document.getElementById("keys").addEventListener("click", showKeys);
document.getElementById("terms").addEventListener("click", showTerms);
const pages = new Pages();
pages.start().catch(error => {
  document.getElementById("view").replaceChildren(el("p", {class: "worse"}, error.message));
});
