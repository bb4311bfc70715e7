/** Elements, charts and maps that all pages share. Text from any source is inserted as text, never as markup. */

/**
 * A new element. @param {string} tag @param {Record<string, any>} [attributes] "on..." are listeners @param {(Node | string)[]} children
 * @returns {any}
 */
export function make(tag, attributes = {}, ...children) {
  const vector = ["svg", "path", "line", "text", "g", "circle", "rect", "title", "tspan"].includes(tag);
  const element = vector ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children);
  return element;
}

/** The element with this id. @param {string} id @returns {any} */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`the page has no element ${id}`);
  return element;
}

/** @param {number} x @param {number} [digits] */
export const shown = (x, digits = 3) => (Number.isFinite(x) ? x.toFixed(digits).replace(/^-(?=[0.]*$)/, "").replace("-", "−") : "–");

/** Questions of the assignment are buttons that set their figure; an address that ends in #ID presses one. */
export function pressQuestion() {
  const press = () => {
    const button = document.getElementById(location.hash.slice(1));
    if (!(button instanceof HTMLButtonElement)) return;
    button.click();
    button.closest("section")?.scrollIntoView();
  };
  addEventListener("hashchange", press);
  press();
}

/** A sentence in its place. @param {string} id @param {string} sentence @param {boolean} [bad] */
export function say(id, sentence, bad = false) {
  byId(id).textContent = sentence;
  byId(id).classList.toggle("bad", bad);
}

/** With its sign. @param {number} x @param {number} [digits] */
export const signed = (x, digits = 4) => (x >= 0 ? "+" : "−") + Math.abs(x).toFixed(digits);

/** Round numbers from lo to hi. @param {number} lo @param {number} hi @param {number} count */
export function ticks(lo, hi, count) {
  const rough = (hi - lo) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough) ?? rough;
  const found = [];
  for (let x = Math.ceil(lo / step) * step; x <= hi + 1e-9; x += step) found.push(Number(x.toFixed(10)));
  return found;
}

/**
 * @typedef {{name: string, points: [number, number][], errors?: number[], dashed?: boolean, colour?: number}} Curve  of its own colour, 0 to 5, or that of its place
 * @typedef {{label: string, xLabel: string, yLabel: string, curves: Curve[], levels?: {name: string, y: number}[], xMax?: number,
 *   at?: number | null, height?: number, zero?: boolean}} Chart  lines over steps; `levels` are dashed lines, `at` a step that is marked
 */

/** Charts by their place, so that a page that changes its width draws them again. @type {Map<HTMLElement, Chart>} */
const charts = new Map();
addEventListener("resize", () => charts.forEach((chart, place) => place.children.length && showChart(place, chart)));
/** Where a reader of a chart is, so that a new drawing keeps it. @type {WeakMap<HTMLElement, number>} */
const cursors = new WeakMap();

/** A chart in its place, as wide as that is. Its numbers are read by pointer, by arrow keys and in a table. @param {HTMLElement} place @param {Chart} chart */
export function showChart(place, chart) {
  if (place.children.length !== 3) {
    const table = make("div", { class: "scroll", tabindex: 0 });
    const numbers = make("details", { class: "numbers", ontoggle: () => fillNumbers(place) }, make("summary", {}, "Numbers"), table);
    place.replaceChildren(make("div"), make("p", { class: "reading soft", role: "status" }), numbers);
    cursors.delete(place);
  }
  charts.set(place, chart);
  const width = Math.round(Math.min(Math.max(place.clientWidth, 260), 1280));
  const [drawing, reading] = place.children;
  const say = (/** @type {string} */ text, /** @type {number} */ x) => {
    cursors.set(place, x);
    if (reading.textContent !== text) reading.textContent = text; // a screen reader says it again
  };
  const svg = lineChart(chart, width, say, cursors.get(place));
  const focused = drawing.contains(document.activeElement);
  drawing.replaceChildren(svg, ...legend(chart, width));
  if (focused) svg.focus();
  fillNumbers(place);
}

/** @param {HTMLElement} place */
function fillNumbers(place) {
  const details = place.querySelector("details");
  const chart = charts.get(place);
  if (!details?.open || !chart) return;
  const rows = xsOf(chart).map((x) => [x, ...chart.curves.map((curve) => numberAt(curve, x))]);
  details.lastElementChild?.replaceChildren(makeTable(chart.yLabel, [chart.xLabel, ...chart.curves.map(({ name }) => name || chart.yLabel)], rows));
}

/** What a curve has at x, with its error. @param {Curve} curve @param {number} x */
function numberAt({ points, errors }, x) {
  const k = points.findIndex(([other]) => other === x);
  return k < 0 ? "" : `${shown(points[k][1], 4)}${errors ? ` ± ${shown(errors[k], 4)}` : ""}`;
}

/** All places of points, in order. @param {Chart} chart @returns {number[]} */
const xsOf = (chart) => [...new Set(chart.curves.flatMap(({ points }) => points.map(([x]) => x)))].sort((a, b) => a - b);

/** Pixels at the right for the names of curves and lines; 0 if they stand in the chart and below it. @param {Chart} chart @param {number} width */
function margin({ curves, levels = [] }, width) {
  const letters = Math.max(0, ...[...curves, ...levels].map(({ name }) => name.length));
  const wanted = 14 + 6.8 * letters;
  return letters && wanted <= 0.3 * width ? wanted : 0;
}

/** Names of curves below a chart that has no room for them beside it. @param {Chart} chart @param {number} width */
function legend(chart, width) {
  if (margin(chart, width)) return [];
  const curves = chart.curves.map(({ name, dashed, colour }, i) => (name ? [make("span", { style: `color:var(--c${(colour ?? i) % 6})` }, `${dashed ? "○" : "▬"} ${name}`)] : []));
  return [make("p", { class: "legend" }, ...curves.flat())];
}

/** @param {Chart} chart @param {number} width @param {(text: string, x: number) => void} say what the pointer is on @param {number} [start] where it was in the drawing before */
function lineChart(chart, width, say, start) {
  const { label, xLabel, yLabel, curves, levels = [], xMax, at = null, height = 260, zero = false } = chart;
  const names = margin(chart, width);
  const [left, right, top, bottom] = [46, names || 12, 22, 34];
  const points = curves.flatMap((curve) => curve.points);
  const ends = curves.flatMap(({ points: line, errors = [] }) => errors.flatMap((error, k) => [line[k][1] - error, line[k][1] + error]));
  const ys = [...points.map(([, y]) => y), ...ends, ...levels.map(({ y }) => y), ...(zero ? [0] : [])].filter(Number.isFinite);
  const [lo, hi] = ys.length ? [Math.min(...ys), Math.max(...ys)] : [0, 1];
  const pad = (hi - lo || 1) * 0.06;
  const [y0, y1] = [zero && lo === 0 ? 0 : lo - pad, hi + pad];
  const x1 = xMax ?? Math.max(1, ...points.map(([x]) => x));
  const X = (/** @type {number} */ x) => left + (x / x1) * (width - left - right);
  const Y = (/** @type {number} */ y) => top + ((y1 - y) / (y1 - y0)) * (height - top - bottom);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, style: `max-width:${width}px`, role: "img", tabindex: 0, "aria-label": `${label}${/[.;]$/.test(label) ? "" : ";"} arrow keys read the numbers` });
  for (const y of ticks(y0, y1, 5)) {
    svg.append(make("line", { class: "axis", x1: left, x2: width - right, y1: Y(y), y2: Y(y) }));
    svg.append(make("text", { x: left - 6, y: Y(y) + 4, "text-anchor": "end" }, String(y)));
  }
  for (const x of ticks(0, x1, width < 400 ? 4 : 5)) svg.append(make("text", { x: X(x), y: height - bottom + 16, "text-anchor": "middle" }, String(x)));
  svg.append(make("text", { x: (left + width - right) / 2, y: height - 2, "text-anchor": "middle" }, xLabel));
  svg.append(make("text", { x: 2, y: 11 }, yLabel));
  /** @type {{y: number, name: string, style: string | false}[]} names at the right */
  const named = [];
  for (const { name, y } of levels) {
    svg.append(make("line", { class: "mark", x1: left, x2: width - right, y1: Y(y), y2: Y(y) }));
    named.push({ y: Y(y), name, style: false });
  }
  curves.forEach(({ name, points: line, errors, dashed, colour: place }, i) => {
    const colour = `var(--c${(place ?? i) % 6})`;
    const finite = line.filter(([, y]) => Number.isFinite(y));
    if (!finite.length) return;
    const path = finite.map(([x, y], k) => `${k ? "L" : "M"}${X(x).toFixed(1)} ${Y(y).toFixed(1)}`).join("");
    svg.append(make("path", { class: "curve", d: path, style: `stroke:${colour}`, "stroke-dasharray": dashed ? "5 4" : false }));
    if (finite.length < 25) for (const [x, y] of finite) svg.append(make("circle", { cx: X(x), cy: Y(y), r: dashed ? 4 : 3, style: dashed ? `fill:var(--panel);stroke:${colour};stroke-width:2` : `fill:${colour}` }));
    errors?.forEach((error, k) => {
      const [x, y] = line[k];
      svg.append(make("line", { x1: X(x), x2: X(x), y1: Y(y - error), y2: Y(y + error), style: `stroke:${colour}` }));
    });
    const [, last] = finite[finite.length - 1];
    if (name && names) named.push({ y: Y(last), name, style: `fill:${colour};font-weight:600` });
  });
  named.sort((a, b) => a.y - b.y);
  named.forEach((label, i) => (label.y = i ? Math.max(label.y, named[i - 1].y + 13) : label.y)); // none covers another
  const below = Math.max(0, (named[named.length - 1]?.y ?? 0) - (height - bottom + 8));
  const beside = names ? { x: width - right + 4, dy: 4 } : { x: width - right, dy: -3, "text-anchor": "end", class: "inside" };
  for (const { y, name, style } of named) svg.append(make("text", { ...beside, y: y - below, style }, name));
  if (at !== null) svg.append(make("line", { x1: X(at), x2: X(at), y1: top, y2: height - bottom, style: "stroke:var(--accent)" }));
  const xs = xsOf(chart);
  if (!xs.length) return svg;
  const cursor = make("line", { y1: top, y2: height - bottom, style: "stroke:var(--soft);visibility:hidden" });
  svg.append(cursor);
  let place = at === null ? xs.length - 1 : nearest(xs, at);
  const read = (/** @type {number} */ i) => {
    place = Math.min(Math.max(i, 0), xs.length - 1);
    const x = xs[place];
    cursor.setAttribute("x1", String(X(x)));
    cursor.setAttribute("x2", String(X(x)));
    cursor.style.visibility = "visible";
    const found = curves.map((curve) => [curve.name || yLabel, numberAt(curve, x)]).filter(([, number]) => number);
    say(`${xLabel} ${x}: ${found.map(([name, number]) => `${name}: ${number}`).join("; ")}`, x);
  };
  if (start !== undefined) read(nearest(xs, start));
  svg.addEventListener("pointerleave", () => (cursor.style.visibility = "hidden")); // the text stays: what is below would jump
  svg.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
    const box = svg.getBoundingClientRect();
    read(nearest(xs, ((((event.clientX - box.left) / box.width) * width - left) / (width - left - right)) * x1));
  });
  svg.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    const way = /** @type {Record<string, number>} */ ({ ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 })[event.key];
    if (!way) return;
    event.preventDefault();
    read(place + way);
  });
  return svg;
}

/** Where the number next to x stands. @param {number[]} xs @param {number} x */
const nearest = (xs, x) => xs.reduce((best, other, i) => (Math.abs(other - x) < Math.abs(xs[best] - x) ? i : best), 0);

/**
 * Attention as a picture: row t, column s, darker is more; the shade is the square root of the weight.
 * @param {HTMLCanvasElement} canvas @param {ArrayLike<number>} weights [T * T] @param {number} T
 */
export function drawMap(canvas, weights, T) {
  canvas.width = canvas.height = T;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const [r, g, b] = inkOf().split(" ").map(Number);
  const image = context.createImageData(T, T);
  for (let i = 0; i < T * T; i++) image.data.set([r, g, b, Math.round(255 * Math.sqrt(weights[i]))], 4 * i);
  context.putImageData(image, 0, 0);
}

/** Red, green and blue of maps, which the theme decides. */
export const inkOf = () => (matchMedia("(prefers-color-scheme: dark)").matches ? "108 182 255" : "11 92 173");

/** Show an error in its place. A page that is cut off has no script, and shows the sentence in its HTML. */
byId("whole").hidden = true;
for (const kind of ["error", "unhandledrejection"]) {
  addEventListener(kind, (/** @type {any} */ event) => {
    byId("whole").hidden = false;
    byId("whole").textContent = `This page has failed: ${event.reason?.message ?? event.message}. Open it again, or get a complete copy of it.`;
  });
}

/** @param {string} name @param {BlobPart} content @param {string} type */
export function download(name, content, type) {
  const link = make("a", { href: URL.createObjectURL(new Blob([content], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** The page's data, which Python wrote. @returns {any} */
export function pageData() {
  try {
    return JSON.parse(byId("data").textContent ?? "null");
  } catch {
    throw new Error("its data is cut off or was edited");
  }
}

/** @param {string} text @returns {Uint8Array} */
export function fromBase64(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

/** @param {Uint8Array} bytes */
export function toBase64(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; at += 32768) text += String.fromCharCode(...bytes.subarray(at, at + 32768));
  return btoa(text);
}

/** Text that was compressed with gzip. @param {Uint8Array} bytes */
export function unzip(bytes) {
  const stream = new Blob([/** @type {BlobPart} */ (bytes)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

/** A table. @param {string} caption @param {string[]} head @param {(string | number)[][]} rows */
export function makeTable(caption, head, rows) {
  const cells = (/** @type {(string | number)[]} */ row, /** @type {string} */ tag) => make("tr", {}, ...row.map((text) => (tag === "th" && text !== "" ? make("th", { scope: "col" }, String(text)) : make("td", {}, String(text)))));
  return make("table", {}, make("caption", {}, caption), make("thead", {}, cells(head, "th")), make("tbody", {}, ...rows.map((row) => cells(row, "td"))));
}
