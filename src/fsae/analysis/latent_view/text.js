// Elements, numbers and token texts. Everything from the data becomes a text node, so markup in it shows as text.

const el = (name, attributes = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  made.append(...children.flat(Infinity).filter(child => child != null && child !== false));
  return made;
};

// The name of the SVG elements' language, as the parser gives it to the one in the page.
const drawn = (name, attributes = {}, ...children) => {
  const made = document.createElementNS(document.querySelector("svg").namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};

const exponent = text => text.replace(/e([+-])0*(\d+)/, (_, sign, digits) => "e" + (sign === "-" ? "-" : "") + digits);

// All digits before the decimal point, as the report prints numbers.
const readable = (value, digits = 4) => {
  if (value == null || Number.isNaN(value)) return "";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e15) return String(value);
  if (size >= 1e9 || size < 1e-4) return exponent(value.toExponential(digits - 1).replace(/\.?0+e/, "e"));
  if (size >= 10 ** (digits - 1)) return value.toFixed(0);
  return String(Number(value.toPrecision(digits)));
};

const percent = share => (Number.isNaN(share) ? "" : readable(100 * share, 3) + " %");

const signed = value => (value > 0 ? "+" : "") + readable(value);

// Controls, and characters without a width or that turn the direction of text, get their code as text.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
const named = text => text.replace(HIDDEN, character => "\\u" + character.charCodeAt(0).toString(16).padStart(4, "0"));

// A token in running text: line breaks and tabs as signs. A line break also breaks the line if `broken`.
const inText = (text, broken) =>
  named(text.replace(/\r\n/g, "\n"))
    .replace(/\t/g, "→\t")
    .replace(/\n/g, broken ? "↵\n" : "↵");

// A label or a name, on one line.
const plain = text => inText(text, false);

// A token alone: its outer spaces as signs too.
const alone = text => {
  if (text === "") return el("span", {class: "sign"}, "(empty)");
  const inner = inText(text, false),
    begin = /^ */.exec(inner)[0].length,
    end = / *$/.exec(inner.slice(begin))[0].length;
  const spaces = count => (count > 4 ? `␣\u00d7${count}` : "␣".repeat(count));
  const sign = count => (count ? el("span", {class: "sign"}, spaces(count)) : null);
  return el("bdi", {class: "token"}, sign(begin), inner.slice(begin, inner.length - end), sign(end));
};

// Shows a message, for good or for so many milliseconds.
const say = (text, during) => {
  const status = document.getElementById("status");
  status.textContent = text;
  if (during) setTimeout(() => status.textContent === text && say(""), during);
};
