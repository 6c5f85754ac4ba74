// The arithmetic of the page: forward, backward, and the comparison with what jaxbp and JAX computed. No DOM here.

const zeros = (rows, columns, fill = 0) => Array.from({ length: rows }, () => Array(columns).fill(fill));
const mapElements = (m, f) => m.map((row, i) => row.map((value, j) => f(value, i, j)));
const rot180 = (m) => m.map((row) => [...row].reverse()).reverse();
const transpose = (m) => m[0].map((_, j) => m.map((row) => row[j]));
const multiply = (a, b) => mapElements(zeros(a.length, b[0].length), (_, i, j) => b.reduce((sum, row, t) => sum + a[i][t] * row[j], 0));
const total = (list) => list.reduce((a, b) => a + b, 0);
const span = (axis) => (axis.k - 1) * axis.d + 1;
const outputs = (axis) => Math.floor((axis.n + axis.lo + axis.hi - span(axis)) / axis.s) + 1;

// Where along one axis the window of output o meets the input with its tap t.
const position = (axis, o, t) => o * axis.s + t * axis.d - axis.lo;

// The output that met input i with its tap t: where it stands, or why there is none.
function meeting(axis, i, t) {
  const offset = i + axis.lo - t * axis.d;
  if (offset % axis.s !== 0) return { skipped: true };
  const o = offset / axis.s;
  return o >= 0 && o < axis.out ? { o } : { outside: true };
}

// Every product of the forward pass: output (p, q) used input (i, j) through weight (a, b).
function products([rows, columns]) {
  const list = [];
  for (let p = 0; p < rows.out; p++) for (let q = 0; q < columns.out; q++)
    for (let a = 0; a < rows.k; a++) for (let b = 0; b < columns.k; b++) {
      const i = position(rows, p, a), j = position(columns, q, b);
      if (i >= 0 && i < rows.n && j >= 0 && j < columns.n) list.push({ p, q, a, b, i, j });
    }
  return list;
}

// Zeros around a matrix, or elements taken away where a count is negative.
function pad(m, [[top, bottom], [left, right]]) {
  const out = zeros(m.length + top + bottom, m[0].length + left + right);
  return mapElements(out, (_, i, j) => m[i - top]?.[j - left] ?? 0);
}

// Zeros between the elements of a matrix.
const dilate = (m, [s0, s1]) =>
  mapElements(zeros((m.length - 1) * s0 + 1, (m[0].length - 1) * s1 + 1), (_, i, j) => (i % s0 || j % s1 ? 0 : m[i / s0][j / s1]));

// Slide `small` over `large`: its elements stand `step` apart, the window moves by `stride`.
function slide(large, small, step = [1, 1], stride = [1, 1]) {
  const size = (axis, n, k) => Math.floor((n - (k - 1) * step[axis] - 1) / stride[axis]) + 1;
  return mapElements(zeros(size(0, large.length, small.length), size(1, large[0].length, small[0].length)), (_, i, j) =>
    total(small.flatMap((row, a) => row.map((w, b) => w * large[i * stride[0] + a * step[0]][j * stride[1] + b * step[1]]))));
}

// Padding of delta for the input gradient (the rotated kernel slides) and for the article's kernel gradient (x slides).
const inputPads = (axes) => axes.map((x) => {
  const low = span(x) - 1 - x.lo;
  return [low, x.n + span(x) - 1 - ((x.out - 1) * x.s + 1) - low];
});
const kernelPads = (axes) => axes.map((x) => [span(x) - 1, x.lo + x.n + x.hi - ((x.out - 1) * x.s + 1)]);

function convolution(state) {
  const { axes, x, kernel, bias } = state, list = products(axes), each = (key) => axes.map((axis) => axis[key]);
  const output = zeros(axes[0].out, axes[1].out, bias[0]);
  for (const t of list) output[t.p][t.q] += x[t.i][t.j] * kernel[t.a][t.b];
  const delta = state.deltaIsOutput ? output : state.delta;
  const input_grad = mapElements(x, () => 0), kernel_grad = mapElements(kernel, () => 0);
  for (const t of list) {
    input_grad[t.i][t.j] += delta[t.p][t.q] * kernel[t.a][t.b];
    kernel_grad[t.a][t.b] += delta[t.p][t.q] * x[t.i][t.j];
  }
  const spread = dilate(delta, each("s")), rotated_kernel = rot180(kernel), padded_x = pad(x, axes.map((a) => [a.lo, a.hi]));
  const padded_delta = pad(spread, inputPads(axes)), kernel_padded_delta = pad(spread, kernelPads(axes));
  const before_rotation = slide(kernel_padded_delta, padded_x, [1, 1], each("d"));
  const twins = [
    ["the input gradient as one window of rot180(W)", input_grad, slide(padded_delta, rotated_kernel, each("d"))],
    ["the kernel gradient as delta laid over x", kernel_grad, slide(padded_x, delta, each("s"), each("d")).slice(0, axes[0].k).map((r) => r.slice(0, axes[1].k))],
    ["the kernel gradient by the article's form", kernel_grad, rot180(before_rotation)],
  ];
  return { list, delta, twins, values: { output, input_grad, kernel_grad, bias_grad: [[total(delta.flat())]], rotated_kernel, padded_x, padded_delta, kernel_padded_delta, before_rotation } };
}

function pooling(state, op) {
  const { axes, x } = state, list = products(axes), seen = zeros(axes[0].out, axes[1].out).map((row) => row.map(() => []));
  for (const t of list) seen[t.p][t.q].push(t);
  const counts = mapElements(seen, (pixels) => (op === "avg_pool" && !state.countPad ? pixels.length : axes[0].k * axes[1].k));
  const best = mapElements(seen, (pixels) => pixels.reduce((a, b) => (x[b.i][b.j] > x[a.i][a.j] ? b : a), pixels[0]));
  const output = op === "max_pool" ? mapElements(best, (t) => (t ? x[t.i][t.j] : -Infinity))
    : mapElements(seen, (pixels, p, q) => total(pixels.map((t) => x[t.i][t.j])) / counts[p][q]);
  const delta = state.deltaIsOutput ? output : state.delta, input_grad = mapElements(x, () => 0);
  for (const t of list) {
    if (op === "avg_pool") input_grad[t.i][t.j] += delta[t.p][t.q] / counts[t.p][t.q];
    else if (best[t.p][t.q] === t) input_grad[t.i][t.j] += delta[t.p][t.q];
  }
  const values = { output, input_grad };
  if (op === "max_pool") values.winners = mapElements(best, (t) => (t ? t.a * axes[1].k + t.b : 0));
  return { list, delta, best, counts, twins: [], values };
}

function denseLayer(state) {
  const { x, kernel, bias } = state, output = mapElements(multiply(x, kernel), (v, i, j) => v + bias[0][j]);
  const delta = state.deltaIsOutput ? output : state.delta, input_grad = multiply(delta, transpose(kernel));
  const bias_grad = [transpose(delta).map(total)];
  return { delta, twins: [], values: { output, input_grad, kernel_grad: multiply(transpose(x), delta), bias_grad, delta_below: mapElements(input_grad, (v, i, j) => (x[i][j] > 0 ? v : 0)) } };
}

const compute = (op, state) => (op === "conv" ? convolution(state) : op === "dense" ? denseLayer(state) : pooling(state, op));

// Float32 sums of another order differ in their last bits; whole numbers must be equal, and are at this tolerance.
function differences(mine, theirs) {
  const a = mine.flat(), b = theirs.flat(), scale = Math.max(...b.map(Math.abs), 1e-30);
  if (a.length !== b.length) return a.length;
  return a.filter((value, t) => !(Math.abs(value - b[t]) <= 1e-5 * scale)).length;
}

// All numbers of the starting cases against jaxbp's and JAX's: how many there are, and which disagree.
function checkAll(cases, states) {
  const result = { numbers: 0, problems: [] };
  for (const [op, given] of Object.entries(cases)) {
    const { values, twins } = compute(op, states[op]);
    for (const [who, theirs] of [["jaxbp", given.manual], ["JAX's automatic VJP", given.automatic]])
      for (const [key, matrix] of Object.entries(theirs)) {
        const wrong = differences(values[key], matrix);
        if (who === "jaxbp") result.numbers += matrix.flat().length;
        if (wrong) result.problems.push(`${op} ${key}: ${wrong} numbers differ from ${who}`);
      }
    for (const [what, one, other] of twins) if (differences(one, other)) result.problems.push(`${op}: ${what} differs`);
  }
  return result;
}

// A small whole number for a pixel that the starting case does not have; the same for the same seed and place.
function drawn(seed, salt, i, j, low, high) {
  let h = (Math.imul(seed + 1, 374761393) + Math.imul(salt, 668265263) + Math.imul(i + 1, 2246822519) + Math.imul(j + 1, 3266489917)) >>> 0;
  h = Math.imul(h ^ (h >>> 13), 1274126177) >>> 0;
  return low + ((h ^ (h >>> 16)) >>> 0) % (high - low + 1);
}
