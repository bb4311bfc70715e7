/** Show attention heads on a text: its tokens with their losses, a map of every head, and a large map of the chosen head. */

import { byId, drawMap, inkOf, make, makeTable, shown, signed } from "./kit.js";

/**
 * @typedef {object} Heads
 * @property {number} layers
 * @property {number} heads      of each layer
 * @property {string[]} tokens
 * @property {number[]} losses   of every token after the first, in nats
 * @property {number} [darkest]  the loss of the darkest shade
 * @property {(layer: number, head: number) => ArrayLike<number>} map  weights [T * T]: row t looks at column s
 * @property {[number, number, number]} chosen  layer, head and token
 * @property {(layer: number, head: number, token: number) => void} choose
 */

/** A token with its white space made visible. @param {string} token */
const spelled = (token) => token.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥");

/** Fill the elements "tokens", "maps", "large" and "cell" of the page. @param {Heads} of */
export function showHeads(of) {
  const { layers, heads, losses, choose } = of;
  const [layer, head, token] = of.chosen;
  const tokens = of.tokens.map(spelled);
  const T = tokens.length;
  const top = of.darkest ?? Math.max(...losses, 1);
  const held = document.activeElement;
  const again = held?.closest("#tokens, #maps, #large") ? [held.closest("[id]")?.id, [...(held.parentElement?.children ?? [])].indexOf(held)] : null;
  byId("tokens").replaceChildren(
    ...tokens.map((name, t) => {
      const title = losses.length ? (t ? `loss ${shown(losses[t - 1], 2)} nats` : "the first token has no loss") : "";
      const heat = t && losses.length ? `background:color-mix(in srgb, var(--accent) ${Math.round(Math.min(losses[t - 1] / top, 1) * 45)}%, var(--page))` : false;
      return make("button", { title, "aria-label": `${name}${title && ", "}${title}`, "aria-pressed": String(t === token), style: heat, dir: "auto", onclick: () => choose(layer, head, t) }, name);
    }),
  );
  const even = Float32Array.from({ length: T * T }, (_, i) => (i % T <= Math.floor(i / T) ? 1 / (Math.floor(i / T) + 1) : 0));
  const small = (/** @type {string} */ label, /** @type {ArrayLike<number>} */ weights) => {
    const canvas = make("canvas", { role: "img", "aria-label": label });
    drawMap(canvas, weights, T);
    return canvas;
  };
  byId("maps").replaceChildren(
    ...Array.from({ length: layers * heads }, (_, i) => {
      const [l, h] = [Math.floor(i / heads), i % heads];
      const label = describeMap(of.map(l, h), T);
      return make("button", { class: "map", title: label, "aria-pressed": String(l === layer && h === head), onclick: () => choose(l, h, token) }, `layer ${l}, head ${h}`, small(label, of.map(l, h)));
    }),
    make("div", { class: "map", title: "1 / t for each of t tokens, as a head without preferences would have" }, "even, 1/t", small("equal weight on the token itself and all earlier ones", even)),
  );
  showLarge(of.map(layer, head), tokens, of.chosen, choose);
  if (again) /** @type {any} */ (byId(String(again[0])).children[Number(again[1])])?.focus();
}

/** Show one large map; pointer and arrow keys read its weights. @param {ArrayLike<number>} weights @param {string[]} tokens @param {Heads["chosen"]} chosen @param {Heads["choose"]} choose */
function showLarge(weights, tokens, [layer, head, token], choose) {
  const T = tokens.length;
  const unit = Math.max(Math.floor(384 / T), 6);
  let [t, s] = [token, [...Array(token + 1).keys()].reduce((a, b) => (weights[token * T + b] > weights[token * T + a] ? b : a), 0)];
  const canvas = make("canvas", { role: "img", tabindex: 0, width: T * unit, height: T * unit, "aria-label": `layer ${layer}, head ${head}, large; arrow keys read its weights, Enter chooses a token` });
  const draw = () => {
    const context = canvas.getContext("2d");
    const ink = inkOf();
    context.clearRect(0, 0, T * unit, T * unit);
    for (let i = 0; i < T * T; i++) {
      context.fillStyle = `rgb(${ink} / ${Math.sqrt(weights[i])})`;
      context.fillRect((i % T) * unit, Math.floor(i / T) * unit, unit, unit);
    }
    context.strokeStyle = getComputedStyle(canvas).color;
    context.strokeRect(0.5, token * unit + 0.5, (token + 1) * unit - 1, unit - 1);
    context.lineWidth = 2;
    context.strokeRect(s * unit + 1, t * unit + 1, unit - 2, unit - 2);
    byId("cell").textContent = `“${tokens[t]}” (token ${t}) looks at “${tokens[s]}” (${s}): weight ${shown(weights[t * T + s], 4)}; an even weight is ${shown(1 / (t + 1), 4)}.`;
  };
  const read = (/** @type {number} */ row, /** @type {number} */ column) => {
    t = Math.min(Math.max(row, 0), T - 1);
    s = Math.min(Math.max(column, 0), t);
    draw();
  };
  canvas.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
    const box = canvas.getBoundingClientRect();
    read(Math.floor(((event.clientY - box.top) / box.height) * T), Math.floor(((event.clientX - box.left) / box.width) * T));
  });
  canvas.addEventListener("click", () => choose(layer, head, t));
  canvas.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "Enter") return choose(layer, head, t);
    const way = /** @type {Record<string, [number, number]>} */ ({ ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] })[event.key];
    if (!way) return;
    event.preventDefault();
    read(t + way[0], s + way[1]);
  });
  byId("large").replaceChildren(canvas);
  draw();
}

/** @param {ArrayLike<number>} weights @param {number} T */
function describeMap(weights, T) {
  let [own, before] = [0, 0];
  for (let t = 1; t < T; t++) {
    own += weights[t * T + t] / (T - 1);
    before += weights[t * T + t - 1] / (T - 1);
  }
  return `${Math.round(100 * own)} % of the weight on the token itself, ${Math.round(100 * before)} % on the one before`;
}

/** A sentence about where a token looks. @param {Heads} of */
export function describeRow(of) {
  const [layer, head, token] = of.chosen;
  const T = of.tokens.length;
  const weights = Array.from({ length: token + 1 }, (_, s) => of.map(layer, head)[token * T + s]);
  if (!weights.every(Number.isFinite)) return "The weights of this step are not finite, so there is no attention. Choose an earlier step.";
  const best = weights.indexOf(Math.max(...weights));
  const place = best === token ? ", which is itself" : best === token - 1 ? ", the token before" : "";
  return `In layer ${layer}, head ${head}, “${spelled(of.tokens[token])}” looks most at “${spelled(of.tokens[best])}”${place}: ${Math.round(100 * weights[best])} % of its weight; even would be ${Math.round(100 / (token + 1))} %${weights[best] < 1.5 / (token + 1) && token ? ", so it passes on little more than an average of what came before" : ""}.`;
}

// --- heads off ----------------------------------------------------------------------------------------------------------

/**
 * @typedef {object} Effect  the effect of heads that are off together
 * @property {[number, number][]} heads  layer and head of each
 * @property {number} delta  the rise of the loss, in nats per token
 * @property {number | null} se  its standard error over windows
 * @property {{delta: number, se: number | null}} [beyond]  for several heads: the effect minus the sum of their single effects
 */

/** @param {[number, number][]} heads */
export const headNames = (heads) => heads.map(([layer, head]) => `${layer}.${head}`).join(" + ");

/** True if an effect can be distinguished from 0. @param {{delta: number, se: number | null}} effect */
export const isSeen = ({ delta, se }) => se !== null && Math.abs(delta) > 2 * se;

/** @param {{delta: number, se: number | null}} effect */
export const withError = ({ delta, se }) => `${signed(delta)} ± ${se === null || Number.isNaN(se) ? "?" : se.toFixed(4)}`;

/** Sentences about the head and the pair that matter most, and heads that do harm. @param {Effect[]} effects */
export function effectSentence(effects) {
  const order = [...effects].sort((a, b) => b.delta - a.delta);
  const first = order.find(({ heads }) => heads.length === 1);
  const pairs = order.filter(({ heads, beyond }) => heads.length === 2 && beyond);
  const words = [];
  const matters = first && isSeen(first) && first.delta > 0;
  const [, second] = order.filter(({ heads }) => heads.length === 1);
  const apart = first && second && { delta: first.delta - second.delta, se: Math.hypot(first.se ?? NaN, second.se ?? NaN) };
  if (first && !matters) words.push("Removing any single head raises the loss by no more than two standard errors.");
  else if (first && apart && !isSeen(apart) && isSeen(second)) {
    words.push(`Heads ${headNames(first.heads)} and ${headNames(second.heads)} matter most; their order is uncertain on this text. Without one of them the loss rises by ${withError(first)} and ${withError(second)} nats per token.`);
  } else if (first) {
    words.push(`Head ${headNames(first.heads)} matters most: without it the loss rises by ${withError(first)} nats per token.`);
    if (second) words.push(`Next comes head ${headNames(second.heads)}: ${withError(second)}.`);
  }
  const together = pairs.find(isSeen);
  if (together?.beyond) {
    const parts = together.heads.map((head) => headNames([head])).join(" and ");
    const more = isSeen(together.beyond);
    const [size, verdict] = !more
      ? ["within two standard errors of the sum of both alone", "Each does work of its own."]
      : together.beyond.delta > 0
        ? ["more than the sum of both alone", "Each can partly replace the other, so judge them as a pair."]
        : ["less than the sum of both alone", "Their effects overlap, so judge them as a pair."];
    words.push(`The pair that costs most is ${parts}: ${withError(together)}, ${size} (${withError(together.beyond)} beyond it). ${verdict}`);
  }
  const harmful = order.filter((effect) => effect.heads.length === 1 && effect.delta < 0 && isSeen(effect)).reverse();
  for (const effect of harmful.slice(0, 2)) words.push(`Without head ${headNames(effect.heads)} the loss falls (${withError(effect)}): on this text the head does harm.`);
  return words.join("\n");
}

/** A table of effects, the largest first. @param {string} caption @param {Effect[]} effects */
export function effectTable(caption, effects) {
  const several = effects.some(({ heads }) => heads.length > 1);
  const rows = [...effects].sort((a, b) => b.delta - a.delta).map((effect) => [headNames(effect.heads), withError(effect), ...(several ? [effect.beyond ? withError(effect.beyond) : ""] : []), isSeen(effect) ? "" : "not distinguishable from 0"]);
  return makeTable(caption, ["layer.head", "loss rises by", ...(several ? ["beyond the sum of each alone"] : []), ""], rows);
}
