/** Question 2: a block that reads words in a different order, and sinusoids. */

import { byId, inkOf, make, makeTable, pressQuestion, showChart } from "../kit/kit.js";

const WORDS = ["the", "dog", "bit", "the", "old", "man"];
const WIDTH = 16;
let order = [0, 5, 2, 3, 4, 1]; // the man bit the old dog
/** @type {number | null} */
let chosen = null;

/** @typedef {number[][]} Matrix */

/** Normal numbers from a seed. @param {number} state */
function normalNumbers(state) {
  const uniform = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 4294967296;
  return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}
const normal = normalNumbers(7);
/** @param {number} rows @param {number} columns @returns {Matrix} */
const randomMatrix = (rows, columns) => Array.from({ length: rows }, () => Array.from({ length: columns }, () => normal() / Math.sqrt(columns)));
/** @param {Matrix} a @param {Matrix} b @returns {Matrix} */
const times = (a, b) => a.map((row) => b[0].map((_, j) => row.reduce((sum, x, k) => sum + x * b[k][j], 0)));

const vectors = new Map([...new Set(WORDS)].map((word) => [word, Array.from({ length: WIDTH }, normal)]));
const [WQ, WK, WV] = [0, 1, 2].map(() => randomMatrix(WIDTH, WIDTH));
const [W1, W2] = [randomMatrix(WIDTH, 4 * WIDTH), randomMatrix(4 * WIDTH, WIDTH)];

/** The block of the question. @param {Matrix} X @param {boolean} causal @returns {Matrix} */
function block(X, causal) {
  const [Q, K, V] = [WQ, WK, WV].map((W) => times(X, W));
  const H = Q.map((q, t) => {
    const scores = K.map((k, s) => (causal && s > t ? -Infinity : q.reduce((sum, x, i) => sum + x * k[i], 0) / Math.sqrt(WIDTH)));
    const largest = Math.max(...scores);
    const powers = scores.map((s) => Math.exp(s - largest));
    const total = powers.reduce((a, b) => a + b, 0);
    return V[0].map((_, i) => powers.reduce((sum, p, s) => sum + (p / total) * V[s][i], 0));
  });
  return times(times(H, W1).map((row) => row.map((x) => Math.max(x, 0))), W2);
}

/** @param {number} t @param {number} d */
const sinusoid = (t, d) => Array.from({ length: d }, (_, i) => (i % 2 ? Math.cos : Math.sin)(t / 10000 ** (2 * Math.floor(i / 2) / d)));

/** max |Z(PX) - P Z(X)| @param {boolean} causal @param {boolean} added */
function gap(causal, added) {
  const row = (/** @type {number} */ word, /** @type {number} */ t) => {
    const own = /** @type {number[]} */ (vectors.get(WORDS[word]));
    const place = sinusoid(t, WIDTH);
    return own.map((x, i) => x + (added ? place[i] : 0));
  };
  const before = block(WORDS.map((_, t) => row(t, t)), causal);
  const after = block(order.map(row), causal);
  return Math.max(...order.map((word, t) => Math.max(...after[t].map((z, i) => Math.abs(z - before[word][i])))));
}

function drawOrder() {
  const causal = byId("causal").checked;
  const added = byId("sinusoids").checked;
  byId("words").replaceChildren(
    ...order.map((word, t) => make("button", { "aria-pressed": String(t === chosen), onclick: () => swap(t) }, WORDS[word])),
  );
  const rows = [false, true].flatMap((c) => [false, true].map((p) => [`${c ? "causal" : "full"} mask, ${p ? "sinusoids" : "no positions"}`, asText(gap(c, p))]));
  byId("order-table").replaceChildren(makeTable("max |Z(PX) − P Z(X)| for this order", ["block", "difference"], rows));
  const found = gap(causal, added);
  const same = order.every((word, t) => word === t);
  const seen = found > 1e-9;
  byId("order-text").textContent = same
    ? "The words are in their original order. Choose two words to swap them, or shuffle."
    : seen
      ? `The output changes by up to ${found.toFixed(3)}: with ${causal ? "a causal mask" : "a full mask"} and ${added ? "sinusoids" : "no positions"} the block sees the order.`
      : `The output moves with the words and is otherwise unchanged (up to ${found.toExponential(1)}, which is rounding): the block cannot tell “${WORDS.join(" ")}” from “${order.map((w) => WORDS[w]).join(" ")}”.`;
}

/** @param {number} x */
const asText = (x) => (x > 1e-3 ? x.toFixed(4) : x ? x.toExponential(1) : "0");

/** @param {number} t */
function swap(t) {
  if (chosen === null) chosen = t;
  else {
    [order[chosen], order[t]] = [order[t], order[chosen]];
    chosen = null;
  }
  drawOrder();
}

const whole = (/** @type {string} */ id, /** @type {number} */ least, /** @type {number} */ most) => Math.min(Math.max(Math.round(Number(byId(id).value)), least), most);

function drawSinusoids() {
  const T = whole("T", 2, 512);
  const d = 2 * Math.round(whole("d", 2, 128) / 2);
  for (const id of ["t", "distance"]) byId(id).max = T - 1;
  const t = Math.min(whole("t", 0, T - 1), T - 1);
  const distance = whole("distance", 0, T - 1);
  const table = Array.from({ length: T }, (_, s) => sinusoid(s, d));
  const canvas = byId("table");
  [canvas.width, canvas.height] = [d, T];
  const context = canvas.getContext("2d");
  const image = context.createImageData(d, T);
  const [r, g, b] = inkOf().split(" ").map(Number);
  table.flat().forEach((x, i) => image.data.set([r, g, b, Math.round(127.5 * (x + 1))], 4 * i));
  context.putImageData(image, 0, 0);
  const dot = (/** @type {number[]} */ a, /** @type {number[]} */ b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
  const points = table.map((row, s) => /** @type {[number, number]} */ ([s, dot(row, table[t])]));
  showChart(byId("similar"), { label: "dot product with the chosen position", xLabel: "position s", yLabel: "Φ(t)·Φ(s)", curves: [{ name: "", points }], xMax: T - 1, at: t });
  const [base, other] = [sinusoid(t, d), sinusoid(t + distance, d)];
  const rotated = base.map((_, i) => {
    const angle = distance / 10000 ** (2 * Math.floor(i / 2) / d);
    const [s, c] = [base[i - (i % 2)], base[i - (i % 2) + 1]];
    return i % 2 ? c * Math.cos(angle) - s * Math.sin(angle) : s * Math.cos(angle) + c * Math.sin(angle);
  });
  const residue = Math.max(...rotated.map((x, i) => Math.abs(x - other[i])));
  let nearest = [Infinity, 0, 0];
  for (let a = 0; a < T; a++) {
    for (let b = a + 1; b < T; b++) {
      const apart = Math.sqrt(Math.max(d - 2 * dot(table[a], table[b]), 0));
      if (apart < nearest[0] - 1e-12) nearest = [apart, a, b];
    }
  }
  const between = Math.sqrt(base.reduce((sum, x, i) => sum + (x - other[i]) ** 2, 0));
  byId("sin-table").replaceChildren(
    makeTable(`Sinusoids of ${d} dimensions`, ["", "value"], [
      [`Φ(t)·Φ(t + ${distance})`, dot(base, other).toFixed(4)],
      ["the same, divided by its largest value d/2", (dot(base, other) / (d / 2)).toFixed(4)],
      [`|Φ(t) − Φ(t + ${distance})|`, between.toFixed(4)],
      ["max |Φ(t + distance) − R Φ(t)|, R one rotation for all t", residue.toExponential(1)],
      [`nearest two of the first ${T} positions (${nearest[1]} and ${nearest[2]})`, nearest[0].toFixed(4)],
    ]),
  );
  byId("sin-text").textContent = `Position ${t} and the one ${distance} later are ${between.toFixed(2)} apart. One rotation takes every position to the one ${distance} later, so a linear map can find “${distance} back”. No two of the ${T} positions are equal: the nearest two are ${nearest[0].toFixed(2)} apart.`;
}

for (const id of ["causal", "sinusoids"]) byId(id).addEventListener("change", drawOrder);
for (const id of ["T", "d", "t", "distance"]) byId(id).addEventListener("input", drawSinusoids);
/** @param {string} id of a question's button @param {number[]} words @param {boolean} added */
const ask = (id, words, added) =>
  byId(id).addEventListener("click", () => {
    order = words;
    [byId("causal").checked, byId("sinusoids").checked] = [false, added];
    drawOrder();
  });
ask("2ai", [3, 1, 4, 2, 0, 5], false);
ask("2aii", [...order], false);
ask("2bi", [...order], true);
byId("2bii").addEventListener("click", () => {
  [byId("T").value, byId("d").value] = [512, 32];
  drawSinusoids();
});
byId("shuffle").addEventListener("click", () => {
  order = order.map((word) => ({ word, at: Math.random() })).sort((a, b) => a.at - b.at).map(({ word }) => word); // prettier-ignore
  drawOrder();
});
byId("sorted").addEventListener("click", () => {
  order = WORDS.map((_, i) => i);
  drawOrder();
});
drawOrder();
drawSinusoids();
pressQuestion();
