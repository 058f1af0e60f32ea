// Ways to use a latent elsewhere: code for Python, a command line, and links; and the clipboard.

const pythonCode = ({path, meta}, latent) => {
  const opened = `import fsae\n\ndictionary = fsae.load(${JSON.stringify(path)})\n`;
  if (meta.kind !== "text")
    return `${opened}row = dictionary.W_dec[${latent}]  # what the latent adds to a sample, per unit of its code\n`;
  return `${opened}# Other edits: fsae.Clamp(${latent}, 1.0), fsae.Add(${latent}, 1.0), fsae.Scale(${latent}, by=2.0).
# A strength of 1 is the latent's largest activation.
with dictionary.intervene(fsae.Ablate(${latent})) as model:
    print(model.generate("The", tokens=40, seed=0))\n`;
};

const inShell = text => (/^[\w.,:/=@+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

const steerCommand = ({path}, latent) => `python -m fsae.steer ${inShell(path)} ${latent} --prompt "The"`;

// Puts a text into the clipboard. A page from a host without TLS has no clipboard, and only the older way works.
const copy = async (text, what) => {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.body.appendChild(el("textarea", {class: "unseen", readonly: true}));
    area.value = text;
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (!done) return say(`The browser does not let the page copy: select the ${what} and copy it yourself.`);
  }
  say(`Copied: the ${what}.`, 4000);
};

const copyButton = (title, what, text) =>
  el("button", {title, onclick: () => copy(text(), what)}, `copy ${what}`);
