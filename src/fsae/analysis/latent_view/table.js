// The table of all latents, or of all pairs: which rows it has, in which order, and the few that are on the screen.

// A column: {name, title, meaning, kind: "whole" | "number" | "text", values, show(row)}.
class Selection {
  constructor(count, columns, searchable) {
    Object.assign(this, {count, columns, searchable});
    this.byName = new Map(columns.map(column => [column.name, column]));
    this.order = Uint32Array.from({length: count}, (_, i) => i);
    this.reset();
  }

  reset() {
    this.search = "";
    this.starred = false;
    this.ranges = [];
    this.classes = new Set();
    this.sort = {name: this.columns[0].name, descending: false};
  }

  // The state as part of an address, and back.
  written() {
    const parts = new URLSearchParams();
    if (this.search) parts.set("search", this.search);
    if (this.starred) parts.set("starred", "1");
    if (this.sort.descending || this.sort.name !== this.columns[0].name)
      parts.set("sort", (this.sort.descending ? "-" : "") + this.sort.name);
    for (const {name, low, high} of this.ranges) parts.append("where", `${name}:${low ?? ""}:${high ?? ""}`);
    for (const name of this.classes) parts.append("class", name);
    return parts;
  }

  parse(parts) {
    this.reset();
    this.search = parts.get("search") ?? "";
    this.starred = parts.has("starred");
    const sort = parts.get("sort") ?? "",
      name = sort.replace(/^-/, "");
    if (this.byName.has(name)) this.sort = {name, descending: sort.startsWith("-")};
    for (const range of parts.getAll("where")) {
      const [name, low, high] = range.split(":"),
        limit = text => (text === "" || text === undefined || isNaN(text) ? null : Number(text));
      if (this.byName.has(name)) this.ranges.push({name, low: limit(low), high: limit(high)});
    }
    parts.getAll("class").forEach(name => this.classes.add(name));
  }

  apply(isStarred) {
    const found = this.search.trim() ? this.searchable(this.search.trim().toLowerCase()) : null;
    const ranges = this.ranges.map(({name, low, high}) => [
      this.byName.get(name).values,
      low ?? -Infinity,
      high ?? Infinity,
    ]);
    const classes = this.classes.size ? this.byName.get("class") : null;
    const rows = new Uint32Array(this.count);
    let n = 0;
    next: for (let row = 0; row < this.count; row++) {
      if (found && !found(row)) continue;
      if (classes && !this.classes.has(classes.values[row])) continue;
      // A missing value is in no range.
      for (const [values, low, high] of ranges) if (!(values[row] >= low && values[row] <= high)) continue next;
      if (this.starred && !isStarred(row)) continue;
      rows[n++] = row;
    }
    const order = rows.subarray(0, n),
      column = this.byName.get(this.sort.name),
      {values} = column,
      sign = this.sort.descending ? -1 : 1;
    if (column.kind === "text") {
      // Empty texts come last in either order, as missing numbers do.
      order.sort(
        (a, b) =>
          (values[a] === "") - (values[b] === "") ||
          (values[a] < values[b] ? -sign : values[a] > values[b] ? sign : a - b),
      );
    } else {
      order.sort(
        (a, b) => Number.isNaN(values[a]) - Number.isNaN(values[b]) || sign * (values[a] - values[b]) || a - b,
      );
    }
    this.order = order;
  }
}

const ROW = 32;

class Table {
  // `address(row)` is that of a row's page; `changed()` is called when the reader sorts; `nothing()` is shown if there is
  // no row.
  constructor(selection, {address, changed, nothing}) {
    Object.assign(this, {selection, address, changed, nothing});
    this.body = el("tbody");
    this.head = el("tr");
    this.grid = el("table", {class: "latents"}, el("thead", {}, this.head), this.body);
    this.element = el("div", {class: "scroll", id: "rows", tabindex: -1}, this.grid);
    let waiting = false;
    this.element.addEventListener("scroll", () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        this.draw();
      });
    });
    this.body.addEventListener("keydown", event => this.move(event));
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  columns() {
    return this.selection.columns.filter(column => column.shown);
  }

  // Draws everything after a change of rows, order or columns.
  fill() {
    const {sort} = this.selection;
    // The heads are made again; the one that was chosen keeps the focus.
    const chosen = [...this.head.children].findIndex(head => head.contains(document.activeElement));
    this.head.replaceChildren(
      ...this.columns().map(column => {
        const own = sort.name === column.name;
        const button = el(
          "button",
          {
            title: column.meaning,
            onclick: () => {
              this.selection.sort = {
                name: column.name,
                descending: own
                  ? !sort.descending
                  : column.kind !== "text" && column.name !== this.selection.columns[0].name,
              };
              this.changed();
            },
          },
          column.title,
        );
        return el(
          "th",
          {
            scope: "col",
            class: column.kind === "text" ? null : "number",
            "aria-sort": own ? (sort.descending ? "descending" : "ascending") : null,
          },
          button,
        );
      }),
    );
    if (chosen >= 0) this.head.children[chosen]?.firstChild.focus();
    this.grid.setAttribute("aria-rowcount", this.selection.order.length + 1);
    this.element.scrollTop = 0;
    this.draw();
  }

  draw() {
    const {order} = this.selection,
      height = this.element.clientHeight;
    if (!height) return;
    const first = Math.max(0, Math.floor(this.element.scrollTop / ROW) - 10);
    const end = Math.min(order.length, first + Math.ceil(height / ROW) + 20);
    const focused = this.body.contains(document.activeElement)
      ? document.activeElement.closest("tr")?.dataset.place
      : null;
    const columns = this.columns(),
      rows = [];
    if (!order.length) rows.push(el("tr", {class: "nothing"}, el("td", {colspan: columns.length}, this.nothing())));
    for (let place = first; place < end; place++) rows.push(this.row(order[place], place, columns));
    // Two empty rows stand for all that are above and below the screen.
    const space = height =>
      el(
        "tr",
        {class: "space", "aria-hidden": "true"},
        el("td", {style: `height:${height}px`, colspan: columns.length}),
      );
    this.body.replaceChildren(space(first * ROW), ...rows, space((order.length - end) * ROW));
    if (focused != null) this.body.querySelector(`tr[data-place="${focused}"] a`)?.focus({preventScroll: true});
  }

  row(row, place, columns) {
    const cells = columns.map((column, i) => {
      const text = column.show
        ? column.show(row)
        : column.kind === "text"
          ? plain(column.values[row])
          : readable(column.values[row]);
      const content = i === 0 ? el("a", {href: this.address(row)}, text) : text;
      return el(
        i === 0 ? "th" : "td",
        {scope: i === 0 ? "row" : null, class: column.kind === "text" ? (column.wide ? "wide" : "text") : "number"},
        content,
      );
    });
    return el(
      "tr",
      {
        "data-place": place,
        "aria-rowindex": place + 2,
        onclick: event => {
          if (!event.target.closest("a") && getSelection().isCollapsed) location.hash = this.address(row);
        },
      },
      cells,
    );
  }

  // Arrows walk through the rows, as Tab would only through those that are drawn.
  move(event) {
    const step = {ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: 12, PageUp: -12, Home: -Infinity, End: Infinity}[event.key];
    const place = Number(event.target.closest("tr")?.dataset.place);
    if (!step || Number.isNaN(place) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.focus(Math.min(Math.max(place + step, 0), this.selection.order.length - 1));
  }

  focus(place) {
    const top = place * ROW,
      view = this.element,
      head = this.head.offsetHeight;
    if (top < view.scrollTop) view.scrollTop = top;
    else if (top + ROW + head > view.scrollTop + view.clientHeight)
      view.scrollTop = top + ROW + head - view.clientHeight;
    this.draw();
    this.body.querySelector(`tr[data-place="${place}"] a`)?.focus({preventScroll: true});
  }
}
