"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
// Networks that are compared with one another are targets and sources alike; else targets have their own names.
const names = data.names, square = data.targets === null, targets = square ? names : data.targets;
const nearer = square ? "nearer" : "better";
const state = {method: 0, target: 0, words: [], names: false, row: 0, column: 0};
const $ = id => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-")) element.setAttribute(key, value); else element[key] = value;
  }
  element.append(...children.filter(child => child !== null && child !== ""));
  return element;
}
// A long name may break after its separators.
const parts = name => name.split(/(?<=[_./-])/).flatMap((part, k) => k ? [make("wbr"), part] : [part]);
const groupOf = i => data.groups ? data.groups[i] : "";
function groupTag(i) {
  if (!data.groups) return "";
  const dot = make("span", {className: "dot"});
  dot.style.background = data.colours[groupOf(i)];
  return make("span", {className: "group"}, dot, ...parts(groupOf(i)));
}
const matches = i => state.words.every(word => `${names[i]} ${groupOf(i)}`.toLowerCase().includes(word));
const decimals = values => {
  const most = Math.max(...values.map(Math.abs).filter(Number.isFinite), 0);
  return most > 0 ? Math.min(8, Math.max(0, 2 - Math.floor(Math.log10(most)))) : 2;
};
const signed = text => text.replace("-", "\u2212");
const fixed = (value, digits) => value === null ? "not known" : signed(value.toFixed(digits));
const withError = (value, error) => { const digits = decimals([value]); return fixed(value, digits) + (error === null ? "" : ` \u00b1 ${fixed(error, digits)}`); };
const share = value => value === null ? "" : value > 0.995 ? "> 99 %" : value < 0.005 ? "< 1 %" : `${Math.round(100 * value)} %`;

// A table whose columns are objects: `value` is what rows are sorted by, `cell` what is shown.
class Table {
  constructor(element, sort, descending = false) {
    this.element = element; this.sort = sort; this.descending = descending;
    this.head = make("tr"); this.body = make("tbody");
    element.append(make("thead", {}, this.head), this.body);
  }
  show(columns, rows) {
    this.columns = columns; this.rows = rows;
    if (!columns.some(column => column.key === this.sort)) { this.sort = columns[0].key; this.descending = false; }
    const labels = columns.map(column => column.key + column.label).join("\n");
    if (labels !== this.labels) {  // replacing the buttons would take the focus from the one in use
      this.labels = labels;
      this.head.replaceChildren(...columns.map(column => {
        const button = make("button", {type: "button"}, column.label);
        button.addEventListener("click", () => this.by(column));
        return make("th", {scope: "col", className: column.numeric ? "num" : "", "data-key": column.key}, button);
      }));
    }
    this.fill();
  }
  by(column) {
    this.descending = this.sort === column.key ? !this.descending : Boolean(column.descending);
    this.sort = column.key;
    this.fill();
  }
  fill() {
    const {value} = this.columns.find(column => column.key === this.sort);
    const order = (a, b) => typeof a === "string" ? a.localeCompare(b, undefined, {numeric: true}) : a - b;
    const rows = this.rows.map(row => [value(row), row]).sort(([a], [b]) => {
      const missing = (a === null || a === "") - (b === null || b === "");
      return missing || (this.descending ? order(b, a) : order(a, b));
    });
    for (const th of this.head.children) {
      th.setAttribute("aria-sort", th.dataset.key !== this.sort ? "none" : this.descending ? "descending" : "ascending");
    }
    this.body.replaceChildren(...rows.map(([, row]) => make("tr", {}, ...this.columns.map(column => {
      const cell = column.cell ? column.cell(row) : String(column.value(row) ?? "");
      return make("td", {className: `${column.numeric ? "num" : ""} ${column.kind ?? ""}`}, ...[cell].flat());
    }))));
  }
}

function errorBar(value, error, low, high) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg"), width = 110, x = v => 6 + (width - 12) * (v - low) / (high - low || 1);
  svg.setAttribute("width", width); svg.setAttribute("height", 14); svg.setAttribute("aria-hidden", "true");
  const draw = (tag, attributes) => {
    const part = document.createElementNS(space, tag);
    for (const [key, v] of Object.entries(attributes)) part.setAttribute(key, v);
    svg.append(part);
  };
  draw("line", {x1: 0, x2: width, y1: 7, y2: 7, stroke: "var(--line)"});
  if (error !== null) draw("line", {x1: x(value - error), x2: x(value + error), y1: 7, y2: 7, stroke: "var(--mark)", "stroke-width": 3, "stroke-opacity": .55});
  draw("circle", {cx: x(value), cy: 7, r: 3.6, fill: "var(--mark)"});
  return svg;
}

function choose(i, scroll = false) {
  state.target = (i + targets.length) % targets.length;
  showTarget();
  if (scroll) { $("sources").scrollIntoView(); $("target").focus({preventScroll: true}); }
}
const targetButton = i => {
  const button = make("button", {type: "button", className: "link"}, ...parts(targets[i]));
  button.addEventListener("click", () => choose(i, true));
  return button;
};
const sourceCell = i => [...(square ? [targetButton(i)] : parts(names[i])), faultMark(i)];
const targetMark = i => square ? faultMark(i) : "";
const faultMark = i => data.faults[i] ? make("span", {className: "fault", role: "img", title: data.faults[i], "aria-label": `Its maps mean little: ${data.faults[i]}`}) : "";

// On a telephone the groups come behind the numbers, which would be out of sight.
const narrow = matchMedia("(max-width: 700px)");
const groupsLast = columns => narrow.matches ? [...columns.filter(({key}) => key !== "group"), ...columns.filter(({key}) => key === "group")] : columns;

const ranking = new Table($("ranking"), "rank");
function showTarget() {
  const method = data.methods[state.method], rows = method.ranked[state.target];
  $("target").value = targets[state.target];
  const digits = decimals(rows.map(row => row[1]));
  const low = Math.min(...rows.map(row => row[1] - (row[2] ?? 0))), high = Math.max(...rows.map(row => row[1] + (row[2] ?? 0)));
  const answer = [make("p", {className: "soft"}, "For ", ...parts(targets[state.target]), targetMark(state.target), " start from")];
  if (rows.length) {
    const [best, value, error, above, more] = rows[0];
    answer.push(make("p", {className: "best"}, ...parts(names[best]), faultMark(best)));
    const by = data.methods.length > 1 ? ` by ${method.name}` : "";
    answer.push(make("p", {}, groupTag(best), data.groups ? " \u00b7 " : "", `${method.quantity} ${fixed(value, digits)}${error === null ? "" : ` \u00b1 ${fixed(error, digits)}`}${by}`));
    if (rows.length > 1 && above !== null) {
      const next = names[rows[1][0]];
      const rest = above >= 0.95 ? "" : more === null ? " This order is uncertain." : ` This order is uncertain; about ${more.toLocaleString("en")} more ${method.sampled} would raise the probability to 95 %.`;
      answer.push(make("p", {className: "sure"}, `It ranks above the next source, ${next}, with probability ${share(above)}.${rest}`));
    }
  } else {
    answer.push(make("p", {className: "best"}, "No source is known"), make("p", {}, square ? "There is no value for this target." : `${method.name} has no value for this task.`));
  }
  for (const {name, values} of data.measured) {
    const known = values[state.target].flatMap((pair, j) => pair ? [[j, ...pair]] : []).sort((a, b) => b[1] - a[1]);
    if (known.length) answer.push(make("p", {className: "sure measured"}, `Best of ${known.length} measured (${name}): `, make("strong", {}, ...parts(names[known[0][0]])), `, ${withError(known[0][1], known[0][2])}.`));
  }
  if (method.directed && square) answer.push(make("p", {className: "sure", id: "direction"}, `By ${method.name}, row = target: these values are of ${names[state.target]} as the target, its row of the heat map; its column is for it as a source.`));
  $("answer").replaceChildren(...answer);
  const others = data.methods.flatMap((other, m) => m === state.method || !square && !other.ranked[state.target].length ? [] : [[other, other.ranked[state.target][0]]]);
  $("elsewhere").replaceChildren(...(others.length ? [
    make("h3", {}, "Best by other methods"),
    make("ul", {className: "others"}, ...others.map(([other, row]) => make("li", {},
      make("span", {className: "soft"}, `${other.name}: `),
      make("strong", {}, row ? names[row[0]] : "not known"),
      row && rows.length && row[0] === rows[0][0] ? " (the same)" : "",
    ))),
  ] : []));
  const hasConfidence = method.ranked.some(ranking => ranking.some(row => row[3] !== null));
  const columns = [
    {key: "rank", label: "rank", numeric: true, value: row => row.rank},
    {key: "source", label: "source", kind: "name", value: row => names[row[0]], cell: row => sourceCell(row[0])},
    ...(data.groups ? [{key: "group", label: "group", value: row => groupOf(row[0]), cell: row => groupTag(row[0])}] : []),
    {key: "value", label: method.quantity, numeric: true, kind: "bar-cell", descending: method.sign > 0, value: row => row[1], cell: row => [fixed(row[1], digits), errorBar(row[1], row[2], low, high)]},
    {key: "error", label: "std. error", numeric: true, value: row => row[2], cell: row => fixed(row[2], digits + 1)},
    ...data.measured.map(({name, values}, m) => {
      const of = row => values[state.target][row[0]];
      return {key: `measured${m}`, label: `measured (${name})`, numeric: true, descending: true, value: row => of(row)?.[0] ?? null, cell: row => of(row) ? withError(...of(row)) : ""};
    }),
    ...(hasConfidence ? [
      {key: "above", label: "above next", numeric: true, descending: true, value: row => row[3], cell: row => share(row[3])},
      {key: "more", label: `more ${method.sampled}`, numeric: true, value: row => row[4], cell: row => row[4] === null ? "" : row[4] === 0 ? "0" : row[4].toLocaleString("en")},
    ] : []),
  ];
  ranking.show(groupsLast(columns), rows.map((row, i) => Object.assign([...row], {rank: i + 1})).filter(row => matches(row[0])));
  $("ranking-note").textContent = `${method.sign > 0 ? "Larger" : "Smaller"} is ${nearer}; bars are plus and minus one standard error.`
    + (hasConfidence ? ` "above next": probability that this source truly ranks above the next one. "more ${method.sampled}": about how many more would raise it to 95 %.` : "");
}

const everything = new Table($("everything"), "name");
function showOverview() {
  const method = data.methods[state.method], chosen = Array(names.length).fill(0);
  for (const rows of method.ranked) if (rows.length) chosen[rows[0][0]] += 1;
  const cellAt = (shown, k) => {
    const digits = decimals(shown.ranked.flatMap(rows => rows.slice(0, 1).map(row => row[1])));
    return i => { const row = shown.ranked[i][k]; return row ? [...parts(names[row[0]]), " ", make("span", {className: "small"}, fixed(row[1], digits))] : "none"; };
  };
  const nameAt = (shown, k) => i => shown.ranked[i][k] ? names[shown.ranked[i][k][0]] : "";
  const many = data.methods.length > 1;
  const columns = [
    {key: "name", label: "name", kind: "name", value: i => targets[i], cell: i => [targetButton(i), targetMark(i)]},
    ...(data.groups && square ? [{key: "group", label: "group", value: groupOf, cell: groupTag}] : []),
    ...data.methods.map((other, m) => ({key: `best${m}`, label: many ? `best by ${other.name}` : "best source", kind: "pair", value: nameAt(other, 0), cell: cellAt(other, 0)})),
    {key: "second", label: many ? `second by ${method.name}` : "second", kind: "pair", value: nameAt(method, 1), cell: cellAt(method, 1)},
    ...(square ? [{key: "chosen", label: "best source for", numeric: true, descending: true, value: i => chosen[i]}] : []),
    {key: "counts", label: method.sampled, numeric: true, value: i => method.counts[i]},
    ...(method.unusable.some(Boolean) ? [{key: "unusable", label: "unusable", numeric: true, descending: true, value: i => method.unusable[i]}] : []),
  ];
  const shown = [...targets.keys()].filter(i => !square || matches(i));
  everything.show(groupsLast(columns), shown);
  $("matches").textContent = `${shown.length === targets.length ? "All" : shown.length + " of"} ${targets.length} shown.`;
}

// The heat map is drawn on a canvas, because a table of hundreds of rows would be slow.
const canvas = document.querySelector("#map canvas");
let heat = null;
function heatValues(method) {
  const width = names.length, values = new Float64Array(targets.length * width).fill(NaN), errors = values.slice();
  method.ranked.forEach((rows, i) => rows.forEach(([j, value, error]) => { values[i * width + j] = value; errors[i * width + j] = error ?? NaN; }));
  return {values, errors};
}
function shorten(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  for (let keep = text.length - 1; keep > 2; keep--) {
    const short = text.slice(0, Math.ceil(keep / 2)) + "\u2026" + text.slice(text.length - Math.floor(keep / 2));
    if (context.measureText(short).width <= width) return short;
  }
  return "\u2026";
}
function range(values) {
  const known = values.filter(Number.isFinite);
  return known.length ? [known.reduce((a, b) => Math.min(a, b)), known.reduce((a, b) => Math.max(a, b))] : [0, 1];
}
function showHeat() {
  const method = data.methods[state.method], {order} = method, {values, errors} = heatValues(method), columns = order.length;
  const rows = square ? order : [...targets.keys()];
  const [low, high] = range(values), digits = decimals([low, high]);
  const context = canvas.getContext("2d"), font = '12px system-ui, "DejaVu Sans", sans-serif';
  context.font = font;
  // Names are shortened only where they stay different.
  const widest = texts => {
    const whole = Math.ceil(Math.max(...texts.map(text => context.measureText(text).width)));
    return 10 + (new Set(texts.map(text => shorten(context, text, 232))).size < texts.length ? whole : Math.min(230, whole));
  };
  const label = widest(targets), above = widest(names);
  const room = $("map-box").clientWidth - 2, strip = data.groups && square ? 12 : 0;
  const readable = (room - label - strip) / columns >= 15, named = readable || state.names;
  const margin = named ? label : 0, top = named ? above : 0;
  const cell = named ? Math.max(15, Math.min(34, Math.floor((room - margin - strip) / columns))) : Math.max(2, Math.floor((room - strip) / columns));
  $("zoom").hidden = readable;
  $("map-box").classList.toggle("taller", named && !readable);
  const width = margin + strip + cell * columns, height = top + cell * rows.length, ratio = Math.min(devicePixelRatio || 1, 12000 / width);
  canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`; canvas.style.height = `${height}px`;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  const style = getComputedStyle(document.body);
  context.clearRect(0, 0, width, height);
  const left = margin + strip, gap = cell > 8 ? 1 : 0;
  const empty = getComputedStyle($("heat")).borderTopColor;
  rows.forEach((i, row) => {
    // Scores of several tasks need not have one scale.
    const [least, most] = square ? [low, high] : range(values.slice(i * columns, (i + 1) * columns)), span = most - least || 1;
    order.forEach((j, column) => {
      const value = values[i * columns + j], near = (value - least) / span;
      context.fillStyle = Number.isNaN(value) ? empty : data.scale[Math.round((method.sign > 0 ? near : 1 - near) * (data.scale.length - 1))];
      context.fillRect(left + column * cell, top + row * cell, cell - gap, cell - gap);
    });
  });
  if (strip) order.forEach((i, row) => {
    context.fillStyle = data.colours[groupOf(i)];
    context.fillRect(margin + 2, top + row * cell, 7, cell - gap);
  });
  if (named) {
    context.font = font; context.fillStyle = style.color; context.textBaseline = "middle";
    context.textAlign = "right";
    rows.forEach((i, row) => context.fillText(shorten(context, targets[i], label - 8), margin - 4, top + row * cell + cell / 2));
    context.textAlign = "left";
    order.forEach((j, column) => {
      context.save(); context.translate(left + column * cell + cell / 2, top - 4); context.rotate(-Math.PI / 2);
      context.fillText(shorten(context, names[j], above - 8), 0, 0); context.restore();
    });
  }
  heat = {rows, order, values, errors, left, top, cell, digits, method};
  $("low").textContent = square ? fixed(low, digits) : "lowest"; $("high").textContent = square ? fixed(high, digits) : "highest";
  const ramp = method.sign > 0 ? data.scale : [...data.scale].reverse();
  $("ramp").style.background = `linear-gradient(to right, ${ramp.filter((_, k) => k % 7 === 0).join(", ")})`;
  $("heat-note").textContent = `${method.directed ? "Row: target, column: source. " : ""}${method.tree ? "In the order of the tree. " : ""}Brighter is ${nearer}${method.sign > 0 ? "" : " (a smaller gap)"}; the colours span the values ${square ? "off the diagonal" : "of each target"}.`;
  canvas.setAttribute("aria-label", `Heat map of ${method.quantity}, ${rows.length} rows; the table of sources has its values.`);
  $("cross").style.display = "none";
}
function pointAt(row, column) {
  if (row < 0 || column < 0 || row >= heat.rows.length || column >= heat.order.length) return;
  Object.assign(state, {row, column});
  const i = heat.rows[row], j = heat.order[column], {cell} = heat, at = i * names.length + j;
  Object.assign($("cross").style, {display: "block", left: `${heat.left + column * cell - 2}px`, top: `${heat.top + row * cell - 2}px`, width: `${cell + 4}px`, height: `${cell + 4}px`});
  const value = heat.values[at], error = heat.errors[at];
  $("readout").textContent = square && i === j ? names[i] : `${names[j]} for ${targets[i]}: ${Number.isNaN(value) ? "not known" : fixed(value, heat.digits) + (Number.isNaN(error) ? "" : ` \u00b1 ${fixed(error, heat.digits + 1)}`)}`;
}
canvas.addEventListener("mousemove", event => {
  const box = canvas.getBoundingClientRect();
  pointAt(Math.floor((event.clientY - box.top - heat.top) / heat.cell), Math.floor((event.clientX - box.left - heat.left) / heat.cell));
});
canvas.addEventListener("click", () => choose(heat.rows[state.row], true));
canvas.addEventListener("focus", () => pointAt(state.row, state.column));
canvas.addEventListener("keydown", event => {
  const step = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
  if (step) { event.preventDefault(); pointAt(state.row + step[0], state.column + step[1]); $("cross").scrollIntoView({block: "nearest", inline: "nearest"}); }
  if (event.key === "Enter") choose(heat.rows[state.row], true);
});
$("zoom").addEventListener("click", () => {
  state.names = !state.names;
  $("zoom").textContent = state.names ? "Fit to the page" : "Show names";
  $("zoom").setAttribute("aria-pressed", state.names);
  showHeat();
});

function showGallery() {
  const {gallery} = data;
  if (!gallery) return;
  const method = data.methods[state.method].name, strips = gallery.strips[method];
  $("no-maps").hidden = Boolean(strips); $("gallery-box").hidden = !strips;
  $("no-maps").textContent = `${method} makes no attribution maps.`;
  if (!strips) return;
  const side = gallery.size > 100 ? gallery.size : 96, width = side * gallery.names.length;
  const strip = (name, source, alt, kind) => make("div", {className: `strip ${kind}`}, make("span", {}, ...parts(name)), make("img", {loading: "lazy", width, height: side, alt, src: source}));
  const on = gallery.names.join(", ");
  $("strips").replaceChildren(
    ...(gallery.photos ? [strip("probe photos", gallery.photos, `Probe photos ${on}`, "photos")] : []),
    ...[...names.keys()].filter(matches).map(i => strip(names[i], strips[i], `${method} maps of ${names[i]} on ${on}`, "")),
  );
}

const controls = data.control.length ? new Table($("controls"), "task") : null;
function showControl() {
  if (!controls) return;
  const number = text => text === "" ? null : Number(text);
  const column = (key, label) => ({key, label, numeric: true, value: row => number(row[key]), cell: row => signed(row[key])});
  const known = new Set([...names.keys()].filter(matches).map(i => names[i]));
  controls.show([
    {key: "task", label: "task", kind: "name", value: row => row.task},
    {key: "reads", label: "depends on labels", value: row => row.reads, cell: row => make("span", {className: row.reads}, row.reads + (row.blind === "yes" ? " (its loss cannot)" : ""))},
    column("distance", "squared distance to control"), column("error", "std. error"),
    column("signal", "signal-to-noise"), column("restarts", "restarts"), column("needed", "restarts needed"),
  ], data.control.filter(row => known.has(row.task)));
}

function showAll() {
  showTarget(); showOverview(); showHeat(); showGallery(); showControl();
  for (const part of document.querySelectorAll("[data-method]")) part.hidden = Number(part.dataset.method) !== state.method;
}

const input = $("target");
input.addEventListener("input", () => { const i = targets.indexOf(input.value); if (i >= 0) { state.target = i; showTarget(); } });
input.addEventListener("change", () => {
  const typed = input.value.toLowerCase(), i = typed ? targets.findIndex(name => name.toLowerCase().includes(typed)) : -1;
  choose(targets.includes(input.value) ? targets.indexOf(input.value) : i >= 0 ? i : state.target);
});
input.addEventListener("focus", () => input.select());
input.addEventListener("keydown", event => {
  // While a name is being typed, the arrow keys move through the list of suggestions.
  const step = {ArrowUp: -1, ArrowDown: 1}[event.key];
  if (step && input.value === targets[state.target]) { event.preventDefault(); choose(state.target + step); input.select(); }
});
$("previous").addEventListener("click", () => choose(state.target - 1));
$("next").addEventListener("click", () => choose(state.target + 1));
$("search").addEventListener("input", event => {
  state.words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  showTarget(); showOverview(); showGallery(); showControl();
});
for (const radio of document.querySelectorAll('input[name="method"]')) {
  radio.checked = Number(radio.value) === 0;
  radio.addEventListener("change", () => { state.method = Number(radio.value); showAll(); });
}

const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
const nameTheme = () => { $("theme").textContent = isDark() ? "Light" : "Dark"; $("theme").setAttribute("aria-label", `Use the ${isDark() ? "light" : "dark"} theme`); };
$("theme").addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); showHeat(); });
dark.addEventListener("change", () => { nameTheme(); showHeat(); });
nameTheme();

if (data.groups) $("legend").append(...Object.keys(data.colours).map(group => groupTag(data.groups.indexOf(group))));
narrow.addEventListener("change", () => { showTarget(); showOverview(); });
// The bar has more rows the narrower the page is, and must not hide the heading that a link leads to.
const bar = document.querySelector(".bar");
const keepHeadings = () => { root.style.scrollPaddingTop = getComputedStyle(bar).position === "sticky" ? `${bar.offsetHeight + 12}px` : ""; };
new ResizeObserver(keepHeadings).observe(bar);
let wide = innerWidth;
addEventListener("resize", () => { if (innerWidth !== wide) { wide = innerWidth; showHeat(); } });
showAll();
