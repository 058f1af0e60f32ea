// The first page: the table with its search and filters, the scatter, and the numbers of the dictionary as a whole.

// Milliseconds without typing after which the table follows.
const SEARCH_AFTER = 120;

class Overview {
  // `address(row)` is that of a row's page; `isStarred(row)` says whether the reader starred it.
  constructor(dictionaries, selection, {noun, address, isStarred, axes}) {
    Object.assign(this, {dictionaries, selection, noun, isStarred});
    this.table = new Table(selection, {address, changed: () => this.changed(), nothing: () => this.nothing()});
    this.scatter = new Scatter(selection, {address, ...axes, zoomed: ranges => this.filter(ranges)});
    this.counted = el("p", {class: "soft", role: "status"});
    this.chips = el("div", {class: "chips"});
    // On a phone the table comes first.
    const top = el(
      "details",
      {class: "top", open: innerWidth > 700},
      el("summary", {}, "Overview"),
      el("div", {}, this.scatter.element, this.aggregates()),
    );
    this.element = el(
      "div",
      {},
      top,
      this.controls(),
      this.chips,
      el("div", {class: "heading"}, this.counted, this.picker()),
      this.table.element,
    );
  }

  controls() {
    const {selection} = this,
      text = this.dictionaries[0].meta.kind === "text";
    let typing;
    this.searchBox = el("input", {
      type: "search",
      placeholder: text ? "search labels, top tokens, notes" : "search labels, notes",
      "aria-label": "search (/)",
      oninput: event => {
        clearTimeout(typing);
        typing = setTimeout(() => {
          selection.search = event.target.value;
          this.changed();
        }, SEARCH_AFTER);
      },
    });
    this.starBox = this.checkbox(checked => {
      selection.starred = checked;
    });
    const classes = [...new Set(selection.byName.get("class")?.values ?? [])].filter(Boolean).sort();
    this.classBoxes = new Map(
      classes.map(name => [name, this.checkbox(checked => selection.classes[checked ? "add" : "delete"](name), name)]),
    );
    const values = selection.byName.get("class")?.values ?? [];
    const shown = [...this.classBoxes].map(([name, box]) =>
      el(
        "label",
        {class: "switch", title: meaning("class")},
        box,
        plain(name),
        " ",
        el("span", {class: "soft"}, values.filter(value => value === name).length),
      ),
    );
    return el(
      "div",
      {class: "controls filters"},
      this.searchBox,
      el("label", {class: "switch"}, this.starBox, "starred"),
      this.rangeForm(),
      shown.length > 1 ? el("span", {class: "classes"}, shown) : null,
    );
  }

  checkbox(change, value) {
    return el("input", {
      type: "checkbox",
      value,
      onchange: event => {
        change(event.target.checked);
        this.changed();
      },
    });
  }

  rangeForm() {
    const numbers = this.selection.columns.filter(column => column.kind !== "text");
    this.rangeName = el(
      "select",
      {"aria-label": "number to filter by"},
      numbers.map(column =>
        el("option", {value: column.name, selected: column.name.startsWith("density")}, column.title),
      ),
    );
    [this.low, this.high] = ["from", "to"].map(text =>
      el("input", {inputmode: "decimal", "aria-label": text, placeholder: text, size: 7}),
    );
    return el(
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
  }

  addRange() {
    const texts = [this.low, this.high].map(input => input.value.trim().replace(",", "."));
    const [low, high] = texts.map(text => (text === "" ? null : Number(text)));
    if (Number.isNaN(low) || Number.isNaN(high)) return say("A limit is a number, such as 0.01 or 1e-3.");
    this.low.value = this.high.value = "";
    if (low != null || high != null) this.filter([{name: this.rangeName.value, low, high}]);
  }

  // A new range of a number replaces an earlier one.
  filter(ranges) {
    const others = this.selection.ranges.filter(range => !ranges.some(each => each.name === range.name));
    this.selection.ranges = [...others, ...ranges];
    this.changed();
  }

  picker() {
    const boxes = this.selection.columns.slice(1).map(column =>
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
    );
    return el("details", {class: "picker"}, el("summary", {}, "Columns"), el("div", {}, boxes));
  }

  // Numbers of each dictionary as a whole, next to the same numbers of random directions.
  aggregates() {
    const measured = this.dictionaries.filter(({meta}) => Object.keys(meta.aggregates).length);
    if (!measured.length) return null;
    const directions = Math.max(...measured.map(({meta}) => meta.control_latents));
    const remark = directions
      ? `The control is the same number, measured for ${directions} random directions with the densities of the dictionary's latents. A number close to its control says little about the dictionary.`
      : "There is no control: the pass over the data had no random directions.";
    return el(
      "section",
      {class: "box aggregates"},
      el("div", {class: "heading"}, el("h3", {}, "The dictionary as a whole")),
      measured.map(each => this.aggregateTable(each)),
      el("p", {class: "soft small"}, remark),
    );
  }

  aggregateTable({meta, title}) {
    const columns = meta.control_latents
      ? {dictionary: meta.aggregates, control: meta.control}
      : {dictionary: meta.aggregates};
    const heads = Object.keys(columns).map(name => el("th", {scope: "col", class: "number"}, name));
    const rows = Object.keys(meta.aggregates).map(name =>
      el(
        "tr",
        {},
        el("th", {scope: "row", title: meta.meanings[name]}, plain(name.replaceAll("_", " "))),
        Object.values(columns).map(numbers => el("td", {class: "number"}, readable(numbers[name]))),
      ),
    );
    const caption = this.dictionaries.length > 1 ? el("caption", {}, el("bdi", {}, plain(title))) : null;
    return el(
      "table",
      {class: "small"},
      caption,
      el("thead", {}, el("tr", {}, el("th", {scope: "col"}, "number"), heads)),
      el("tbody", {}, rows),
    );
  }

  // In place of rows, if none fits.
  nothing() {
    const {selection} = this,
      alone = !selection.search && !selection.ranges.length && !selection.classes.size;
    const show = () => {
      const {sort} = selection;
      selection.reset();
      selection.sort = sort;
      this.changed();
    };
    const why =
      selection.starred && alone
        ? `You have starred no ${this.noun}; press s on the page of a ${this.noun} to star it.`
        : `No ${this.noun} fits the search and all filters.`;
    return [why, " ", el("button", {onclick: show}, `show all ${this.noun}s`)];
  }

  // After the reader changed something: the address follows, and the page the selection.
  changed() {
    history.replaceState(null, "", `#${this.selection.written()}`);
    this.fill();
  }

  fill() {
    const {selection} = this;
    selection.apply(this.isStarred);
    this.table.fill();
    this.scatter.draw();
    const {length} = selection.order,
      all = `${selection.count} ${this.noun}s`;
    this.counted.textContent = length === selection.count ? all : `${length} of ${all}`;
    this.chips.replaceChildren(...selection.ranges.map(range => this.chip(range)));
    if (document.activeElement !== this.searchBox) this.searchBox.value = selection.search;
    this.starBox.checked = selection.starred;
    for (const [name, box] of this.classBoxes) box.checked = selection.classes.has(name);
  }

  chip(range) {
    const {title} = this.selection.byName.get(range.name);
    const low = range.low == null ? "" : `${readable(range.low, 3)} ≤ `,
      high = range.high == null ? "" : ` ≤ ${readable(range.high, 3)}`;
    return el(
      "button",
      {
        class: "chip",
        title: "remove this filter",
        onclick: () => {
          this.selection.ranges = this.selection.ranges.filter(each => each !== range);
          this.changed();
        },
      },
      low,
      title,
      high,
      " ×",
    );
  }
}
