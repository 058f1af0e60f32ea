// Everything about one latent of one dictionary.

// Positions on either side of the peak.
const VIEWS = {short: 5, medium: 10, whole: Infinity};

// What the reader chose, for all latents.
const choices = {
  view: kept.get("fsae:view") ?? "medium",
  breaks: kept.get("fsae:breaks") === "true",
  norm: kept.get("fsae:norm") !== "false",
  set(name, value) {
    this[name] = value;
    kept.set(`fsae:${name}`, value);
  },
};

class LatentPanel {
  constructor(dictionary, notes, address) {
    Object.assign(this, {dictionary, notes, address});
    this.element = el("article", {class: "latent"});
  }

  async show(latent) {
    this.latent = latent;
    const shard = await this.dictionary.shard(latent);
    // The reader may have gone on while the shard was loaded.
    if (this.latent !== latent) return;
    this.shard = shard;
    this.found = shard.hits(latent);
    this.draw();
  }

  number(name) {
    return this.dictionary.index[name][this.latent];
  }

  draw() {
    hover.hide();
    const {dictionary, latent} = this,
      label = this.number("label"),
      {star, note} = this.notes.of(latent);
    this.star = el(
      "button",
      {class: "star", "aria-pressed": String(star), title: "star (s)", onclick: () => this.toggleStar()},
      star ? "★" : "☆",
    );
    this.note = el(
      "textarea",
      {
        rows: 1,
        placeholder: "Your note, kept in this browser",
        "aria-label": "note",
        onchange: event => this.notes.change(latent, {note: event.target.value.trim()}),
      },
      note,
    );
    this.note.value = note;
    this.element.replaceChildren(
      el(
        "header",
        {},
        el("h2", {}, this.star, `latent ${latent} `, label ? el("bdi", {class: "label"}, plain(label)) : null),
        this.facts(),
        this.note,
      ),
      el(
        "div",
        {class: "columns"},
        el("div", {class: "main"}, this.contexts()),
        el(
          "div",
          {class: "side"},
          this.histogram(),
          this.tokens(),
          this.logits(),
          this.predictor(),
          this.neighbours(),
          this.cofiring(),
        ),
      ),
    );
  }

  toggleStar() {
    const star = !this.notes.of(this.latent).star;
    this.notes.change(this.latent, {star});
    this.star.textContent = star ? "★" : "☆";
    this.star.setAttribute("aria-pressed", String(star));
  }

  facts() {
    const [count, density] = [this.number("count"), this.number("density")];
    const shown = [
      ["class", plain(this.number("class"))],
      [
        "density",
        density > 0 ? `${readable(density, 3)} (one in ${readable(Math.round(1 / density), 3)})` : readable(density),
      ],
      ["on", count],
      ["max", this.number("max")],
      ["mean if on", this.number("mean")],
      ["std if on", this.number("std")],
      ["decoder norm", this.number("decoder_norm")],
      ["encoder · decoder", this.number("encoder_decoder_cosine")],
    ];
    const names = {
      on: "count",
      "mean if on": "mean",
      "std if on": "std",
      "decoder norm": "decoder_norm",
      "encoder · decoder": "encoder_decoder_cosine",
    };
    return facts(shown, names);
  }

  histogram() {
    const counts = this.shard.list("histogram", this.latent);
    return box("Activations", null, histogram(counts, this.dictionary.meta.bin_edges));
  }

  tokens() {
    if (this.dictionary.meta.kind !== "text") return null;
    const tokens = this.shard.list("top_tokens", this.latent),
      counts = this.shard.list("top_token_counts", this.latent);
    if (!tokens.length) return null;
    const trigger = this.shard.list("trigger", this.latent);
    const shown = [
      ["token purity", this.number("token_purity")],
      ["token entropy", this.number("token_entropy")],
      ["next token", this.number("next_token_purity")],
      ["previous token", this.number("previous_token_purity")],
    ];
    const names = {
      "token purity": "token_purity",
      "token entropy": "token_entropy",
      "next token": "next_token_purity",
      "previous token": "previous_token_purity",
    };
    return box(
      "Tokens at the peak",
      null,
      el(
        "ul",
        {class: "tokens"},
        [...tokens].map((token, i) =>
          el("li", {}, alone(this.dictionary.text(token)), " ", el("span", {class: "soft"}, counts[i])),
        ),
      ),
      facts(shown, names),
      trigger.length
        ? el(
            "p",
            {title: meaning("trigger")},
            "Shortest trigger: ",
            el("q", {class: "text"}, [...trigger].map(token => inText(this.dictionary.text(token), false)).join("")),
          )
        : null,
    );
  }

  logits() {
    const has = norm => this.shard.list(`${norm ? "" : "raw_"}logit_top`, this.latent).length > 0;
    if (!has(true) && !has(false)) return null;
    const both = has(true) && has(false),
      norm = has(true) && (choices.norm || !has(false)),
      prefix = norm ? "" : "raw_";
    const table = (name, title) => {
      const tokens = this.shard.list(prefix + name, this.latent),
        values = this.shard.list(`${prefix}${name}_values`, this.latent);
      return el(
        "table",
        {class: "small", title: meaning(prefix + name)},
        el(
          "thead",
          {},
          el("tr", {}, el("th", {scope: "col"}, title), el("th", {class: "number", scope: "col"}, "effect")),
        ),
        el(
          "tbody",
          {},
          [...tokens].map((token, i) =>
            el(
              "tr",
              {},
              el("td", {}, alone(this.dictionary.text(token))),
              el("td", {class: "number"}, signed(Number(values[i].toPrecision(3)))),
            ),
          ),
        ),
      );
    };
    const change = both
      ? el(
          "label",
          {class: "switch"},
          el("input", {
            type: "checkbox",
            checked: norm,
            onchange: event => {
              choices.set("norm", event.target.checked);
              this.redraw(".logits", this.logits());
            },
          }),
          "through the final norm",
        )
      : el("span", {class: "soft small"}, norm ? "through the final norm" : "without the final norm");
    const shown = [
      ["std", this.number("logit_std")],
      ["skew", this.number("logit_skew")],
      ["kurtosis", this.number("logit_kurtosis")],
      ["input score", this.number("input_score")],
    ];
    return box(
      "Logit effects",
      change,
      el("div", {class: "pair"}, table("logit_top", "raised"), table("logit_bottom", "lowered")),
      facts(shown, {std: "logit_std", skew: "logit_skew", kurtosis: "logit_kurtosis", "input score": "input_score"}),
      "logits",
    );
  }

  redraw(selector, replacement) {
    this.element.querySelector(selector).replaceWith(replacement);
  }

  predictor() {
    const order = this.number("ngram_order"),
      correlation = this.number("ngram_correlation");
    if (Number.isNaN(correlation)) return null;
    const reads = {0: "the token alone", 1: "the token and the one before it", 2: "the token and the two before it"}[
      order
    ];
    return box(
      "n-gram predictor",
      null,
      facts(
        [
          ["correlation", correlation],
          ["F1", this.number("ngram_f1")],
          ["reads", reads ?? readable(order)],
        ],
        {correlation: "ngram_correlation", F1: "ngram_f1", reads: "ngram_order"},
      ),
    );
  }

  link(latent) {
    const label = this.dictionary.index.label[latent];
    return el(
      "a",
      {href: this.address(latent), title: plain(label)},
      latent,
      " ",
      el("bdi", {class: "soft"}, plain(label)),
    );
  }

  neighbours() {
    const table = name => {
      const latents = this.shard.list(`${name}_neighbours`, this.latent),
        cosines = this.shard.list(`${name}_cosines`, this.latent);
      if (!latents.length) return null;
      return el(
        "table",
        {class: "small", title: meaning(`${name}_neighbours`)},
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            el("th", {scope: "col"}, `${name} rows`.replace("encoder rows", "encoder columns")),
            el("th", {class: "number", scope: "col"}, "cosine"),
          ),
        ),
        el(
          "tbody",
          {},
          [...latents].map((latent, i) =>
            el(
              "tr",
              {},
              el("td", {class: "linked"}, this.link(latent)),
              el("td", {class: "number"}, readable(cosines[i], 3)),
            ),
          ),
        ),
      );
    };
    const tables = [table("decoder"), table("encoder")].filter(Boolean);
    return tables.length ? box("Neighbours", null, tables) : null;
  }

  cofiring() {
    const latents = this.shard.list("cofiring", this.latent);
    if (!latents.length) return null;
    const [lift, share, error, jaccard] = ["lift", "share", "error", "jaccard"].map(name =>
      this.shard.list(`cofiring_${name}`, this.latent),
    );
    const head = (name, text) => el("th", {class: "number", scope: "col", title: meaning(name)}, text);
    return box(
      "Active together with",
      null,
      el(
        "table",
        {class: "small", title: meaning("cofiring")},
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            el("th", {scope: "col"}, "latent"),
            head("cofiring_lift", "lift"),
            head("cofiring_share", "share"),
            head("cofiring_jaccard", "Jaccard"),
          ),
        ),
        el(
          "tbody",
          {},
          [...latents].map((latent, i) =>
            el(
              "tr",
              {},
              el("td", {class: "linked"}, this.link(latent)),
              el("td", {class: "number"}, readable(lift[i], 3)),
              el("td", {class: "number"}, `${readable(share[i], 2)} ± ${readable(error[i], 1)}`),
              el("td", {class: "number"}, readable(jaccard[i], 2)),
            ),
          ),
        ),
      ),
    );
  }

  contexts() {
    const {top, samples} = this.found,
      text = this.dictionary.meta.kind === "text";
    if (!top.length && !samples.length)
      return box(
        "Top contexts",
        null,
        el("p", {class: "soft"}, "The latent is on nowhere in the data: it has no contexts."),
      );
    const bins = new Map();
    for (const hit of samples) bins.set(hit.bin, [...(bins.get(hit.bin) ?? []), hit]);
    const {bin_edges: edges} = this.dictionary.meta,
      counts = this.shard.list("histogram", this.latent),
      max = Math.abs(this.number("max"));
    const total = counts.reduce((sum, count) => sum + count, 0);
    const group = (title, rest, hits) =>
      el(
        "section",
        {class: text ? "hits" : "hits pictures"},
        el("h4", {}, title, " ", el("span", {class: "soft"}, rest)),
        el(
          "div",
          {},
          hits.map(hit => (text ? this.context(hit) : this.sample(hit))),
        ),
      );
    return el(
      "section",
      {class: "box contexts"},
      el("div", {class: "heading"}, el("h3", {}, text ? "Contexts" : "Samples"), text ? this.views() : null),
      group(`Top ${text ? "contexts" : "samples"}`, text ? "one per context" : "", top),
      [...bins].map(([bin, hits]) =>
        group(
          `${readable(edges[bin], 3)} to ${readable(edges[bin + 1], 3)}`,
          [
            `${percent(edges[bin] / max)} to ${percent(Math.min(1, edges[bin + 1] / max))} of the maximum`,
            counts[bin] ? `, ${percent(counts[bin] / total)} of its activations` : "",
          ].join(""),
          hits,
        ),
      ),
    );
  }

  views() {
    const names = {short: "short", medium: "medium", whole: "whole"};
    const again = () => {
      this.redraw(".contexts", this.contexts());
    };
    return el(
      "div",
      {class: "controls"},
      el(
        "span",
        {role: "group", "aria-label": "width of view (w)", class: "buttons"},
        Object.keys(VIEWS).map(name =>
          el(
            "button",
            {
              "aria-pressed": String(choices.view === name),
              onclick: () => {
                choices.set("view", name);
                again();
                this.element.querySelector(`.buttons [aria-pressed="true"]`).focus();
              },
            },
            names[name],
          ),
        ),
      ),
      el(
        "label",
        {class: "switch"},
        el("input", {
          type: "checkbox",
          checked: choices.breaks,
          onchange: event => {
            choices.set("breaks", event.target.checked);
            again();
          },
        }),
        "break lines",
      ),
    );
  }

  nextView() {
    const names = Object.keys(VIEWS);
    choices.set("view", names[(names.indexOf(choices.view) + 1) % names.length]);
    this.redraw(".contexts", this.contexts());
  }

  context(hit) {
    const {dictionary} = this,
      reach = VIEWS[choices.view],
      begin = Math.max(0, hit.peak - reach),
      end = Math.min(hit.tokens.length, hit.peak + reach + 1);
    const max = this.number("max"),
      spans = [];
    for (let i = begin; i < end; i++) {
      const shaded = shade(hit.codes[i], max) ?? {};
      const marks = [shaded.class, i === hit.peak ? "peak" : "", Number.isNaN(hit.codes[i]) ? "uncounted" : ""]
        .filter(Boolean)
        .join(" ");
      spans.push(
        el("span", {class: marks || null, style: shaded.style}, inText(dictionary.text(hit.tokens[i]), choices.breaks)),
      );
    }
    const lines = span => {
      const i = begin + [...span.parentElement.children].indexOf(span),
        code = hit.codes[i];
      return [
        alone(dictionary.text(hit.tokens[i])),
        Number.isNaN(code) ? "this position did not count" : `activation ${readable(code)}`,
        el("span", {class: "soft"}, `token ${hit.tokens[i]}, context ${hit.context}, position ${hit.position + i}`),
      ];
    };
    const text = el(
      "p",
      {
        class: "text",
        dir: "auto",
        tabindex: 0,
        "aria-label": `context ${hit.context}, ${readable(hit.value)} at the peak; left and right read each token's activation`,
      },
      spans,
    );
    tokenHover(text, lines, hit.peak - begin);
    return el(
      "div",
      {class: "context"},
      el("span", {class: "value number", title: "activation at the peak"}, readable(hit.value)),
      text,
    );
  }

  sample(hit) {
    const picture = samplePicture(
      this.shard.sample(hit.sample),
      this.dictionary.meta.picture,
      this.dictionary.index.scale,
    );
    return el(
      "figure",
      {class: "hit"},
      picture,
      el("figcaption", {title: `sample ${hit.context}`}, readable(hit.value)),
    );
  }
}

// The exact activation at each token: under the pointer or a finger, or with the arrows in a text that has the focus.
const tokenHover = (text, lines, start) => {
  let current = null;
  const show = span => {
    current?.classList.remove("current");
    current = span;
    current.classList.add("current");
    hover.show(current, lines(current));
  };
  const hide = () => {
    current?.classList.remove("current");
    current = null;
    hover.hide();
  };
  text.addEventListener("pointerover", event => {
    if (event.target.parentElement === text) show(event.target);
  });
  text.addEventListener("pointerleave", hide);
  text.addEventListener("focus", () => {
    if (text.matches(":focus-visible")) show(text.children[start]);
  });
  text.addEventListener("blur", hide);
  text.addEventListener("keydown", event => {
    const step = {ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling"}[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    const next = current ? current[step] : text.children[start];
    if (next) show(next);
  });
};

// A list of names and numbers; `names` are the columns whose meanings the names show.
const facts = (shown, names) => {
  const known = shown.filter(([, value]) => value !== "" && value != null && !Number.isNaN(value));
  return known.length
    ? el(
        "dl",
        {class: "facts"},
        known.map(([name, value]) =>
          el(
            "div",
            {title: meaning(names[name] ?? name)},
            el("dt", {}, name),
            el("dd", {}, typeof value === "number" ? readable(value) : value),
          ),
        ),
      )
    : null;
};

const box = (title, control, ...content) => {
  const name = typeof content.at(-1) === "string" ? content.pop() : "";
  return el("section", {class: `box ${name}`}, el("div", {class: "heading"}, el("h3", {}, title), control), content);
};
