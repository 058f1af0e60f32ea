// Small pictures of one latent: the histogram of its codes, and samples that are not text.

// Bars of the samples per activation bin. Their height is logarithmic: strong activations are rare.
const histogram = (counts, edges, {kind, positions}) => {
  const first = counts.findIndex(count => count),
    last = counts.findLastIndex(count => count);
  const noun = kind === "text" ? "tokens" : "samples";
  if (first < 0) return el("p", {class: "soft"}, `The latent is on for none of the ${positions} ${noun}.`);
  const shown = [...counts.slice(first, last + 1)],
    most = Math.log10(Math.max(...shown) + 1),
    width = 100 / shown.length;
  const bars = shown.map((count, i) => {
    const height = count ? Math.max(2, (100 * Math.log10(count + 1)) / most) : 0,
      at = first + i;
    const bar = drawn("rect", {x: i * width + width * 0.08, y: 100 - height, width: width * 0.84, height});
    const hit = drawn("rect", {x: i * width, y: 0, width, height: 100, class: "reach"});
    const text = `${readable(edges[at], 3)} to ${readable(edges[at + 1], 3)}: ${count}`;
    hit.addEventListener("pointerenter", () => hover.show(hit, [`absolute code ${text} ${noun}`]));
    hit.addEventListener("pointerleave", () => hover.hide());
    return [bar, hit];
  });
  const picture = drawn(
    "svg",
    {viewBox: "0 0 100 100", preserveAspectRatio: "none", class: "histogram", role: "img"},
    ...bars.flat(),
  );
  picture.setAttribute(
    "aria-label",
    `Histogram of the absolute code: from ${readable(edges[first], 3)} up, bins of half an octave with ${shown.join(", ")} ${noun}`,
  );
  const marked = new Set([first, Math.round((first + last + 1) / 2), last + 1]);
  return el(
    "div",
    {},
    picture,
    el(
      "div",
      {class: "axis soft"},
      [...marked].map(edge => el("span", {}, readable(edges[edge], 3))),
    ),
    el(
      "p",
      {class: "soft small"},
      `${noun[0].toUpperCase()}${noun.slice(1)} per activation bin, at most ${Math.max(...shown)}; both axes are logarithmic.`,
    ),
  );
};

// A sample as grey values of a picture, or as a curve; both on the scale of all samples of the dictionary.
const samplePicture = (vector, picture, [low, high]) => {
  const share = value => Math.min(1, Math.max(0, (value - low) / (high - low || 1)));
  if (picture) {
    const [height, width] = picture,
      canvas = el("canvas", {width, height, class: "sample", role: "img", "aria-label": "the sample as a picture"});
    const pen = canvas.getContext("2d"),
      pixels = pen.createImageData(width, height);
    vector.forEach((value, i) =>
      pixels.data.set([255 * share(value), 255 * share(value), 255 * share(value), 255], 4 * i),
    );
    pen.putImageData(pixels, 0, 0);
    return canvas;
  }
  const points = Array.from(
    vector,
    (value, i) => `${(i / Math.max(1, vector.length - 1)) * 100},${50 - 48 * share(value) - 1}`,
  ).join(" ");
  const curve = drawn(
    "svg",
    {viewBox: "0 0 100 50", preserveAspectRatio: "none", class: "sample curve", role: "img"},
    drawn("polyline", {points}),
  );
  curve.setAttribute("aria-label", `the sample's ${vector.length} numbers as a curve`);
  return curve;
};
