"use strict";
// Draws the curves of the JSON in #data: {runs: [{name, grids: [{step, tokens, hours}], resumed, alarms, skipped}],
// charts: [{title, unit, series: [{run, label, grid, mean, low?, high?, breaks?, hidden?}]}]}. See write.py.

const data = JSON.parse(document.getElementById("data").textContent);
const MARGIN = { left: 58, right: 10, top: 8, bottom: 22 };
const DASHES = ["", "6 3", "2 3", "8 3 2 3", "1 2", "10 4"];
// across: key of a grid; zoom: [from, to] or null; at: where the pointer is, or null; log, hidden: charts, curves.
const state = { across: "step", zoom: null, at: null, drag: null, smooth: 0.03, log: new Set(), hidden: new Set() };
const several = data.runs.length > 1;
const UNITS = [[1e12, " T"], [1e9, " G"], [1e6, " M"], [1e4, " k", 1e3]];

// more: digits beyond the usual ones.
function text(value, unit, more = 0) {
  if (value === null || value === undefined || !isFinite(value)) return "–";
  if (unit === "share") return (100 * value).toFixed(1 + more) + " %";
  if (unit === "bytes") return (value / 1e9).toFixed(2 + more) + " GB";
  if (unit === "count") {
    for (const [size, name, divide] of UNITS) if (Math.abs(value) >= size) return +(value / (divide || size)).toFixed(2 + more) + name;
    return (more ? +value.toFixed(more) : Math.round(value)).toLocaleString("en", { maximumFractionDigits: more });
  }
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e-3 && size < 1e5 ? String(+value.toPrecision(4 + more)) : value.toExponential(2 + more);
}

// The values of an axis with as few digits as tell them apart.
function marked(values, unit) {
  for (let more = 0; more < 9; more++) {
    const texts = values.map((value) => text(value, unit, more));
    if (new Set(texts).size === texts.length) return texts;
  }
  return values.map((value) => text(value, unit));
}

function acrossText(value) {
  if (state.across === "step") return "step " + Math.round(value).toLocaleString("en");
  return state.across === "tokens" ? text(value, "count") + " tokens" : value.toFixed(2) + " h";
}

const escaped = (word) => word.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
const xs = (series) => data.runs[series.run].grids[series.grid][state.across];
const name = (chart, series) => `${chart.title}/${series.run}/${series.label}`;
const shown = (chart) => chart.series.filter((series) => !state.hidden.has(name(chart, series)));

function style(chart, series) {
  const labels = [...new Set(chart.series.map((one) => one.label))];
  const place = labels.indexOf(series.label);
  return several
    ? { colour: `var(--c${series.run % 8})`, dash: DASHES[place % DASHES.length] }
    : { colour: `var(--c${place % 8})`, dash: DASHES[Math.floor(place / 8) % DASHES.length] };
}

// The exponential mean over a share of the points, unbiased at its start.
function smoothed(values) {
  const keep = 1 - Math.min(2 / (state.smooth * values.length + 1), 1);
  let mean = 0, weight = 0;
  return values.map((value) => {
    mean = keep * mean + (1 - keep) * value;
    weight = keep * weight + (1 - keep);
    return mean / weight;
  });
}

function nearest(x, at) {
  let low = 0, high = x.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (x[middle] < at) low = middle + 1;
    else high = middle;
  }
  return low > 0 && at - x[low - 1] < x[low] - at ? low - 1 : low;
}

// whole: of what is counted there are no halves.
function ticks(low, high, count, whole) {
  const rough = Math.max((high - low) / count, whole ? 1 : 0), power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough && (!whole || Number.isInteger(s)));
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++)
    for (const m of [1, 2, 5]) if (m * 10 ** e >= low && m * 10 ** e <= high) found.push(m * 10 ** e);
  return found.length > 2 ? found : ticks(low, high, 4);
}

function quantile(sorted, share) {
  return sorted[Math.round(share * (sorted.length - 1))];
}

// [from, to] of the x axis: what is looked at closely, or all that any run has.
function acrossRange() {
  if (state.zoom) return state.zoom;
  let low = Infinity, high = -Infinity;
  for (const run of data.runs)
    for (const grid of run.grids) {
      low = Math.min(low, grid[state.across][0]);
      high = Math.max(high, grid[state.across].at(-1));
    }
  return high > low ? [low, high] : [low - 0.5, low + 0.5];
}

// Of the curves in sight; a few spikes may leave the frame, the smoothed curves may not.
function range(curves, [from, to], log) {
  const single = [], means = [];
  for (const { series, x, mean } of curves)
    x.forEach((at, i) => {
      if (at < from || at > to) return;
      single.push((series.low || series.mean)[i], (series.high || series.mean)[i]);
      means.push(mean[i]);
    });
  const usable = (value) => isFinite(value) && (!log || value > 0);
  const sorted = single.filter(usable).sort((a, b) => a - b);
  if (!sorted.length) return log ? [0.1, 1] : [0, 1];
  let low = quantile(sorted, 0.03), high = quantile(sorted, 0.97);
  for (const value of means.filter(usable)) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (log) return high > low * 1.0001 ? [low / (high / low) ** 0.04, high * (high / low) ** 0.04] : [low / 2, high * 2];
  const pad = high - low > 1e-9 * Math.abs(high) ? 0.05 * (high - low) : 0.05 * Math.abs(high) || 1;
  return [low >= 0 && low - pad < 0 ? Math.min(low, 0) : low - pad, high + pad];
}

function draw(chart, card) {
  const plot = card.querySelector(".plot"), wide = plot.clientWidth, high = plot.clientHeight;
  const log = state.log.has(chart.title), [from, to] = acrossRange();
  const curves = shown(chart).map((series) => ({ series, x: xs(series), mean: smoothed(series.mean) }));
  const [bottom, top] = range(curves, [from, to], log);
  const scale = (value) => (log ? Math.log(Math.max(value, 1e-300)) : value);
  const width = wide - MARGIN.left - MARGIN.right, height = high - MARGIN.top - MARGIN.bottom;
  const px = (x) => +(MARGIN.left + ((x - from) / (to - from)) * width).toFixed(1);
  const py = (y) => +(MARGIN.top + ((scale(top) - scale(y)) / (scale(top) - scale(bottom))) * height).toFixed(1);
  const parts = [];
  const levels = log ? logTicks(bottom, top) : ticks(bottom, top, 4, chart.unit === "count"), words = marked(levels, chart.unit);
  for (const [i, y] of levels.entries()) {
    parts.push(`<line class="grid" x1="${MARGIN.left}" x2="${wide - MARGIN.right}" y1="${py(y)}" y2="${py(y)}"/>`);
    parts.push(`<text x="${MARGIN.left - 8}" y="${py(y) + 4}" text-anchor="end">${words[i]}</text>`);
  }
  const places = ticks(from, to, Math.max(width / 80, 1), state.across !== "hours");
  const unit = state.across === "hours" ? "" : "count", columns = marked(places, unit);
  for (const [i, x] of places.entries()) {
    const anchor = px(x) > wide - 30 ? "end" : "middle";
    parts.push(`<text x="${px(x)}" y="${high - 6}" text-anchor="${anchor}">${columns[i]}</text>`);
  }
  const floor = high - MARGIN.bottom;
  parts.push(`<line class="axis" x1="${MARGIN.left}" x2="${wide - MARGIN.right}" y1="${floor}" y2="${floor}"/>`);
  parts.push(`<clipPath id="${card.id}-clip"><rect x="${MARGIN.left}" y="0" width="${width}" height="${floor}"/></clipPath>`);
  parts.push(`<g clip-path="url(#${card.id}-clip)" fill="none" stroke-linejoin="round">`);
  for (const { series, x } of curves) {
    const { colour } = style(chart, series);
    const line = (values) => values.map((y, i) => `${px(x[i])} ${py(y)}`);
    if (series.low) {
      const high = stretches(line(series.high), series.breaks), low = stretches(line(series.low), series.breaks);
      const areas = high.map((edge, i) => `M${edge.join("L")}L${low[i].reverse().join("L")}Z`);
      parts.push(`<path d="${areas.join("")}" fill="${colour}" opacity="0.16"/>`);
    } else if (state.smooth * x.length > 1)
      parts.push(`<path d="${path(stretches(line(series.mean), series.breaks))}" stroke="${colour}" opacity="0.3"/>`);
  }
  for (const { series, x, mean } of curves) {
    const { colour, dash } = style(chart, series);
    const points = mean.map((y, i) => `${px(x[i])} ${py(y)}`);
    const lines = stretches(points, series.breaks);
    parts.push(`<path d="${path(lines)}" stroke="${colour}" stroke-width="1.8" stroke-dasharray="${dash}"/>`);
    for (const point of points.length <= 40 ? points : lines.filter((line) => line.length === 1).flat())
      parts.push(`<circle cx="${point.split(" ")[0]}" cy="${point.split(" ")[1]}" r="2.2" fill="${colour}"/>`);
  }
  parts.push("</g>", ...marks(px, floor, from, to), pointer(chart, curves, px, py, floor, wide));
  plot.innerHTML = parts.join("");
}

// Points that are joined: a new stretch begins at each of the numbers in breaks.
function stretches(points, breaks = []) {
  return [0, ...breaks].map((start, i) => points.slice(start, breaks[i]));
}

const path = (stretches) => stretches.map((points) => `M${points.join("L")}`).join("");

// Where runs were resumed, where a part had no gradient, and which steps were skipped.
function marks(px, floor, from, to) {
  const parts = [];
  for (const [number, run] of data.runs.entries()) {
    let last = -Infinity;
    for (const [i, at] of run.skipped[state.across].entries()) {
      // Where there are many, one cross stands for its neighbours.
      if (at < from || at > to || px(at) - last < 3) continue;
      last = px(at);
      const title = `${escaped(run.name)}, step ${run.skipped.step[i]}: skipped, not finite`;
      parts.push(`<path class="skipped" stroke="${several ? `var(--c${number % 8})` : "var(--c7)"}" d="M${last - 3.5} ${floor - 7.5}l7 7m0 -7l-7 7"><title>${title}</title></path>`);
    }
    const grid = run.grids[0], colour = several ? `var(--c${number % 8})` : "var(--soft)";
    const place = (step) => px(grid[state.across][nearest(grid.step, step)]);
    const inside = (step) => { const x = grid[state.across][nearest(grid.step, step)]; return x >= from && x <= to; };
    for (const step of run.resumed.filter(inside))
      parts.push(`<path fill="${colour}" d="M${place(step)} ${floor - 7}l4 7h-8z"><title>${escaped(run.name)} resumed from step ${step}</title></path>`);
    for (const [step, part] of run.alarms.filter(([step]) => inside(step)))
      parts.push(`<circle class="alarm" cx="${place(step)}" cy="${floor - 4}" r="3.5"><title>${escaped(run.name)}, step ${step}: no gradient in ${escaped(part)}</title></circle>`);
  }
  return parts;
}

function pointer(chart, curves, px, py, floor, wide) {
  if (state.at === null) return "";
  const x = px(state.at), parts = [];
  if (x < MARGIN.left || x > wide - MARGIN.right) return "";
  if (state.drag !== null) {
    const other = px(state.drag);
    parts.push(`<rect class="chosen" x="${Math.min(x, other)}" y="0" width="${Math.abs(x - other)}" height="${floor}"/>`);
  }
  parts.push(`<line class="at" x1="${x}" x2="${x}" y1="0" y2="${floor}"/>`);
  for (const { series, x: all, mean } of curves) {
    const i = nearest(all, state.at);
    if (state.at <= all.at(-1))
      parts.push(`<circle cx="${px(all[i])}" cy="${py(mean[i])}" r="3.5" fill="${style(chart, series).colour}"/>`);
  }
  const end = x > wide - 120;
  parts.push(`<text class="where" x="${x + (end ? -6 : 6)}" y="${floor - 6}" text-anchor="${end ? "end" : "start"}">${acrossText(state.at)}</text>`);
  return parts.join("");
}

// The names of a chart's curves, each with its value under the pointer, or its last one.
function names(chart, card) {
  const bar = card.querySelector(".names");
  const labels = new Set(chart.series.map((series) => series.label));
  bar.innerHTML = chart.series.map((series, i) => {
    const { colour, dash } = style(chart, series), x = xs(series), values = smoothed(series.mean);
    const at = state.at === null ? x.length - 1 : nearest(x, state.at);
    const past = state.at !== null && state.at > x.at(-1);
    const run = several ? data.runs[series.run].name : "";
    const label = [run, labels.size > 1 || !several ? series.label : ""].filter(Boolean).join(", ");
    const value = past ? "–" : text(values[at], chart.unit);
    const swatch = `<svg width="18" height="4"><path d="M0 2h18" stroke="${colour}" stroke-width="2.5" stroke-dasharray="${dash}"/></svg>`;
    const pressed = !state.hidden.has(name(chart, series));
    return `<button data-i="${i}" aria-pressed="${pressed}">${swatch}${escaped(label)} <b>${pressed ? value : ""}</b></button>`;
  }).join("");
}

const cards = data.charts.map((chart, number) => {
  const card = document.createElement("article");
  card.className = "chart";
  card.id = `chart-${number}`;
  card.innerHTML = `<div class="head"><h2>${escaped(chart.title)}</h2><button aria-pressed="false">log</button></div>
    <div class="names"></div><svg class="plot" role="img" aria-label="${escaped(chart.title)}" height="${number ? 190 : 300}"></svg>`;
  document.getElementById("charts").append(card);
  for (const series of chart.series) if (series.hidden) state.hidden.add(name(chart, series));
  const plot = card.querySelector(".plot"), button = card.querySelector(".head button");
  button.onclick = () => {
    state.log.has(chart.title) ? state.log.delete(chart.title) : state.log.add(chart.title);
    button.setAttribute("aria-pressed", state.log.has(chart.title));
    draw(chart, card);
  };
  card.querySelector(".names").onclick = (event) => {
    const pressed = event.target.closest("button");
    if (!pressed) return;
    const key = name(chart, chart.series[pressed.dataset.i]);
    state.hidden.has(key) ? state.hidden.delete(key) : state.hidden.add(key);
    show();
  };
  const at = (event) => {
    const box = plot.getBoundingClientRect(), [from, to] = acrossRange();
    const share = (event.clientX - box.left - MARGIN.left) / (box.width - MARGIN.left - MARGIN.right);
    return from + Math.min(Math.max(share, 0), 1) * (to - from);
  };
  plot.onpointermove = (event) => { state.at = at(event); show(); };
  plot.onpointerleave = () => { if (state.drag === null) { state.at = null; show(); } };
  plot.onpointerdown = (event) => { state.drag = at(event); plot.setPointerCapture(event.pointerId); };
  plot.onpointerup = (event) => {
    const [from, to] = [state.drag, at(event)].sort((a, b) => a - b), [low, high] = acrossRange();
    state.drag = null;
    if (to - from > 0.01 * (high - low)) state.zoom = [from, to];
    show();
  };
  plot.onpointercancel = () => { state.drag = null; };
  plot.ondblclick = whole;
  return [chart, card];
});

function show() {
  document.getElementById("whole").hidden = !state.zoom;
  for (const button of document.querySelectorAll("[data-x]")) button.setAttribute("aria-pressed", button.dataset.x === state.across);
  for (const [chart, card] of cards) {
    names(chart, card);
    draw(chart, card);
  }
}

function whole() {
  state.zoom = null;
  show();
}

function smooth(input) {
  // 0 to 30 % of the run, finer at the low end.
  state.smooth = 0.3 * (input.value / 100) ** 2;
  show();
}

for (const button of document.querySelectorAll("[data-x]"))
  button.onclick = () => { state.across = button.dataset.x; state.zoom = state.at = null; show(); };
document.getElementById("smooth").oninput = (event) => smooth(event.target);
document.getElementById("whole").onclick = whole;
document.onkeydown = (event) => { if (event.key === "Escape") whole(); };
const dark = matchMedia("(prefers-color-scheme: dark)");
const paint = (on) => document.documentElement.classList.toggle("dark", on);
document.getElementById("theme").onclick = () => paint(!document.documentElement.classList.contains("dark"));
dark.onchange = () => paint(dark.matches);
paint(dark.matches);
new ResizeObserver(show).observe(document.getElementById("charts"));
smooth(document.getElementById("smooth"));
