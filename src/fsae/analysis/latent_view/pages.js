// The pages: which of them is shown follows the address, and keys move between them.

const content = JSON.parse(document.getElementById("content").textContent);
const meaning = name => content.meanings[name] ?? null;

// Columns that are shown before the reader chooses.
const SHOWN = ["latent", "label", "top_tokens", "class", "density", "max", "token_purity", "input_score"];
// Searching would wait for no one's typing to end otherwise.
const SEARCH_AFTER = 120;

class Pages {
  constructor() {
    this.dictionaries = content.dictionaries.map(each => new Dictionary(each, content));
    this.notes = this.dictionaries.map(each => new Notes(each.meta.weights));
    this.compares = this.dictionaries.length > 1;
    this.view = document.getElementById("view");
  }

  async start() {
    await Promise.all(this.dictionaries.map(each => each.open()));
    if (this.compares) this.pairs = await unpack(await load("pairs", content.data));
    const count = this.compares ? this.pairs.first.length : this.dictionaries[0].count;
    this.selection = new Selection(count, this.columns(), query => this.search(query));
    this.name = this.compares ? "pair" : "latent";
    this.panels = this.dictionaries.map(
      (dictionary, side) => new LatentPanel(dictionary, this.notes[side], latent => this.addressOf(side, latent)),
    );
    this.makeTable();
    this.makeBar();
    addEventListener("hashchange", () => this.route());
    addEventListener("keydown", event => this.key(event));
    // Another tab may star a latent.
    addEventListener("storage", () => this.notes.forEach(notes => notes.read()));
    await this.route();
    document.documentElement.dataset.ready = "";
  }

  // The row that an address opens.
  address(row) {
    return `#${this.name}=${row}`;
  }

  // The address of a latent of one side: in a comparison, of its pair.
  addressOf(side, latent) {
    if (!this.compares) return this.address(latent);
    const row = this.pairs[side ? "second" : "first"].indexOf(latent);
    return row < 0 ? `#${side ? "second" : "first"}=${latent}` : this.address(row);
  }

  latents(row) {
    return this.compares ? [this.pairs.first[row], this.pairs.second[row]] : [row];
  }

  columns() {
    if (!this.compares) {
      const {index} = this.dictionaries[0],
        shown = new Set(SHOWN);
      const found = Object.entries(content.columns).map(([name, kind]) => ({
        name,
        kind,
        title: name.replaceAll("_", " "),
        meaning: meaning(name),
        values: index[name],
        shown: shown.has(name) && this.known(index[name]),
        wide: name === "label" ? "wide" : null,
      }));
      const at = found.findIndex(column => column.name === "label");
      // The label belongs next to the number of the latent.
      if (at > 1) found.splice(1, 0, ...found.splice(at, 1));
      found[0].show = row => [this.notes[0].of(row).star ? "★ " : "", this.notes[0].of(row).note ? "✎ " : "", row];
      if (this.dictionaries[0].texts.size) found.splice(2, 0, this.topTokens(shown));
      return found;
    }
    const gathered = (side, name) => {
      const rows = this.pairs[side ? "second" : "first"],
        {index} = this.dictionaries[side],
        values = index[name];
      const missing = content.columns[name] === "text" ? "" : NaN;
      return Array.isArray(values)
        ? Array.from(rows, row => (row < 0 ? missing : values[row]))
        : Float64Array.from(rows, row => (row < 0 ? missing : values[row]));
    };
    const rows = {
      name: "pair",
      title: "pair",
      kind: "whole",
      meaning: "row of the matched latents",
      values: Uint32Array.from(this.pairs.first, (_, i) => i),
      shown: true,
    };
    const cosine = {
      name: "cosine",
      title: "cosine",
      kind: "number",
      meaning: "cosine of the decoder rows of both latents",
      values: this.pairs.cosine,
      shown: true,
    };
    const sides = [0, 1].map(side =>
      ["latent", "label", "class", "density", "max", "token_purity", "ngram_correlation"].map(name => ({
        name: `${name}_${side ? "second" : "first"}`,
        title: `${name.replaceAll("_", " ")} ${side + 1}`,
        kind: content.columns[name],
        meaning: `${meaning(name)}, of ${this.dictionaries[side].title}`,
        values: gathered(side, name),
        shown: ["latent", "label", "density"].includes(name),
        wide: name === "label" ? "wide" : null,
      })),
    );
    const [first, second] = sides;
    return [
      rows,
      first[0],
      first[1],
      second[0],
      second[1],
      cosine,
      first[3],
      second[3],
      ...first.slice(2).filter((_, i) => i !== 1),
      ...second.slice(2).filter((_, i) => i !== 1),
    ];
  }

  topTokens(shown) {
    const [dictionary] = this.dictionaries,
      texts = row => Array.from(dictionary.topTokens(row), token => dictionary.text(token));
    let all = null;
    return {
      name: "top_tokens",
      kind: "text",
      title: "top tokens",
      meaning: meaning("top_tokens"),
      shown: shown.has("top_tokens"),
      show: row => texts(row).map(text => [alone(text), " "]),
      // Only sorting needs the texts of all latents.
      get values() {
        return (all ??= Array.from({length: dictionary.count}, (_, row) => texts(row).join("")));
      },
    };
  }

  known(values) {
    return Array.isArray(values) ? values.some(each => each) : values.some(each => !Number.isNaN(each));
  }

  // Whether a row has the text in its number, label, note or top tokens.
  search(query) {
    const finders = this.dictionaries.map((dictionary, side) => {
      dictionary.lowered ??= dictionary.index.label.map(label => label.toLowerCase());
      const tokens = new Set();
      for (const [id, text] of dictionary.texts) if (text.toLowerCase().includes(query)) tokens.add(id);
      return latent =>
        latent >= 0 &&
        (String(latent) === query ||
          dictionary.lowered[latent].includes(query) ||
          (tokens.size > 0 && dictionary.topTokens(latent).some(token => tokens.has(token))) ||
          this.notes[side].of(latent).note.toLowerCase().includes(query));
    });
    return row => this.latents(row).some((latent, side) => finders[side](latent));
  }

  makeTable() {
    const changed = () => this.changed(),
      {selection} = this;
    this.table = new Table(selection, {address: row => this.address(row), changed});
    this.scatter = new Scatter(selection, {
      address: row => this.address(row),
      ...(this.compares ? {x: "density_first", y: "density_second"} : {x: "density", y: "max"}),
      zoomed: ranges => {
        selection.ranges = [
          ...selection.ranges.filter(range => !ranges.some(each => each.name === range.name)),
          ...ranges,
        ];
        changed();
      },
    });
    let typing;
    this.searchBox = el("input", {
      type: "search",
      placeholder:
        this.dictionaries[0].meta.kind === "text" ? "search labels, top tokens, notes" : "search labels, notes",
      "aria-label": "search (/)",
      oninput: event => {
        clearTimeout(typing);
        typing = setTimeout(() => {
          selection.search = event.target.value;
          changed();
        }, SEARCH_AFTER);
      },
    });
    this.starBox = el("input", {
      type: "checkbox",
      onchange: event => {
        selection.starred = event.target.checked;
        changed();
      },
    });
    const numbers = selection.columns.filter(column => column.kind !== "text");
    this.rangeName = el(
      "select",
      {"aria-label": "number to filter by"},
      numbers.map(column => el("option", {value: column.name, selected: /^density/.test(column.name)}, column.title)),
    );
    const limit = text => el("input", {inputmode: "decimal", "aria-label": text, placeholder: text, size: 7});
    this.low = limit("from");
    this.high = limit("to");
    const add = el(
      "form",
      {
        class: "range",
        onsubmit: event => {
          event.preventDefault();
          this.addRange();
        },
      },
      this.rangeName,
      this.low,
      this.high,
      el("button", {}, "filter"),
    );
    const classes = [...new Set(selection.byName.get("class")?.values ?? [])].filter(Boolean).sort();
    this.classBoxes = classes.map(name =>
      el(
        "label",
        {class: "switch"},
        el("input", {
          type: "checkbox",
          value: name,
          onchange: event => {
            if (event.target.checked) selection.classes.add(name);
            else selection.classes.delete(name);
            changed();
          },
        }),
        plain(name),
      ),
    );
    this.chips = el("div", {class: "chips"});
    this.counted = el("p", {class: "soft", role: "status"});
    const picker = el(
      "details",
      {class: "picker"},
      el("summary", {}, "Columns"),
      el(
        "div",
        {},
        selection.columns.slice(1).map(column =>
          el(
            "label",
            {class: "switch", title: column.meaning},
            el("input", {
              type: "checkbox",
              checked: column.shown,
              onchange: event => {
                column.shown = event.target.checked;
                this.table.fill();
              },
            }),
            column.title,
          ),
        ),
      ),
    );
    this.overview = el(
      "div",
      {class: "overview"},
      // On a phone the table comes first.
      el(
        "details",
        {class: "top", open: innerWidth > 700},
        el("summary", {}, "Overview"),
        el("div", {}, this.scatter.element, this.aggregates()),
      ),
      el(
        "div",
        {class: "controls filters"},
        this.searchBox,
        el("label", {class: "switch"}, this.starBox, "starred"),
        add,
        this.classBoxes.length > 1 ? el("span", {class: "classes"}, this.classBoxes) : null,
      ),
      this.chips,
      el("div", {class: "heading"}, this.counted, picker),
      this.table.element,
    );
  }

  addRange() {
    const {selection} = this,
      limits = [this.low, this.high].map(input =>
        input.value.trim() === "" ? null : Number(input.value.trim().replace(",", ".")),
      );
    if (limits.some(Number.isNaN)) {
      say("A limit is a number, such as 0.01 or 1e-3.");
      return;
    }
    if (limits[0] == null && limits[1] == null) return;
    selection.ranges = [
      ...selection.ranges.filter(range => range.name !== this.rangeName.value),
      {name: this.rangeName.value, low: limits[0], high: limits[1]},
    ];
    this.low.value = this.high.value = "";
    this.changed();
  }

  // Numbers of the dictionary as a whole, each next to the same number of random directions.
  aggregates() {
    const tables = this.dictionaries
      .map(({meta, title}) => {
        const names = Object.keys(meta.aggregates);
        if (!names.length) return null;
        const number = (tag, text) => el(tag, {class: "number", scope: tag === "th" ? "col" : null}, text),
          has = meta.control_latents > 0;
        return el(
          "table",
          {class: "small"},
          this.compares ? el("caption", {}, el("bdi", {}, plain(title))) : null,
          el(
            "thead",
            {},
            el(
              "tr",
              {},
              el("th", {scope: "col"}, "number"),
              number("th", "dictionary"),
              has ? number("th", "control") : null,
            ),
          ),
          el(
            "tbody",
            {},
            names.map(name =>
              el(
                "tr",
                {},
                el("th", {scope: "row"}, plain(name.replaceAll("_", " "))),
                number("td", readable(meta.aggregates[name])),
                has ? number("td", readable(meta.control[name])) : null,
              ),
            ),
          ),
        );
      })
      .filter(Boolean);
    if (!tables.length) return null;
    const directions = Math.max(...this.dictionaries.map(({meta}) => meta.control_latents));
    return el(
      "section",
      {class: "box aggregates"},
      el("div", {class: "heading"}, el("h3", {}, "The dictionary as a whole")),
      tables,
      el(
        "p",
        {class: "soft small"},
        directions === 0
          ? "There is no control: the pass over the data had no random directions."
          : `The control is the same number, measured for ${directions} random directions with the densities of the dictionary's latents. A number close to its control says little about the dictionary.`,
      ),
    );
  }

  // After a change of the selection: the address, the table and the scatter follow.
  changed() {
    const parts = this.selection.written().toString();
    history.replaceState(null, "", `#${parts}`);
    this.fill();
  }

  fill() {
    const {selection} = this;
    selection.apply(row => this.latents(row).some((latent, side) => latent >= 0 && this.notes[side].of(latent).star));
    this.table.fill();
    this.scatter.draw();
    const noun = this.compares ? "pairs" : "latents";
    this.counted.textContent =
      selection.order.length === selection.count
        ? `${selection.count} ${noun}`
        : `${selection.order.length} of ${selection.count} ${noun}`;
    const chip = (text, remove) =>
      el(
        "button",
        {
          class: "chip",
          title: "remove this filter",
          onclick: () => {
            remove();
            this.changed();
          },
        },
        text,
        " ×",
      );
    this.chips.replaceChildren(
      ...selection.ranges.map(range => {
        const {title} = selection.byName.get(range.name),
          text = [
            range.low == null ? "" : `${readable(range.low, 3)} ≤ `,
            title,
            range.high == null ? "" : ` ≤ ${readable(range.high, 3)}`,
          ].join("");
        return chip(text, () => {
          selection.ranges = selection.ranges.filter(each => each !== range);
        });
      }),
    );
    if (document.activeElement !== this.searchBox) this.searchBox.value = selection.search;
    this.starBox.checked = selection.starred;
    for (const label of this.classBoxes) label.firstChild.checked = selection.classes.has(label.firstChild.value);
  }

  makeBar() {
    const go = step => () => this.step(step);
    this.back = el("a", {href: "#", title: "back to the table (t)"}, "← table");
    this.place = el("span", {class: "soft place"});
    this.jump = el("input", {
      inputmode: "numeric",
      size: 6,
      "aria-label": `go to ${this.name}`,
      placeholder: this.name,
      onchange: event => {
        const row = Number(event.target.value);
        if (Number.isInteger(row) && event.target.value.trim() !== "") location.hash = this.address(row);
        event.target.value = "";
      },
    });
    this.bar = el(
      "nav",
      {class: "bar", "aria-label": "latents"},
      this.back,
      el(
        "button",
        {title: "previous (k or ←)", "aria-label": "previous", onclick: go(-1)},
        "‹",
        el("span", {class: "long"}, " previous"),
      ),
      el(
        "button",
        {title: "next (j or →)", "aria-label": "next", onclick: go(1)},
        el("span", {class: "long"}, "next "),
        "›",
      ),
      this.place,
      this.jump,
    );
    document.getElementById("export").addEventListener("click", () => {
      const all = this.notes.map(notes => notes.exported());
      saveFile("fsae-notes.json", JSON.stringify(this.compares ? all : all[0], null, 2));
    });
    document.getElementById("import").addEventListener("change", async event => {
      const [file] = event.target.files;
      event.target.value = "";
      if (file) this.importNotes(await file.text());
    });
  }

  async importNotes(text) {
    try {
      const found = [JSON.parse(text)].flat(),
        own = new Map(this.notes.map(notes => [notes.weights, notes]));
      if (!found.length || found.some(each => typeof each?.notes !== "object" || !each.notes))
        throw new Error("The file has no notes of these pages.");
      const fitting = found.filter(each => own.has(each.weights));
      if (!fitting.length) throw new Error("The notes of this file are of another dictionary.");
      const counts = fitting.map(each => own.get(each.weights).import(each));
      await this.route();
      say(`Notes imported: ${counts.reduce((sum, count) => sum + count, 0)}.`);
    } catch (error) {
      say(error instanceof SyntaxError ? "The file is no JSON file of notes." : error.message);
    }
  }

  async route() {
    const parts = new URLSearchParams(location.hash.slice(1));
    const single = ["first", "second"].findIndex(side => parts.has(side)),
      asked = parts.get(this.name);
    hover.hide();
    say("");
    if (asked == null && single < 0) {
      this.row = null;
      this.view.replaceChildren(this.overview);
      document.title = content.title;
      this.selection.parse(parts);
      this.fill();
      // The place in the table that the reader came from.
      if (this.last != null) {
        const place = this.selection.order.indexOf(this.last);
        if (place >= 0) this.table.focus(place);
      }
      return;
    }
    const row = asked == null ? null : Number(asked);
    const latents =
      row == null
        ? [0, 1].map(side => (side === single ? Number(parts.get(content.dictionaries[side].side)) : -1))
        : Number.isInteger(row) && row >= 0 && row < this.selection.count
          ? this.latents(row)
          : [];
    const fits =
      latents.length &&
      latents.every((latent, side) => latent < this.dictionaries[side].count && Number.isInteger(latent));
    if (!fits) {
      this.view.replaceChildren(
        this.bar,
        el("p", {}, `There is no ${this.name} ${asked ?? ""}: the ${this.name}s are 0 to ${this.selection.count - 1}.`),
      );
      return;
    }
    await this.show(row, latents);
  }

  async show(row, latents) {
    if (this.row == null && this.overview.isConnected) this.back.href = `#${this.selection.written()}`;
    this.row = row;
    if (row != null) this.last = row;
    try {
      await Promise.all(latents.map((latent, side) => (latent < 0 ? null : this.panels[side].show(latent))));
    } catch (error) {
      this.view.replaceChildren(this.bar, el("p", {class: "worse"}, error.message));
      return;
    }
    if (this.row !== row) return;
    const shown = latents.map((latent, side) =>
      latent >= 0
        ? this.panels[side].element
        : el("article", {class: "latent"}, el("p", {class: "soft"}, "This latent has no match here.")),
    );
    const sides = this.compares
      ? shown.map((element, side) =>
          el("div", {}, el("p", {class: "side-title"}, el("bdi", {}, plain(this.dictionaries[side].title))), element),
        )
      : shown;
    const cosine =
      this.compares && row != null && latents[1] >= 0
        ? el("p", {}, `cosine of the decoder rows ${readable(this.pairs.cosine[row])}`)
        : null;
    const top = el("div", {class: this.compares ? "both" : "one"}, sides);
    this.view.replaceChildren(...[this.bar, cosine, top].filter(Boolean));
    const place = this.selection.order.indexOf(row);
    this.place.textContent =
      row == null ? "" : place < 0 ? "not in the table" : `${place + 1} of ${this.selection.order.length}`;
    document.title = `${this.name} ${row ?? latents.find(latent => latent >= 0)} – ${content.title}`;
    document.documentElement.dataset.shown = row ?? "";
    this.prefetch(place);
  }

  // In the table's order, if the row is in the table.
  rowAt(step) {
    const {order, count} = this.selection,
      place = order.indexOf(this.row);
    const next = place < 0 ? this.row + step : order[place + step];
    return next >= 0 && next < count ? next : null;
  }

  prefetch(place) {
    if (this.row == null) return;
    for (const step of [1, -1]) {
      const row = this.rowAt(step);
      if (row != null)
        this.latents(row).forEach((latent, side) => {
          if (latent >= 0) this.dictionaries[side].shard(latent).catch(() => {});
        });
    }
  }

  step(step) {
    if (this.row == null) return;
    const row = this.rowAt(step);
    if (row != null) location.hash = this.address(row);
    else say(step > 0 ? "This is the last one." : "This is the first one.");
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (event.target.matches?.("input:not([type=checkbox]), textarea, select")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const onLatent = document.querySelector(".latent") !== null;
    const act = {
      "/": () => {
        if (onLatent) location.hash = this.back.getAttribute("href");
        setTimeout(() => this.searchBox.focus());
      },
      "?": () => document.getElementById("help").showModal(),
      ...(onLatent
        ? {
            j: () => this.step(1),
            ArrowRight: () => this.step(1),
            k: () => this.step(-1),
            ArrowLeft: () => this.step(-1),
            t: () => this.back.click(),
            Escape: () => this.back.click(),
            s: () => this.panels[0].toggleStar(),
            n: () => this.panels[0].note.focus(),
            w: () => this.panels.forEach(panel => panel.element.isConnected && panel.nextView()),
          }
        : {
            j: () => this.table.focus(0),
            ArrowDown: () => this.table.focus(0),
          }),
    }[event.key];
    if (!act || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    act();
  }
}

appearance.start();
const pages = new Pages();
pages.start().catch(error => {
  document.getElementById("view").replaceChildren(el("p", {class: "worse"}, error.message));
});
