/** What the page shows, and what its controls do. */

import { byId, download, drawMap, lineChart, make, shown, signed } from "../kit/kit.js";
import { asked, changed, commandLine, data, engine, hecto, openRun, restoreRun, run, trainRun } from "./train-run.js";

/** @type {[string, string, Record<string, any>][]} name of a setting, its label, its control */
const SETTINGS = [
  ["recipe", "Recipe", { options: ["rotary", "head_lr", "muon", "embedding_lr", "learning_rate", "baseline"] }],
  ["steps", "Steps", { value: 100, min: 1, max: 1000 }],
  ["seed", "Seed", { value: 0, min: 0, max: 2147483647 }],
  ["lr", "Learning rate", { value: "", min: 0, step: "any", placeholder: "recipe's" }],
];
/** @type {[string, string, Record<string, any>][]} */
const SIZES = [
  ["dModel", "Width", { value: 33, min: 4, max: 512 }],
  ["heads", "Heads", { value: 3, min: 1, max: 64 }],
  ["layers", "Layers", { value: 3, min: 1, max: 12 }],
  ["batchSize", "Rows a step", { options: ["4", "8", "16"] }],
  ["seqLen", "Tokens a row", { value: 128, min: 8, max: 1024 }],
  ["positions", "Positions", { options: ["yes", "no"] }],
];
let busy = false;

/** @param {string} place @param {[string, string, Record<string, any>][]} controls @param {string} prefix */
function addControls(place, controls, prefix) {
  for (const [name, label, { options, ...attributes }] of controls) {
    const id = prefix + name;
    const control = options
      ? make("select", { id }, ...options.map((/** @type {string} */ o) => make("option", { value: o }, o)))
      : make("input", { id, type: "number", ...attributes });
    byId(place).append(make("label", {}, label, control));
  }
}

/** @param {string} prefix */
function readSettings(prefix) {
  /** @type {Record<string, any>} */
  const found = {};
  for (const [name] of [...SETTINGS, ...SIZES]) {
    const value = byId(prefix + name).value;
    if (name === "recipe") found[name] = value;
    else if (name === "positions") found[name] = value === "yes";
    else if (name === "lr") found[name] = value === "" ? null : Number(value);
    else found[name] = Number(value);
  }
  found.context = Math.max(found.seqLen, 64);
  return found;
}

/** @param {string} id @param {string} sentence @param {boolean} [bad] */
function say(id, sentence, bad = false) {
  byId(id).textContent = sentence;
  byId(id).classList.toggle("bad", bad);
}

/** Run one command of the page at a time; its error becomes a sentence. @param {string} place @param {() => Promise<void>} work */
async function doing(place, work) {
  if (busy) return;
  busy = true;
  enable();
  try {
    await work();
  } catch (error) {
    say(place, error instanceof Error ? error.message : String(error), true);
  }
  busy = false;
  enable();
}

function enable() {
  const ended = run && run.steps.length >= run.opened.settings.steps;
  const idle = run !== null && !busy;
  for (const id of ["write", "read", "each", "pairs", "subsets", "along", "save-page", "save-weights", "save-text", "reset", "try-second"]) byId(id).disabled = !idle;
  byId("start").disabled = busy;
  byId("start").textContent = run && run.steps.length && !ended ? "Go on" : "Start";
  byId("pause").disabled = !busy;
  byId("one").disabled = !idle || ended;
  byId("slider").disabled = !idle;
  if (run) byId("subsets").hidden = run.opened.layers * run.opened.heads > 9;
}

// --- curves -----------------------------------------------------------------------------------------------------------

function drawCurves() {
  const steps = run?.steps ?? [];
  const lines = run?.opened.lines;
  const last = run?.opened.settings.steps ?? 100;
  const levels = lines ? ["uniform", "unigram", "bigram", "trigram"].map((name) => ({ name, y: lines[name] })) : [];
  const held = steps.filter((s) => s.heldOut !== null).map((s) => /** @type {[number, number]} */ ([s.step, s.heldOut]));
  const curves = [{ name: "training", points: steps.map((s) => /** @type {[number, number]} */ ([s.step, s.loss])) }];
  if (held.length) curves.push({ name: "held out", points: held });
  byId("loss").replaceChildren(lineChart({ label: lossSentence(), xLabel: "step", yLabel: "nats a token", curves, levels: joinLevels(levels), xMax: last, at: run?.shown ?? null }));
  const norms = steps.map((s) => /** @type {[number, number]} */ ([s.step, s.gradNorm]));
  byId("norm").replaceChildren(lineChart({ label: "gradient norm by step", xLabel: "step", yLabel: "gradient norm", curves: [{ name: "", points: norms }], xMax: last, at: run?.shown ?? null, height: 200, zero: true }));
  byId("loss-text").textContent = lossSentence();
  byId("norm-text").textContent = steps.length ? `The gradient norm is ${shown(steps[steps.length - 1].gradNorm, 2)}; above 1 it is clipped to 1.` : "";
}

/** Lines that are too close to tell apart carry one label. @param {{name: string, y: number}[]} levels */
function joinLevels(levels) {
  return levels.reduce((kept, level) => {
    const near = kept.find(({ y }) => Math.abs(y - level.y) < 0.25);
    if (near) near.name += `, ${level.name}`;
    else kept.push({ ...level });
    return kept;
  }, /** @type {{name: string, y: number}[]} */ ([]));
}

function lossSentence() {
  if (!run || !run.steps.length) return "The dashed lines come from counting the words of the same text; the curve comes when training begins.";
  const last = run.steps[run.steps.length - 1];
  const value = run.heldOut ?? [...run.steps].reverse().find((s) => s.heldOut !== null)?.heldOut ?? last.loss;
  const names = ["uniform", "unigram", "bigram", "trigram"];
  const passed = names.filter((name) => value < run?.opened.lines[name]);
  const place = passed.length ? `below ${passed[passed.length - 1] === "uniform" ? "guessing" : `the ${passed[passed.length - 1]} counts`}` : "not yet below guessing";
  return `After step ${last.step} held-out loss is ${shown(value)} nats a token, ${place} (${names.map((name) => `${name} ${shown(run?.opened.lines[name], 2)}`).join(", ")}).`;
}

// --- heads --------------------------------------------------------------------------------------------------------------

/** @type {{tokens: string[], losses: number[], maps: Float32Array[][]} | null} */
let reading = null;
let [chosenLayer, chosenHead, chosenToken] = [0, 0, -1];

/** @param {{tokens: string[], losses: number[], maps: Float32Array[][]}} found */
function drawReading(found) {
  reading = found;
  const T = found.tokens.length;
  if (chosenToken < 0 || chosenToken >= T) chosenToken = T - 1;
  const grid = byId("maps");
  const columns = (found.maps[0]?.length ?? 1) * (found.maps.length > 1 && found.maps[0].length < 5 ? found.maps.length : 1);
  grid.style.gridTemplateColumns = `repeat(${Math.min(columns + 1, 10)}, minmax(112px, 1fr))`;
  const cells = found.maps.flatMap((heads, layer) =>
    heads.map((weights, head) => {
      const canvas = make("canvas", { role: "img", "aria-label": describeMap(weights, T, layer, head) });
      drawMap(canvas, weights, T);
      const pressed = layer === chosenLayer && head === chosenHead;
      return make("button", { class: "map", "aria-pressed": String(pressed), onclick: () => choose(layer, head, chosenToken) }, `layer ${layer}, head ${head}`, canvas);
    }),
  );
  const even = Float32Array.from({ length: T * T }, (_, i) => (i % T <= Math.floor(i / T) ? 1 / (Math.floor(i / T) + 1) : 0));
  const canvas = make("canvas", { role: "img", "aria-label": "the same weight on all earlier tokens" });
  drawMap(canvas, even, T);
  cells.push(make("div", { class: "map" }, "for comparison: even", canvas));
  grid.replaceChildren(...cells);
  const top = Math.max(...found.losses, 1);
  byId("tokens").replaceChildren(
    ...found.tokens.map((token, t) => {
      const loss = t ? found.losses[t - 1] : 0;
      const title = t ? `token ${t}: loss ${shown(loss, 2)} nats` : "the first token has no loss";
      return make("button", { title, "aria-label": `${token.trim() || "space"}, ${title}`, "aria-pressed": String(t === chosenToken), style: `background:rgb(var(--heat) / ${Math.min(loss / top, 1) * 0.55})`, onclick: () => choose(chosenLayer, chosenHead, t) }, token.replaceAll("\n", "⏎"));
    }),
  );
}

/** @param {Float32Array} weights @param {number} T @param {number} layer @param {number} head */
function describeMap(weights, T, layer, head) {
  let [own, before] = [0, 0];
  for (let t = 1; t < T; t++) {
    own += weights[t * T + t] / (T - 1);
    before += weights[t * T + t - 1] / (T - 1);
  }
  return `layer ${layer}, head ${head}: ${Math.round(100 * own)} % of the weight on the token itself, ${Math.round(100 * before)} % on the one before`;
}

/** @param {number} layer @param {number} head @param {number} token */
function choose(layer, head, token) {
  [chosenLayer, chosenHead, chosenToken] = [layer, head, token];
  if (reading) drawReading(reading);
  doing("off-text", followToken);
}

async function followToken() {
  if (!reading) return;
  const text = byId("reading").value;
  const found = await engine.send("follow", { name: "run", text, layer: chosenLayer, head: chosenHead, at: chosenToken });
  const vector = (/** @type {number[]} */ v) => v.slice(0, 4).map((x) => shown(x, 2)).join("  ") + (v.length > 4 ? " ..." : "");
  const rows = found.weights.map((/** @type {number} */ weight, /** @type {number} */ s) =>
    make("tr", {}, make("td", {}, reading?.tokens[s] ?? ""), make("td", {}, vector(found.keys[s])), make("td", {}, shown(found.scores[s], 2)), make("td", {}, shown(weight)), make("td", {}, shown(1 / found.weights.length)), make("td", {}, vector(found.values[s]))),
  );
  const head = ["token", "key k", "score q·k", "weight (softmax)", "even", "value v"].map((name) => make("th", { scope: "col" }, name));
  const caption = `Token ${chosenToken} “${reading.tokens[chosenToken]}” in layer ${chosenLayer}, head ${chosenHead}: its query is ${vector(found.q)}; the weighted sum of the values is ${vector(found.out)}.`;
  const likely = found.likely.map((/** @type {any} */ l) => `“${l.token}” ${Math.round(100 * l.probability)} %`).join(", ");
  byId("follow").replaceChildren(make("table", {}, make("caption", {}, caption), make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows)), make("p", {}, `Likeliest next tokens: ${likely}.`));
}

async function readAgain() {
  drawReading(await engine.send("look", { name: "run", text: byId("reading").value }));
  await followToken();
}

// --- heads off ------------------------------------------------------------------------------------------------------------

/** @returns {[number, number][]} */
function allHeads() {
  if (!run) return [];
  const { layers, heads } = run.opened;
  return Array.from({ length: layers * heads }, (_, i) => [Math.floor(i / heads), i % heads]);
}

/** @param {[number, number][]} heads */
const headNames = (heads) => heads.map(([layer, head]) => `${layer}.${head}`).join(" + ");

/** @param {{delta: number, se: number}} effect */
const isSeen = ({ delta, se }) => Math.abs(delta) > 2 * se;

/** Measure sets of heads and show them, the largest effect first. @param {[number, number][][]} sets */
async function measure(sets) {
  const mode = byId("mode").value;
  /** @type {Map<string, any>} */
  const alone = new Map();
  const found = [];
  for (const heads of sets) {
    say("off-text", `measuring ${headNames(heads)} (${found.length + 1} of ${sets.length})`);
    const effect = await engine.send("ablate", { name: "run", heads, mode });
    if (heads.length === 1) alone.set(headNames(heads), effect);
    const sum = heads.length > 1 && heads.every((h) => alone.has(headNames([h]))) ? heads.reduce((total, h) => total + alone.get(headNames([h])).delta, 0) : null;
    found.push({ heads, ...effect, sum });
  }
  found.sort((a, b) => b.delta - a.delta);
  const rows = found.slice(0, 60).map((effect) =>
    make("tr", {}, make("td", {}, headNames(effect.heads)), make("td", {}, signed(effect.delta)), make("td", {}, shown(effect.se, 4)), make("td", {}, effect.sum === null ? "" : signed(effect.sum)), make("td", {}, isSeen(effect) ? "" : "not distinguishable from 0")),
  );
  const head = ["layer.head", "loss rises by", "± standard error", "sum of single ones", "seen"].map((name) => make("th", { scope: "col" }, name));
  byId("off-table").replaceChildren(make("table", {}, make("caption", {}, `Held-out loss at step ${run?.shown}, heads replaced by ${mode === "zero" ? "zero" : "their mean"}, nats a token`), make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows)));
  say("off-text", offSentence(found));
}

/** @param {any[]} found */
function offSentence(found) {
  const single = found.filter((effect) => effect.heads.length === 1);
  const pairs = found.filter((effect) => effect.heads.length === 2);
  const first = single[0];
  let sentence = first && isSeen(first) ? `Head ${headNames(first.heads)} matters most at step ${run?.shown}: without it held-out loss is ${signed(first.delta)} ± ${shown(first.se, 4)}.` : "No single head can be told from 0.";
  const together = pairs.filter((p) => p.sum !== null).sort((a, b) => b.delta - b.sum - (a.delta - a.sum))[0];
  if (together) sentence += ` Together ${headNames(together.heads)} cost ${signed(together.delta)}, ${together.delta > together.sum + 2 * together.se ? "more than" : together.delta < together.sum - 2 * together.se ? "less than" : "about as much as"} the sum of both alone (${signed(together.sum)}).`;
  return sentence;
}

async function measureAlong() {
  if (!run) return;
  const { steps: kept } = await engine.send("show", { name: "run", step: run.shown });
  const last = kept[kept.length - 1];
  const wanted = [0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1].map((share) => kept.reduce((/** @type {number} */ a, /** @type {number} */ b) => (Math.abs(b - share * last) < Math.abs(a - share * last) ? b : a)));
  const steps = [...new Set(wanted)];
  const heads = allHeads();
  const curves = heads.map(([layer, head]) => ({ name: `${layer}.${head}`, points: /** @type {[number, number][]} */ ([]), errors: /** @type {number[]} */ ([]) }));
  /** @type {(number | null)[]} first saved step from which an effect stays seen */
  const since = heads.map(() => null);
  for (const step of steps) {
    await hecto.step(step);
    for (const [i, head] of heads.entries()) {
      say("off-text", `step ${step}: measuring ${headNames([head])}`);
      const effect = await engine.send("ablate", { name: "run", heads: [head], mode: byId("mode").value, windows: 8 });
      curves[i].points.push([step, effect.delta]);
      curves[i].errors.push(effect.se);
      since[i] = isSeen(effect) && effect.delta > 0 ? (since[i] ?? step) : null;
    }
  }
  const order = curves.map((_, i) => i).sort((a, b) => curves[b].points[steps.length - 1][1] - curves[a].points[steps.length - 1][1]);
  const shownCurves = order.slice(0, 6).map((i) => curves[i]);
  byId("off-chart").replaceChildren(lineChart({ label: "effect of each head on held-out loss by step", xLabel: "step", yLabel: "loss rises by", curves: shownCurves, zero: true }));
  const best = order[0];
  say("off-text", since[best] === null ? "No head's effect can be told from 0 at the last step." : `Head ${curves[best].name} matters most at the end. Of the steps that were measured (${steps.join(", ")}), its effect can be told from 0 since step ${since[best]}.`);
}

// --- two runs ---------------------------------------------------------------------------------------------------------------

async function trainSecond() {
  if (!run) return;
  const first = run;
  const change = byId("change").value;
  const settings = { ...first.opened.settings };
  const value = byId("change-to").value;
  if (change === "recipe") settings.recipe = value;
  else if (change === "muon" || change === "positions") settings[change] = value === "yes";
  else settings[change] = Number(value);
  const until = first.steps.length;
  settings.steps = first.opened.settings.steps;
  await engine.send("open", { name: "second", text: first.text, settings, keep: ["run"] });
  /** @type {[number, number][]} */
  const points = [];
  engine.onStep = (step) => {
    if (step.name !== "second") return;
    points.push([step.step, step.loss]);
    say("two-text", `second run: step ${step.step} of ${until}, loss ${shown(step.loss)}`);
    if (step.step % 5 === 0 || step.step === until) draw();
  };
  const draw = () => byId("two-chart").replaceChildren(lineChart({ label: "training loss of both runs", xLabel: "step", yLabel: "nats a token", xMax: until, curves: [{ name: "first", points: first.steps.map((s) => [s.step, s.loss]) }, { name: "second", points }] }));
  await engine.send("train", { name: "second", steps: until, looks: [], prompt: "" });
  await hecto.step(first.steps.length);
  const { delta, se, windows } = await engine.send("compare", { names: ["run", "second"] });
  const verdict = Math.abs(delta) < 2 * se ? "cannot be told apart" : delta < 0 ? "the second is better" : "the first is better";
  say("two-text", `With ${change} = ${value} held-out loss changes by ${signed(delta)} ± ${shown(se, 4)} nats a token over ${windows} windows of the same text: ${verdict}. One seed; other seeds can differ by more.`);
}

// --- controls -----------------------------------------------------------------------------------------------------------------

function showText() {
  const words = byId("text").value.length;
  byId("about-text").textContent = words ? `${words.toLocaleString("en")} characters. A seventh or so is held out, and never trained on.` : "";
}

/** @param {File} file */
async function readFile(file) {
  if (file.size > 20e6) throw new Error(`${file.name} has ${Math.round(file.size / 1e6)} MB; a tab trains on 20 MB at most. Cut it, or use hectogpt train.`);
  const text = await file.text();
  if (text.includes("\u0000") || (text.match(/\ufffd/g) ?? []).length > text.length / 100) throw new Error(`${file.name} is no text in UTF-8.`);
  byId("text").value = text;
  showText();
}

asked.prompt = () => byId("reading").value || byId("text").value.slice(0, 120);

for (const [i, { name }] of data.texts.entries()) byId("texts").append(make("option", { value: i }, name));
addControls("settings", SETTINGS, "set-");
addControls("sizes", SIZES, "set-");
byId("second").append(
  make("label", {}, "Change", make("select", { id: "change" }, ...["lr", "recipe", "muon", "positions", "dModel", "heads", "layers"].map((name) => make("option", { value: name }, name)))),
  make("label", {}, "to", make("input", { id: "change-to", value: "0.01", size: 10 })),
  make("button", { id: "try-second", disabled: true, onclick: () => doing("two-text", trainSecond) }, "Train the second run"),
);
byId("texts").addEventListener("change", () => {
  byId("text").value = data.texts[Number(byId("texts").value)].text;
  showText();
});
byId("text").addEventListener("input", showText);
byId("file").addEventListener("change", () => doing("status", () => readFile(byId("file").files[0])));
byId("start").addEventListener("click", () =>
  doing("status", async () => {
    const fresh = !run || run.steps.length >= run.opened.settings.steps || run.steps.length === 0;
    if (fresh) await openRun(byId("text").value, readSettings("set-"));
    await trainRun(1000);
  }),
);
byId("pause").addEventListener("click", () => engine.send("stop"));
byId("one").addEventListener("click", () => doing("status", async () => void (await trainRun(1))));
byId("reset").addEventListener("click", () => doing("status", async () => void (await openRun(byId("text").value, readSettings("set-")))));
byId("slider").addEventListener("change", () =>
  doing("status", async () => {
    const { steps } = await engine.send("show", { name: "run", step: 0 });
    const wanted = Number(byId("slider").value);
    await hecto.step(steps.reduce((/** @type {number} */ a, /** @type {number} */ b) => (Math.abs(b - wanted) < Math.abs(a - wanted) ? b : a)));
  }),
);
byId("write").addEventListener("click", () =>
  doing("status", async () => {
    byId("sample").textContent = await engine.send("generate", { name: "run", prompt: byId("prompt").value, count: 60, temperature: Number(byId("temperature").value), seed: Date.now() % 100000 });
  }),
);
byId("read").addEventListener("click", () => doing("status", readAgain));
byId("each").addEventListener("click", () => doing("off-text", () => measure(allHeads().map((head) => [head]))));
byId("pairs").addEventListener("click", () => doing("off-text", () => measure(subsets(2))));
byId("subsets").addEventListener("click", () => doing("off-text", () => measure(subsets(9))));
byId("along").addEventListener("click", () => doing("off-text", measureAlong));
byId("save-page").addEventListener("click", () => doing("status", async () => download("hundred-steps.html", await hecto.save(), "text/html")));
byId("save-weights").addEventListener("click", () => doing("status", async () => download("model.safetensors", await hecto.weights(), "application/octet-stream")));
byId("save-text").addEventListener("click", () => download("text.txt", run?.text ?? "", "text/plain"));

/** Sets of at most `most` heads, small ones first. @param {number} most @returns {[number, number][][]} */
function subsets(most) {
  const heads = allHeads();
  const found = Array.from({ length: 2 ** heads.length - 1 }, (_, i) => heads.filter((_, h) => ((i + 1) >> h) & 1)).filter((set) => set.length <= most);
  return found.sort((a, b) => a.length - b.length);
}

changed.addEventListener("opened", () => {
  if (!run) return;
  const { opened } = run;
  byId("slider").max = opened.settings.steps;
  byId("command").textContent = commandLine(opened.settings, "text.txt");
  if (!byId("reading").value) byId("reading").value = run.text.trim().slice(0, 150).split(/\s+/).slice(0, 20).join(" ");
  say("status", `${opened.parameters.toLocaleString("en")} parameters, ${opened.trainTokens.toLocaleString("en")} training tokens, ${opened.heldOutTokens.toLocaleString("en")} held out, ${opened.used.toLocaleString("en")} different ones.`);
  drawCurves();
  enable();
});
changed.addEventListener("step", (event) => {
  const step = /** @type {CustomEvent} */ (event).detail;
  const steps = run?.opened.settings.steps;
  const left = ((steps - step.step) * (run?.steps ?? []).reduce((sum, s) => sum + s.seconds, 0)) / Math.max(run?.steps.length ?? 1, 1);
  say("status", `Step ${step.step} of ${steps}: loss ${shown(step.loss)}. About ${Math.ceil(left)} s left.`);
  byId("slider").value = step.step;
  if (step.sample) byId("sample").textContent = step.sample;
  if (step.reading) drawReading(step.reading);
  drawCurves();
});
changed.addEventListener("paused", (event) => {
  const { ended, step } = /** @type {CustomEvent} */ (event).detail;
  say("status", ended ? lossSentence() : `Paused after step ${step}.`);
  byId("slider-text").textContent = run ? `Weights are kept every ${run.opened.every === 1 ? "step" : `${run.opened.every} steps`}.` : "";
  drawCurves();
});
changed.addEventListener("shown", (event) => {
  byId("slider").value = /** @type {CustomEvent} */ (event).detail;
  byId("slider-text").textContent = `Step ${run?.shown}: maps, samples and heads off below are those of its weights.`;
  drawCurves();
  if (byId("reading").value) engine.send("look", { name: "run", text: byId("reading").value }).then(drawReading, (error) => say("status", error.message, true));
});

byId("text").value = data.run ? data.run.text : data.texts[0].text;
showText();
drawCurves();
enable();
if (data.run) doing("status", restoreRun);
else engine.ready.catch((error) => say("status", error.message, true));
