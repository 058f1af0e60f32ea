// Notes and stars, kept in the browser under the digest of the dictionary's weights.

class Notes {
  constructor(weights) {
    this.weights = weights;
    this.key = `fsae:notes:${weights}`;
    this.read();
  }

  read() {
    this.all = new Map();
    try {
      this.merge(JSON.parse(kept.get(this.key) ?? "{}"));
    } catch {
      /* Foreign content under this name is not a note. */
    }
  }

  of(latent) {
    return this.all.get(latent) ?? {star: false, note: ""};
  }

  change(latent, changed) {
    // Another tab may have written since.
    this.read();
    const now = {...this.of(latent), ...changed};
    if (now.star || now.note) this.all.set(latent, now);
    else this.all.delete(latent);
    this.keep();
  }

  keep() {
    if (!kept.set(this.key, JSON.stringify(Object.fromEntries(this.all))))
      say("The browser keeps nothing for this page: export your notes before you close it.");
  }

  merge(found) {
    for (const [latent, {star, note}] of Object.entries(found))
      if (/^\d+$/.test(latent))
        this.all.set(Number(latent), {star: star === true, note: typeof note === "string" ? note : ""});
  }

  exported() {
    return {weights: this.weights, notes: Object.fromEntries(this.all)};
  }
}

// Adds the notes of a file to those of the dictionaries that it is of; returns how many it has. Notes of the same latent
// are replaced, others stay.
const importNotes = (all, text) => {
  const found = [JSON.parse(text)].flat();
  if (!found.length || found.some(each => typeof each?.notes !== "object" || !each.notes))
    throw new Error("The file has no notes of these pages.");
  const fitting = found
    .map(each => [all.find(notes => notes.weights === each.weights), each])
    .filter(([notes]) => notes);
  if (!fitting.length) throw new Error("The notes of this file are of another dictionary.");
  for (const [notes, each] of fitting) {
    notes.read();
    notes.merge(each.notes);
    notes.keep();
  }
  return fitting.reduce((sum, [, each]) => sum + Object.keys(each.notes).length, 0);
};

const saveFile = (name, text) => {
  const address = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  el("a", {href: address, download: name}).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
};
