/** The elements of the page, and the actions of its controls. */

import { meanDifference } from "../engine/difference.js";
import { describeRow, effectSentence, effectTable, headNames, isSeen, showHeads } from "../kit/heads.js";
import { byId, download, make, makeTable, say, showChart, shown, signed } from "../kit/kit.js";
import { asked, changed, commandLine, data, engine, firstWeights, hecto, openRun, restoreRun, run, textAt, trainRun } from "./train-run.js";

/** Recipes of the ladder, each with its change to the recipe below it. */
const RECIPES = {
  browser: "browser: learning rates fall in the second half",
  smear: "smear: adds a share of the previous token to each",
  rotary: "rotary: rotary positions, normalised queries and keys",
  head_lr: "head_lr: a learning rate for the output layer",
  muon: "muon: Muon for the matrices",
  embedding_lr: "embedding_lr: a learning rate for embeddings",
  learning_rate: "learning_rate: 0.005 in place of 0.00001",
  baseline: "baseline: the assignment's own run",
};

/** @type {[string, string, Record<string, any>][]} name of a setting, its label, its control */
const SETTINGS = [
  ["recipe", "Recipe", { options: Object.keys(RECIPES), names: RECIPES }],
  ["steps", "Steps", { value: 100, min: 1, max: 1000 }],
  ["seed", "Seed", { value: 0, min: 0, max: 2147483647 }],
  ["lr", "Learning rate", { value: "", min: 0, step: "any", placeholder: "recipe's" }],
];
/** @type {[string, string, Record<string, any>][]} */
const SIZES = [
  ["dModel", "Width", { value: 64, min: 4, max: 512 }],
  ["heads", "Heads", { value: 4, min: 1, max: 64 }],
  ["layers", "Layers", { value: 2, min: 1, max: 12 }],
  ["batchSize", "Rows per step", { options: ["16", "8", "4"] }],
  ["seqLen", "Tokens per row", { value: 128, min: 8, max: 1024 }],
  ["positions", "Positions", { options: ["yes", "no"] }],
  ["dtype", "Numbers", { options: ["float32", "float64"] }],
];
const MOST_BYTES = 10e6; // of a file
let [busy, training] = [0, false];
/** @type {Promise<void>} the last of the commands */
let last = Promise.resolve();
/** The first words of the text, which the model reads and continues by default. @type {Record<string, string>} */
const firstWords = { reading: "", prompt: "" };

/** @param {string} place @param {[string, string, Record<string, any>][]} controls @param {string} prefix */
function addControls(place, controls, prefix) {
  for (const [name, label, { options, names = {}, ...attributes }] of controls) {
    const id = prefix + name;
    const control = options
      ? make("select", { id }, ...options.map((/** @type {string} */ o) => make("option", { value: o }, names[o] ?? o)))
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
    if (name === "recipe" || name === "dtype") found[name] = value;
    else if (name === "positions") found[name] = value === "yes";
    else if (name === "lr") found[name] = value === "" ? null : Number(value);
    else found[name] = Number(value);
  }
  found.context = Math.max(found.seqLen, 64);
  return found;
}

/** Commands run one after the other; an error becomes a sentence. `light` ones leave the controls enabled. @param {string} place @param {() => Promise<void>} work @param {boolean} [light] */
function doing(place, work, light = false) {
  if (!light) busy++;
  enable();
  last = last.then(async () => {
    try {
      await work();
    } catch (error) {
      say(place, error instanceof Error ? error.message : String(error), true);
    }
    if (!light) busy--;
    enable();
  });
}

function enable() {
  const ended = run && run.steps.length >= run.opened.settings.steps;
  const idle = run !== null && busy === 0;
  for (const id of ["write", "read", "answer", "each", "pairs", "subsets", "along", "save-page", "save-weights", "save-text", "reset", "try-second"]) byId(id).disabled = !idle;
  byId("start").disabled = busy > 0;
  byId("start").textContent = run && run.steps.length && !ended ? "Go on" : "Start";
  byId("pause").disabled = !training;
  byId("halt").disabled = !measures;
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
  showChart(byId("loss"), { label: lossSentence(), xLabel: "step", yLabel: "nats per token", curves, levels, xMax: last, at: run?.shown ?? null });
  const norms = steps.map((s) => /** @type {[number, number]} */ ([s.step, s.gradNorm]));
  showChart(byId("norm"), { label: "gradient norm by step", xLabel: "step", yLabel: "gradient norm", curves: [{ name: "", points: norms }], xMax: last, at: run?.shown ?? null, height: 260, zero: true });
  byId("loss-text").textContent = lossSentence();
  byId("norm-text").textContent = steps.length ? `The gradient norm is ${shown(steps[steps.length - 1].gradNorm, 2)}; above 1 it is clipped to 1.` : "";
}

function lossSentence() {
  if (!run || !run.steps.length) return "The dashed lines come from counting words in the same text; the curve appears when training starts.";
  const last = run.steps[run.steps.length - 1];
  const scored = [...run.steps].reverse().find((s) => s.heldOut !== null);
  const value = run.heldOut ?? scored?.heldOut ?? last.loss;
  const names = ["uniform", "unigram", "bigram", "trigram"];
  const named = (/** @type {boolean} */ below) => names.filter((name) => value < run?.opened.lines[name] === below).map((name) => `${name} ${shown(run?.opened.lines[name], 2)}`).join(", "); // prettier-ignore
  const place = [named(true) && `below ${named(true)}`, named(false) && `not below ${named(false)}`].filter(Boolean).join("; ");
  const step = run.heldOut === null && scored ? scored.step : last.step;
  return `After step ${step} held-out loss is ${shown(value)} nats per token: ${place}.${run.heldOut !== null && named(false) ? ` ${whatToTry()}` : ""}`;
}

/** A sentence about ways to lower the loss, depending on how often the run has read its text. */
function whatToTry() {
  const { settings, trainTokens } = run?.opened;
  const times = (settings.steps * settings.batchSize * settings.seqLen) / trainTokens;
  if (["baseline", "learning_rate"].includes(settings.recipe)) return "A later recipe lowers it.";
  if (times < 1) return `The run has read ${Math.round(100 * times)} % of the text: more steps, or more rows per step, lower it.`;
  return `The run has read the text ${shown(times, 1)} times: a longer text lowers it${times > 3 ? ", or fewer rows per step" : ""}.`;
}

// --- heads --------------------------------------------------------------------------------------------------------------

/** @typedef {{text: string, tokens: string[], left: string[], losses: number[], maps: Float32Array[][]}} Reading */

/** @type {Reading | null} */
let reading = null;
/** @type {[number, number, number]} layer, head and token */
let chosen = [0, 0, -1];

/** @param {Reading} found */
function drawReading(found) {
  reading = found;
  if (chosen[2] < 0 || chosen[2] >= found.tokens.length) chosen[2] = found.tokens.length - 1;
  chosen = [Math.min(chosen[0], found.maps.length - 1), Math.min(chosen[1], found.maps[0].length - 1), chosen[2]];
  const map = (/** @type {number} */ layer, /** @type {number} */ head) => found.maps[layer][head];
  const of = { layers: found.maps.length, heads: found.maps[0].length, tokens: found.tokens, losses: found.losses, map, chosen, choose };
  showHeads(of);
  say("row-text", describeRow(of));
  say("read-text", found.left.length ? `Left out, because they do not occur in the training text: ${found.left.map((token) => `“${token}”`).join(", ")}.` : "");
}

/** @param {[number, number, number]} place layer, head and token */
function choose(...place) {
  chosen = place;
  if (reading) drawReading(reading);
  doing("row-text", followToken);
}

async function followToken() {
  if (!reading) return;
  const [layer, head, at] = chosen;
  const found = await engine.send("follow", { name: "run", text: reading.text, layer, head, at });
  const vector = (/** @type {number[]} */ v) => v.map((x) => shown(x, 2)).join(" ");
  const rows = found.weights.map((/** @type {number} */ weight, /** @type {number} */ s) => [reading?.tokens[s], shown(found.scores[s], 3), shown(weight, 4), shown(1 / found.weights.length, 4), vector(found.keys[s]), vector(found.values[s])]);
  const likely = found.likely.map((/** @type {any} */ l) => `“${l.token}” ${(100 * l.probability).toFixed(1)} %`).join(", ");
  const steps = [
    `Token ${at}, “${reading.tokens[at]}”, in layer ${layer}, head ${head}: its query q is ${vector(found.q)}.`,
    "The score of an earlier token is its key k times q, over the square root of the length (or the recipe's scale); the softmax of the scores gives the weights.",
    `The head's output, the sum of weight times value, is ${vector(found.out)}.`,
    `After all layers the most likely next tokens are ${likely}.`,
  ];
  byId("follow").replaceChildren(make("ol", {}, ...steps.map((step) => make("li", {}, step))), makeTable("", ["token", "score q·k", "weight", "even 1/t", "key k", "value v"], rows));
}

async function readAgain() {
  await look();
  await followToken();
}

// --- heads off ------------------------------------------------------------------------------------------------------------

/** @returns {[number, number][]} */
function allHeads() {
  if (!run) return [];
  const { layers, heads } = run.opened;
  return Array.from({ length: layers * heads }, (_, i) => [Math.floor(i / heads), i % heads]);
}

let [measures, halted] = [false, false];

/** @param {() => Promise<unknown>} work a measurement, which "Stop measuring" ends */
function measuring(work) {
  doing("off-text", async () => {
    [measures, halted] = [true, false];
    enable();
    try {
      await work();
    } finally {
      measures = false;
    }
  });
}

/** Measure sets of heads that are off together, small sets first, and show them. @param {[number, number][][]} sets */
async function measure(sets) {
  const mode = byId("mode").value;
  /** @type {Map<string, number[]>} differences of the windows without one head */
  const alone = new Map();
  const found = [];
  const begun = performance.now();
  for (const id of ["off-table", "off-chart"]) byId(id).replaceChildren();
  for (const heads of sets) {
    if (halted) break;
    const left = found.length > 2 ? `, about ${Math.ceil(((sets.length - found.length) * (performance.now() - begun)) / found.length / 1000)} s left` : "";
    say("off-text", `Measuring ${headNames(heads)}, ${found.length + 1} of ${sets.length}${left}.`);
    const { delta, se, sums, sizes } = await engine.send("ablate", { name: "run", heads, mode });
    if (heads.length === 1) alone.set(headNames(heads), sums);
    const singles = heads.map((head) => alone.get(headNames([head])));
    const rest = sums.map((/** @type {number} */ sum, /** @type {number} */ w) => singles.reduce((left, own) => left - (own?.[w] ?? NaN), sum));
    found.push({ heads, delta, se, ...(heads.length > 1 && { beyond: meanDifference(rest, sizes) }) });
  }
  const caption = `Held-out loss at step ${run?.shown}, ${mode === "zero" ? "zero" : "their mean output"} in place of heads: nats per token ± one standard error`;
  byId("off-table").replaceChildren(effectTable(caption, found));
  const sentence = `${halted ? `Stopped after ${found.length} of ${sets.length}. ` : ""}At step ${run?.shown}, ${mode === "zero" ? "zero" : "their mean"} in place of heads:\n${effectSentence(found)}`;
  say("off-text", sentence);
  return sentence;
}

/** Measure each head at some saved steps. Returns a sentence about the first step since which the best head matters. */
async function measureAlong() {
  const before = run?.shown ?? 0;
  const { steps: kept } = await engine.send("show", { name: "run", step: before });
  const last = kept[kept.length - 1];
  const wanted = [0, 0.03, 0.06, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1].map((share) => kept.reduce((/** @type {number} */ a, /** @type {number} */ b) => (Math.abs(b - share * last) < Math.abs(a - share * last) ? b : a)));
  const steps = [...new Set(wanted)];
  const heads = allHeads();
  const curves = heads.map((head) => ({ name: headNames([head]), points: /** @type {[number, number][]} */ ([]), errors: /** @type {number[]} */ ([]) }));
  /** @type {number[][]} steps at which an effect is seen */
  const seenAt = heads.map(() => []);
  /** @type {number[]} place of the first step from which an effect stays seen */
  const since = heads.map(() => steps.length);
  for (const [k, step] of steps.entries()) {
    if (halted) break;
    await engine.send("show", { name: "run", step });
    say("off-text", `Measuring each head at step ${step}, ${k + 1} of ${steps.length}.`);
    for (const [i, head] of heads.entries()) {
      const effect = await engine.send("ablate", { name: "run", heads: [head], mode: byId("mode").value, windows: 32 });
      curves[i].points.push([step, effect.delta]);
      curves[i].errors.push(2 * effect.se);
      const seen = isSeen(effect) && effect.delta > 0;
      if (seen) seenAt[i].push(step);
      since[i] = seen ? Math.min(since[i], k) : steps.length;
    }
  }
  await engine.send("show", { name: "run", step: before });
  if (halted) return "Stopped.";
  const order = curves.map((_, i) => i).sort((a, b) => curves[b].points[steps.length - 1][1] - curves[a].points[steps.length - 1][1]);
  showChart(byId("off-chart"), { label: "rise of held-out loss without a head, by step", xLabel: "step", yLabel: `rise of loss, ${byId("mode").value} in place of the head, ± two standard errors`, curves: order.slice(0, 6).map((i) => curves[i]), zero: true });
  const best = order[0];
  const first = since[best];
  const earlier = first < steps.length ? seenAt[best].filter((step) => step < steps[first]) : [];
  const came = `its effect is above two standard errors at every step measured since step ${steps[first]}${first ? `; at step ${steps[first - 1]} it is not${earlier.length ? `, though it was at ${earlier.join(", ")}` : ""}` : ""}`;
  const sentence = first === steps.length ? `At step ${last} no head has an effect above two standard errors.` : `Head ${curves[best].name} matters most at step ${last}; ${came}. Steps measured: ${steps.join(", ")}.`;
  say("off-text", sentence);
  return sentence;
}

/** Find out which head matters, since which step, and alone or with another. */
async function answer() {
  const heads = allHeads();
  const found = await measure(heads.length > 12 ? subsets(1) : subsets(2));
  if (halted) return;
  const since = await measureAlong();
  say("off-text", `${found}\n${since}`);
}

// --- two runs ---------------------------------------------------------------------------------------------------------------

/** Settings that the second run may change: label, and values to choose from or an input for a number. @type {Record<string, [string, string[] | Record<string, any>]>} */
const CHANGES = {
  positions: ["Positions", ["no", "yes"]],
  lr: ["Learning rate", { value: 0.01, min: 0, step: "any" }],
  recipe: ["Recipe", SETTINGS[0][2].options],
  muon: ["Muon for matrices (else AdamW)", ["no", "yes"]],
  dModel: ["Width", { value: 66, min: 4, max: 512 }],
  heads: ["Heads", { value: 1, min: 1, max: 64 }],
  layers: ["Layers", { value: 1, min: 1, max: 12 }],
  dtype: ["Precision (the effect of rounding)", ["float64", "float32"]],
  seed: ["Seed (how much do equal runs differ?)", { value: 1, min: 0 }],
};

/** Show the control for the value of the chosen setting. */
function offerChange() {
  const [, choices] = CHANGES[byId("change").value];
  const control = Array.isArray(choices) ? make("select", { id: "change-to" }, ...choices.map((value) => make("option", { value }, value))) : make("input", { id: "change-to", type: "number", ...choices });
  byId("change-to").replaceWith(control);
}

async function trainSecond() {
  if (!run) return;
  const first = run;
  const [change, value, until] = [byId("change").value, byId("change-to").value, run.steps.length];
  if (!until) throw new Error("The first run has no step yet. Press Start first.");
  const settings = { ...first.opened.settings, [change]: value === "yes" ? true : value === "no" ? false : change === "recipe" || change === "dtype" ? value : Number(value) };
  const opened = await engine.send("open", { name: "second", text: first.text, settings, keep: ["run"], first: firstWeights() });
  /** @type {[number, number][]} */
  const points = [];
  /** @type {[number, number][]} */
  const old = first.steps.map((s) => [s.step, s.loss]);
  const draw = () => showChart(byId("two-chart"), { label: "training loss of both runs", xLabel: "step", yLabel: "nats per token", xMax: until, curves: [{ name: "first", points: old }, { name: "second", points }] });
  engine.onStep = (step) => {
    if (step.name !== "second") return;
    points.push([step.step, step.loss]);
    say("two-text", `Second run: step ${step.step} of ${until}, loss ${shown(step.loss)}.`);
    if (step.step % 5 === 0 || step.step === until) draw();
  };
  await engine.send("train", { name: "second", steps: until, looks: [], reading: "", prompt: "" });
  await hecto.step(until);
  const { delta, se, sizes } = await engine.send("compare", { names: ["run", "second"] });
  const [one, two] = [await engine.send("heldOut", { name: "run" }), await engine.send("heldOut", { name: "second" })];
  const verdict = Math.abs(delta) <= 2 * se ? "the two cannot be told apart" : delta < 0 ? "the second is better" : "the first is better";
  say("two-text", `${CHANGES[change][0]} ${first.opened.settings[change] ?? "of the recipe"} → ${value}: held-out loss ${shown(one)} → ${shown(two)}, paired difference ${signed(delta)} ± ${shown(se, 4)} nats per token over ${sizes.length} windows of the same text: ${verdict}. ${first.opened.parameters.toLocaleString("en")} → ${opened.parameters.toLocaleString("en")} parameters. This is one seed; different seeds can differ by more.`);
}

// --- controls -----------------------------------------------------------------------------------------------------------------

function showText() {
  const words = byId("text").value.length;
  byId("about-text").textContent = words ? `${words.toLocaleString("en")} characters. 85 % is for training; half of the rest is held out, to measure the loss on text that was never read.` : "";
}

/** Prepare a new run with the text and settings in the page. */
async function open() {
  say("status", "Preparing: the text is cut into tokens and its words are counted.");
  await openRun(byId("text").value, readSettings("set-"));
}

/** @param {number} steps */
async function train(steps) {
  training = true;
  enable();
  try {
    await trainRun(steps);
  } finally {
    training = false;
  }
}

/** Prepare a new text that is now in the page, unless a run would be lost. */
async function newText() {
  showText();
  byId("set-batchSize").value = [16, 8, 4][[400e3, 200e3, 0].findIndex((least) => byId("text").value.length >= least)];
  if (!run?.steps.length) return open();
  say("status", "Press Reset to train on this text. The page still shows the run on the previous text.");
}

/** @param {string} name @param {number} bytes */
const tooLong = (name, bytes) => `${name} has ${Math.round(bytes / 1e6)} MB; a tab reads at most ${MOST_BYTES / 1e6} MB. Use a part of it, or run hectogpt train --corpus.`;

/** @param {File | undefined} file */
async function readFile(file) {
  if (!file) return;
  if (file.size > MOST_BYTES) throw new Error(tooLong(file.name, file.size));
  const text = await file.text();
  if (text.includes("\u0000") || (text.match(/\ufffd/g) ?? []).length > text.length / 100) throw new Error(`${file.name} is not text in UTF-8.`);
  byId("text").value = text;
  await newText();
}

asked.reading = () => byId("reading").value || byId("text").value.slice(0, 120);
asked.prompt = () => byId("prompt").value;

for (const [i, { name }] of data.texts.entries()) byId("texts").append(make("option", { value: i }, name));
addControls("settings", SETTINGS, "set-");
addControls("sizes", SIZES, "set-");
for (const [name, value] of Object.entries(data.first?.settings ?? {})) {
  const control = document.getElementById(`set-${name}`); // the weights in the page have these sizes
  if (control) Object.assign(control, { value, disabled: true });
}
if (data.first) byId("set-recipe").value = data.first.recipe;
byId("second").append(
  make("label", {}, "Change", make("select", { id: "change", onchange: offerChange }, ...Object.entries(CHANGES).map(([value, [label]]) => make("option", { value }, label)))),
  make("label", {}, "to", make("input", { id: "change-to" })),
  make("button", { id: "try-second", disabled: true, onclick: () => doing("two-text", trainSecond) }, "Train the second run"),
);
offerChange();
byId("texts").addEventListener("change", () =>
  doing("status", async () => {
    byId("text").value = await textAt(Number(byId("texts").value));
    await newText();
  }, true),
); // prettier-ignore
byId("text").addEventListener("input", showText);
byId("text").addEventListener("paste", (/** @type {ClipboardEvent} */ event) => {
  const length = event.clipboardData?.getData("text/plain").length ?? 0;
  if (length <= MOST_BYTES) return;
  event.preventDefault(); // a field of this size stops the tab
  say("status", tooLong("The pasted text", length), true);
});
byId("text").addEventListener("change", () => doing("status", newText, true));
byId("file").addEventListener("change", () => doing("status", () => readFile(byId("file").files[0])));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  const [file] = event.dataTransfer?.files ?? [];
  const words = event.dataTransfer?.getData("text/plain");
  if (file) doing("status", () => readFile(file));
  else if (words) {
    byId("text").value = words;
    doing("status", newText, true);
  }
});
byId("start").addEventListener("click", () =>
  doing("status", async () => {
    const fresh = !run || run.steps.length >= run.opened.settings.steps || run.steps.length === 0;
    if (fresh) await open();
    await train(1000);
  }),
);
byId("pause").addEventListener("click", () => engine.send("stop"));
byId("one").addEventListener("click", () => doing("status", () => train(1)));
byId("reset").addEventListener("click", () => doing("status", open));
byId("slider").addEventListener("change", () =>
  doing("status", async () => {
    const { steps } = await engine.send("show", { name: "run", step: 0 });
    const wanted = Number(byId("slider").value);
    const from = run?.shown ?? 0; // an arrow key moves by 1, to the next kept step
    const onward = steps.filter((/** @type {number} */ step) => (wanted > from ? step > from : wanted < from ? step < from : step === from));
    await hecto.step((onward.length ? onward : steps).reduce((/** @type {number} */ a, /** @type {number} */ b) => (Math.abs(b - wanted) < Math.abs(a - wanted) ? b : a)));
  }),
);
byId("write").addEventListener("click", () =>
  doing("status", async () => {
    const temperature = Number(byId("temperature").value);
    showSample(await engine.send("generate", { name: "run", prompt: asked.prompt(), count: 60, temperature, seed: Date.now() % 100000 }), `After step ${run?.shown}, with temperature ${temperature}:`);
  }),
);
byId("read").addEventListener("click", () => doing("status", readAgain));
byId("halt").addEventListener("click", () => (halted = true));
for (const [id, button] of [["reading", "read"], ["prompt", "write"]]) byId(id).addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => event.key === "Enter" && byId(button).click());
byId("answer").addEventListener("click", () => measuring(answer));
byId("each").addEventListener("click", () => measuring(() => measure(subsets(1))));
byId("pairs").addEventListener("click", () => measuring(() => measure(subsets(2))));
byId("subsets").addEventListener("click", () => measuring(() => measure(subsets(9))));
byId("along").addEventListener("click", () => measuring(measureAlong));
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
  Object.assign(byId("slider"), { max: opened.settings.steps, value: run.shown });
  byId("command").textContent = commandLine(opened.settings, "text.txt");
  const reading = run.text.trim().slice(0, 150).split(/\s+/).slice(0, 20).join(" ");
  for (const [id, words] of Object.entries({ reading, prompt: opened.beginning })) {
    if ([firstWords[id], ""].includes(byId(id).value)) byId(id).value = words;
    firstWords[id] = words;
  }
  for (const [name] of run.steps.length ? [...SETTINGS, ...SIZES] : []) {
    const value = opened.settings[name] ?? "";
    byId(`set-${name}`).value = value === true ? "yes" : value === false ? "no" : value;
  }
  const next = run.steps.length ? `Saved after step ${run.steps.length}, with the weights of ${data.run.weights.map((/** @type {any} */ w) => w.step).join(", ")}. Reset and Start repeat the same run, with every step.` : "Press start.";
  say("status", `${opened.parameters.toLocaleString("en")} parameters, ${opened.trainTokens.toLocaleString("en")} training tokens, ${opened.heldOutTokens.toLocaleString("en")} held out; ${opened.used.toLocaleString("en")} different tokens are read. ${next}`);
  drawCurves();
  for (const id of ["off-table", "off-chart", "off-text", "two-text", "two-chart", "sample", "sample-text", "follow"]) if (!run.steps.length) byId(id).replaceChildren();
  if (!run.steps.length) look();
  enable();
});

/** Show generated text after its beginning, which is bold. @param {string} text @param {string} sentence */
function showSample(text, sentence) {
  const beginning = text.startsWith(asked.prompt()) ? asked.prompt() : "";
  say("sample-text", beginning ? sentence : `${sentence.slice(0, -1)}, without those tokens of the beginning that do not occur in the text:`);
  byId("sample").replaceChildren(make("b", {}, beginning), text.slice(beginning.length));
}

/** Compute the tokens, losses and maps of the text to read, with the weights that are shown. */
function look() {
  return engine.send("look", { name: "run", text: byId("reading").value }).then(drawReading, (error) => say("row-text", error.message, true));
}

changed.addEventListener("step", (event) => {
  const step = /** @type {CustomEvent} */ (event).detail;
  const steps = run?.opened.settings.steps;
  const left = ((steps - step.step) * (run?.steps ?? []).reduce((sum, s) => sum + s.seconds, 0)) / Math.max(run?.steps.length ?? 1, 1);
  say("status", `Step ${step.step} of ${steps}: loss ${shown(step.loss)}. About ${Math.ceil(left)} s left.`);
  byId("slider").value = step.step;
  if (step.sample) showSample(step.sample, `After step ${step.step}, with temperature 0.8:`);
  if (step.reading) drawReading(step.reading);
  drawCurves();
});
changed.addEventListener("paused", (event) => {
  const { ended, step } = /** @type {CustomEvent} */ (event).detail;
  say("status", ended ? `Done: ${step} steps. Below: text from the model, where its heads look, and which of them matter.` : `Paused after step ${step}.`);
  byId("slider-text").textContent = run ? `Weights are kept every ${run.opened.every === 1 ? "step" : `${run.opened.every} steps`}.` : "";
  drawCurves();
  doing("row-text", readAgain);
});
changed.addEventListener("shown", (event) => {
  byId("slider").value = /** @type {CustomEvent} */ (event).detail;
  byId("slider-text").textContent = `Step ${run?.shown}: maps, samples and effects of heads below use its weights.`;
  drawCurves();
  look();
});

drawCurves();
enable();
doing("status", async () => {
  byId("text").value = data.run ? data.run.text : await textAt(0);
  await (data.run ? restoreRun() : newText());
  showText();
}, !data.run); // prettier-ignore
asked.opened = last;
