/** Question 1: one or two queries over keys that the reader moves, and over random keys. */

import { byId, makeTable, pressQuestion, say, showChart } from "../kit/kit.js";
import { showPlane } from "../kit/plane.js";

/** @import { Point } from "../kit/plane.js" */

/** @type {Point[]} */
const keys = [
  { name: "a", x: 1, y: 0, colour: "var(--c0)", arrow: true },
  { name: "b", x: 0, y: 1, colour: "var(--c1)", arrow: true },
  { name: "c", x: -0.8, y: 0.3, colour: "var(--c2)", arrow: true },
  { name: "d", x: -0.2, y: -0.9, colour: "var(--c3)", arrow: true },
];
/** @type {Point[]} */
const values = [
  { name: "va", x: 1, y: 0.6, colour: "var(--c0)" },
  { name: "vb", x: -0.6, y: 1, colour: "var(--c1)" },
  { name: "vc", x: -1, y: -0.7, colour: "var(--c2)" },
  { name: "vd", x: 0.8, y: -1, colour: "var(--c3)" },
];
/** @type {Point[]} directions of the queries; their scale is the slider's */
const queries = [
  { name: "q1", x: 0.8, y: 0.8, colour: "var(--c5)", arrow: true },
  { name: "q2", x: 0, y: 1, colour: "var(--c4)", arrow: true },
];

/** @param {number[]} scores */
function softmax(scores) {
  const largest = Math.max(...scores);
  const powers = scores.map((s) => Math.exp(s - largest));
  const total = powers.reduce((a, b) => a + b, 0);
  return powers.map((p) => p / total);
}

function drawHand() {
  const beta = Number(byId("beta").value);
  const two = byId("second").checked;
  const used = queries.slice(0, two ? 2 : 1);
  const scores = used.map((q) => keys.map((k) => beta * (k.x * q.x + k.y * q.y)));
  const heads = scores.map(softmax);
  const weights = keys.map((_, i) => heads.reduce((sum, w) => sum + w[i], 0) / heads.length);
  const c = { x: weights.reduce((s, w, i) => s + w * values[i].x, 0), y: weights.reduce((s, w, i) => s + w * values[i].y, 0) };
  showPlane("keys", { label: "keys and queries", lo: -1.5, hi: 1.5, points: [...keys, ...used], moved: drawHand });
  showPlane("values", { label: "values and output", lo: -1.5, hi: 1.5, points: [...values, { name: "out", ...c, colour: "var(--text)", fixed: true }], moved: drawHand });
  const rows = keys.map((k, i) => [k.name, `${k.x.toFixed(2)}, ${k.y.toFixed(2)}`, ...scores.flatMap((s, h) => [s[i].toFixed(2), heads[h][i].toFixed(4)]), weights[i].toFixed(4)]);
  byId("weights").replaceChildren(makeTable(`Scores and weights at β = ${beta}`, ["key", "k", ...used.flatMap((q) => [`k·${named(q.name)}`, `weight, ${named(q.name)}`]), "weight in the output"], rows));
  say("hand-text", handSentence(weights, c));
}

/** @param {number[]} weights @param {{x: number, y: number}} c */
function handSentence(weights, c) {
  const order = weights.map((_, i) => i).sort((i, j) => weights[j] - weights[i]);
  const [first, second] = order;
  const away = (/** @type {number} */ i) => Math.hypot(c.x - values[i].x, c.y - values[i].y);
  if (weights[first] > 0.95) return `${keys[first].name} has ${percent(weights[first])} of the weight, so the output is a copy of value ${keys[first].name}, ${away(first).toFixed(3)} away from it.`;
  if (weights[first] - weights[second] < 0.05 && weights[first] + weights[second] > 0.9) return `${keys[first].name} and ${keys[second].name} share ${percent(weights[first] + weights[second])} of the weight almost evenly, so the output is close to the middle of values ${keys[first].name} and ${keys[second].name}.`;
  return `The weights are ${order.map((i) => `${keys[i].name} ${percent(weights[i])}`).join(", ")}: the output is neither a copy nor an average of two. Increase the scale of the query to sharpen them.`;
}

/** A query's name in a table. @param {string} name */
const named = (name) => name.replace("1", "₁").replace("2", "₂");
const percent = (/** @type {number} */ x) => `${(100 * x).toFixed(1)} %`;

/** @type {[string, number, number][]} a button, and the direction of the query that it sets */
const DIRECTIONS = [["1a", 1, 0], ["1b", 1, 1], ["0", 0, 0]]; // prettier-ignore
for (const [id, x, y] of DIRECTIONS) {
  byId(id).addEventListener("click", () => {
    [keys[0].x, keys[0].y, keys[1].x, keys[1].y] = [1, 0, 0, 1];
    [queries[0].x, queries[0].y] = [x, y];
    byId("second").checked = false;
    drawHand();
  });
}
byId("beta").addEventListener("input", drawHand);
byId("second").addEventListener("change", drawHand);

// --- keys that vary -------------------------------------------------------------------------------------------------------

const DRAWS = 4000;
let seed = 1;

/** Normal numbers from a seed (mulberry32 and Box-Muller), so that the same settings show the same draws. @param {number} state */
function normals(state) {
  const uniform = () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}

/** The weights of the output in each draw of the keys. Only the components along the two means matter to the queries. */
function drawKeys() {
  const [beta, spread, epsilon] = ["c-beta", "spread", "epsilon"].map((id) => Number(byId(id).value));
  const n = Math.min(Math.max(Math.round(Number(byId("n").value)), 2), 64);
  const two = byId("heads").value === "two";
  const normal = normals(seed);
  const small = Math.sqrt(Math.max(epsilon, 0));
  return Array.from({ length: DRAWS }, () => {
    const along = Array.from({ length: n }, (_, i) => [small * normal() + (i === 0 ? 1 + Math.sqrt(spread) * normal() : 0), small * normal() + (i === 1 ? 1 : 0)]);
    if (!two) return softmax(along.map(([a, b]) => beta * (a + b)));
    const [first, second] = [softmax(along.map(([a]) => beta * a)), softmax(along.map(([, b]) => beta * b))];
    return first.map((w, i) => (w + second[i]) / 2);
  });
}

function drawNorms() {
  const draws = drawKeys();
  const n = draws[0].length;
  const means = draws[0].map((_, i) => draws.reduce((sum, c) => sum + c[i], 0) / DRAWS);
  const variance = draws.reduce((sum, c) => sum + c.reduce((s, w, i) => s + (w - means[i]) ** 2, 0), 0) / DRAWS;
  const near = draws.filter((c) => Math.sqrt(c.reduce((s, w, i) => s + (w - (i < 2 ? 0.5 : 0)) ** 2, 0)) < 0.1).length / DRAWS;
  const taken = draws.filter((c) => Math.max(c[0], c[1]) > 0.99).length / DRAWS;
  const bins = Array.from({ length: 21 }, (_, i) => /** @type {[number, number]} */ ([i / 20, 0]));
  for (const c of draws) bins[Math.min(20, Math.round(c[0] * 20))][1] += 1 / DRAWS;
  showPlane("outputs", { label: `weights of both values in ${500} draws`, lo: -0.1, hi: 1.1, points: [], dots: draws.slice(0, 500).map((c) => [c[0], c[1]]), ring: [0.5, 0.5] });
  showChart(byId("histogram"), { label: "share of draws by the weight of value a", xLabel: "weight of value a in the output", yLabel: "share of draws", curves: [{ name: "", points: bins }], xMax: 1, zero: true });
  const se = Math.sqrt((near * (1 - near)) / DRAWS);
  byId("numbers").replaceChildren(makeTable(`${DRAWS.toLocaleString("en")} draws of ${n} keys`, ["", "value"], [["mean weight of value a", means[0].toFixed(4)], ["mean weight of value b", means[1].toFixed(4)], ["total variance of the output", variance.toFixed(4)], ["draws within 0.1 of the average", `${percent(near)} ± ${percent(se)}`], ["draws in which one of the two takes over (weight > 0.99)", percent(taken)]]));
  const two = byId("heads").value === "two";
  say("norm-text", `With ${two ? "two heads" : "one head"}, the output is within 0.1 of the average in ${percent(near)} of the draws, and one value takes over in ${percent(taken)}; the variance of the output is ${variance.toFixed(3)}. ${!Number(byId("spread").value) ? "The keys hardly vary, so the scores are nearly equal." : two ? "Each head looks at one key, so the length of key a affects only its own head: that is why several heads help, 1 (e)." : "When key a is longer than 1, it gets nearly all the weight; when it is shorter, key b does."}`);
}

for (const id of ["heads", "c-beta", "spread", "epsilon", "n"]) byId(id).addEventListener("input", drawNorms);
byId("again").addEventListener("click", () => {
  seed += 1;
  drawNorms();
});
/** @type {[string, string, number][]} a button, and the heads and the variance of key a's length that it sets */
const NORMS = [["1ci", "one", 0], ["1cii", "one", 0.5], ["1di", "two", 0], ["1dii", "two", 0.5]]; // prettier-ignore
for (const [id, heads, spread] of NORMS) {
  byId(id).addEventListener("click", () => {
    [byId("heads").value, byId("spread").value] = [heads, spread];
    drawNorms();
  });
}
drawHand();
drawNorms();
pressQuestion();
