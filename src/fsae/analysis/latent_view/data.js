// The data: scripts that hand over packed arrays, because a page that is opened as a file may load nothing else.

const requests = new Map();

// Called by every data script.
function fsaeLatents(name, packed) {
  requests.get(name)?.(packed);
  requests.delete(name);
}

const load = (name, folder) =>
  new Promise((resolve, reject) => {
    requests.set(name, resolve);
    const script = el("script", {
      src: `${folder}/${name}.js`,
      onload: () => script.remove(),
      onerror: () => {
        script.remove();
        requests.delete(name);
        reject(
          new Error(
            `${folder}/${name}.js is missing or unreadable. Keep the page together with its folder, or write the pages again.`,
          ),
        );
      },
    });
    document.head.append(script);
  });

const TYPES = {
  uint8: Uint8Array,
  int8: Int8Array,
  uint16: Uint16Array,
  int16: Int16Array,
  uint32: Uint32Array,
  int32: Int32Array,
  float32: Float32Array,
  float64: Float64Array,
};

// The inverse of `pack` in packed_arrays.py.
async function unpack(packed) {
  const bytes = Uint8Array.fromBase64
    ? Uint8Array.fromBase64(packed)
    : Uint8Array.from(atob(packed), each => each.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const all = new Uint8Array(await new Response(stream).arrayBuffer());
  const head = new DataView(all.buffer).getUint32(0, true),
    decoder = new TextDecoder();
  const arrays = {};
  let place = 4 + head;
  for (const [name, type, length] of JSON.parse(decoder.decode(all.subarray(4, place)))) {
    const content = all.subarray(place, place + length);
    place += length;
    if (type === "texts") {
      arrays[name] = JSON.parse(decoder.decode(content));
      continue;
    }
    const size = TYPES[type].BYTES_PER_ELEMENT,
      count = length / size,
      whole = new Uint8Array(length);
    for (let plane = 0; plane < size; plane++)
      for (let i = 0, from = plane * count, to = plane; i < count; i++, from++, to += size) whole[to] = content[from];
    arrays[name] = new TYPES[type](whole.buffer);
  }
  return arrays;
}

// Where each row's part of a joined list begins.
const beginnings = lengths => {
  const found = new Uint32Array(lengths.length + 1);
  for (let i = 0; i < lengths.length; i++) found[i + 1] = found[i] + lengths[i];
  return found;
};

const sums = steps => {
  const found = new Uint32Array(steps.length);
  for (let i = 0, sum = 0; i < steps.length; i++) found[i] = sum += steps[i];
  return found;
};

// The inverse of `in_few_bytes` in packed_arrays.py.
const fromFewBytes = bytes => {
  const found = new Uint32Array(bytes.length);
  let count = 0;
  for (let i = 0; i < bytes.length;) {
    const first = bytes[i++];
    if (first < 160) found[count++] = first;
    else if (first < 240) found[count++] = 160 + (((first - 160) << 8) | bytes[i++]);
    else found[count++] = 20640 + (((first - 240) << 16) | (bytes[i++] << 8) | bytes[i++]);
  }
  return found.subarray(0, count);
};

class Shard {
  constructor(arrays, first, ids) {
    this.arrays = arrays;
    this.ids = ids;
    this.first = first;
    this.begins = {};
    for (const name in arrays) if (name.endsWith(".lengths")) this.begins[name.slice(0, -8)] = beginnings(arrays[name]);
    this.hitsBegin = beginnings(arrays.tops.map((tops, i) => tops + arrays.samples[i]));
    if (arrays.codes) {
      this.tokens = fromFewBytes(arrays.tokens);
      this.codesBegin = beginnings(arrays.codes);
      this.runs = {first: sums(arrays.run_first), context: sums(arrays.run_context), position: arrays.run_position};
    }
  }

  list(name, latent) {
    const begins = this.begins[name],
      i = latent - this.first;
    return begins ? this.arrays[name].subarray(begins[i], begins[i + 1]) : [];
  }

  // The hits of a latent: its top contexts, and then its samples, from the highest activation bin down.
  hits(latent) {
    const i = latent - this.first,
      begin = this.hitsBegin[i],
      end = this.hitsBegin[i + 1],
      tops = this.arrays.tops[i];
    const all = Array.from({length: end - begin}, (_, k) => this.hit(begin + k));
    return {top: all.slice(0, tops), samples: all.slice(tops)};
  }

  hit(i) {
    const {arrays} = this,
      found = {bin: arrays.bin[i], value: arrays.value[i]};
    if (arrays.sample) return {...found, sample: arrays.sample[i], context: arrays.sample_ids[arrays.sample[i]]};
    const first = arrays.first[i],
      length = arrays.length[i],
      codes = new Float32Array(length);
    for (let k = this.codesBegin[i]; k < this.codesBegin[i + 1]; k++) codes[arrays.code_place[k]] = arrays.code[k];
    codes[arrays.peak[i]] = found.value;
    const tokens = Array.from(this.tokens.subarray(first, first + length), number => this.ids[number]);
    let run = 0;
    for (let low = 0, high = this.runs.first.length; low < high;) {
      const middle = (low + high) >> 1;
      if (this.runs.first[middle] <= first) {
        run = middle;
        low = middle + 1;
      } else high = middle;
    }
    const position = this.runs.position[run] + first - this.runs.first[run];
    return {...found, codes, tokens, peak: arrays.peak[i], context: this.runs.context[run], position};
  }

  sample(number) {
    return fromSteps(this.arrays, number);
  }
}

// A sample of those that are held in steps between their least and their greatest value.
const fromSteps = ({steps, low, high}, number) => {
  const width = steps.length / low.length,
    scale = (high[number] - low[number]) / 255;
  return Float32Array.from(steps.subarray(number * width, (number + 1) * width), step => low[number] + step * scale);
};

// One dictionary: the numbers of all latents at once, and the lists and hits of a latent when they are wanted.
class Dictionary {
  constructor({title, path, side, meta}, content) {
    Object.assign(this, {title, path, side, meta, folder: content.data, perShard: content.latents_per_shard});
    this.shards = new Map();
  }

  async open() {
    const tokens = this.meta.kind === "text" ? load(`${this.side}-tokens`, this.folder).then(unpack) : null;
    this.index = await unpack(await load(`${this.side}-index`, this.folder));
    this.count = this.index.latent.length;
    this.topBegins = beginnings(this.index["top_tokens.lengths"]);
    this.texts = new Map();
    if (tokens) {
      const {ids, texts} = await tokens;
      this.ids = ids;
      ids.forEach((id, i) => this.texts.set(id, texts[i]));
    }
  }

  text(token) {
    return this.texts.get(token) ?? `[token ${token}]`;
  }

  get loweredLabels() {
    return (this.lowered ??= this.index.label.map((label, row) => `${label} ${this.index.explanation?.[row] ?? ""}`.toLowerCase()));
  }

  hasTopToken(latent, tokens) {
    for (let i = this.topBegins[latent]; i < this.topBegins[latent + 1]; i++)
      if (tokens.has(this.index.top_tokens[i])) return true;
    return false;
  }

  // The ids of all tokens with a text in them.
  tokensWith(text) {
    const found = new Set();
    for (const [id, own] of this.texts) if (own.toLowerCase().includes(text)) found.add(id);
    return found;
  }

  topTokens(latent) {
    return this.index.top_tokens.subarray(this.topBegins[latent], this.topBegins[latent + 1]);
  }

  // The least recently used shards are released: all of a large dictionary would not fit into memory.
  shard(latent) {
    const number = Math.floor(latent / this.perShard);
    let found = this.shards.get(number);
    this.shards.delete(number);
    if (!found) {
      const name = `${this.side}-shard-${String(number).padStart(4, "0")}`;
      found = load(name, this.folder)
        .then(unpack)
        .then(arrays => new Shard(arrays, number * this.perShard, this.ids));
      found.catch(() => this.shards.delete(number));
    }
    this.shards.set(number, found);
    if (this.shards.size > 48) this.shards.delete(this.shards.keys().next().value);
    return found;
  }
}
