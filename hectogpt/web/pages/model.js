/** A trained model's page: what Python computed, shown. */

import { byId, drawMap, fromBase64, lineChart, make, makeTable, pageData, shown, signed } from "../kit/kit.js";

/**
 * @typedef {{heads: [number, number][], mode: string, delta: number, se: number | null}} Effect
 * @typedef {{step: number | null, losses: number[], maps: string, next: [string, number][], effects: Effect[]}} Moment
 */
const data = pageData();
const [LAYERS, HEADS, T] = data.shape;
/** @type {Moment[]} the model at its checkpoints and at its end */
const moments = data.moments;
let now = moments[moments.length - 1];
/** @type {Uint16Array} the maps of `now` */
let all = new Uint16Array(0);
/** @param {number} layer @param {number} head @returns {Float32Array} [T * T] */
const mapOf = (layer, head) => Float32Array.from(all.subarray((layer * HEADS + head) * T * T, (layer * HEADS + head + 1) * T * T), (w) => w / 65535);
let [layer, head, token] = [0, 0, T - 1];

function drawMaps() {
  const grid = byId("maps");
  grid.style.gridTemplateColumns = `repeat(${Math.min(HEADS * (LAYERS > 1 && HEADS < 5 ? 2 : 1), 12)}, minmax(96px, 1fr))`;
  grid.replaceChildren(
    ...Array.from({ length: LAYERS * HEADS }, (_, i) => {
      const [l, h] = [Math.floor(i / HEADS), i % HEADS];
      const canvas = make("canvas", { role: "img", "aria-label": `attention of layer ${l}, head ${h}` });
      drawMap(canvas, mapOf(l, h), T);
      return make("button", { class: "map", "aria-pressed": String(l === layer && h === head), onclick: () => choose(l, h, token) }, `layer ${l}, head ${h}`, canvas);
    }),
  );
  const top = Math.max(...moments.flatMap(({ losses }) => losses), 1);
  byId("tokens").replaceChildren(
    ...data.tokens.map((/** @type {string} */ name, /** @type {number} */ t) => {
      const title = t ? `loss ${shown(now.losses[t - 1], 2)} nats` : "the first token has no loss";
      return make("button", { title, "aria-label": `${name}, ${title}`, "aria-pressed": String(t === token), style: t ? `background:rgb(var(--heat) / ${Math.min(now.losses[t - 1] / top, 1) * 0.55})` : false, onclick: () => choose(layer, head, t) }, name);
    }),
  );
}

/** @param {number} l @param {number} h @param {number} t */
function choose(l, h, t) {
  [layer, head, token] = [l, h, t];
  drawMaps();
  const weights = mapOf(layer, head).subarray(token * T, token * T + token + 1);
  const order = [...weights.keys()].sort((a, b) => weights[b] - weights[a]).slice(0, 8);
  byId("looks").replaceChildren(makeTable(`Where token ${token}, “${data.tokens[token]}”, looks in layer ${layer}, head ${head}`, ["token", "weight", "even"], order.map((s) => [`${s} ${data.tokens[s]}`, weights[s].toFixed(3), (1 / (token + 1)).toFixed(3)])));
  byId("look-text").textContent = `“${data.tokens[token]}” looks most at “${data.tokens[order[0]]}”: ${Math.round(100 * weights[order[0]])} % of its weight${order[0] === token ? ", which is itself" : order[0] === token - 1 ? ", the token before" : ""}.`;
}

const nameOf = (/** @type {[number, number][]} */ heads) => heads.map(([l, h]) => `${l}.${h}`).join(" + ");
const seen = (/** @type {{delta: number, se: number | null}} */ e) => e.se !== null && Math.abs(e.delta) > 2 * e.se;

function drawEffects() {
  const effects = now.effects;
  if (!effects.length) {
    byId("off-text").textContent = "Effects of single heads were not measured: the model has more than 64 of them, or the text is one token.";
    return;
  }
  const zero = effects.filter((e) => e.heads.length === 1 && e.mode === "zero").sort((a, b) => b.delta - a.delta);
  const mean = new Map(effects.filter((e) => e.mode === "mean").map((e) => [nameOf(e.heads), e]));
  const show = (/** @type {{delta: number, se: number | null} | undefined} */ e) => (e ? `${signed(e.delta)} ± ${e.se === null ? "?" : e.se.toFixed(4)}` : "");
  byId("alone").replaceChildren(makeTable(`Loss on ${data.text} rises by, nats a token ± one standard error`, ["layer.head", "zero in its place", "its mean in its place", ""], zero.map((e) => [nameOf(e.heads), show(e), show(mean.get(nameOf(e.heads))), seen(e) ? "" : "not distinguishable from 0"])));
  const pairs = effects.filter((e) => e.heads.length === 2);
  const alone = new Map(zero.map((e) => [nameOf(e.heads), e.delta]));
  const sum = (/** @type {[number, number][]} */ heads) => heads.reduce((total, h) => total + (alone.get(nameOf([h])) ?? 0), 0);
  byId("pairs").replaceChildren(pairs.length ? makeTable("Two heads together, zero in their place", ["heads", "loss rises by", "sum of both alone"], pairs.map((e) => [nameOf(e.heads), show(e), signed(sum(e.heads))])) : "Pairs are measured at the end of the run.");
  const best = zero.find(seen);
  byId("off-text").textContent = best ? `Of the heads whose effect can be told from 0, ${nameOf(best.heads)} matters most: without it the loss rises by ${show(best)} nats a token.` : "No single head can be told from 0.";
}

/** The heads that matter most at the end, at every checkpoint. */
function drawHistory() {
  const last = moments[moments.length - 1].effects.filter((e) => e.heads.length === 1 && e.mode === "zero");
  const best = [...last].sort((a, b) => b.delta - a.delta).slice(0, 4);
  const at = (/** @type {Moment} */ moment, /** @type {Effect} */ head) => moment.effects.find((e) => e.mode === "zero" && nameOf(e.heads) === nameOf(head.heads));
  const curves = best.map((head) => {
    const found = moments.map((moment) => /** @type {const} */ ([moment.step ?? 0, at(moment, head)]));
    return { name: nameOf(head.heads), points: found.map(([step, e]) => /** @type {[number, number]} */ ([step, e?.delta ?? NaN])), errors: found.map(([, e]) => 2 * (e?.se ?? 0)) };
  });
  if (!curves.length) return;
  const caption = `What the loss on ${data.text} rises by without a head, nats a token; bars are two standard errors.`;
  byId("history").replaceChildren(make("figcaption", {}, caption), lineChart({ label: caption, xLabel: "step", yLabel: "nats", curves, at: now.step, zero: true, height: 220 }));
}

/** @param {number} i of the moments */
function showMoment(i) {
  now = moments[i];
  all = new Uint16Array(fromBase64(now.maps).buffer);
  byId("step-text").textContent = `step ${now.step}${i === moments.length - 1 ? ", the newest weights" : ""}`;
  byId("next").replaceChildren(makeTable("Likeliest next tokens", ["token", "probability"], now.next));
  if (LAYERS) choose(layer, head, token);
  drawEffects();
  if (moments.length > 1) drawHistory();
}

byId("about").textContent = `${data.name}: ${data.about} ${T} tokens read${data.cut ? `; the first ${data.cut} of the prompt were cut` : ""}.`;
byId("when").hidden = moments.length < 2;
byId("step").max = byId("step").value = String(moments.length - 1);
byId("step").addEventListener("input", (/** @type {any} */ event) => showMoment(Number(event.target.value)));
showMoment(moments.length - 1);
