/** A run in the page, with the same initial weights, batches, losses and updates as `hectogpt train` with these settings. */

import { ngramLosses } from "./corpus.js";
import { meanDifference } from "./difference.js";
import { Model } from "./model.js";
import { factorOf, JORDAN, Optimizer, RECIPES } from "./optim.js";
import { shuffledOrder, TorchNormal } from "./random.js";

/** @import { Corpus } from "./corpus.js" */
/** @import { Kernels } from "./kernels.js" */

/**
 * @typedef {object} Settings
 * @property {string} recipe
 * @property {number} steps
 * @property {number} seed
 * @property {number} dModel
 * @property {number} heads
 * @property {number} layers
 * @property {number} batchSize
 * @property {number} seqLen
 * @property {number} context    tokens that the model sees at most
 * @property {boolean} compact   tokens that the run never reads share one row of the head, which starts at zero
 * @property {boolean} positions  false removes all position information
 * @property {number | null} lr   replaces the recipe's learning rate, for parameters without their own; null keeps it
 * @property {boolean | null} muon  replaces the recipe's choice; null keeps it
 * @property {"float32" | "float64"} dtype  the dtype of all numbers
 * @typedef {{ids: number[], tensors: Record<string, Float32Array>}} FirstWeights  rows of the embeddings and the head are by token
 * @typedef {{step: number, loss: number, gradNorm: number, seconds: number}} Step
 */

/** @type {Settings} */
export const DEFAULTS = {
  recipe: "browser", steps: 100, seed: 0, dModel: 64, heads: 4, layers: 2, batchSize: 16, seqLen: 128, context: 128,
  compact: true, positions: true, lr: null, muon: null, dtype: "float32",
}; // prettier-ignore

const STD = 0.02;

export class Trainer {
  /**
   * @param {Kernels} kernels
   * @param {Corpus} corpus
   * @param {number} vocabulary the size of the tokenizer's vocabulary
   * @param {Partial<Settings>} settings
   * @param {FirstWeights | null} [first] weights to start from instead of random ones
   */
  constructor(kernels, corpus, vocabulary, settings, first = null) {
    const all = { ...DEFAULTS, ...settings };
    all.context = Math.max(all.context, all.seqLen);
    const known = RECIPES.map((recipe) => recipe.name);
    const recipe = RECIPES.find(({ name }) => name === all.recipe);
    if (!recipe) throw new Error(`There is no recipe ${all.recipe} here. Choose from ${known.join(", ")}.`);
    this.settings = all;
    this.recipe = recipe;
    this.corpus = corpus;
    this.vocabulary = vocabulary;
    const { seqLen, batchSize } = all;
    this.sequences = Math.floor(corpus.train.length / seqLen);
    if (!this.sequences) throw new Error(`The text has ${corpus.train.length} training tokens; one row needs ${seqLen}. Use more text or a shorter row.`);
    /** @type {number[][]} */
    this.orders = [];
    const places = Array.from({ length: Math.min(all.steps * batchSize, this.sequences) }, (_, place) => place);
    const rowsRead = places.map((place) => this.sequence(this.sequenceAt(place))); // after an epoch, all sequences have been read
    const ascending = (/** @type {Iterable<number>} */ ids) => [...new Set(ids)].sort((a, b) => a - b);
    const used = all.compact ? ascending(rowsRead.flatMap((row) => [...row])) : Array.from({ length: vocabulary }, (_, id) => id);
    const embedded = ascending([...corpus.train, ...corpus.dev]);
    this.used = used;
    this.embedded = embedded;
    /** @type {Map<number, number>} token -> row of the head; tokens that are not here share the last row */
    this.headRow = new Map(used.map((id, row) => [id, row]));
    /** @type {Map<number, number>} token -> row of the embeddings */
    this.embeddingRow = new Map(embedded.map((id, row) => [id, row]));
    const positions = all.positions && recipe.positions;
    this.model = new Model(kernels, {
      dModel: all.dModel, heads: all.heads, layers: all.layers, context: all.context, tokens: embedded.length,
      rows: used.length + +all.compact, shared: vocabulary - used.length, positions, rotary: all.positions ? recipe.rotary : null,
      smear: recipe.smear, qkNorm: recipe.qkNorm, scale: recipe.scale,
    }); // prettier-ignore
    this.drawWeights();
    if (first) this.takeWeights(first);
    const adamw = all.lr === null ? recipe.adamw : { ...recipe.adamw, lr: all.lr };
    const muon = all.muon === null ? recipe.muon : all.muon ? (recipe.muon ?? JORDAN) : null;
    this.optimizer = new Optimizer(this.model, adamw, muon);
    const unread = this.model.parameters.every((p) => this.optimizer.usesMuon(p) || p.kind in adamw.lrs);
    if (all.lr !== null && unread) throw new Error(`In ${recipe.name} all parameters have learning rates of their own, so this one would change nothing. Choose rotary or a recipe below it.`);
    /** @type {Step[]} */
    this.steps = [];
    /** @type {Map<number, Float32Array[]>} results of `windows` for these weights, with all heads on */
    this.whole = new Map();
  }

  /** Set the weights, from one array for each parameter. @param {Float32Array[]} values */
  load(values) {
    this.model.parameters.forEach(({ data }, i) => this.model.kernels.floats(data).set(values[i]));
    this.whole.clear();
  }

  /** The sequence at a place in the joined orders of all epochs. @param {number} place */
  sequenceAt(place) {
    const epoch = Math.floor(place / this.sequences);
    this.orders[epoch] ??= shuffledOrder(this.sequences, this.settings.seed, epoch);
    return this.orders[epoch][place % this.sequences];
  }

  /** @param {number} i */
  sequence(i) {
    return this.corpus.train.subarray(i * this.settings.seqLen, (i + 1) * this.settings.seqLen);
  }

  /** The weights of `hectogpt train` with this seed: torch's numbers in the textbook's order; the head starts at zero. */
  drawWeights() {
    const { kernels, config } = this.model;
    const normal = new TorchNormal(this.settings.seed);
    const d = config.dModel;
    const draw = (/** @type {number} */ n, std = STD) => normal.fill(new Float32Array(n), std);
    const table = draw(this.vocabulary * d);
    const embeddings = kernels.floats(this.model.embeddings.data);
    this.embedded.forEach((id, row) => embeddings.set(table.subarray(id * d, (id + 1) * d), row * d));
    if (this.model.positions) kernels.floats(this.model.positions.data).set(draw(this.model.positions.data.length));
    const residual = STD / Math.sqrt(2 * Math.max(config.layers, 1));
    for (const block of this.model.blocks) {
      const qkv = kernels.floats(block.qkv.weight.data);
      for (const part of [1, 0, 2]) qkv.set(draw(d * d), part * d * d); // keys, queries, values: the textbook's order
      kernels.floats(block.out.weight.data).set(draw(d * d, residual));
      kernels.floats(block.up.weight.data).set(draw(4 * d * d));
      kernels.floats(block.down.weight.data).set(draw(4 * d * d, residual));
    }
    if (!this.settings.compact) kernels.floats(this.model.head.data).set(draw(this.vocabulary * d));
  }

  /** Set given weights; tokens that they lack keep their random ones. @param {FirstWeights} first */
  takeWeights({ ids, tensors }) {
    const { model } = this;
    const d = model.config.dModel;
    const place = new Map(ids.map((id, i) => [id, i]));
    for (const parameter of model.parameters) {
      const to = model.kernels.floats(parameter.data);
      if (parameter === model.embeddings || parameter === model.head) {
        const rows = parameter === model.head ? this.used : this.embedded;
        const from = tensors[parameter.name];
        rows.forEach((id, row) => {
          const i = place.get(id);
          if (i !== undefined) to.set(from.subarray(i * d, (i + 1) * d), row * d);
        });
        if (parameter === model.head && this.settings.compact) to.set(tensors["lm_head.shared"], this.used.length * d);
        continue;
      }
      const names = parameter.name.includes("W_qkv") ? ["W_q", "W_k", "W_v"].map((part) => parameter.name.replace("W_qkv", part)) : [parameter.name];
      const found = names.map((name) => tensors[name]);
      if (found.some((tensor) => !tensor) || found.reduce((n, tensor) => n + tensor.length, 0) !== to.length) {
        throw new Error(`The weights in this page do not fit: ${parameter.name} has a different size. Keep the recipe and the sizes of the run that the page was made with.`);
      }
      found.reduce((at, tensor) => (to.set(tensor, at), at + tensor.length), 0);
    }
  }

  /** The initial embeddings of the whole vocabulary. */
  firstEmbeddings() {
    return new TorchNormal(this.settings.seed).fill(new Float32Array(this.vocabulary * this.model.config.dModel), STD);
  }

  /** @param {Uint32Array} tokens */
  inputs(tokens) {
    return Uint32Array.from(tokens, (id) => /** @type {number} */ (this.embeddingRow.get(id)));
  }

  /** @param {Uint32Array} tokens */
  outputs(tokens) {
    const last = this.model.config.rows - 1;
    return Uint32Array.from(tokens, (id) => this.headRow.get(id) ?? last);
  }

  /** One step of training. Throws when a number is not finite; the weights are then those of the step before. @returns {Step} */
  step() {
    const begun = performance.now();
    const { batchSize, seqLen, steps } = this.settings;
    const step = this.steps.length;
    if (step >= steps) throw new Error("The run has ended.");
    const { kernels } = this.model;
    const targets = batchSize * (seqLen - 1);
    this.model.zeroGradients();
    let total = 0;
    for (let row = 0; row < batchSize; row++) {
      const tokens = this.sequence(this.sequenceAt(step * batchSize + row));
      for (const loss of this.model.row(this.inputs(tokens.subarray(0, -1)), this.outputs(tokens.subarray(1)), 1 / targets)) total += loss;
    }
    const { head, config } = this.model;
    // The last row of the head gets the gradient of one of its tokens, and counts in the norm once for each.
    const last = kernels.floats(head.grad).subarray((config.rows - 1) * config.dModel);
    if (config.shared) last.forEach((g, i) => (last[i] = g / config.shared));
    let squares = 0;
    for (const { grad } of this.model.parameters) squares += kernels.call.square_sum(grad.at, grad.length);
    if (config.shared) squares += (config.shared - 1) * last.reduce((sum, g) => sum + g * g, 0);
    const gradNorm = Math.sqrt(squares);
    const loss = total / targets;
    if (!Number.isFinite(loss) || !Number.isFinite(gradNorm)) {
      throw new Error(`Step ${step + 1}: the loss is ${loss}, the gradient norm ${gradNorm}. Try a lower learning rate. The weights after step ${step} are kept.`);
    }
    const clip = 1 / (gradNorm + 1e-6);
    if (clip < 1) for (const { grad } of this.model.parameters) kernels.call.multiply(grad.at, grad.length, clip);
    this.optimizer.step(step, factorOf(this.recipe, step, steps));
    this.whole.clear();
    const done = { step: step + 1, loss, gradNorm, seconds: (performance.now() - begun) / 1000 };
    this.steps.push(done);
    return done;
  }

  /**
   * Held-out losses of every token after the first, window by window: rows of the context's length that do not overlap.
   * @param {number} [windows] only the first ones
   */
  windows(windows = Infinity) {
    const known = this.model.off.length ? undefined : this.whole.get(windows);
    if (known) return known;
    const length = Math.min(this.model.config.context, 512, this.corpus.dev.length - 1);
    const found = [];
    for (let at = 0; at + 1 < this.corpus.dev.length && found.length < windows; at += length) {
      const tokens = this.corpus.dev.subarray(at, Math.min(at + length + 1, this.corpus.dev.length));
      found.push(this.model.row(this.inputs(tokens.subarray(0, -1)), this.outputs(tokens.subarray(1)), 0));
    }
    if (!this.model.off.length) this.whole.set(windows, found);
    return found;
  }

  /** Held-out loss in nats per token. @param {number} [windows] */
  heldOut(windows) {
    const rows = this.windows(windows);
    const n = rows.reduce((sum, row) => sum + row.length, 0);
    return rows.reduce((sum, row) => sum + row.reduce((a, b) => a + b, 0), 0) / n;
  }

  /**
   * How much held-out loss rises when heads are off, and the standard error over windows of the paired differences.
   * @param {[number, number][]} heads layer and head @param {"zero" | "mean"} mode @param {number} [windows]
   */
  ablate(heads, mode, windows) {
    for (const [layer, head] of heads) {
      if (!(layer in this.model.blocks) || !(head >= 0 && head < this.model.config.heads)) {
        throw new Error(`There is no head ${head} in layer ${layer}.`);
      }
    }
    if (mode === "mean") this.measureMeans(windows);
    const before = this.windows(windows);
    this.model.off = heads.map(([layer, head]) => ({ layer, head, mode }));
    try {
      const after = this.windows(windows);
      return pairedDifference(before, after);
    } finally {
      this.model.off = [];
    }
  }

  /** The mean output of every head over the held-out text. @param {number} [windows] */
  measureMeans(windows = Infinity) {
    const { heads, dModel: d } = this.model.config;
    const D = this.model.dHead;
    const sums = this.model.blocks.map(() => Array.from({ length: heads }, () => new Float64Array(D)));
    const length = Math.min(this.model.config.context, 512, this.corpus.dev.length - 1);
    let n = 0;
    for (let at = 0, w = 0; at + 1 < this.corpus.dev.length && w < windows; at += length, w++) {
      const tokens = this.corpus.dev.subarray(at, Math.min(at + length, this.corpus.dev.length - 1));
      this.model.hidden(this.inputs(tokens));
      n += tokens.length;
      this.model.saved.forEach(({ mixed }, l) => {
        const values = this.model.kernels.floats(mixed);
        for (let t = 0; t < tokens.length; t++) {
          for (let i = 0; i < d; i++) sums[l][Math.floor(i / D)][i % D] += values[t * d + i];
        }
      });
    }
    this.model.means = sums.map((layer) => layer.map((sum) => Float32Array.from(sum, (x) => x / n)));
  }

  /** The losses of models that count the rows that the run reads. */
  lines() {
    const { steps, batchSize } = this.settings;
    const times = new Float64Array(this.sequences); // how often each sequence is read
    for (let place = 0; place < steps * batchSize; place++) times[this.sequenceAt(place)]++;
    const rows = Array.from(times, (n, i) => ({ tokens: this.sequence(i), n })).filter(({ n }) => n > 0);
    return ngramLosses(rows, this.corpus.dev, this.vocabulary);
  }

  /** Continue a text by `count` tokens. @param {number[]} prompt token ids @param {number} count @param {number} temperature 0 takes the most likely token @param {() => number} random */
  generate(prompt, count, temperature, random) {
    const ids = prompt.filter((id) => this.embeddingRow.has(id));
    if (!ids.length) ids.push(this.corpus.train[0]);
    for (let i = 0; i < count; i++) {
      const context = Uint32Array.from(ids.slice(-this.model.config.context));
      const logits = this.model.next(this.inputs(context)).subarray(0, this.used.length); // tokens that were never read are not generated
      ids.push(this.used[drawToken(logits, temperature, random)]);
    }
    return ids;
  }
}

/** @param {Settings} s */
export function checkSettings(s) {
  const whole = (/** @type {keyof Settings} */ name, /** @type {number} */ least, /** @type {number} */ most) => {
    const value = s[name];
    if (!Number.isInteger(value) || Number(value) < least || Number(value) > most) {
      throw new Error(`${name} is ${value}; it must be a whole number from ${least} to ${most}.`);
    }
  };
  whole("steps", 1, 1000);
  whole("seed", 0, 2 ** 31);
  whole("dModel", 4, 512);
  whole("heads", 1, 64);
  whole("layers", 1, 12);
  whole("batchSize", 1, 64);
  whole("seqLen", 8, 1024);
  whole("context", 8, 1024);
  if (s.dModel % s.heads) throw new Error(`A width of ${s.dModel} cannot be divided among ${s.heads} heads. Choose a multiple.`);
  if (s.lr !== null && !(s.lr > 0 && Number.isFinite(s.lr))) throw new Error(`The learning rate is ${s.lr}; it must be above 0.`);
}

/** @param {Float32Array[]} before @param {Float32Array[]} after losses of each window */
export function pairedDifference(before, after) {
  const sums = before.map((row, w) => row.reduce((sum, loss, i) => sum + after[w][i] - loss, 0));
  return meanDifference(sums, before.map((row) => row.length)); // prettier-ignore
}

/** @param {Float32Array} logits @param {number} temperature @param {() => number} random */
export function drawToken(logits, temperature, random) {
  let largest = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i] > logits[largest]) largest = i;
  if (!temperature) return largest;
  const weights = Float64Array.from(logits, (z) => Math.exp((z - logits[largest]) / temperature));
  let left = random() * weights.reduce((a, b) => a + b, 0);
  for (let i = 0; i < weights.length; i++) if ((left -= weights[i]) <= 0) return i;
  return largest;
}
