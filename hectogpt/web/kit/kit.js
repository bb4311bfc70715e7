/** Elements, charts and maps that all pages share. Text from anywhere enters as text, never as markup. */

/**
 * A new element. @param {string} tag @param {Record<string, any>} [attributes] "on..." are listeners @param {(Node | string)[]} children
 * @returns {any}
 */
export function make(tag, attributes = {}, ...children) {
  const vector = ["svg", "path", "line", "text", "g", "circle", "rect", "title"].includes(tag);
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
export const shown = (x, digits = 3) => (Number.isFinite(x) ? x.toFixed(digits) : "–");

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
 * A chart of lines over steps. Every figure is also in its table for those who cannot see it.
 * @param {{label: string, xLabel: string, yLabel: string, curves: {name: string, points: [number, number][], errors?: number[], dashed?: boolean}[],
 *   levels?: {name: string, y: number}[], xMax?: number, at?: number | null, height?: number, zero?: boolean}} chart
 */
export function lineChart({ label, xLabel, yLabel, curves, levels = [], xMax, at = null, height = 260, zero = false }) {
  const letters = Math.max(0, ...[...curves, ...levels].map(({ name }) => name.length));
  const [width, left, right, top, bottom] = [560, 46, Math.min(Math.max(24 + 6.6 * letters, 60), 220), 10, 34];
  const points = curves.flatMap((curve) => curve.points);
  const ends = curves.flatMap(({ points: line, errors = [] }) => errors.flatMap((error, k) => [line[k][1] - error, line[k][1] + error]));
  const ys = [...points.map(([, y]) => y), ...ends, ...levels.map(({ y }) => y), ...(zero ? [0] : [])].filter(Number.isFinite);
  const [lo, hi] = ys.length ? [Math.min(...ys), Math.max(...ys)] : [0, 1];
  const pad = (hi - lo || 1) * 0.06;
  const [y0, y1] = [lo - pad, hi + pad];
  const x1 = xMax ?? Math.max(1, ...points.map(([x]) => x));
  const X = (/** @type {number} */ x) => left + (x / x1) * (width - left - right);
  const Y = (/** @type {number} */ y) => top + ((y1 - y) / (y1 - y0)) * (height - top - bottom);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const y of ticks(y0, y1, 5)) {
    svg.append(make("line", { class: "axis", x1: left, x2: width - right, y1: Y(y), y2: Y(y) }));
    svg.append(make("text", { x: left - 6, y: Y(y) + 4, "text-anchor": "end" }, String(y)));
  }
  for (const x of ticks(0, x1, 5)) svg.append(make("text", { x: X(x), y: height - bottom + 16, "text-anchor": "middle" }, String(x)));
  svg.append(make("text", { x: (left + width - right) / 2, y: height - 2, "text-anchor": "middle" }, xLabel));
  svg.append(make("text", { x: 2, y: top, "dominant-baseline": "middle" }, yLabel));
  for (const { name, y } of levels) {
    svg.append(make("line", { class: "mark", x1: left, x2: width - right, y1: Y(y), y2: Y(y) }));
    svg.append(make("text", { x: width - right + 4, y: Y(y) + 4 }, name));
  }
  /** @type {number[]} heights of labels at the right, so that none covers another */
  const taken = levels.map(({ y }) => Y(y));
  const free = (/** @type {number} */ y) => {
    while (taken.some((other) => Math.abs(other - y) < 12)) y -= 3;
    taken.push(y);
    return y;
  };
  curves.forEach(({ name, points: line, errors, dashed }, i) => {
    const colour = `var(--c${i % 6})`;
    const finite = line.filter(([, y]) => Number.isFinite(y));
    if (!finite.length) return;
    const path = finite.map(([x, y], k) => `${k ? "L" : "M"}${X(x).toFixed(1)} ${Y(y).toFixed(1)}`).join("");
    svg.append(make("path", { class: "curve", d: path, style: `stroke:${colour}`, "stroke-dasharray": dashed ? "5 4" : false }));
    if (finite.length < 25) for (const [x, y] of finite) svg.append(make("circle", { cx: X(x), cy: Y(y), r: 3, style: `fill:${colour}` }));
    errors?.forEach((error, k) => {
      const [x, y] = line[k];
      svg.append(make("line", { x1: X(x), x2: X(x), y1: Y(y - error), y2: Y(y + error), style: `stroke:${colour}` }));
    });
    const [, last] = finite[finite.length - 1];
    if (name) svg.append(make("text", { x: width - right + 4, y: free(Y(last)) + 4, style: `fill:${colour};font-weight:600` }, name));
  });
  if (at !== null) svg.append(make("line", { x1: X(at), x2: X(at), y1: top, y2: height - bottom, style: "stroke:var(--accent)" }));
  return svg;
}

/**
 * Attention as a picture: row t, column s, darker is more; the shade is the square root of the weight.
 * @param {HTMLCanvasElement} canvas @param {ArrayLike<number>} weights [T * T] @param {number} T
 */
export function drawMap(canvas, weights, T) {
  canvas.width = canvas.height = T;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const [r, g, b] = getComputedStyle(document.documentElement).colorScheme && isDark() ? [108, 182, 255] : [11, 92, 173];
  const image = context.createImageData(T, T);
  for (let i = 0; i < T * T; i++) image.data.set([r, g, b, Math.round(255 * Math.sqrt(weights[i]))], 4 * i);
  context.putImageData(image, 0, 0);
}

/** Whether the page is dark. */
export const isDark = () => matchMedia("(prefers-color-scheme: dark)").matches;

/** @param {string} name @param {BlobPart} content @param {string} type */
export function download(name, content, type) {
  const link = make("a", { href: URL.createObjectURL(new Blob([content], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** The page's data, which Python wrote. @returns {any} */
export function pageData() {
  return JSON.parse(byId("data").textContent ?? "null");
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
