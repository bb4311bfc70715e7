/** The page of a trained model. It shows numbers that Python has computed. */

import { describeRow, effectSentence, effectTable, headNames, isSeen, showHeads } from "../kit/heads.js";
import { byId, fromBase64, makeTable, pageData, say, showChart } from "../kit/kit.js";

/**
 * @typedef {import("../kit/heads.js").Effect & {mode: string}} Effect
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

/** @param {number} l @param {number} h @param {number} t */
function choose(l, h, t) {
  [layer, head, token] = [l, h, t];
  const darkest = Math.max(...moments.flatMap(({ losses }) => losses), 1);
  /** @type {import("../kit/heads.js").Heads} */
  const of = { layers: LAYERS, heads: HEADS, tokens: data.tokens, losses: now.losses, darkest, map: mapOf, chosen: [l, h, t], choose };
  showHeads(of);
  say("look-text", describeRow(of));
  const weights = mapOf(layer, head).subarray(token * T, token * T + token + 1);
  const order = [...weights.keys()].sort((a, b) => weights[b] - weights[a]);
  byId("looks").replaceChildren(makeTable(`Where token ${token}, “${data.tokens[token]}”, looks in layer ${layer}, head ${head}`, ["token", "weight", "even"], order.map((s) => [`${s} ${data.tokens[s]}`, weights[s].toFixed(3), (1 / (token + 1)).toFixed(3)])));
}

function drawEffects() {
  const { effects } = now;
  if (!effects.length) return say("off-text", "Effects of single heads were not measured: the model has more than 64 of them, or the text is one token.");
  const zero = effects.filter(({ mode }) => mode === "zero");
  const caption = `Loss on ${data.text} rises by, nats per token ± one standard error`;
  byId("alone").replaceChildren(effectTable(`${caption}; heads replaced by zero`, zero));
  const mean = effects.filter((effect) => effect.mode === "mean");
  byId("mean").replaceChildren(mean.length ? effectTable(`${caption}; heads replaced by their mean output`, mean) : "Means and pairs are measured only with the newest weights.");
  say("off-text", [`At step ${now.step ?? "?"}:`, effectSentence(zero), sinceSentence()].filter(Boolean).join("\n"));
}

/** @param {Moment} moment @param {string} name */
const effectAt = (moment, name) => moment.effects.find(({ mode, heads }) => mode === "zero" && headNames(heads) === name);

/** The names of the heads, by their effect with the newest weights. */
function bestHeads() {
  const last = moments[moments.length - 1].effects.filter(({ heads, mode }) => heads.length === 1 && mode === "zero");
  return [...last].sort((a, b) => b.delta - a.delta).map(({ heads }) => headNames(heads));
}

/** A sentence about the first checkpoint since which the best head of the end has had an effect. */
function sinceSentence() {
  const [best] = bestHeads();
  let first = moments.length;
  while (first && ((effect) => effect && effect.delta > 0 && isSeen(effect))(effectAt(moments[first - 1], best))) first--;
  const measured = `Checkpoints that the run kept: ${moments.map(({ step }) => step).join(", ")}.`;
  if (moments.length < 2 || first === moments.length) return moments.length < 2 ? "" : measured;
  return `The effect of head ${best}, which matters most in the end, has been more than two standard errors since step ${moments[first].step}${first ? ` (at step ${moments[first - 1].step} not yet)` : ", the first that is here"}. ${measured}`;
}

/** Draw the effects of the heads that matter most at the end, at every checkpoint. */
function drawHistory() {
  const curves = bestHeads().slice(0, 4).map((name) => {
    const found = moments.map((moment) => /** @type {const} */ ([moment.step ?? 0, effectAt(moment, name)]));
    return { name, points: found.map(([step, e]) => /** @type {[number, number]} */ ([step, e?.delta ?? NaN])), errors: found.map(([, e]) => 2 * (e?.se ?? 0)) };
  });
  if (!curves.length) return;
  const caption = `Rise of the loss on ${data.text} without a head, nats per token; bars are two standard errors.`;
  byId("history-text").textContent = caption;
  showChart(byId("history"), { label: caption, xLabel: "step", yLabel: "loss rises by", curves, at: now.step, zero: true, height: 220 });
}

/** @param {number} i the number of the moment */
function showMoment(i) {
  now = moments[i];
  all = new Uint16Array(fromBase64(now.maps).buffer);
  byId("step-text").textContent = `step ${now.step}${i === moments.length - 1 ? ", the newest weights" : ""}`;
  byId("next").replaceChildren(makeTable("Most likely next tokens", ["token", "probability"], now.next));
  if (LAYERS) choose(layer, head, token);
  drawEffects();
  if (moments.length > 1) drawHistory();
}

byId("about").textContent = `${data.name}: ${data.about} ${T} tokens read${data.cut ? `; the first ${data.cut} of the prompt were cut` : ""}.`;
byId("when").hidden = moments.length < 2;
byId("step").max = byId("step").value = String(moments.length - 1);
byId("step").addEventListener("input", (/** @type {any} */ event) => showMoment(Number(event.target.value)));
showMoment(moments.length - 1);
