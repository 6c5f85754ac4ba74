// What a person can change: tabs, settings, the chosen pixel, the theme.

const choices = (from, to) => Array.from({ length: to - from + 1 }, (_, t) => String(from + t));

// The settings of a tab: [key, label, options, current]. A current value that no option offers is kept as one more.
function settings(op, state) {
  if (op === "dense") return [
    ["rows", "Examples", choices(1, 4), String(state.x.length)], ["size", "Inputs", choices(1, 6), String(state.x[0].length)],
    ["outputs", "Outputs", choices(1, 4), String(state.kernel[0].length)],
  ];
  const both = (key) => (state.axes[0][key] === state.axes[1][key] ? String(state.axes[0][key]) : `${state.axes[0][key]} × ${state.axes[1][key]}`);
  const pads = state.axes.map((a) => [a.lo, a.hi]), flat = pads.flat();
  const word = ["VALID", "SAME", String(flat[0])].find((w) => state.axes.every((a, t) => same(padsOf(w, a), pads[t])));
  const shown = state.padding !== "given" ? state.padding : word ?? JSON.stringify(pads);
  const list = [
    ["size", "Input size", choices(2, 8), both("n")], ["window", op === "conv" ? "Kernel size" : "Window size", choices(1, 4), both("k")],
    ["stride", "Stride", choices(1, 3), both("s")], ["padding", "Padding", ["VALID", "SAME", "1", "2", "3"], shown], ["dilation", "Dilation", choices(1, 3), both("d")],
  ];
  if (op === "avg_pool") list.push(["count", "Divide by", ["window size", "pixels inside"], state.countPad ? "window size" : "pixels inside"]);
  return list;
}

function padsOf(word, { n, k, s, d }) {
  const reach = (k - 1) * d + 1;
  if (word === "VALID") return [0, 0];
  if (word !== "SAME") return [Number(word), Number(word)];
  const all = Math.max((Math.ceil(n / s) - 1) * s + reach - n, 0);
  return [Math.floor(all / 2), all - Math.floor(all / 2)];
}

// A matrix of another size: the pixels that exist stay, new ones are drawn.
const resize = (m, rows, columns, seed, salt, low, high) => mapElements(zeros(rows, columns), (_, i, j) => m?.[i]?.[j] ?? drawn(seed, salt, i, j, low, high));

// The state after one setting has changed, or a sentence that says why it cannot be.
function changed(op, state, key, value) {
  const next = copy(state), n = Number(value), seed = next.seed;
  next.start = false;
  if (key === "count") next.countPad = value === "window size";
  if (key === "numbers") { next.seed++; for (const name of ["x", "kernel", "delta"]) next[name] = undefined; }
  const s = key === "numbers" ? next.seed : seed, old = state;
  if (op === "dense") {
    const rows = key === "rows" ? n : old.x.length, size = key === "size" ? n : old.x[0].length, outs = key === "outputs" ? n : old.kernel[0].length;
    next.x = mapElements(resize(next.x, rows, size, s, 1, -2, 4), (v) => (key === "numbers" ? Math.max(v, 0) : v));
    next.kernel = resize(next.kernel, size, outs, s, 2, -2, 3);
    next.bias = resize(next.bias, 1, outs, s, 3, -1, 1);
    next.delta = resize(next.delta, rows, outs, s, 4, -3, 4);
    return next;
  }
  const field = { size: "n", window: "k", stride: "s", dilation: "d" }[key];
  if (field) for (const axis of next.axes) axis[field] = n;
  if (key === "padding") next.padding = value;
  if (next.padding !== "given") for (const axis of next.axes) [axis.lo, axis.hi] = padsOf(next.padding, axis);
  for (const axis of next.axes) {
    axis.out = outputs(axis);
    if (axis.out < 1) return `The ${op === "conv" ? "kernel" : "window"} spans ${count(span(axis), "pixel")}, but the padded input has only ${axis.lo + axis.n + axis.hi}. Choose a larger input, more padding, or a smaller ${op === "conv" ? "kernel" : "window"} first.`;
    if (axis.out > DATA.largest) return `The output would have ${axis.out} × ${axis.out} pixels; at most ${DATA.largest} × ${DATA.largest} are drawn. Choose less padding or a smaller input first.`;
  }
  const [rows, columns] = next.axes;
  next.x = resize(next.x, rows.n, columns.n, s, 1, 0, 5);
  if (op === "conv") next.kernel = resize(next.kernel, rows.k, columns.k, s, 2, -2, 5);
  else {
    const inside = new Set(products(next.axes).map((t) => `${t.p},${t.q}`));
    if (inside.size < rows.out * columns.out) return `With padding ${next.padding === "given" ? "" : next.padding} a window would lie wholly in the padding, with no input pixel to ${op === "max_pool" ? "choose" : "average"}. Choose less padding or a larger window.`;
  }
  next.delta = resize(next.delta, rows.out, columns.out, s, 4, 1, 9);
  return next;
}

// The case on the screen as a call of jaxbp.explain, to be checked by anyone.
function python(op, state) {
  const each = (key) => `(${state.axes.map((a) => a[key]).join(", ")})`, list = (m) => JSON.stringify(m), { delta } = compute(op, state);
  const arrays = { conv: () => [list(state.x), list(state.kernel), list(state.bias)], dense: () => [list(state.x), list(state.kernel), list(state.bias[0])] }[op]?.() ?? [list(state.x)];
  const words = op === "dense" ? [] : [...(op === "conv" ? [] : [`window_shape=${each("k")}`]), `strides=${each("s")}`, `padding=(${state.axes.map((a) => `(${a.lo}, ${a.hi})`).join(", ")})`, `${op === "conv" ? "kernel" : "window"}_dilation=${each("d")}`];
  if (op === "avg_pool") words.push(`count_include_pad=${state.countPad ? "True" : "False"}`);
  return `import jaxbp\n\ncase = jaxbp.explain(\n    "${op}",\n${[...arrays, `delta=${list(delta)}`, ...words].map((a) => `    ${a},\n`).join("")})\nprint(case)\n`;
}

function verdict(state, result) {
  const apart = result.twins.filter(([, one, other]) => differences(one, other)).map(([what]) => what), broken = [...CHECK.problems, ...apart.map((what) => `these settings: ${what} differs`)];
  const refused = Object.entries(DATA.cases).filter(([, given]) => given.refusal).map(([op]) => op);
  if (broken.length) return ["bad", `<b>✗ These numbers do not agree.</b> ${broken.join("; ")}. Do not trust this page; please report it.`];
  if (state.start) return ["good", `<b>✓ Checked just now.</b> Each of the ${CHECK.numbers} numbers of this page's starting cases was computed by this page and by jaxbp ${DATA.jaxbp}, every output and gradient also by JAX ${DATA.jax}'s automatic VJP. All agree.${refused.length ? ` (JAX has no automatic VJP for this ${refused.join(" and ")}; there its output was compared.)` : ""}`];
  return ["good", `<b>✓ Your own settings,</b> computed by this page with the code that was just checked against jaxbp and JAX on the starting case.${result.twins.length ? " Both forms of each gradient agree here too." : ""} The Python at the end repeats this case with jaxbp.`];
}

function render(focus) {
  const [id, op, title] = tab, state = states[op], result = compute(op, state);
  const limits = { input: result.values.input_grad, kernel: result.values.kernel_grad, bias: result.delta, max: result.values.input_grad, avg: result.values.input_grad, dx: result.values.input_grad, dw: result.values.kernel_grad };
  for (const grid of id === "dense" ? ["dx", "dw"] : [id]) chosen[grid] = [Math.min(chosen[grid][0], limits[grid].length - 1), Math.min(chosen[grid][1], limits[grid][0].length - 1)];
  const keep = focus ?? document.activeElement?.id;
  $("tabs").innerHTML = TABS.map(([t, , name]) => `<button role="tab" id="tab-${t}" aria-selected="${t === id}" aria-controls="panel" tabindex="${t === id ? 0 : -1}">${name}</button>`).join("");
  $("controls").innerHTML = `<legend>Settings</legend>${settings(op, state).map(([key, label, options, now]) => `<label for="set-${key}">${label}<select id="set-${key}" data-key="${key}">${(options.includes(now) ? options : [now, ...options]).map((o) => `<option${o === now ? " selected" : ""}>${o}</option>`).join("")}</select></label>`).join("")}
    <button type="button" id="numbers">New numbers</button><button type="button" id="reset"${state.start ? " disabled" : ""}>Starting case</button>`;
  [$("title").innerHTML, $("lead").innerHTML] = LEADS[id];
  $("complaint").textContent = complaint;
  const [mood, words] = verdict(state, result);
  $("check").className = mood;
  $("check").innerHTML = words;
  $("panel").setAttribute("aria-labelledby", `tab-${id}`);
  $("panel").innerHTML = VIEWS[id](state, result);
  $("python").textContent = python(op, state);
  document.title = `${title}: backpropagation, pixel by pixel`;
  showScrolling();
  if (keep && document.activeElement?.id !== keep) $(keep)?.focus({ preventScroll: true });
}

function choose(grid, i, j) {
  chosen[grid] = [i, j];
  render(`${grid}-${i}-${j}`);
  const line = $(grid === "dw" ? "sum2" : "sum");
  $("say").textContent = `${line ? line.textContent : ""} ${grid === "input" ? `Weights met, in reading order: ${[...document.querySelectorAll("#chips li:not(.none)")].map((li) => li.firstChild.textContent).join(" ")}.` : ""}`;
}

function pickTab(id) {
  tab = TABS.find(([t]) => t === id);
  complaint = "";
  render(`tab-${id}`);
}

document.addEventListener("click", (event) => {
  const cell = event.target.closest("[data-pick]"), button = event.target.closest("button"), op = tab[1];
  if (cell) choose(cell.dataset.pick, Number(cell.dataset.row), Number(cell.dataset.column));
  else if (button?.getAttribute("role") === "tab") pickTab(button.id.slice(4));
  else if (button?.id === "numbers") { states[op] = changed(op, states[op], "numbers"); complaint = ""; render(); }
  else if (button?.id === "reset") { states[op] = startState(op); complaint = ""; render("numbers"); }
  else if (button?.id === "theme") {
    const dark = document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    setTheme(dark === "dark" ? "light" : "dark");
  }
});

document.addEventListener("change", (event) => {
  const { key } = event.target.dataset, op = tab[1];
  if (!key) return;
  const next = changed(op, states[op], key, event.target.value);
  complaint = typeof next === "string" ? next : "";
  if (!complaint) states[op] = next;
  render();
});

document.addEventListener("keydown", (event) => {
  if (event.altKey || event.metaKey) return;
  const cell = event.target.closest("[data-pick]"), onTab = event.target.closest("[role=tab]");
  if (cell) {
    const grid = cell.closest("table"), rows = grid.rows.length, columns = grid.rows[0].cells.length;
    let [i, j] = [Number(cell.dataset.row), Number(cell.dataset.column)];
    const moves = { ArrowLeft: [i, j - 1], ArrowRight: [i, j + 1], ArrowUp: [i - 1, j], ArrowDown: [i + 1, j], Home: [event.ctrlKey ? 0 : i, 0], End: [event.ctrlKey ? rows - 1 : i, columns - 1] };
    if (!moves[event.key]) return;
    event.preventDefault();
    [i, j] = moves[event.key];
    if (i >= 0 && j >= 0 && i < rows && j < columns) choose(cell.dataset.pick, i, j);
  } else if (onTab) {
    const at = TABS.findIndex(([id]) => id === tab[0]), to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: TABS.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    pickTab(TABS[(to + TABS.length) % TABS.length][0]);
  }
});

// Matrices that are wider than the page say that they scroll.
function showScrolling() {
  for (const box of document.querySelectorAll(".scroll")) box.classList.toggle("more", box.scrollWidth > box.clientWidth);
}

// The choice of theme outlives a reload, where the browser lets a page keep anything.
function setTheme(name) {
  document.documentElement.dataset.theme = name;
  try { localStorage.setItem("jaxbp-theme", name); } catch { /* the choice is kept for this page only */ }
}
try { if (localStorage.getItem("jaxbp-theme")) document.documentElement.dataset.theme = localStorage.getItem("jaxbp-theme"); } catch { /* nothing is kept */ }
render();
addEventListener("resize", showScrolling);
