// Light or dark: the system's choice until the reader makes one, and one hover text for all pages.

const kept = {
  // Storage may be switched off, or full; the page then works without memory.
  get(key) {
    try {
      return localStorage.getItem(key);
    } catch {
      return null;
    }
  },
  set(key, value) {
    try {
      localStorage.setItem(key, value);
      return true;
    } catch {
      return false;
    }
  },
};

const appearance = {
  listeners: [],
  apply(scheme) {
    document.documentElement.style.colorScheme = scheme || "light dark";
    for (const listener of this.listeners) listener();
  },
  dark() {
    const chosen = kept.get("fsae:scheme");
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  },
  turn() {
    const next = this.dark() ? "light" : "dark";
    kept.set("fsae:scheme", next);
    this.apply(next);
  },
  start() {
    this.apply(kept.get("fsae:scheme"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.apply(kept.get("fsae:scheme")));
    document.getElementById("scheme").addEventListener("click", () => this.turn());
  },
};

const hover = {
  box: null,
  show(target, lines) {
    this.box ??= document.body.appendChild(el("div", {id: "hover", role: "tooltip"}));
    this.box.replaceChildren(...lines.map(line => el("div", {}, line)));
    this.box.hidden = false;
    // A token that is broken over two lines has two boxes; the first one counts.
    const at = target.getClientRects()[0] ?? target.getBoundingClientRect(),
      own = this.box.getBoundingClientRect();
    const left = Math.min(Math.max(4, at.left), document.documentElement.clientWidth - own.width - 4);
    const above = at.top - own.height - 4;
    this.box.style.left = `${left}px`;
    this.box.style.top = `${above > 0 ? above : at.bottom + 4}px`;
  },
  hide() {
    if (this.box) this.box.hidden = true;
  },
};

// How strongly a code colours its token: a share of the largest code, with a floor under which nothing would show.
const shade = (code, largest) => {
  if (!code || !largest) return null;
  const share = Math.min(1, Math.abs(code) / Math.abs(largest));
  return {class: code < 0 ? "on below" : "on", style: `--a:${Math.round(8 + 92 * share)}%`};
};
