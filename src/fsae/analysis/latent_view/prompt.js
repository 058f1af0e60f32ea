// A prompt: its tokens coloured by one latent, or by all, and the latents at a token with what their ablation does.

const content = JSON.parse(document.getElementById("content").textContent);

// The numbers of a latent in the tables: name, title, meaning.
const NUMBERS = {
  share: ["share", "activation / the latent's largest activation in the data of its page"],
  activation: ["activation", "code at the token; in the list of all latents, the largest one in the prompt"],
  change: [
    "Δ loss",
    "change of the next token's loss if the latent is ablated at this token [nats]; in the list of all latents, the largest one in the prompt",
  ],
  tokens: ["tokens", "tokens of the prompt at which it is shown"],
};

class Prompt {
  constructor() {
    const {tokens, latents} = content;
    // Per latent: its numbers in the whole prompt, and its activation and the change of the loss at each token.
    this.byLatent = new Map();
    latents.forEach((found, place) =>
      found.forEach(([latent, activation, change]) => {
        const own = this.byLatent.get(latent) ?? {latent, at: new Map(), activation: 0, change: null};
        own.at.set(place, {latent, activation, change, share: this.share(latent, activation)});
        if (Math.abs(activation) > Math.abs(own.activation)) own.activation = activation;
        if (change != null && Math.abs(change) > Math.abs(own.change ?? 0)) own.change = change;
        own.share = this.share(latent, own.activation);
        own.tokens = own.at.size;
        this.byLatent.set(latent, own);
      }),
    );
    this.latent = null;
    this.place = Math.max(
      0,
      latents.findIndex(found => found.length),
    );
    this.by = this.known("share") ? "share" : "activation";
    this.text = el(
      "p",
      {
        class: "text prompt",
        dir: "auto",
        tabindex: 0,
        role: "group",
        "aria-label": "the prompt; left and right choose a token",
      },
      tokens.map((token, place) => el("span", {onclick: () => this.choose(place)}, inText(token, true))),
    );
    this.legend = el("p", {class: "soft"});
    this.here = el("section", {class: "box"});
    this.all = el("section", {class: "box"});
    document.getElementById("view").append(this.text, this.legend, el("div", {class: "both"}, this.here, this.all));
    addEventListener("keydown", event => this.key(event));
    this.text.addEventListener("pointerover", event => {
      if (event.target.parentElement === this.text) this.showHover(event.target);
    });
    this.text.addEventListener("pointerleave", () => hover.hide());
    this.text.addEventListener("blur", () => hover.hide());
    this.draw();
  }

  key(event) {
    const step = {ArrowRight: 1, j: 1, ArrowLeft: -1, k: -1}[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey || event.target.matches?.("select")) return;
    event.preventDefault();
    this.choose(Math.min(Math.max(0, this.place + step), content.tokens.length - 1));
  }

  // Latents have different scales: one with codes of hundreds would leave all others without a colour.
  share(latent, activation) {
    const largest = content.largest[latent];
    return largest ? Math.abs(activation) / largest : null;
  }

  known(number) {
    return [...this.byLatent.values()].some(each => each[number] != null);
  }

  label(latent) {
    return content.labels[latent] ?? "";
  }

  link(latent) {
    return el(
      "a",
      {href: `${content.pages}#latent=${latent}`},
      latent,
      " ",
      el("bdi", {class: "soft"}, plain(this.label(latent))),
    );
  }

  choose(place) {
    this.place = place;
    this.draw();
    this.showHover(this.text.children[place]);
  }

  showHover(span) {
    const place = [...this.text.children].indexOf(span),
      own = this.latent == null ? this.strongest(place) : this.byLatent.get(this.latent).at.get(place),
      loss = content.losses[place],
      lines = [alone(content.tokens[place])];
    if (own) {
      const share = own.share == null ? "" : `, ${percent(own.share)} of its largest`;
      lines.push(
        `${this.latent == null ? "strongest: " : ""}latent ${own.latent}: activation ${readable(own.activation)}${share}`,
      );
      if (own.change != null) lines.push(`change of the next token's loss if ablated: ${signed(own.change)}`);
    } else if (this.latent != null) lines.push(`latent ${this.latent} is not among the latents here`);
    if (loss != null) lines.push(el("span", {class: "soft"}, `loss of the next token: ${readable(loss)}`));
    hover.show(span, lines);
  }

  at(place) {
    return content.latents[place].map(([latent]) => this.byLatent.get(latent).at.get(place));
  }

  size(found) {
    return found.share ?? Math.abs(found.activation);
  }

  strongest(place) {
    return this.at(place).reduce((best, each) => (best && this.size(best) >= this.size(each) ? best : each), null);
  }

  // The latent at a place whose ablation changes the next token's loss most.
  mostInfluential(place) {
    return this.at(place).sort(this.order("change"))[0];
  }

  draw() {
    const own = this.latent == null ? null : this.byLatent.get(this.latent),
      byChange = !own && this.known("change");
    const sizes = content.tokens.map((_, place) => {
      if (byChange) return this.mostInfluential(place)?.change ?? 0;
      const shown = own ? own.at.get(place) : this.strongest(place);
      return shown ? this.size(shown) * Math.sign(shown.activation) : 0;
    });
    // Of a change in loss, 1 nat has the full colour.
    const largest = byChange || this.known("share") ? 1 : Math.max(...sizes.map(Math.abs), 0);
    [...this.text.children].forEach((span, place) => {
      const shaded = shade(sizes[place], largest);
      span.className = [shaded?.class, place === this.place ? "peak" : ""].filter(Boolean).join(" ");
      span.style.cssText = shaded?.style ?? "";
    });
    const scale = this.known("share") ? ", as a share of its largest activation in the data of its page" : "";
    const colours = own
      ? `Coloured by the activation of latent ${this.latent}${scale}.`
      : byChange
        ? "Each token is coloured by the largest change of the next token's loss that the ablation of one latent makes: orange if the loss rises, blue if it falls, with the full colour from 1 nat."
        : `Each token is coloured by its strongest latent${scale}.`;
    this.legend.textContent = `${colours} A click or ← and → choose a token; the square of a latent colours the prompt by this latent.`;
    this.here.replaceChildren(...this.hereParts());
    this.all.replaceChildren(...this.allParts());
  }

  hereParts() {
    const found = this.at(this.place),
      loss = content.losses[this.place];
    return [
      el("h2", {}, `Token ${this.place} `, alone(content.tokens[this.place])),
      loss == null ? "" : el("p", {class: "soft"}, `Loss of the next token: ${readable(loss)} nats.`),
      found.length
        ? this.table(["share", "activation", "change"], found)
        : el(
            "p",
            {class: "soft"},
            "No latent is on here, or training left this position out: a special token, the first of a text, or a massive activation.",
          ),
    ];
  }

  allParts() {
    const choice = el(
      "label",
      {class: "switch"},
      "by ",
      el(
        "select",
        {
          onchange: event => {
            this.by = event.target.value;
            this.draw();
            this.all.querySelector("select").focus();
          },
        },
        Object.entries(NUMBERS)
          .filter(([name]) => this.known(name))
          .map(([name, [title]]) => el("option", {value: name, selected: this.by === name}, title)),
      ),
    );
    return [
      el("div", {class: "heading"}, el("h2", {}, "All latents of the prompt"), choice),
      this.table(["share", "activation", "change", "tokens"], [...this.byLatent.values()].sort(this.order(this.by)).slice(0, 200)),
    ];
  }

  order(name) {
    const size = each => Math.abs(each[name] ?? 0);
    return (a, b) => size(b) - size(a);
  }

  // A table of latents; a number that is known of none has no column.
  table(names, found) {
    const shown = names.filter(name => this.known(name)),
      sorted = names.includes("tokens") ? found : [...found].sort(this.order(this.by === "tokens" ? "activation" : this.by)),
      write = {share: percent, activation: readable, change: value => (value == null ? "" : signed(value)), tokens: readable};
    const heads = shown.map(name => el("th", {scope: "col", class: "number", title: NUMBERS[name][1]}, NUMBERS[name][0]));
    const rows = sorted.map(each =>
      el(
        "tr",
        {},
        el("td", {class: "linked"}, this.swatch(each.latent), " ", this.link(each.latent)),
        shown.map(name => el("td", {class: "number"}, each[name] == null ? "" : write[name](each[name]))),
      ),
    );
    return el(
      "div",
      {class: "scroll"},
      el(
        "table",
        {class: "small"},
        el("thead", {}, el("tr", {}, el("th", {scope: "col"}, "latent"), heads)),
        el("tbody", {}, rows),
      ),
    );
  }

  swatch(latent) {
    return el("button", {
      class: "swatch",
      "aria-pressed": String(this.latent === latent),
      title: "colour the prompt by this latent",
      "aria-label": `colour the prompt by latent ${latent}`,
      onclick: () => {
        this.latent = this.latent === latent ? null : latent;
        this.draw();
      },
    });
  }
}

appearance.start();
new Prompt();
document.documentElement.dataset.ready = "";
