/** The atlas: gains of ideas on two texts with their intervals, and what stands behind each. tools/report/atlas.py writes the data. */

import { byId, make, makeTable, pageData, showChart, signed, ticks } from "../kit/kit.js";

/**
 * @typedef {{word: string, gain: number | null, interval: [number, number] | null, said: string, pairs: [number, number, number][], commits: string[]}} Effect
 * @typedef {{kind: string, name: string, what: string, source: string, claim: string, expected: string, path: string, code: string, sha256: string,
 *   gain: number | null, sweep: [string, string, number][], costs: [string, string], texts: Record<string, Effect>}} Row
 */

const data = pageData();
/** @type {Row[]} */
const rows = data.rows;
/** @type {[string, string][]} */
const texts = Object.entries(data.texts);
const KINDS = /** @type {Record<string, string>} */ ({ better: "good", worse: "bad", unproven: "other" });

/** A paragraph's words, those between backticks as code. @param {string} text */
const words = (text) => text.split("`").map((part, i) => (i % 2 ? make("code", {}, part) : part.replaceAll("*", "")));

/** A place on a scale from -limit to limit, as a share of the width that leaves a margin for arrows. @param {number} x @param {number} limit */
const at = (x, limit) => `${(50 + (46 * Math.max(-limit, Math.min(limit, x))) / limit).toFixed(2)}%`;

/** The gains of an idea as intervals, one text above the other; what leaves the scale ends in an arrow. @param {Row} row @param {number} limit */
function drawStrip(row, limit) {
  const said = texts.map(([text, name]) => `${name}: ${row.texts[text].said}`).join("; ");
  const svg = make("svg", { role: "img", "aria-label": said });
  const line = (/** @type {Record<string, string>} */ places, /** @type {string} */ colour, width = 1) => make("line", { ...places, style: `stroke:${colour};stroke-width:${width}` });
  svg.append(line({ x1: "50%", x2: "50%", y1: "0%", y2: "100%" }, "var(--soft)"));
  if (data.margin < limit) svg.prepend(make("rect", { x: at(-data.margin, limit), width: `${(92 * data.margin) / limit}%`, height: "100%", style: "fill:var(--line);opacity:0.35" }));
  texts.forEach(([text], i) => {
    const { gain, interval } = row.texts[text];
    if (gain === null) return;
    const [y, colour] = [`${35 + 30 * i}%`, `var(--c${i})`];
    const [low, high] = interval ?? [gain, gain];
    svg.append(line({ x1: at(low, limit), x2: at(high, limit), y1: y, y2: y }, colour, 2));
    if (low < -limit) svg.append(make("text", { x: 0, y, dy: 4, style: `fill:${colour}` }, "◀"));
    if (high > limit) svg.append(make("text", { x: "100%", y, dy: 4, "text-anchor": "end", style: `fill:${colour}` }, "▶"));
    if (Math.abs(gain) > limit) return;
    svg.append(i ? make("rect", { x: at(gain, limit), y, width: 8, height: 8, transform: "translate(-4 -4)", style: `fill:${colour}` }) : make("circle", { cx: at(gain, limit), cy: y, r: 5, style: `fill:${colour}` }));
  });
  return make("div", { class: "strip" }, svg);
}

/** @param {number} limit */
function drawAxis(limit) {
  const svg = make("svg", { role: "img", "aria-label": `gain from −${limit} to ${limit} nats per token` });
  svg.append(make("text", { x: "48%", y: 14, "text-anchor": "end" }, "← worse"), make("text", { x: "52%", y: 14 }, "better: lower loss →"));
  for (const x of ticks(-limit, limit, 4)) svg.append(make("text", { x: at(x, limit), y: 34, "text-anchor": "middle" }, x ? signed(x, 2) : "0"));
  byId("axis").replaceChildren(make("span", {}, "idea"), make("div", { class: "strip" }, svg), make("span", {}, "gain, nats per token [95 %]"), make("span", {}, "time, parameters"), make("span", {}, "the source claims"));
}

/** What stands behind a row. @param {Row} row */
function drawInside(row) {
  const list = { "what it does": row.what, source: row.source, claim: row.claim, "we expected": row.expected, "its file": `${row.path.split(":")[0]}, SHA-256 ${row.sha256.slice(0, 16)}; the base's ${data.base.sha256.slice(0, 16)}` };
  const tables = texts.map(([text, name]) => {
    const { pairs, commits, said } = row.texts[text];
    const lines = pairs.map(([seed, base, idea]) => [seed, base.toFixed(4), idea.toFixed(4), signed(base - idea)]);
    const caption = `${name}: ${said}${commits.length ? `; package at commit ${commits.join(", ")}` : ""}`;
    return make("div", { class: "scroll", tabindex: 0 }, makeTable(caption, ["seed", "base, test loss", "idea, test loss", "gain"], lines));
  });
  const sweep = row.sweep.length ? [make("div", { class: "scroll", tabindex: 0 }, makeTable("The search for its learning rate, one seed on dev", ["text", "setting", "dev loss"], row.sweep))] : [];
  const again = texts.map(([text]) => `hectogpt compare docs/literature/base.py:base@half_minute ${row.path} --corpus ${text} --first-seed ${data.firstSeeds[text]} --seeds 5 --threads 1 --test`);
  const facts = make("dl", {}, ...Object.entries(list).flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)]));
  return [facts, make("div", { class: "columns even" }, ...tables), ...sweep, make("pre", { class: "sample panel" }, row.code), make("p", { class: "soft" }, "Run it again:"), make("pre", { class: "sample panel" }, again.join("\n"))];
}

/** @param {Row} row @param {number} limit */
function drawRow(row, limit) {
  const said = texts.map(([text], i) => {
    const [word, rest = ""] = row.texts[text].said.split(/ (?=[+-])(.*)/);
    return make("div", {}, make("span", { style: `color:var(--c${i})` }, i ? "■ " : "● "), make("b", { class: KINDS[row.texts[text].word] ?? "soft" }, word), ` ${rest.replaceAll("-", "−")}`);
  });
  const name = make("span", {}, make("b", {}, row.name.replaceAll("_", " ")), make("br"), make("span", { class: "soft" }, row.kind));
  const costs = make("span", { class: "cost" }, ...row.costs.map((text) => make("div", {}, text.replace("-", "−"))));
  const line = [name, drawStrip(row, limit), make("span", { class: "said", "aria-hidden": "true" }, ...said), costs, make("span", { class: "claim soft" }, row.claim)];
  const inside = make("div", { class: "inside" });
  const details = make("details", { "data-name": row.name, ontoggle: () => details.open && !inside.children.length && inside.append(...drawInside(row)) }, make("summary", { class: "line" }, ...line), inside);
  return details;
}

function draw() {
  const [kind, word, order, limit] = [byId("kind").value, byId("word").value, byId("order").value, Number(byId("scale").value)];
  const chosen = rows.filter((row) => (!kind || row.kind === kind) && (!word || Object.values(row.texts).some((effect) => effect.word === word)));
  const key = (/** @type {Row} */ row) => (order ? row.texts[order].gain : row.gain) ?? -Infinity;
  drawAxis(limit);
  byId("count").replaceChildren(`${chosen.length} of ${rows.length} ideas. `, ...texts.map(([, name], i) => make("span", { style: `color:var(--c${i})` }, `${i ? "■" : "●"} ${name} `)), `Grey: within ${data.margin} of no gain. Choose a row to see its code, seeds and losses.`);
  byId("rows").replaceChildren(...chosen.sort((a, b) => key(b) - key(a)).map((row) => drawRow(row, limit)));
}

byId("summary").textContent = data.summary;
for (const [id, lines] of Object.entries(data.lists)) byId(id).append(...lines.map((/** @type {string} */ line) => make("li", {}, ...words(line))));
byId("tally").append(makeTable("Effects on both texts", data.tally[0], data.tally.slice(1)));
byId("base").textContent = data.base.code;
byId("kind").append(...[...new Set(rows.map(({ kind }) => kind))].sort().map((kind) => make("option", {}, kind)));
byId("word").append(...data.words.map((/** @type {string} */ word) => make("option", {}, word)));
byId("order").append(...texts.map(([text, name]) => make("option", { value: text }, `gain on ${name}`)));
const SCALES = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10];
const sizes = rows.flatMap((row) => Object.values(row.texts).flatMap(({ gain }) => (gain === null ? [] : [Math.abs(gain)]))).sort((a, b) => a - b);
const usual = SCALES.find((limit) => limit >= (sizes[Math.floor(0.85 * sizes.length)] ?? 0)) ?? 10; // most gains fit
byId("scale").append(...SCALES.map((limit) => make("option", { value: limit, selected: limit === usual }, `±${limit}`)));
for (const id of ["kind", "word", "order", "scale"]) byId(id).addEventListener("change", draw);
addEventListener("beforeprint", () => document.querySelectorAll("header details").forEach((details) => details.setAttribute("open", "")));
draw();
for (const { heading, text, chart, table } of data.figures) {
  const place = make("div");
  byId("figures").append(make("h2", {}, heading), make("p", {}, ...words(text)), place);
  if (chart) showChart(place, chart);
  if (table) byId("figures").append(make("div", { class: "scroll", tabindex: 0 }, makeTable("", table[0], table.slice(1))));
}
