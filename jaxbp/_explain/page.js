// The page's state, its words, and the two pictures that every view is made of: a matrix and a small window.

const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"]
  .map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
const TABS = [
  ["input", "conv", "Input gradient"], ["kernel", "conv", "Kernel gradient"], ["bias", "conv", "Bias"],
  ["max", "max_pool", "Max pooling"], ["avg", "avg_pool", "Average pooling"], ["dense", "dense", "Dense layer"],
];
// The title and the first sentence of a tab.
const LEADS = {
  input: ["Why does backpropagation rotate the kernel?", "You know the forward pass: a kernel slides over an input. Going back, every input pixel asks <b>which outputs used me, and through which weight?</b> The answers, read in order, are the kernel backwards."],
  kernel: ["How does a kernel get its gradient?", "Going back, every weight asks <b>which inputs did I multiply, and for which output?</b> The answers are a window of δ that slides over the input."],
  bias: ["How does a bias get its gradient?", "The bias was added to every output, so every output's δ comes back to it."],
  max: ["Where does a max pool send its gradient?", "Each window passed on one pixel, the winner. Going back, each δ goes to its winner."],
  avg: ["How does an average pool share its gradient?", "Each window passed on the mean of its pixels. Going back, each δ is shared out evenly."],
  dense: ["How does a dense layer send its gradient back?", "Every input entered every output of its row. Going back, each layer needs only δ, the gradient above it."],
};

const copy = (value) => JSON.parse(JSON.stringify(value));
const startState = (op) => {
  const given = DATA.cases[op];
  return { ...copy(given.given), axes: copy(given.axes), deltaIsOutput: given.deltaIsOutput, countPad: given.countPad, padding: "given", seed: 0, start: true };
};
const states = Object.fromEntries(Object.keys(DATA.cases).map((op) => [op, startState(op)]));
const CHECK = checkAll(DATA.cases, states);
const chosen = { input: DATA.pixels.conv, kernel: [0, 0], bias: [0, 0], max: DATA.pixels.max_pool, avg: DATA.pixels.avg_pool, dx: DATA.pixels.dense, dw: [0, 0] };
let tab = TABS.find(([id]) => `#${id}` === location.hash) ?? TABS.find(([, op]) => op === DATA.start);
let complaint = "";

// ---- words ----
const digits = (v) => (Math.abs(v) < 10 ? 3 : Math.abs(v) < 100 ? 2 : 1);
const show = (v) => String(Number(v.toFixed(digits(v)))).replace("-", "−");
const term = (v) => (v < 0 ? `(${show(v)})` : show(v));
const nm = (letter, [i, j]) => `${letter}${i + 1}${i > 8 || j > 8 ? "," : ""}${j + 1}`;
const same = ([a, b], [c, d]) => a === c && b === d;
const count = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

function colour(t, of) {
  const at = of > 1 ? (t / (of - 1)) * (VIRIDIS.length - 1) : 4, low = Math.floor(at), high = Math.min(low + 1, VIRIDIS.length - 1);
  const rgb = VIRIDIS[low].map((v, c) => Math.round(v + (at - low) * (VIRIDIS[high][c] - v)));
  const light = total(rgb.map((v) => ((v / 255 + 0.055) / 1.055) ** 2.4).map((v, c) => v * [0.2126, 0.7152, 0.0722][c]));
  return { fill: `rgb(${rgb})`, ink: light > 0.179 ? "#000" : "#fff" };
}
const paint = ({ fill, ink }) => `--fill:${fill};--ink:${ink}`;

// ---- a matrix ----
// look(i, j, value) may say: hue (a colour: the pixel is lit), label, zero (a padding zero), ring (inside a window), say (for screen readers).
// pick: its pixels are chosen here; also: a click on one of its pixels chooses the same pixel of that grid.
function matrix({ id, title, values, look = () => ({}), pick = false, also = "" }) {
  const name = title.replace(/<[^>]*>/g, ""), at = pick && chosen[id];
  const rows = values.map((row, i) => `<tr>${row.map((value, j) => {
    const { hue, label, zero, ring, mark, say } = look(i, j, value), on = at && same(at, [i, j]), text = show(value);
    const kind = [hue && "lit", zero && "zero", ring && "ring", (on || mark) && "on", text.length > 4 && "long"].filter(Boolean).join(" ");
    const words = `${name}, row ${i + 1}, column ${j + 1}: ${text}${say ? `, ${say}` : label ? `, ${label}` : ""}`;
    const role = pick ? `role="gridcell" id="${id}-${i}-${j}" data-pick="${id}" tabindex="${on ? 0 : -1}" aria-selected="${!!on}"` : also && `data-pick="${also}"`;
    return `<td ${role} data-row="${i}" data-column="${j}" data-value="${value}" aria-label="${words}"${kind ? ` class="${kind}"` : ""}${hue ? ` style="${paint(hue)}"` : ""}><span>${text}</span>${label ? `<small>${label}</small>` : ""}</td>`;
  }).join("")}</tr>`).join("");
  return `<figure class="matrix" style="--cols:${values[0].length}"><figcaption>${title}</figcaption>
    <div class="scroll"${values[0].length > 8 ? ` tabindex="0" role="group" aria-label="${name}, scrollable"` : ""}><table id="m-${id}"${pick ? ' role="grid"' : ""} aria-label="${name}${pick ? ". Arrow keys move the choice" : ""}"><tbody>${rows}</tbody></table></div>${pick ? '<p class="note">Pick here: click, tap or arrow keys.</p>' : ""}</figure>`;
}
const section = (title, body) => `<section><h2>${title}</h2>${body}</section>`;
const row = (...parts) => `<div class="row">${parts.join("")}</div>`;
const p = (text) => `<p>${text}</p>`;
const sum = (id, left, names, numbers, result) => `<p class="sum" id="${id}"><b>${left}</b> = ${names.length ? `${names.join(" + ")} = ${numbers.join(" + ")} = ` : ""}<strong data-value="${result}">${show(result)}</strong></p>`;
const tint = (hue, text) => `<span class="tint" style="${paint(hue)}">${text}</span>`;

// A small drawing of the padded input with one window on it and the chosen pixel inside.
function mini({ axes }, use, pixel, hue, caption) {
  const [rows, columns] = axes, high = rows.lo + rows.n + rows.hi, wide = columns.lo + columns.n + columns.hi;
  const size = Math.max(11, Math.min(20, Math.floor(72 / wide)));
  let body = "";
  for (let i = 0; i < high; i++) for (let j = 0; j < wide; j++) {
    const r = i - use.p * rows.s, c = j - use.q * columns.s, inside = i >= rows.lo && i < rows.lo + rows.n && j >= columns.lo && j < columns.lo + columns.n;
    const tap = r >= 0 && c >= 0 && r < span(rows) && c < span(columns) && r % rows.d === 0 && c % columns.d === 0;
    const here = i - rows.lo === pixel[0] && j - columns.lo === pixel[1];
    body += `<rect x="${j * size + 1}" y="${i * size + 1}" width="${size - 1}" height="${size - 1}" class="${here ? "here" : tap ? "tap" : inside ? "in" : "out"}"${here ? ` style="fill:${hue.fill}"` : ""}/>`;
  }
  body += `<rect class="frame" x="${use.q * columns.s * size + 0.5}" y="${use.p * rows.s * size + 0.5}" width="${span(columns) * size}" height="${span(rows) * size}"/>`;
  return `<figure class="mini"><svg viewBox="-1 -1 ${wide * size + 3} ${high * size + 3}" width="${wide * size + 3}" aria-hidden="true">${body}</svg><figcaption>${caption}</figcaption></figure>`;
}
