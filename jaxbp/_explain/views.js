// One view per tab: each returns its HTML from a state and what the arithmetic made of it.

const hues = (k) => (a, b) => colour(a * k[1].k + b, k[0].k * k[1].k);

function inputTab(state, { values, delta, list }) {
  const { axes, x, kernel } = state, [rows, columns] = axes, pixel = chosen.input, hue = hues(axes), me = nm("x", pixel);
  const used = list.filter((t) => same([t.i, t.j], pixel)), find = (p, q) => used.find((t) => same([t.p, t.q], [p, q]));
  const w = (t) => nm("w", [t.a, t.b]), taps = rows.k * columns.k, strided = rows.s > 1 || columns.s > 1;
  const litOutputs = (letter) => (i, j) => { const t = find(i, j); return t ? { hue: hue(t.a, t.b), label: w(t), say: `used ${me} through ${w(t)}` } : {}; };
  const chips = (flip) => Array.from({ length: taps }, (_, n) => {
    const t = flip ? taps - 1 - n : n, a = Math.floor(t / columns.k), b = t % columns.k, hit = used.find((u) => same([u.a, u.b], [a, b]));
    const lost = [meeting(rows, pixel[0], a), meeting(columns, pixel[1], b)];
    const why = lost.some((m) => m.outside) ? "no such output" : "skipped by stride";
    return flip && !hit ? `<li class="none">${nm("w", [a, b])}<small>${why}</small></li>` : `<li style="${paint(hue(a, b))}">${nm("w", [a, b])}<small>${flip ? `in ${nm("z", [hit.p, hit.q])}` : show(kernel[a][b])}</small></li>`;
  }).join("");
  const offset = [pixel[0], pixel[1]], tap = (i, j) => {
    const a = (i - offset[0]) / rows.d, b = (j - offset[1]) / columns.d;
    return Number.isInteger(a) && Number.isInteger(b) && a >= 0 && b >= 0 && a < rows.k && b < columns.k ? [rows.k - 1 - a, columns.k - 1 - b] : null;
  };
  const real = pad(dilate(mapElements(delta, () => 1), [rows.s, columns.s]), inputPads(axes));
  return section(`1. Pick an input. Which outputs used it?`,
    p(`Going forward, an output is one window of the input: each pixel times its weight, summed${state.bias[0] ? `, plus the bias b = ${show(state.bias[0])}` : ""}. <b>${me}</b> was in ${count(used.length, "window")}; ${used.length === 1 ? "its output is lit, labelled" : "the outputs of those windows are lit, each labelled"} with the weight that met ${me} there.`) +
    row(
      matrix({ id: "x", also: "input", title: "Input x", values: x, look: (i, j) => ({ mark: same([i, j], pixel), say: same([i, j], pixel) ? "chosen" : "" }) }),
      matrix({ id: "input", title: "Gradient of the input, dJ/dx", values: values.input_grad, pick: true }),
      matrix({ id: "z", title: "Outputs z that used it", values: values.output, look: litOutputs("z") }),
      matrix({ id: "w", title: "Kernel W", values: kernel, look: (a, b) => ({ hue: hue(a, b), label: nm("w", [a, b]) }) })) +
    (used.length ? p(`Follow ${me} (coloured) through those windows, in reading order. As the window moves right, ${me} sits further <b>left</b> in it; as it moves down, ${me} sits further <b>up</b>.`) +
      `<div class="minis">${used.slice(0, 16).map((t) => mini(state, t, pixel, hue(t.a, t.b), `${nm("z", [t.p, t.q])}: ${w(t)}`)).join("")}</div>` : "") +
    `<p class="chipname" id="kernel-order">The kernel, first entry to last:</p><ol class="chips" aria-labelledby="kernel-order">${chips(false)}</ol>
     <p class="chipname" id="used-order">What ${me} met, output by output in reading order:</p><ol class="chips" id="chips" aria-labelledby="used-order">${chips(true)}</ol>` +
    `<p class="point">${used.length === taps ? "The second line is the first, backwards" : "The second line is the first, backwards, with gaps"}: the first window to reach a pixel meets it with its <b>last</b> weight. Backwards along the rows and down the columns is a turn by 180°.</p>`) +
  section(`2. Each of them sends its δ back through that weight`,
    p(`δ = dJ/dz says how much the loss J grows when an output grows; ${state.deltaIsOutput ? "here J is half the sum of z², so δ is z itself" : "it comes from the layer above"}. ${used.length ? `${nm("z", [used[0].p, used[0].q])} contains the product ${w(used[0])}·${me}. If ${me} grows by 1, ${nm("z", [used[0].p, used[0].q])} grows by ${w(used[0])} = ${show(kernel[used[0].a][used[0].b])}, and J by ${nm("δ", [used[0].p, used[0].q])}·${w(used[0])}. Add this up over every output that used ${me}:` : `No output used ${me}, so J does not depend on it.`}`) +
    row(matrix({ id: "delta", title: "δ = dJ/dz", values: delta, look: litOutputs("δ") }),
      `<div class="words">${sum("sum", `dJ/d${me}`, used.map((t) => tint(hue(t.a, t.b), `${nm("δ", [t.p, t.q])}·${w(t)}`)), used.map((t) => `${term(delta[t.p][t.q])}·${term(kernel[t.a][t.b])}`), values.input_grad[pixel[0]][pixel[1]])}</div>`)) +
  section(`3. The same sum as one window`,
    p(`Put the weights down on δ where they are needed, and they lie there as <b>rot180(W)</b>. ${strided ? "The outputs that the stride skipped are zeros between δ's pixels. " : ""}Zeros around δ stand for outputs that do not exist${rows.d > 1 || columns.d > 1 ? "; the weights stand apart as in the forward pass" : ""}. Slide this one window over padded δ and it computes all of dJ/dx.`) +
    row(
      matrix({ id: "padded", title: "Padded δ, with the window for " + me, values: values.padded_delta, look: (i, j) => { const t = tap(i, j); return { zero: !real[i][j], hue: t && hue(...t), label: t && nm("w", t) }; } }),
      matrix({ id: "rotated", title: "rot180(W)", values: values.rotated_kernel, look: (i, j) => { const t = [rows.k - 1 - i, columns.k - 1 - j]; return { hue: hue(...t), label: nm("w", t) }; } }),
      `<div class="words">${p("Same colours, same pairs, same sum:")}${p(`<b>dJ/dx = δ <i>(full)</i> rot180(W)</b>`)}</div>`));
}

function kernelTab(state, { values, delta, list }) {
  const { axes } = state, [rows, columns] = axes, at = chosen.kernel, me = nm("w", at), outs = rows.out * columns.out;
  const hue = (p_, q) => colour(p_ * columns.out + q, outs), used = list.filter((t) => same([t.a, t.b], at));
  const place = [rows.k - 1 - at[0], columns.k - 1 - at[1]], low = axes.map((a) => a.lo);
  const outputAt = (i, j) => { const o = [(i - at[0] * rows.d) / rows.s, (j - at[1] * columns.d) / columns.s]; return o.every(Number.isInteger) && o[0] >= 0 && o[1] >= 0 && o[0] < rows.out && o[1] < columns.out ? o : null; };
  const inside = (i, j) => i >= low[0] && j >= low[1] && i < low[0] + rows.n && j < low[1] + columns.n;
  const xName = (i, j) => (inside(i, j) ? nm("x", [i - low[0], j - low[1]]) : "0");
  const start = place.map((v, axis) => v * axes[axis].d), under = (i, j) => [i - start[0], j - start[1]];
  const covered = (i, j) => { const [r, c] = under(i, j); return r >= 0 && c >= 0 && r < values.padded_x.length && c < values.padded_x[0].length; };
  const padded = axes.some((a) => a.lo || a.hi), strided = rows.s > 1 || columns.s > 1;
  return section("1. Pick a weight. Which inputs did it multiply?",
    p(`Every output used <b>${me}</b> once: each time on another input${padded ? ", or on a zero of the padding" : ""}. Those inputs are lit, labelled with the δ of the output.`) +
    row(
      matrix({ id: "kernel", title: "Gradient of the kernel, dJ/dW", values: values.kernel_grad, pick: true }),
      matrix({ id: "kx", title: padded ? "Padded input x" : "Input x", values: values.padded_x, look: (i, j) => { const o = outputAt(i, j); return { zero: !inside(i, j), hue: o && hue(...o), label: o && nm("δ", o) }; } }),
      matrix({ id: "kdelta", title: "δ = dJ/dz", values: delta, look: (i, j) => ({ hue: hue(i, j), label: xName(i * rows.s + at[0] * rows.d, j * columns.s + at[1] * columns.d) }) })) +
    sum("sum", `dJ/d${me}`, used.map((t) => tint(hue(t.p, t.q), `${nm("δ", [t.p, t.q])}·${nm("x", [t.i, t.j])}`)), used.map((t) => `${term(delta[t.p][t.q])}·${term(state.x[t.i][t.j])}`), values.kernel_grad[at[0]][at[1]])) +
  section("2. First form: lay δ over x",
    `<p class="point">The lit inputs have δ's own shape${strided ? ", a stride apart," : ""} and δ's own order: nothing is turned. The next weight to the right moves the whole patch to the right. So slide δ over x as it is: <b>dJ/dW = x <i>(corr)</i> δ</b>.</p>`) +
  section("3. Second form, the article's: slide x over padded δ, then rotate",
    p(`The same pairs, with the roles exchanged: x (framed) slides over padded δ. To bring ${xName(at[0] * rows.d, at[1] * columns.d)} under δ11, x has to start at row ${start[0] + 1}, column ${start[1] + 1}. For the first weight x moves furthest right and down, for the last weight not at all: the results come out in reverse, and <b>rot180</b> puts them in order.`) +
    row(
      matrix({ id: "kpadded", title: "Padded δ, x laid over it", values: values.kernel_padded_delta, look: (i, j) => {
        const r = (i - span(rows) + 1) / rows.s, c = (j - span(columns) + 1) / columns.s, pixel = Number.isInteger(r) && Number.isInteger(c) && r >= 0 && c >= 0 && r < rows.out && c < columns.out;
        return { ring: covered(i, j), zero: !pixel, hue: pixel && hue(r, c), label: pixel ? xName(...under(i, j)) : "", say: covered(i, j) ? `under ${xName(...under(i, j))}` : "" };
      } }),
      matrix({ id: "before", title: "Before the rotation", values: values.before_rotation, look: (i, j) => ({ mark: same([i, j], place), say: same([i, j], place) ? `becomes dJ/d${me}` : "" }) }),
      matrix({ id: "after", title: "rot180 of it = dJ/dW", values: rot180(values.before_rotation), look: (i, j) => ({ mark: same([i, j], at) }) })));
}

function biasTab(state, { values, delta }) {
  const at = chosen.bias, z = nm("z", at), all = delta.flatMap((r, i) => r.map((v, j) => [nm("δ", [i, j]), term(v)]));
  return section("One number that every output added",
    p(`<b>${z}</b> = (its window times W) + b. If b = ${show(state.bias[0])} grows by 1, ${z} grows by 1, and J by ${nm("δ", at)} = ${show(delta[at[0]][at[1]])}. Every other output grows by 1 as well. So the gradient of b is the sum of δ over all positions (and over the images of a batch).`) +
    row(matrix({ id: "bias", title: "δ = dJ/dz", values: delta, pick: true, look: (i, j) => ({ hue: colour(4, 9), label: nm("δ", [i, j]) }) }),
      matrix({ id: "bz", title: "Outputs z = x ⋆ W + b", values: values.output, look: (i, j) => ({ mark: same([i, j], at), label: "+ b" }) })) +
    sum("sum", "dJ/db", all.map((t) => t[0]), all.map((t) => t[1]), values.bias_grad[0][0]));
}

function maxTab(state, { values, delta, list, best }) {
  const { axes, x } = state, pixel = chosen.max, me = nm("x", pixel), mine = list.filter((t) => same([t.i, t.j], pixel)), value = x[pixel[0]][pixel[1]];
  const verdict = (t) => (best[t.p][t.q] === t ? "won" : x[t.i][t.j] === values.output[t.p][t.q] ? "tie" : "lost");
  const find = (i, j) => mine.find((t) => same([t.p, t.q], [i, j])), hue = { won: colour(8, 10), tie: colour(4, 10), lost: colour(0, 10) };
  const near = (i, j) => mine.some((t) => list.some((u) => same([u.p, u.q], [t.p, t.q]) && same([u.i, u.j], [i, j])));
  const wins = mapElements(x, () => 0), tied = list.filter((t) => verdict(t) === "tie").length;
  best.flat().forEach((t) => { wins[t.i][t.j]++; });
  const story = mine.map((t) => {
    const z = nm("z", [t.p, t.q]), top = show(values.output[t.p][t.q]), b = best[t.p][t.q], d = nm("δ", [t.p, t.q]);
    return { won: `<b>${z}</b> = ${top} <b>is</b> ${me}: it won, so ${d} = ${show(delta[t.p][t.q])} comes to it.`, tie: `<b>${z}</b> = ${top}: ${me} ties with ${nm("x", [b.i, b.j])}, which comes first in reading order and takes all of ${d}.`, lost: `<b>${z}</b> = ${top} is ${nm("x", [b.i, b.j])}. ${me} = ${show(value)} lost: moving it a little changes nothing.` }[verdict(t)];
  });
  return section("1. Pick an input. Did it win?",
    p(`Going forward, each window passes on its largest pixel, the <b>winner</b> (★). Only the winner changes the output, so δ goes to the winner and every other pixel of the window gets 0. <b>${me}</b> was in ${count(mine.length, "window")}.`) +
    row(
      matrix({ id: "max", title: "Gradient of the input, dJ/dx", values: values.input_grad, pick: true, look: (i, j) => ({ label: wins[i][j] ? "★" : "", say: wins[i][j] ? `winner of ${count(wins[i][j], "window")}` : "" }) }),
      matrix({ id: "x", also: "max", title: "Input x: winners ★, its windows framed", values: x, look: (i, j) => ({ mark: same([i, j], pixel), ring: near(i, j), label: "★".repeat(Math.min(wins[i][j], 3)), say: `${wins[i][j] ? `winner of ${count(wins[i][j], "window")}` : ""}${near(i, j) ? ` in a window of ${me}` : ""}` }) }),
      matrix({ id: "z", title: "Outputs z", values: values.output, look: (i, j) => { const t = find(i, j); return t ? { hue: hue[verdict(t)], label: verdict(t) } : {}; } }),
      matrix({ id: "delta", title: "δ = dJ/dz", values: delta, look: (i, j) => { const t = find(i, j); return t ? { hue: hue[verdict(t)], label: verdict(t) } : {}; } })) +
    `<ul class="story" id="story">${story.map((s) => `<li>${s}</li>`).join("") || "<li>No window covers it: its gradient is 0.</li>"}</ul>` +
    sum("sum", `dJ/d${me}`, mine.filter((t) => verdict(t) === "won").map((t) => nm("δ", [t.p, t.q])), mine.filter((t) => verdict(t) === "won").map((t) => term(delta[t.p][t.q])), values.input_grad[pixel[0]][pixel[1]])) +
  section("2. The rule: upsample",
    p(`Going forward, keep one small number per window: the winner's place inside it, counted from 0 in reading order. Going back, put each δ at that place and zeros elsewhere; where windows overlap, add. ${tied ? `Here ${count(tied, "pixel")} equal${tied === 1 ? "s" : ""} a window's maximum without being its first: <b>the first of equal maxima wins</b>, as in JAX and PyTorch.` : "No window has a tie here (try New numbers); when there is one, the first maximum in reading order wins, as in JAX and PyTorch."}`) +
    row(matrix({ id: "winners", title: "Winners: places in the window", values: values.winners, look: (i, j) => ({ label: nm("x", [best[i][j].i, best[i][j].j]) }) })));
}

function avgTab(state, { values, delta, list, counts }) {
  const { axes, x } = state, pixel = chosen.avg, me = nm("x", pixel), mine = list.filter((t) => same([t.i, t.j], pixel));
  const near = (i, j) => mine.some((t) => list.some((u) => same([u.p, u.q], [t.p, t.q]) && same([u.i, u.j], [i, j])));
  const hue = (t) => colour(mine.indexOf(t), mine.length), find = (i, j) => mine.find((t) => same([t.p, t.q], [i, j]));
  const lit = (i, j) => { const t = find(i, j); return t ? { hue: hue(t), label: `÷${counts[i][j]}` } : {}; };
  return section("1. Pick an input. Who averaged it?",
    p(`Going forward, an output is the mean of its window: each pixel times 1/${axes[0].k * axes[1].k}${state.countPad ? "" : " (or 1 / the pixels that lie inside the input)"}. An average pool is a convolution whose weights are all the same, so turning its kernel changes nothing: each δ is simply shared out evenly over its window. <b>${me}</b> was in ${count(mine.length, "window")}.`) +
    row(
      matrix({ id: "avg", title: "Gradient of the input, dJ/dx", values: values.input_grad, pick: true }),
      matrix({ id: "delta", title: "δ = dJ/dz", values: delta, look: lit }),
      matrix({ id: "z", title: "Outputs z", values: values.output, look: lit }),
      matrix({ id: "x", also: "avg", title: "Input x, its windows framed", values: x, look: (i, j) => ({ mark: same([i, j], pixel), ring: near(i, j), say: near(i, j) ? `in a window of ${me}` : "" }) })) +
    sum("sum", `dJ/d${me}`, mine.map((t) => tint(hue(t), `${nm("δ", [t.p, t.q])}/${counts[t.p][t.q]}`)), mine.map((t) => `${term(delta[t.p][t.q])}/${counts[t.p][t.q]}`), values.input_grad[pixel[0]][pixel[1]])) +
  section("2. The rule: upsample", p("Spread δ / (number of pixels averaged) over every window. Where windows overlap, the shares add up; where the stride leaves pixels out, nothing arrives."));
}

function denseTab(state, { values, delta }) {
  const { x, kernel } = state, [i, j] = chosen.dx, [a, b] = chosen.dw, outs = kernel[0].length, batch = x.length;
  const out = (n) => colour(n, outs), image = (n) => colour(n, batch);
  return section("1. Forward, and what arrives from above",
    p("Every output is a row of x times a column of W, plus b. δ = dJ/dz is all that this layer has to know about the layers above it.") +
    row(matrix({ id: "x", title: "x (a row per example)", values: x }), matrix({ id: "w", title: "W", values: kernel }), matrix({ id: "b", title: "b", values: state.bias }), matrix({ id: "z", title: "z = x W + b", values: values.output }))) +
  section("2. Pick an input: dJ/dx = δ Wᵀ",
    p(`<b>${nm("x", [i, j])}</b> entered every output of its own row, ${nm("z", [i, 0])}${outs > 1 ? ` to ${nm("z", [i, outs - 1])}` : ""}, through the weights of row ${j + 1} of W, which is column ${j + 1} of Wᵀ.`) +
    row(matrix({ id: "dx", title: "Gradient of the input, dJ/dx", values: values.input_grad, pick: true }),
      matrix({ id: "delta", title: "δ = dJ/dz", values: delta, look: (r, c) => (r === i ? { hue: out(c), label: nm("w", [j, c]) } : {}) }),
      matrix({ id: "wrow", title: "W, row " + (j + 1) + " lit", values: kernel, look: (r, c) => (r === j ? { hue: out(c), label: nm("δ", [i, c]) } : {}) })) +
    sum("sum", `dJ/d${nm("x", [i, j])}`, delta[i].map((_, c) => tint(out(c), `${nm("δ", [i, c])}·${nm("w", [j, c])}`)), delta[i].map((v, c) => `${term(v)}·${term(kernel[j][c])}`), values.input_grad[i][j])) +
  section("3. Pick a weight: dJ/dW = xᵀ δ",
    p(`<b>${nm("w", [a, b])}</b> was used once per example: on column ${a + 1} of x, for column ${b + 1} of z.`) +
    row(matrix({ id: "dw", title: "Gradient of the kernel, dJ/dW", values: values.kernel_grad, pick: true }),
      matrix({ id: "xcol", title: "x, column " + (a + 1) + " lit", values: x, look: (r, c) => (c === a ? { hue: image(r), label: nm("δ", [r, b]) } : {}) }),
      matrix({ id: "dcol", title: "δ, column " + (b + 1) + " lit", values: delta, look: (r, c) => (c === b ? { hue: image(r), label: nm("x", [r, a]) } : {}) })) +
    sum("sum2", `dJ/d${nm("w", [a, b])}`, x.map((_, r) => tint(image(r), `${nm("x", [r, a])}·${nm("δ", [r, b])}`)), x.map((v, r) => `${term(v[a])}·${term(delta[r][b])}`), values.kernel_grad[a][b])) +
  section("4. The chain goes on",
    p("The bias was added to every row, so its gradient is the sum of δ over the rows. And the layer below gets dJ/dx as its own: if x came out of a relu, multiplied by relu′, which is 1 where x &gt; 0 and 0 elsewhere. That is the δ of the layer below, and the rule starts again.") +
    row(matrix({ id: "db", title: "dJ/db", values: values.bias_grad }), matrix({ id: "below", title: "δ of the layer below", values: values.delta_below, look: (r, c) => ({ zero: x[r][c] <= 0 }) })));
}
const VIEWS = { input: inputTab, kernel: kernelTab, bias: biasTab, max: maxTab, avg: avgTab, dense: denseTab };
