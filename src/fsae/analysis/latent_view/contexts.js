// The hits of a latent: its top contexts and samples of weaker ones, as coloured text, pictures or curves.

// Positions on either side of the peak.
const VIEWS = {short: 5, medium: 10, whole: Infinity};

class Contexts {
  // `found` has the hits, `counts` the samples per activation bin, `max` the latent's largest code.
  constructor(dictionary, shard, {found, counts, max}) {
    Object.assign(this, {dictionary, shard, found, counts, max: Math.abs(max)});
    this.isText = dictionary.meta.kind === "text";
    this.element = el("section", {class: "box contexts"});
    this.draw();
  }

  draw() {
    const {top, samples} = this.found,
      noun = this.isText ? "contexts" : "samples";
    const heading = el(
      "div",
      {class: "heading"},
      el("h3", {}, this.isText ? "Contexts" : "Samples"),
      this.isText && top.length + samples.length ? this.views() : null,
    );
    if (!top.length && !samples.length) {
      this.element.replaceChildren(heading, this.nothing(noun));
      return;
    }
    const bins = new Map();
    for (const hit of samples) bins.set(hit.bin, [...(bins.get(hit.bin) ?? []), hit]);
    for (const hits of bins.values()) hits.sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
    this.element.replaceChildren(
      heading,
      this.group(`Top ${noun}`, this.isText ? "one hit per context" : this.scale(), top),
      bins.size ? el("p", {class: "soft small"}, "Samples of each activation bin, drawn at random:") : "",
      ...[...bins].map(([bin, hits]) => this.group(...this.limits(bin), hits)),
    );
  }

  nothing(noun) {
    const {meta, path} = this.dictionary,
      more = `python -m fsae.latents ${inShell(path || "RUN")} --tokens ${20 * meta.positions}`;
    return el(
      "div",
      {class: "soft"},
      el(
        "p",
        {},
        `The latent is on for none of the ${meta.positions} ${this.isText ? "tokens" : "samples"} that were read, so it has no ${noun}.`,
      ),
      this.isText ? el("p", {}, "More text may have some: ", el("code", {}, more)) : null,
    );
  }

  // What the pictures or curves of samples show.
  scale() {
    const {meta, index} = this.dictionary,
      [low, high] = [...index.scale].map(value => readable(value, 3));
    return meta.picture
      ? `black is ${low} or less, white is ${high} or more`
      : `a sample's numbers in their order, upwards from ${low} to ${high}`;
  }

  // The limits of an activation bin, alone and of the maximum, and how many of the latent's activations it has.
  limits(bin) {
    const [low, high] = this.dictionary.meta.bin_edges.slice(bin, bin + 2),
      total = this.counts.reduce((sum, count) => sum + count, 0);
    const ofMax = `${percent(low / this.max)} to ${percent(Math.min(1, high / this.max))} of the maximum`;
    return [
      `${readable(low, 3)} to ${readable(high, 3)}`,
      this.counts[bin] ? `${ofMax}, ${percent(this.counts[bin] / total)} of its activations` : ofMax,
    ];
  }

  group(title, remark, hits) {
    const heading = el("h4", {}, title, " ", el("span", {class: "soft"}, remark));
    return el(
      "section",
      {class: this.isText ? "hits" : "hits pictures"},
      heading,
      el(
        "div",
        {},
        hits.map(hit => (this.isText ? this.context(hit) : this.sample(hit))),
      ),
    );
  }

  views() {
    const buttons = Object.keys(VIEWS).map(name =>
      el(
        "button",
        {
          "aria-pressed": String(choices.view === name),
          onclick: () => {
            this.choose("view", name);
            this.element.querySelector(".buttons [aria-pressed=true]").focus();
          },
        },
        name,
      ),
    );
    const breaks = el("input", {
      type: "checkbox",
      checked: choices.breaks,
      onchange: event => {
        this.choose("breaks", event.target.checked);
        this.element.querySelector("input").focus();
      },
    });
    return el(
      "div",
      {class: "controls"},
      el("span", {role: "group", "aria-label": "width of view (w)", class: "buttons"}, buttons),
      el("label", {class: "switch"}, breaks, "break lines"),
    );
  }

  choose(name, value) {
    choices.set(name, value);
    this.draw();
  }

  nextView() {
    const names = Object.keys(VIEWS);
    this.choose("view", names[(names.indexOf(choices.view) + 1) % names.length]);
  }

  context(hit) {
    const reach = VIEWS[choices.view],
      begin = Math.max(0, hit.peak - reach),
      end = Math.min(hit.tokens.length, hit.peak + reach + 1);
    const spans = [];
    for (let i = begin; i < end; i++) {
      const code = hit.codes[i],
        shaded = shade(code, this.max);
      const classes = [shaded?.class, i === hit.peak && "peak", Number.isNaN(code) && "uncounted"]
        .filter(Boolean)
        .join(" ");
      spans.push(
        el(
          "span",
          {class: classes || null, style: shaded?.style},
          inText(this.dictionary.text(hit.tokens[i]), choices.breaks),
        ),
      );
    }
    const text = el(
      "p",
      {
        class: "text",
        dir: "auto",
        tabindex: 0,
        role: "group",
        "aria-label": `context ${hit.context}, ${readable(hit.value)} at the peak; left and right read each token's activation`,
      },
      spans,
    );
    tokenHover(text, hit.peak - begin, place => this.lines(hit, begin + place));
    return el(
      "div",
      {class: "context"},
      el("span", {class: "value number", title: "activation at the peak"}, readable(hit.value)),
      text,
    );
  }

  lines(hit, i) {
    const token = hit.tokens[i],
      code = hit.codes[i];
    return [
      alone(this.dictionary.text(token)),
      Number.isNaN(code) ? "this position did not count" : `activation ${readable(code)}`,
      el("span", {class: "soft"}, `token ${token}, context ${hit.context}, position ${hit.position + i}`),
    ];
  }

  sample(hit) {
    const {meta, index} = this.dictionary;
    return el(
      "figure",
      {class: "hit", title: `sample ${hit.context}`},
      samplePicture(this.shard.sample(hit.sample), meta.picture, index.scale),
      el("figcaption", {}, readable(hit.value)),
    );
  }
}

// The activation at each token of a text: under the pointer or a finger, or by the arrows while the text has the focus.
// `lines(place)` gives the lines to show at a place of the text, `start` is the place where the arrows begin.
const tokenHover = (text, start, lines) => {
  let current = null;
  const show = span => {
    current?.classList.remove("current");
    current = span;
    current.classList.add("current");
    hover.show(current, lines([...text.children].indexOf(current)));
  };
  const hide = () => {
    current?.classList.remove("current");
    current = null;
    hover.hide();
  };
  text.addEventListener("pointerover", event => event.target.parentElement === text && show(event.target));
  text.addEventListener("pointerleave", hide);
  text.addEventListener("focus", () => text.matches(":focus-visible") && show(text.children[start]));
  text.addEventListener("blur", hide);
  text.addEventListener("keydown", event => {
    const step = {ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling"}[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    // Elsewhere the arrows move to the next latent.
    event.preventDefault();
    event.stopPropagation();
    const next = current ? current[step] : text.children[start];
    if (next) show(next);
  });
};
