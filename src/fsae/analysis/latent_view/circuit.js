// Circuits: nodes over the tokens of a prompt, sites from the bottom up, and the edges of the node that is chosen.

const {graphs} = JSON.parse(document.getElementById("content").textContent);

class Circuit {
  constructor(graph) {
    this.graph = graph;
    this.byId = new Map(graph.nodes.map(node => [node.node_id, node]));
    this.outcome = graph.nodes[graph.nodes.length - 1];
    this.latents = graph.nodes.slice(0, -1);
    this.chosen = null;
    this.place();
  }

  // Where each node stands: a column per token, a row per site, side by side in a cell by falling effect.
  place() {
    const layers = [...new Set(this.graph.nodes.map(node => Number(node.layer)))].sort((a, b) => a - b);
    this.layers = layers;
    this.width = 1200;
    this.left = 110;
    this.column = (this.width - this.left) / this.graph.metadata.prompt_tokens.length;
    const cells = new Map();
    for (const node of [...this.graph.nodes].sort((a, b) => Math.abs(b.influence ?? 0) - Math.abs(a.influence ?? 0))) {
      const key = `${node.layer} ${node.ctx_idx}`;
      cells.set(key, [...(cells.get(key) ?? []), node]);
    }
    const across = Math.max(1, Math.floor((this.column - 12) / 20)),
      deep = Math.max(...[...cells.values()].map(cell => Math.ceil(cell.length / across)));
    this.row = Math.max(70, 20 * deep + 30);
    this.height = this.row * layers.length + 40;
    this.at = new Map();
    for (const cell of cells.values())
      cell.forEach((node, i) => {
        const columns = Math.min(across, cell.length),
          middle = this.left + this.column * (node.ctx_idx + 0.5);
        this.at.set(node.node_id, [
          middle + 20 * ((i % across) - (columns - 1) / 2),
          this.rowOf(Number(node.layer)) + 20 * Math.floor(i / across),
        ]);
      });
  }

  rowOf(layer) {
    return this.height - 40 - this.row * (this.layers.indexOf(layer) + 0.75);
  }

  edges() {
    const own = edge => !this.chosen || edge.source === this.chosen || edge.target === this.chosen;
    return this.graph.links.filter(own).sort((a, b) => Math.abs(a.weight) - Math.abs(b.weight));
  }

  picture() {
    const {metadata} = this.graph,
      edges = this.edges(),
      most = Math.max(...this.graph.links.map(edge => Math.abs(edge.weight)), 1e-30);
    const lines = edges.map(edge => {
      const [x1, y1] = this.at.get(edge.source),
        [x2, y2] = this.at.get(edge.target),
        share = Math.abs(edge.weight) / most;
      const line = drawn("path", {
        d: `M ${x1} ${y1} C ${x1} ${(y1 + y2) / 2} ${x2} ${(y1 + y2) / 2} ${x2} ${y2}`,
        class: edge.weight < 0 ? "edge below" : "edge",
        "stroke-width": 0.5 + 5 * share,
        opacity: this.chosen ? 0.8 : 0.1 + 0.7 * share,
      });
      return line;
    });
    const strongest = Math.max(...this.latents.map(node => Math.abs(node.influence)), 1e-30);
    const linked = new Set(edges.flatMap(edge => [edge.source, edge.target]));
    const marks = this.graph.nodes.map(node => {
      const [x, y] = this.at.get(node.node_id),
        error = node.feature_type.endsWith("error"),
        size = node === this.outcome ? 8 : 3 + 6 * Math.sqrt(Math.abs(node.influence) / strongest);
      const classes = ["node"];
      if (node.influence < 0) classes.push("below");
      if (node.node_id === this.chosen) classes.push("chosen");
      else if (this.chosen && !linked.has(node.node_id)) classes.push("faint");
      const mark = error
        ? drawn("path", {d: `M ${x} ${y - size} L ${x + size} ${y + size} L ${x - size} ${y + size} Z`})
        : drawn("circle", {cx: x, cy: y, r: size});
      mark.setAttribute("class", classes.join(" "));
      mark.addEventListener("click", () => this.choose(node.node_id));
      mark.addEventListener("pointerenter", () => hover.show(mark, this.facts(node)));
      mark.addEventListener("pointerleave", () => hover.hide());
      return mark;
    });
    const names = this.layers.map(layer => {
      const node = this.graph.nodes.find(each => Number(each.layer) === layer);
      return drawn(
        "text",
        {x: 4, y: this.rowOf(layer) + 4, class: "site"},
        node === this.outcome ? "outcome" : node.clerp.split(" ")[0],
      );
    });
    const tokens = metadata.prompt_tokens.map((token, i) =>
      drawn("text", {x: this.left + this.column * (i + 0.5), y: this.height - 12}, plain(token)),
    );
    return drawn(
      "svg",
      {viewBox: `0 0 ${this.width} ${this.height}`, class: "graph", role: "img", "aria-label": "the circuit"},
      ...lines,
      ...marks,
      ...names,
      ...tokens,
    );
  }

  facts(node) {
    const lines = [plain(node.clerp), `at token ${node.ctx_idx}: ${plain(this.graph.metadata.prompt_tokens[node.ctx_idx])}`];
    if (node.influence != null) lines.push(`effect ${signed(node.influence)} logits`);
    return lines;
  }

  choose(id) {
    this.chosen = this.chosen === id ? null : id;
    hover.hide();
    this.draw();
  }

  button(node) {
    const pressed = String(node.node_id === this.chosen);
    return el("button", {"aria-pressed": pressed, onclick: () => this.choose(node.node_id)}, plain(node.clerp));
  }

  table() {
    const heading = ["node", "token", "effect", "edges in", "edges out"];
    const count = (end, id) => this.graph.links.filter(edge => edge[end] === id).length;
    const rows = [...this.latents]
      .sort((a, b) => Math.abs(b.influence) - Math.abs(a.influence))
      .map(node =>
        el(
          "tr",
          {},
          el("td", {}, el("div", {}, this.button(node))),
          el("td", {}, alone(this.graph.metadata.prompt_tokens[node.ctx_idx]), ` ${node.ctx_idx}`),
          el("td", {class: "number"}, signed(node.influence)),
          el("td", {class: "number"}, String(count("target", node.node_id))),
          el("td", {class: "number"}, String(count("source", node.node_id))),
        ),
      );
    return el(
      "table",
      {class: "small"},
      el("thead", {}, el("tr", {}, heading.map(name => el("th", {}, name)))),
      el("tbody", {}, rows),
    );
  }

  draw() {
    document
      .getElementById("view")
      .replaceChildren(
        el("p", {}, `Outcome: ${plain(this.outcome.clerp)}. Circles are latents, triangles are errors of reconstruction.`),
        el("p", {class: "soft"}, this.graph.metadata.info.description),
        el("div", {class: "scroll"}, this.picture()),
        el("h4", {}, "Nodes by effect; choose one to see its edges"),
        this.table(),
      );
  }
}

const circuits = graphs.map(graph => new Circuit(graph));
const open = number => {
  document.getElementById("tasks").replaceChildren(
    ...graphs.map((graph, i) =>
      el("button", {"aria-pressed": String(i === number), onclick: () => open(i)}, plain(graph.metadata.slug)),
    ),
  );
  circuits[number].draw();
};
appearance.start();
if (circuits.length) open(0);
else say("No task has a circuit at these sites.");
