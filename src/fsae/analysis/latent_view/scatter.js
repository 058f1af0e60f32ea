// The scatter of all rows: one number against another, the rows of the table in colour and all others in grey.

const LOGARITHMIC = new Set([
  "density",
  "count",
  "max",
  "mean",
  "std",
  "decoder_norm",
  "density_first",
  "density_second",
  "max_first",
  "max_second",
]);

class Scatter {
  constructor(selection, {address, x, y, zoomed}) {
    Object.assign(this, {selection, address, zoomed});
    const numbers = selection.columns.filter(column => column.kind !== "text");
    const choice = (name, chosen) =>
      el(
        "select",
        {"aria-label": name, onchange: () => this.draw()},
        numbers.map(column => el("option", {value: column.name, selected: column.name === chosen}, column.title)),
      );
    this.x = choice("across", x);
    this.y = choice("upwards", y);
    this.canvas = el("canvas", {role: "img", "aria-label": "Scatter of the latents; the table has the same numbers"});
    this.tip = el("span", {class: "soft"}, "Drag over points to filter by both numbers.");
    this.element = el(
      "figure",
      {class: "scatter"},
      el("div", {class: "controls"}, el("label", {}, "up ", this.y), el("label", {}, "across ", this.x)),
      this.canvas,
      el("figcaption", {"aria-live": "off"}, this.tip),
    );
    this.canvas.addEventListener("pointermove", event => this.over(event));
    this.canvas.addEventListener("pointerleave", () => this.mark(null));
    this.canvas.addEventListener("pointerdown", event => {
      this.from = this.at(event);
      this.canvas.setPointerCapture(event.pointerId);
    });
    this.canvas.addEventListener("pointerup", event => this.drop(event));
    this.canvas.addEventListener("pointercancel", () => {
      this.from = null;
    });
    new ResizeObserver(() => this.draw()).observe(this.element);
    appearance.listeners.push(() => this.draw());
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  // Places of all rows on an axis of `length` pixels. Zero and missing values have no place on a logarithmic one.
  axis(name, length) {
    const {values, title} = this.selection.byName.get(name),
      log = LOGARITHMIC.has(name);
    const scaled = log ? value => (value > 0 ? Math.log10(value) : NaN) : value => value;
    let low = Infinity,
      high = -Infinity;
    for (const value of values) {
      const at = scaled(value);
      if (at < low) low = at;
      if (at > high) high = at;
    }
    if (!(high > low)) {
      low = (Number.isFinite(low) ? low : 0) - 0.5;
      high = low + 1;
    }
    // No point lies on the frame.
    [low, high] = [low - 0.03 * (high - low), high + 0.03 * (high - low)];
    const place = value => ((scaled(value) - low) / (high - low)) * length;
    const value = place => {
      const at = low + (place / length) * (high - low);
      return log ? 10 ** at : at;
    };
    return {title, place, value, values, ticks: ticks(low, high, log)};
  }

  draw() {
    const width = this.canvas.clientWidth,
      height = this.canvas.clientHeight,
      ratio = devicePixelRatio || 1;
    if (!width) return;
    this.canvas.width = width * ratio;
    this.canvas.height = height * ratio;
    const pen = this.canvas.getContext("2d"),
      style = getComputedStyle(this.canvas);
    pen.scale(ratio, ratio);
    const [left, right, top, bottom] = [52, 10, 8, 24],
      wide = width - left - right,
      high = height - top - bottom;
    const x = this.axis(this.x.value, wide),
      y = this.axis(this.y.value, high);
    this.frame = {left, top, wide, high, x, y};
    pen.font = "12px system-ui, sans-serif";
    pen.strokeStyle = style.getPropertyValue("--line");
    pen.fillStyle = style.getPropertyValue("--soft");
    pen.textAlign = "center";
    for (const tick of x.ticks) {
      const at = left + x.place(tick);
      pen.strokeRect(at, top, 0, high);
      pen.fillText(readable(tick, 2), at, height - 7);
    }
    pen.textAlign = "right";
    for (const tick of y.ticks) {
      const at = top + high - y.place(tick);
      pen.strokeRect(left, at, wide, 0);
      pen.fillText(readable(tick, 2), left - 6, at + 4);
    }
    const count = this.selection.count;
    this.across = new Float32Array(count);
    this.up = new Float32Array(count);
    const isIn = new Uint8Array(count);
    for (const row of this.selection.order) isIn[row] = 1;
    for (let row = 0; row < count; row++) {
      this.across[row] = left + x.place(x.values[row]);
      this.up[row] = top + high - y.place(y.values[row]);
    }
    const size = count > 20000 ? 1.5 : 2.5;
    for (const shown of [0, 1]) {
      pen.fillStyle = style.getPropertyValue(shown ? "--bar" : "--line");
      pen.globalAlpha = count > 5000 ? 0.35 : 0.7;
      if (!shown && this.selection.order.length === count) continue;
      for (let row = 0; row < count; row++)
        if (isIn[row] === shown) pen.fillRect(this.across[row] - size / 2, this.up[row] - size / 2, size, size);
    }
    this.isIn = isIn;
    // A copy by drawing: browsers that protect against fingerprints falsify the pixels that a script reads.
    this.picture = el("canvas", {width: this.canvas.width, height: this.canvas.height});
    this.picture.getContext("2d").drawImage(this.canvas, 0, 0);
  }

  nearest([x, y], reach = 14) {
    let best = null,
      least = reach ** 2;
    for (let row = 0; row < this.selection.count; row++) {
      const distance = (this.across[row] - x) ** 2 + (this.up[row] - y) ** 2;
      if (distance < least && this.isIn[row]) {
        least = distance;
        best = row;
      }
    }
    return best;
  }

  over(event) {
    if (!this.picture) return;
    const here = this.at(event);
    if (this.from) {
      const pen = this.mark(null);
      pen.strokeRect(this.from[0], this.from[1], here[0] - this.from[0], here[1] - this.from[1]);
    } else this.mark(this.nearest(here));
  }

  mark(row) {
    if (!this.picture) return null;
    const pen = this.canvas.getContext("2d");
    pen.globalAlpha = 1;
    pen.clearRect(0, 0, this.canvas.clientWidth, this.canvas.clientHeight);
    pen.drawImage(this.picture, 0, 0, this.canvas.clientWidth, this.canvas.clientHeight);
    pen.strokeStyle = getComputedStyle(this.canvas).getPropertyValue("--text");
    if (row != null) {
      pen.beginPath();
      pen.arc(this.across[row], this.up[row], 5, 0, 7);
      pen.stroke();
      const [first, label] = [
        this.selection.columns[0],
        this.selection.byName.get("label") ?? this.selection.byName.get("label_first"),
      ];
      this.tip.textContent = `${first.title} ${first.values[row]}: ${plain(label?.values[row] ?? "")}`;
    }
    this.canvas.style.cursor = row == null ? "crosshair" : "pointer";
    return pen;
  }

  drop(event) {
    if (!this.from) return;
    const from = this.from,
      to = this.at(event),
      {left, top, high, x, y} = this.frame;
    this.from = null;
    if (Math.abs(from[0] - to[0]) < 5 && Math.abs(from[1] - to[1]) < 5) {
      const row = this.nearest(to);
      if (row != null) location.hash = this.address(row);
      return;
    }
    const across = [from[0], to[0]].sort((a, b) => a - b).map(place => x.value(place - left));
    const up = [from[1], to[1]].sort((a, b) => b - a).map(place => y.value(top + high - place));
    this.zoomed([
      {name: this.x.value, low: across[0], high: across[1]},
      {name: this.y.value, low: up[0], high: up[1]},
    ]);
  }
}

// A few round numbers between two limits. On a logarithmic axis the limits are powers of ten: over a short stretch of it
// 1, 2 and 5 times each power are round, and over less than a decade equal steps.
const ticks = (low, high, log) => {
  const found = [];
  if (log) {
    const step = Math.max(1, Math.ceil((high - low) / 6));
    for (let power = Math.ceil((low - 1) / step) * step; power <= high; power += step)
      for (const factor of high - low < 2.5 ? [1, 2, 5] : [1]) found.push(factor * 10 ** power);
    const within = found.filter(tick => Math.log10(tick) >= low && Math.log10(tick) <= high);
    return within.length < 3 ? ticks(10 ** low, 10 ** high, false) : within;
  }
  const size = 10 ** Math.floor(Math.log10((high - low) / 5));
  const step = [1, 2, 5, 10].map(each => each * size).find(each => (high - low) / each <= 6);
  for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(i * step);
  return found;
};
