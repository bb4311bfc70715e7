/**
 * The thread that trains. The page sends {id, command, ...}; the answer is {id, result} or {id, error}, and a run in
 * progress sends {event: "step"}.
 */

import { readCorpus } from "./corpus.js";
import { packRun, safetensors, unpackRun } from "./files.js";
import { Kernels } from "./kernels.js";
import { RECIPES } from "./optim.js";
import { Tokenizer } from "./tokenizer.js";
import { checkSettings, DEFAULTS, drawToken, pairedDifference, Trainer } from "./trainer.js";

/** @type {Record<string, Kernels>} by the dtype of their numbers */
const kernels = {};
/** @type {Tokenizer} */
let tokenizer;
/** @type {Map<string, {trainer: Trainer, saved: Map<number, Float32Array[]>, every: number, restored: boolean}>} */
const runs = new Map();
let stopped = false;

const MOST_SAVED = 160e6; // bytes of weights of earlier steps that are kept

const commands = {
  /** @param {{wasm: Uint8Array, wasm64: Uint8Array, merges: string}} message */
  async start({ wasm, wasm64, merges }) {
    kernels.float32 = await Kernels.load(wasm, 4);
    kernels.float64 = await Kernels.load(wasm64, 8);
    tokenizer = new Tokenizer(merges);
    return { recipes: RECIPES.map((r) => r.name), defaults: DEFAULTS };
  },

  /** Prepare a run with its initial weights. `keep`: names of runs to keep in memory. @param {{name: string, text: string, settings: object, keep: string[], first?: any}} message */
  open({ name, text, settings, keep, first }) {
    checkSettings({ ...DEFAULTS, ...settings }); // before runs are deleted
    for (const other of [...runs.keys()]) if (!keep.includes(other)) runs.delete(other);
    if (!runs.size) for (const own of Object.values(kernels)) own.clear();
    const corpus = readCorpus(text, tokenizer);
    const own = kernels[/** @type {any} */ (settings).dtype ?? DEFAULTS.dtype];
    if (!own) throw new Error("dtype must be float32 or float64.");
    const trainer = new Trainer(own, corpus, tokenizer.size, settings, first);
    const bytes = own.size * trainer.model.parameters.reduce((n, p) => n + p.data.length, 0);
    const steps = trainer.settings.steps;
    const every = [1, 2, 5, 10, 20, 50].find((n) => (bytes * steps) / n <= MOST_SAVED) ?? steps;
    const run = { trainer, saved: new Map(), every, restored: false };
    runs.set(name, run);
    keepWeights(run, 0);
    const { config } = trainer.model;
    return {
      settings: trainer.settings, lines: trainer.lines(), every, layers: config.layers, heads: config.heads,
      parameters: trainer.model.parameters.reduce((n, p) => n + p.shape.reduce((a, b) => a * b, 1), 0),
      trainTokens: corpus.train.length, heldOutTokens: corpus.dev.length, used: trainer.used.length, sequences: trainer.sequences,
      beginning: tokenizer.decode(corpus.dev.slice(0, 6)).replace(/\ufffd+$/, ""),
    }; // prettier-ignore
  },

  /** Train up to `steps` more steps; after those of `looks` it reads `reading` and continues `prompt`. @param {{name: string, steps: number, looks: number[], reading: string, prompt: string}} message */
  async train({ name, steps, looks, reading, prompt }) {
    const run = find(name);
    const { trainer, saved } = run;
    const last = trainer.settings.steps;
    const begin = trainer.steps.length;
    if (run.restored && begin < last) throw new Error("This run was saved without its optimizer's state, so it cannot go on. Press Reset and Start to repeat it.");
    trainer.load(/** @type {Float32Array[]} */ (saved.get(begin))); // the page may show those of an earlier step
    if (begin % run.every && begin < last) saved.delete(begin);
    stopped = false;
    try {
      for (let i = 0; i < steps && trainer.steps.length < last && !stopped; i++) {
        const done = trainer.step();
        if (done.step % run.every === 0) keepWeights(run, done.step);
        /** @type {Record<string, unknown>} */
        const message = { event: "step", name, ...done };
        if (looks.includes(done.step)) Object.assign(message, look(trainer, reading, prompt));
        postMessage(message);
        await new Promise((resolve) => setTimeout(resolve)); // so that "stop" is read
      }
    } finally {
      keepWeights(run, trainer.steps.length);
    }
    const ended = trainer.steps.length === last;
    return { step: trainer.steps.length, ended, heldOut: ended ? trainer.heldOut() : null };
  },

  stop() {
    stopped = true;
  },

  /** Give the model the weights of a saved step. @param {{name: string, step: number}} message */
  show({ name, step }) {
    const run = find(name);
    const saved = run.saved.get(step);
    if (!saved) throw new Error(`The weights after step ${step} were not kept. Choose a kept step: ${[...run.saved.keys()].join(", ")}.`);
    run.trainer.load(saved);
    return { steps: [...run.saved.keys()] };
  },

  /** Read a text: its tokens, attention maps, and the loss of each token. @param {{name: string, text: string}} message */
  look({ name, text }) {
    const { trainer } = find(name);
    return readText(trainer, text);
  },

  /** The vectors and weights of one token in a head. @param {{name: string, text: string, layer: number, head: number, at: number}} message */
  follow({ name, text, layer, head, at }) {
    const { trainer } = find(name);
    const ids = textIds(trainer, text);
    const { model } = trainer;
    model.hidden(trainer.inputs(ids));
    const { dModel: d } = model.config;
    const D = model.dHead;
    const s = model.saved[layer];
    const qk = model.kernels.floats(model.turns ? s.turned : s.qkv);
    const values = model.kernels.floats(s.qkv);
    const vector = (/** @type {Float32Array} */ from, /** @type {number} */ t, /** @type {number} */ part) => Array.from(from.subarray((3 * t + part) * d + head * D, (3 * t + part) * d + (head + 1) * D));
    const q = vector(qk, at, 0);
    const keys = Array.from({ length: at + 1 }, (_, t) => vector(qk, t, 1));
    const T = ids.length;
    const weights = Array.from(model.kernels.floats(s.weights).subarray(head * T * T + at * T, head * T * T + at * T + at + 1));
    const scores = keys.map((k) => k.reduce((sum, x, i) => sum + x * q[i], 0) * model.scale);
    const out = Array.from(model.kernels.floats(s.mixed).subarray(at * d + head * D, at * d + (head + 1) * D));
    const logits = trainer.model.next(trainer.inputs(ids.subarray(0, at + 1))).subarray(0, trainer.used.length);
    return { q, keys, scores, weights, values: Array.from({ length: at + 1 }, (_, t) => vector(values, t, 2)), out, likely: likeliest(trainer, logits) };
  },

  /** @param {{name: string, heads: [number, number][], mode: "zero" | "mean", windows?: number}} message */
  ablate({ name, heads, mode, windows }) {
    return find(name).trainer.ablate(heads, mode, windows);
  },

  /** @param {{text: string}} message */
  encode({ text }) {
    return tokenizer.encode(text);
  },

  /** @param {{name: string}} message */
  heldOut({ name }) {
    return find(name).trainer.heldOut();
  },

  /** The paired difference between two runs' held-out losses. @param {{names: [string, string]}} message */
  compare({ names }) {
    const [a, b] = names.map((name) => find(name).trainer.windows());
    return pairedDifference(a, b);
  },

  /** @param {{name: string, prompt: string, count: number, temperature: number, seed: number}} message */
  generate({ name, prompt, count, temperature, seed }) {
    return continued(find(name).trainer, prompt, count, temperature, seed);
  },

  /** All weights as one safetensors file. @param {{name: string}} message */
  weights({ name }) {
    const { trainer } = find(name);
    return safetensors(trainer);
  },

  /** The run as data for a page that resumes it. @param {{name: string, most: number}} message */
  save({ name, most }) {
    const run = find(name);
    return packRun(run.trainer, run.saved, most);
  },

  /** The opposite of `save`. @param {{name: string, text: string, settings: object, packed: any}} message */
  restore({ name, text, settings, packed }) {
    const opened = commands.open({ name, text, settings, keep: [] });
    const run = find(name);
    unpackRun(run.trainer, run.saved, packed);
    run.restored = true;
    const steps = [...run.saved.keys()];
    commands.show({ name, step: steps[steps.length - 1] });
    return opened;
  },
};

/** @param {string} name */
function find(name) {
  const run = runs.get(name);
  if (!run) throw new Error("There is no run yet. Press start first.");
  return run;
}

/** @param {any} run @param {number} step */
function keepWeights(run, step) {
  const { model } = run.trainer;
  run.saved.set(step, model.parameters.map((/** @type {any} */ p) => model.kernels.floats(p.data).slice())); // prettier-ignore
}

/** @param {Trainer} trainer @param {string} reading @param {string} prompt */
function look(trainer, reading, prompt) {
  return { heldOutSoFar: trainer.heldOut(8), sample: continued(trainer, prompt, 40, 0.8, 0), reading: readText(trainer, reading) };
}

/** The tokens of a text that the model knows, at most as many as fit into its context. @param {Trainer} trainer @param {string} text */
function textIds(trainer, text) {
  const ids = tokenizer.encode(text).filter((id) => trainer.embeddingRow.has(id));
  if (!ids.length) throw new Error("None of these words occur in the text that the model learns from.");
  return Uint32Array.from(ids.slice(0, Math.min(trainer.model.config.context, 48)));
}

/** A token as text; the bytes of incomplete characters as \\xNN. @param {number} id */
function spelled(id) {
  const text = tokenizer.decode([id]);
  return text.includes("\ufffd") ? tokenizer.bytes(id).map((byte) => `\\x${byte.toString(16)}`).join("") : text; // prettier-ignore
}

/** @param {Trainer} trainer @param {string} text */
function readText(trainer, text) {
  const ids = textIds(trainer, text);
  const losses = ids.length > 1 ? Array.from(trainer.model.row(trainer.inputs(ids.subarray(0, -1)), trainer.outputs(ids.subarray(1)), 0)) : [];
  trainer.model.hidden(trainer.inputs(ids));
  const left = [...new Set(tokenizer.encode(text).filter((id) => !trainer.embeddingRow.has(id)))].slice(0, 20).map(spelled);
  return { text, tokens: Array.from(ids, spelled), left, losses, maps: trainer.model.maps(ids.length) };
}

/** @param {Trainer} trainer @param {Float32Array} logits */
function likeliest(trainer, logits) {
  const largest = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const weights = Array.from(logits, (z) => Math.exp(z - largest));
  const total = weights.reduce((a, b) => a + b, 0);
  const order = weights.map((_, i) => i).sort((a, b) => weights[b] - weights[a]);
  return order.slice(0, 5).map((row) => ({ token: spelled(trainer.used[row]), probability: weights[row] / total }));
}

/** @param {Trainer} trainer @param {string} prompt @param {number} count @param {number} temperature @param {number} seed */
function continued(trainer, prompt, count, temperature, seed) {
  let state = (seed * 2654435761 + 12345) >>> 0;
  const random = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
  const known = tokenizer.encode(prompt).filter((id) => trainer.embeddingRow.has(id));
  return tokenizer.decode(trainer.generate(known, count, temperature, random)).replaceAll("<|endoftext|>", " ⟨end of a text⟩ ");
}

onmessage = async ({ data }) => {
  try {
    const result = await /** @type {any} */ (commands)[data.command](data);
    postMessage({ id: data.id, result: result ?? null });
  } catch (error) {
    postMessage({ id: data.id, error: error instanceof Error ? error.message : String(error) });
  }
};
