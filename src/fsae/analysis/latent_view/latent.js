// Everything about one latent of one dictionary.

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
  // `address(latent)` is that of another latent's page.
  constructor(dictionary, notes, address) {
    Object.assign(this, {dictionary, notes, address});
    this.element = el("article", {class: "latent"});
  }

  async show(latent) {
    this.latent = latent;
    const shard = await this.dictionary.shard(latent);
    // The reader may have moved on while the shard was loaded.
    if (this.latent !== latent) return;
    this.shard = shard;
    this.draw();
  }

  value(name) {
    return this.dictionary.index[name][this.latent];
  }

  list(name) {
    return [...this.shard.list(name, this.latent)];
  }

  draw() {
    hover.hide();
    this.contexts = new Contexts(this.dictionary, this.shard, {
      found: this.shard.hits(this.latent),
      counts: this.list("histogram"),
      max: this.value("max"),
    });
    const side = [
      ...[this.histogram(), this.parts(), this.tokens(), this.logits(), this.predictor()],
      ...[this.neighbours(), this.cofiring()],
    ];
    this.element.replaceChildren(
      this.header(),
      el("div", {class: "columns"}, this.contexts.element, el("div", {class: "side"}, side.filter(Boolean)), this.usage()),
    );
  }

  nextView() {
    this.contexts.nextView();
  }

  // By a language model; few latents have one.
  explanation() {
    const text = this.dictionary.index.explanation?.[this.latent];
    if (!text) return null;
    const score = name => {
      const [own, control] = [name, `control_${name}`].map(each => readable(this.value(each), 3));
      return own && [name, name, control ? `${own} (${control} with another latent's explanation)` : own];
    };
    return el(
      "div",
      {class: "explanation"},
      el("p", {title: meaning("explanation")}, el("bdi", {}, plain(text))),
      this.named(...["detection", "fuzzing"].map(score).filter(Boolean), ["explained by", "explained_by"]),
    );
  }

  header() {
    const {note} = this.notes.of(this.latent),
      label = this.value("label");
    this.star = el("button", {
      class: "star",
      title: "star (s)",
      "aria-label": "star",
      onclick: () => this.toggleStar(),
    });
    this.showStar();
    this.note = el("textarea", {
      rows: 1,
      placeholder: "Your note, kept in this browser",
      "aria-label": "note (n)",
      onchange: event => this.notes.change(this.latent, {note: event.target.value.trim()}),
    });
    this.note.value = note;
    return el(
      "header",
      {},
      el(
        "div",
        {class: "heading"},
        el("h2", {}, this.star, `latent ${this.latent} `, label ? el("bdi", {class: "label"}, plain(label)) : null),
        el(
          "div",
          {class: "controls"},
          this.dictionary.path ? copyButton("copy code that uses the latent (c)", "code", () => this.code()) : null,
          copyButton("copy a link to the latent (l)", "link", () => this.linkHere()),
        ),
      ),
      this.explanation(),
      this.facts(),
      this.note,
    );
  }

  code() {
    return pythonCode(this.dictionary, this.latent);
  }

  linkHere() {
    return location.href.replace(/#.*/, "") + this.address(this.latent);
  }

  copyCode() {
    if (this.dictionary.path) copy(this.code(), "code");
  }

  copyLink() {
    copy(this.linkHere(), "link");
  }

  toggleStar() {
    this.notes.change(this.latent, {star: !this.notes.of(this.latent).star});
    this.showStar();
  }

  showStar() {
    const {star} = this.notes.of(this.latent);
    this.star.textContent = star ? "★" : "☆";
    this.star.setAttribute("aria-pressed", String(star));
  }

  // A list of names and numbers: pairs of a name on the page and a column, or a name, a column and a text.
  named(...shown) {
    const facts = shown
      .map(([name, column, text]) => [name, column, text ?? this.value(column)])
      .filter(([, , value]) => value !== "" && !Number.isNaN(value));
    const items = facts.map(([name, column, value]) =>
      el(
        "div",
        {title: meaning(column)},
        el("dt", {}, name),
        el("dd", {}, typeof value === "number" ? readable(value) : plain(value)),
      ),
    );
    return items.length ? el("dl", {class: "facts"}, items) : null;
  }

  facts() {
    const density = this.value("density"),
      {positions, kind} = this.dictionary.meta;
    const rarity =
      density > 0 ? `${readable(density, 3)} (one in ${readable(Math.round(1 / density), 3)})` : readable(density);
    return this.named(
      ["class", "class"],
      ["density", "density", rarity],
      ["on for", "count", `${this.value("count")} of ${positions} ${kind === "text" ? "tokens" : "samples"}`],
      ["largest activation", "max"],
      ["mean if on", "mean"],
      ["std if on", "std"],
      ["decoder norm", "decoder_norm"],
      ["cosine of encoder and decoder", "encoder_decoder_cosine"],
    );
  }

  histogram() {
    return box("Activations", null, histogram(this.list("histogram"), this.dictionary.meta.bin_edges, this.dictionary.meta));
  }

  // Where a crosscoder's latent writes, and by how much it would have to be scaled to fit each part.
  parts() {
    const {parts} = this.dictionary.meta;
    if (!parts) return null;
    const scaled = Boolean(this.dictionary.index.nu_error);
    const fact = (title, column, name) => [title, column, readable(this.value(name), 3)];
    const facts = parts.flatMap((part, i) => [
      el("p", {}, el("b", {}, plain(part))),
      this.named(
        fact("relative norm", "relative_norms", `relative_norm_${i}`),
        ...(scaled ? ["error", "reconstruction"] : []).map(of => fact(`beta ${of}`, `beta_${of}`, `beta_${of}_${i}`)),
      ),
    ]);
    const ratios = scaled
      ? this.named(["nu error", "nu_error"], ["nu reconstruction", "nu_reconstruction"], ["alone at", "alone_at"])
      : null;
    return box("Decoder row", null, ratios, facts);
  }

  tokens() {
    const tokens = this.list("top_tokens"),
      counts = this.list("top_token_counts"),
      trigger = this.list("trigger");
    if (!tokens.length) return null;
    const items = tokens.map((token, i) =>
      el("li", {}, alone(this.dictionary.text(token)), " ", el("span", {class: "soft"}, counts[i])),
    );
    const text = trigger.map(token => plain(this.dictionary.text(token))).join("");
    return box(
      "Tokens at the peak",
      null,
      el("ul", {class: "tokens", title: meaning("top_tokens")}, items),
      this.named(
        ["token purity", "token_purity"],
        ["token entropy", "token_entropy"],
        ["next token", "next_token_purity"],
        ["previous token", "previous_token_purity"],
      ),
      text ? el("p", {title: meaning("trigger")}, "Shortest trigger: ", el("bdi", {class: "token"}, text)) : null,
    );
  }

  logits() {
    const has = {true: this.list("logit_top").length > 0, false: this.list("raw_logit_top").length > 0};
    if (!has.true && !has.false) return null;
    const norm = has[choices.norm] ? choices.norm : !choices.norm,
      prefix = norm ? "" : "raw_";
    const change = event => {
      choices.set("norm", event.target.checked);
      this.element.querySelector(".logits").replaceWith(this.logits());
      this.element.querySelector(".logits input").focus();
    };
    const control =
      has.true && has.false
        ? el(
            "label",
            {class: "switch"},
            el("input", {type: "checkbox", checked: norm, onchange: change}),
            "through the final norm",
          )
        : el("span", {class: "soft small"}, norm ? "through the final norm" : "without the final norm");
    const table = (title, name) => {
      const effects = this.list(`${prefix}${name}_values`);
      const rows = this.list(prefix + name).map((token, i) => [
        alone(this.dictionary.text(token)),
        signed(Number(effects[i].toPrecision(3))),
      ]);
      return numberTable(
        [
          [title, prefix + name],
          ["effect", `${prefix}${name}_values`],
        ],
        rows,
      );
    };
    const found = box(
      "Logit effects",
      control,
      el("div", {class: "pair"}, table("raised", "logit_top"), table("lowered", "logit_bottom")),
      this.named(
        ["std", "logit_std"],
        ["skew", "logit_skew"],
        ["kurtosis", "logit_kurtosis"],
        ["input score", "input_score"],
      ),
    );
    found.classList.add("logits");
    return found;
  }

  predictor() {
    if (Number.isNaN(this.value("ngram_correlation"))) return null;
    const reads = ["the token alone", "the token and the one before it", "the token and the two before it"][
      this.value("ngram_order")
    ];
    return box(
      "n-gram predictor",
      null,
      this.named(["correlation", "ngram_correlation"], ["F1", "ngram_f1"], ["reads", "ngram_order", reads]),
    );
  }

  link(latent) {
    const label = plain(this.dictionary.index.label[latent]);
    return el("a", {href: this.address(latent), title: label}, latent, " ", el("bdi", {class: "soft"}, label));
  }

  neighbours() {
    const tables = [
      ["decoder rows", "decoder"],
      ["encoder columns", "encoder"],
    ].map(([title, name]) => {
      const cosines = this.list(`${name}_cosines`),
        rows = this.list(`${name}_neighbours`).map((latent, i) => [this.link(latent), readable(cosines[i], 3)]);
      return rows.length
        ? numberTable(
            [
              [title, `${name}_neighbours`],
              ["cosine", `${name}_cosines`],
            ],
            rows,
          )
        : null;
    });
    return tables.some(Boolean) ? box("Neighbours", null, tables) : null;
  }

  cofiring() {
    const [lift, share, error, jaccard] = ["lift", "share", "error", "jaccard"].map(name =>
      this.list(`cofiring_${name}`),
    );
    const rows = this.list("cofiring").map((latent, i) => [
      this.link(latent),
      readable(lift[i], 3),
      `${readable(share[i], 2)} ± ${readable(error[i], 1)}`,
      readable(jaccard[i], 2),
    ]);
    const heads = [
      ["latent", "cofiring"],
      ["lift", "cofiring_lift"],
      ["share", "cofiring_share"],
      ["Jaccard", "cofiring_jaccard"],
    ];
    return rows.length ? box("Active together with", null, numberTable(heads, rows)) : null;
  }

  usage() {
    const {dictionary, latent} = this;
    if (!dictionary.path) return null;
    const found = box(
      "Use it",
      el("span", {class: "soft small"}, "in the folder that has the outputs folder"),
      el("pre", {}, this.code()),
      dictionary.meta.kind === "text" ? el("pre", {}, steerCommand(dictionary, latent)) : null,
    );
    found.classList.add("usage");
    return found;
  }
}

const box = (title, control, ...parts) =>
  el("section", {class: "box"}, el("div", {class: "heading"}, el("h3", {}, title), control), parts);

// A table with a first column of texts and others of numbers. A head is a title and the column of the store that it shows.
const numberTable = (heads, rows) => {
  const kind = i => (i ? "number" : "linked");
  const head = heads.map(([title, column], i) =>
    el("th", {scope: "col", class: kind(i), title: meaning(column)}, title),
  );
  const body = rows.map(row =>
    el(
      "tr",
      {},
      row.map((cell, i) => el("td", {class: kind(i)}, cell)),
    ),
  );
  return el("table", {class: "small"}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, body));
};
