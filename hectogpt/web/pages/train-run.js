/** The runs of the page: the worker that trains them, and the functions for scripts (`hecto`). */

import { byId, fromBase64, pageData, toBase64, unzip } from "../kit/kit.js";

export const data = pageData();

/** Send commands to the worker; steps of a run in progress go to `onStep`. */
class Engine {
  constructor() {
    const source = new Blob([byId("engine").textContent], { type: "text/javascript" });
    this.worker = new Worker(URL.createObjectURL(source));
    /** @type {Map<number, {resolve: (value: any) => void, reject: (error: Error) => void}>} */
    this.waiting = new Map();
    this.sent = 0;
    /** @type {(step: any) => void} */
    this.onStep = () => {};
    this.worker.onmessage = ({ data: message }) => {
      if (message.event === "step") return this.onStep(message);
      const asked = this.waiting.get(message.id);
      this.waiting.delete(message.id);
      if (message.error) asked?.reject(new Error(message.error));
      else asked?.resolve(message.result);
    };
    this.worker.onerror = (event) => {
      for (const { reject } of this.waiting.values()) reject(new Error(event.message || "This page's worker cannot run."));
      this.waiting.clear();
    };
    this.ready = unzip(fromBase64(data.merges)).then((merges) => this.send("start", { wasm: fromBase64(data.wasm), wasm64: fromBase64(data.wasm64), merges }));
  }

  /** @param {string} command @param {object} [options] @returns {Promise<any>} */
  send(command, options = {}) {
    return new Promise((resolve, reject) => {
      const id = ++this.sent;
      this.waiting.set(id, { resolve, reject });
      this.worker.postMessage({ id, command, ...options });
    });
  }
}

export const engine = new Engine();

/** Names of fields in `hectogpt train`, and the engine's names of them. */
const FIELDS = {
  "model.d_model": "dModel", "model.n_heads": "heads", "model.n_layers": "layers", "model.context_length": "context",
  "model.lm_head.compact_vocab": "compact", "data.batch_size": "batchSize", "data.seq_len": "seqLen", "optim.lr": "lr",
  d_model: "dModel", n_heads: "heads", n_layers: "layers", context_length: "context", batch_size: "batchSize", seq_len: "seqLen",
  lr: "lr", muon: "muon", positions: "positions", compact_vocab: "compact", dtype: "dtype",
}; // prettier-ignore

/** @param {Record<string, any>} fields */
function settingsFrom(fields) {
  const known = new Set(Object.values(FIELDS));
  return Object.fromEntries(
    Object.entries(fields).map(([name, value]) => {
      const own = /** @type {Record<string, string>} */ (FIELDS)[name] ?? name;
      if (!known.has(own)) throw new Error(`There is no field ${name} here. Choose from ${Object.keys(FIELDS).join(", ")}.`);
      return [own, value];
    }),
  );
}

/** The run that the page shows. @type {{text: string, opened: any, steps: any[], heldOut: number | null, shown: number, looks: any} | null} */
export let run = null;

/** Sends events about changes to the code that draws the page. */
export const changed = new EventTarget();
/** @param {string} name @param {any} [detail] */
const tell = (name, detail) => changed.dispatchEvent(new CustomEvent(name, { detail }));

/** The weights that the page was made with, if any. */
export function firstWeights() {
  if (!data.first) return null;
  const entries = Object.entries(data.first.tensors).map(([name, text]) => [name, new Float32Array(fromBase64(/** @type {string} */ (text)).buffer)]);
  return { ids: data.first.ids, tensors: Object.fromEntries(entries) };
}

/** Prepare a run; nothing is trained yet. @param {string} text @param {Record<string, any>} settings */
export async function openRun(text, settings) {
  await engine.ready;
  const opened = await engine.send("open", { name: "run", text, settings: { ...settings, ...data.first?.settings }, keep: [], first: firstWeights() });
  run = { text, opened, steps: [], heldOut: null, shown: 0, looks: null };
  tell("opened");
  return run;
}

/** Train the open run up to `steps` more steps. @param {number} steps */
export async function trainRun(steps) {
  const current = run;
  if (!current) throw new Error("There is no run yet. Press start first.");
  const last = current.opened.settings.steps;
  const looks = [1, 2, 5, ...Array.from({ length: Math.floor(last / 10) }, (_, i) => 10 * (i + 1)), last];
  engine.onStep = (step) => {
    if (step.name !== "run") return;
    const { loss, gradNorm, seconds } = step;
    current.steps.push({ step: step.step, loss, gradNorm, seconds, heldOut: step.heldOutSoFar ?? null });
    current.shown = step.step;
    if (step.reading) current.looks = step;
    tell("step", step);
  };
  const ended = await engine.send("train", { name: "run", steps, looks, reading: asked.reading(), prompt: asked.prompt() });
  if (ended.ended) current.heldOut = ended.heldOut;
  tell("paused", ended);
  return ended;
}

/** The text for the model to continue, the text for it to read, and a promise of the page's first run. */
export const asked = { prompt: () => "The ", reading: () => "The ", opened: Promise.resolve() };

/** One of the texts in the page. @param {number} place @returns {Promise<string>} */
export const textAt = (place) => unzip(fromBase64(data.texts[place].zip));

/** For scripts and tests. */
export const hecto = {
  /** @param {{text?: string, recipe?: string, steps?: number, seed?: number, fields?: Record<string, any>}} options */
  async train({ text, recipe = "browser", steps = 100, seed = 0, fields = {} } = {}) {
    await asked.opened;
    const begun = performance.now();
    const opened = await openRun(text ?? (await textAt(0)), { recipe, steps, seed, ...settingsFrom(fields) });
    await trainRun(steps);
    return {
      losses: opened.steps.map((s) => s.loss),
      gradNorms: opened.steps.map((s) => s.gradNorm),
      heldOut: opened.heldOut,
      seconds: (performance.now() - begun) / 1000,
      lines: opened.opened.lines,
    };
  },

  /** Show the weights of a saved step. @param {number} n */
  async step(n) {
    const saved = await engine.send("show", { name: "run", step: n });
    if (run) run.shown = n;
    tell("shown", n);
    return saved;
  },

  /** @param {[number, number][]} heads pairs of layer and head @param {"zero" | "mean"} [mode] */
  ablate(heads, mode = "zero") {
    return engine.send("ablate", { name: "run", heads, mode });
  },

  /** GPT-2's token ids of a text. @param {string} text @returns {Promise<number[]>} */
  async encode(text) {
    await engine.ready;
    return engine.send("encode", { text });
  },

  /** This page as text, with the run in it. */
  async save() {
    if (!run) throw new Error("There is no run yet. Press start first.");
    const other = document.documentElement.outerHTML.length + run.text.length; // a page stays below 3 MB if one step's weights do; base64 has a third more
    const packed = await engine.send("save", { name: "run", most: Math.max(0, 0.72 * (3e6 - other)) });
    const weights = packed.weights.map((/** @type {any} */ saved) => ({
      step: saved.step,
      values: saved.values.map((/** @type {Float32Array} */ v) => toBase64(new Uint8Array(v.buffer, v.byteOffset, v.byteLength))),
    }));
    const kept = { text: run.text, settings: run.opened.settings, steps: run.steps, heldOut: run.heldOut, weights };
    const page = /** @type {HTMLElement} */ (document.documentElement.cloneNode(true));
    for (const element of page.querySelectorAll("[data-made]")) element.replaceChildren();
    page.querySelector("#whole")?.removeAttribute("hidden");
    const json = page.querySelector("#data");
    if (json) json.textContent = JSON.stringify({ ...data, run: kept }).replaceAll("<", "\\u003c");
    return "<!doctype html>\n" + page.outerHTML;
  },

  /** @returns {Promise<ArrayBuffer>} the weights that are shown, as model.safetensors */
  weights() {
    return engine.send("weights", { name: "run" });
  },
};
Object.assign(window, { hecto });

/** Resume the run that was saved with the page. */
export async function restoreRun() {
  const { text, settings, steps, heldOut, weights } = data.run;
  await engine.ready;
  const packed = {
    steps,
    weights: weights.map((/** @type {any} */ saved) => ({
      step: saved.step,
      values: saved.values.map((/** @type {string} */ v) => new Float32Array(fromBase64(v).buffer)),
    })),
  };
  const opened = await engine.send("restore", { name: "run", text, settings, packed });
  run = { text, opened, steps, heldOut, shown: weights[weights.length - 1].step, looks: null };
  tell("opened");
  tell("shown", run.shown);
}

/** The command that repeats a run in a terminal. @param {any} s @param {string} file */
export function commandLine(s, file) {
  if (data.first || !s.positions) return `No command repeats this run: ${data.first ? "it starts from the weights in this page" : "it has no positions"}.`;
  const words = ["hectogpt", "train", s.recipe, "--corpus", file, "--steps", s.steps, "--seed", s.seed];
  words.push("--model.d-model", s.dModel, "--model.n-heads", s.heads, "--model.n-layers", s.layers);
  words.push("--data.batch-size", s.batchSize, "--data.seq-len", s.seqLen, "--head-dtype", s.dtype, "--dtype", s.dtype);
  if (s.context !== 512) words.push("--model.context-length", s.context);
  if (s.compact) words.push("--model.lm-head.compact-vocab");
  if (s.lr !== null) words.push(["baseline", "learning_rate", "embedding_lr"].includes(s.recipe) ? "--optim.lr" : "--optim.rest.lr", s.lr);
  return words.join(" ");
}
