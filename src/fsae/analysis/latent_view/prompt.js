// A prompt: its tokens coloured by one latent, or by all, and the latents at a token with what their ablation does.

const content = JSON.parse(document.getElementById("content").textContent);

class Prompt {
  constructor() {
    const {tokens, latents} = content;
    // Per latent: its activation and the change of the loss at each token, and its greatest activation.
    this.byLatent = new Map();
    latents.forEach((found, place) =>
      found.forEach(([latent, activation, change]) => {
        const own = this.byLatent.get(latent) ?? {latent, at: new Map(), max: 0, change: 0};
        own.at.set(place, {activation, change});
        own.max = Math.max(own.max, Math.abs(activation));
        own.change = Math.max(own.change, Math.abs(change ?? 0));
        this.byLatent.set(latent, own);
      }),
    );
    this.latent = null;
    this.place = Math.max(
      0,
      latents.findIndex(found => found.length),
    );
    this.by = "activation";
    this.text = el(
      "p",
      {class: "text prompt", dir: "auto", tabindex: 0, "aria-label": "the prompt; left and right choose a token"},
      tokens.map((token, place) => el("span", {onclick: () => this.choose(place)}, inText(token, true))),
    );
    this.legend = el("p", {class: "soft"});
    this.here = el("section", {class: "box"});
    this.all = el("section", {class: "box"});
    document.getElementById("view").append(this.text, this.legend, el("div", {class: "both"}, this.here, this.all));
    this.text.addEventListener("keydown", event => {
      const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      this.choose(Math.min(Math.max(0, this.place + step), tokens.length - 1));
    });
    this.text.addEventListener("pointerover", event => {
      if (event.target.parentElement === this.text) this.showHover(event.target);
    });
    this.text.addEventListener("pointerleave", () => hover.hide());
    this.text.addEventListener("blur", () => hover.hide());
    this.draw();
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
      own = this.latent == null ? null : this.byLatent.get(this.latent).at.get(place);
    const found = content.latents[place],
      loss = content.losses[place];
    const lines = [alone(content.tokens[place])];
    if (this.latent != null)
      lines.push(
        own
          ? `latent ${this.latent}: activation ${readable(own.activation)}`
          : `latent ${this.latent} is not among the latents here`,
      );
    else if (found.length) {
      const [latent, activation] = this.strongest(found);
      lines.push(`strongest: latent ${latent}, activation ${readable(activation)}`);
    }
    if (own && own.change != null) lines.push(`next token's loss if ablated: ${signed(own.change)}`);
    if (loss != null) lines.push(el("span", {class: "soft"}, `loss of the next token: ${readable(loss)}`));
    hover.show(span, lines);
  }

  strongest(found) {
    return found.reduce((best, each) => (Math.abs(each[1]) > Math.abs(best[1]) ? each : best));
  }

  draw() {
    const {tokens, latents, losses} = content,
      own = this.latent == null ? null : this.byLatent.get(this.latent);
    const strengths = latents.map((found, place) =>
      own ? (own.at.get(place)?.activation ?? 0) : found.length ? this.strongest(found)[1] : 0,
    );
    const largest = Math.max(...strengths.map(Math.abs), 0);
    [...this.text.children].forEach((span, place) => {
      const shaded = shade(strengths[place], largest);
      span.className = [shaded?.class, place === this.place ? "peak" : ""].filter(Boolean).join(" ");
      span.style.cssText = shaded?.style ?? "";
    });
    this.legend.textContent = own
      ? `Coloured by the activation of latent ${this.latent}.`
      : "Coloured by the strongest activation at each token; choose a latent to colour by it.";
    const colour = latent =>
      el(
        "button",
        {
          "aria-pressed": String(this.latent === latent),
          title: "colour the prompt by this latent",
          onclick: () => {
            this.latent = this.latent === latent ? null : latent;
            this.draw();
          },
        },
        "colour",
      );
    const head = names =>
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          names.map((name, i) => el("th", {scope: "col", class: i && name ? "number" : null}, name)),
        ),
      );
    const loss = losses[this.place];
    const found = [...latents[this.place]].sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
    this.here.replaceChildren(
      el("h2", {}, `Token ${this.place} `, alone(tokens[this.place])),
      loss == null ? "" : el("p", {class: "soft"}, `Loss of the next token: ${readable(loss)} nats.`),
      found.length
        ? el(
            "div",
            {class: "scroll"},
            el(
              "table",
              {class: "small"},
              head(["latent", "activation", "loss if ablated", ""]),
              el(
                "tbody",
                {},
                found.map(([latent, activation, change]) =>
                  el(
                    "tr",
                    {},
                    el("td", {class: "linked"}, this.link(latent)),
                    el("td", {class: "number"}, readable(activation)),
                    el("td", {class: "number"}, change == null ? "" : signed(change)),
                    el("td", {}, colour(latent)),
                  ),
                ),
              ),
            ),
          )
        : el("p", {class: "soft"}, "No latents are shown here."),
    );
    const sorts = {
      activation: (a, b) => b.max - a.max,
      change: (a, b) => b.change - a.change,
      tokens: (a, b) => b.at.size - a.at.size,
    };
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
          },
        },
        [
          ["activation", "activation"],
          ["change", "change in loss"],
          ["tokens", "tokens"],
        ].map(([value, text]) => el("option", {value, selected: this.by === value}, text)),
      ),
    );
    this.all.replaceChildren(
      el("div", {class: "heading"}, el("h2", {}, "All latents of the prompt"), choice),
      el(
        "div",
        {class: "scroll"},
        el(
          "table",
          {class: "small"},
          head(["latent", "greatest", "tokens", ""]),
          el(
            "tbody",
            {},
            [...this.byLatent.values()]
              .sort(sorts[this.by])
              .slice(0, 200)
              .map(each =>
                el(
                  "tr",
                  {},
                  el("td", {class: "linked"}, this.link(each.latent)),
                  el("td", {class: "number"}, readable(this.by === "change" ? each.change : each.max)),
                  el("td", {class: "number"}, each.at.size),
                  el("td", {}, colour(each.latent)),
                ),
              ),
          ),
        ),
      ),
    );
  }
}

appearance.start();
new Prompt();
document.documentElement.dataset.ready = "";
