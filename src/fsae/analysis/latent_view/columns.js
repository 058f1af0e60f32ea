// The columns of the table: of all latents of one dictionary, or of the pairs of two.

// Columns that are shown before the reader chooses.
const SHOWN = {
  text: ["latent", "label", "top_tokens", "class", "density", "max", "token_purity", "input_score"],
  samples: ["latent", "label", "class", "density", "max", "mean", "std", "encoder_decoder_cosine"],
};
// Columns of either side of a pair.
const OF_A_SIDE = ["latent", "label", "density", "class", "max", "token_purity", "ngram_correlation"];
const SIDES = ["first", "second"];

const known = values => (Array.isArray(values) ? values.some(each => each) : values.some(each => !Number.isNaN(each)));

const latentColumns = (dictionary, notes) => {
  const columns = Object.entries(content.columns).map(([name, kind]) => {
    const values = dictionary.index[name],
      shown = SHOWN[dictionary.meta.kind].includes(name) && known(values);
    return {
      name,
      kind,
      values,
      shown,
      title: name.replaceAll("_", " "),
      meaning: meaning(name),
      wide: name === "label",
    };
  });
  const [latent, label] = ["latent", "label"].map(name => columns.find(column => column.name === name));
  latent.show = row => {
    const {star, note} = notes.of(row);
    return [star ? "★ " : "", note ? "✎ " : "", row];
  };
  // Samples are known by sight.
  if (dictionary.index.steps) {
    if (!known(label.values)) label.title = "top sample";
    label.shown = true;
    label.show = row => [topSample(dictionary, row), plain(label.values[row])];
  }
  const rest = columns.filter(column => column !== latent && column !== label);
  // What a latent is about stands next to its number.
  const tokens = dictionary.texts.size ? [topTokenColumn(dictionary)] : [];
  return [latent, label, ...explanationColumns(dictionary), ...tokens, ...partColumns(dictionary), ...rest];
};

// The relative norm of each part of a crosscoder's decoder rows, and what latent scaling says about them.
const partColumns = ({index, meta}) => [
  ...(meta.parts ?? []).map((part, i) => ({
    name: `relative_norm_${i}`,
    kind: "number",
    values: index[`relative_norm_${i}`],
    shown: true,
    title: `norm ${part}`,
    meaning: `${part}: ${meaning("relative_norms")}`,
  })),
  ...["alone_at", "nu_error", "nu_reconstruction"]
    .filter(name => index[name])
    .map(name => ({
      name,
      kind: name === "alone_at" ? "text" : "number",
      values: index[name],
      shown: true,
      title: name.replaceAll("_", " "),
      meaning: meaning(name),
    })),
];

// Explanations by a language model and their scores, if there are any.
const explanationColumns = ({index}) => {
  if (!index.explanation) return [];
  const scores = ["detection", "control_detection", "fuzzing", "control_fuzzing"].filter(name => known(index[name]));
  return ["explanation", ...scores].map(name => ({
    name,
    kind: name === "explanation" ? "text" : "number",
    values: index[name],
    shown: name === "explanation" || name === "detection",
    title: name.replaceAll("_", " "),
    meaning: meaning(name),
    wide: name === "explanation",
  }));
};

const topSample = ({index, meta}, row) =>
  Number.isNaN(index.low[row]) ? null : samplePicture(fromSteps(index, row), meta.picture, index.scale);

const topTokenColumn = dictionary => {
  const texts = row => Array.from(dictionary.topTokens(row), token => dictionary.text(token));
  let all = null;
  return {
    name: "top_tokens",
    kind: "text",
    title: "top tokens",
    meaning: meaning("top_tokens"),
    shown: true,
    show: row => texts(row).map(text => [alone(text), " "]),
    // Only sorting needs the texts of all latents.
    get values() {
      return (all ??= Array.from({length: dictionary.count}, (_, row) => texts(row).join("")));
    },
  };
};

const pairColumns = (dictionaries, pairs) => {
  const own = (name, meaning, values, kind) => ({name, title: name, kind, meaning, values, shown: true});
  const numbers = Uint32Array.from(pairs.first, (_, i) => i);
  const [first, second] = dictionaries.map((dictionary, side) =>
    OF_A_SIDE.map(name => sideColumn(name, dictionary, side, pairs[SIDES[side]])),
  );
  // Both labels and both densities stand next to each other.
  const [labels, densities, rest] = [[0, 2], [2, 3], [3]].map(range => [
    ...first.slice(...range),
    ...second.slice(...range),
  ]);
  const cosine = own("cosine", "cosine of the decoder rows of both latents", pairs.cosine, "number");
  return [own("pair", "row of the matched latents", numbers, "whole"), ...labels, cosine, ...densities, ...rest];
};

const sideColumn = (name, dictionary, side, latents) => {
  const values = dictionary.index[name],
    kind = content.columns[name];
  const gathered =
    kind === "text"
      ? Array.from(latents, latent => (latent < 0 ? "" : values[latent]))
      : Float64Array.from(latents, latent => (latent < 0 ? NaN : values[latent]));
  return {
    name: `${name}_${SIDES[side]}`,
    title: `${name.replaceAll("_", " ")} ${side + 1}`,
    kind,
    meaning: `${meaning(name)}, of ${dictionary.title}`,
    values: gathered,
    shown: ["latent", "label", "density"].includes(name),
    wide: name === "label",
  };
};
