/** A run as files: weights that hectoGPT reads, and data from which a page resumes the run. */

/** @import { Trainer } from "./trainer.js" */

/** @typedef {{shape: number[], values: Float32Array | BigInt64Array}} Tensor */

/**
 * model.safetensors of a run, with its settings (config.json of a run's folder) as metadata.
 * Rows of tokens that are not in the text keep their initial values, which training changes only by weight decay.
 * @param {Trainer} trainer @returns {ArrayBuffer}
 */
export function safetensors(trainer) {
  const tensors = namedTensors(trainer);
  /** @type {Record<string, unknown>} */
  const header = { __metadata__: { format: "pt", hectogpt_config: JSON.stringify(modelConfig(trainer)) } };
  let at = 0;
  for (const [name, { shape, values }] of Object.entries(tensors)) {
    header[name] = { dtype: values instanceof Float32Array ? "F32" : "I64", shape, data_offsets: [at, at + values.byteLength] };
    at += values.byteLength;
  }
  let text = JSON.stringify(header);
  text += " ".repeat(-text.length & 7);
  const head = new TextEncoder().encode(text);
  const file = new Uint8Array(8 + head.length + at);
  new DataView(file.buffer).setBigUint64(0, BigInt(head.length), true);
  file.set(head, 8);
  let to = 8 + head.length;
  for (const { values } of Object.values(tensors)) {
    file.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength), to);
    to += values.byteLength;
  }
  return file.buffer;
}

/** @param {Trainer} trainer @returns {Record<string, Tensor>} */
function namedTensors(trainer) {
  const { model, vocabulary } = trainer;
  const d = model.config.dModel;
  /** @type {Record<string, Tensor>} */
  const found = {};
  for (const { name, shape, data } of model.parameters) {
    const values = Float32Array.from(model.kernels.floats(data));
    if (name === "embeddings.weight") {
      const whole = trainer.firstEmbeddings();
      trainer.embedded.forEach((id, row) => whole.set(values.subarray(row * d, (row + 1) * d), id * d));
      found[name] = { shape: [vocabulary, d], values: whole };
    } else if (name.includes("W_qkv")) {
      const third = values.length / 3;
      ["W_q", "W_k", "W_v"].forEach((part, i) => {
        found[name.replace("W_qkv", part)] = { shape: [shape[0] / 3, ...shape.slice(1)], values: values.slice(i * third, (i + 1) * third) };
      });
    } else found[name] = { shape, values };
  }
  if (trainer.settings.compact) {
    const rows = new BigInt64Array(vocabulary).fill(BigInt(trainer.used.length));
    trainer.used.forEach((id, row) => (rows[id] = BigInt(row)));
    found["lm_head.row_of_token"] = { shape: [vocabulary], values: rows };
  }
  return found;
}

/** ModelConfig as hectogpt writes it. @param {Trainer} trainer */
function modelConfig(trainer) {
  const { settings, model, vocabulary } = trainer;
  const { config } = model;
  /** @type {Record<string, unknown>[]} */
  const parts = [];
  if (config.qkNorm) parts.push({ type: "QKNorm", eps: 1e-6 });
  if (config.rotary) parts.push({ type: "Rotary", ...config.rotary });
  return {
    model_type: "hectogpt", d_model: config.dModel, n_heads: config.heads, n_layers: config.layers, context_length: config.context, vocab_size: vocabulary,
    positions: { type: config.positions ? "LearnedPositions" : "NoPositions" }, attention_parts: parts,
    inputs: config.smear === null ? [] : [{ type: "Smear", shares: [config.smear] }], attention_scale: config.scale, lm_head: { compact_vocab: settings.compact },
  }; // prettier-ignore
}

/** Pack the steps, and as many saved weights as fit into `most` bytes: evenly spread, and always those of the last step. @param {Trainer} trainer @param {Map<number, Float32Array[]>} saved @param {number} most */
export function packRun(trainer, saved, most) {
  const steps = [...saved.keys()];
  const bytes = (saved.get(steps[0]) ?? []).reduce((sum, values) => sum + 4 * values.length, 0);
  const room = Math.max(1, Math.floor(most / Math.max(bytes, 1)));
  const chosen = new Set(Array.from({ length: Math.min(room, steps.length) }, (_, i) => steps[Math.round(((i + 1) * steps.length) / Math.min(room, steps.length)) - 1]));
  return { steps: trainer.steps, weights: [...chosen].map((step) => ({ step, values: saved.get(step)?.map((values) => Float32Array.from(values)) })) };
}

/** @param {Trainer} trainer @param {Map<number, Float32Array[]>} saved @param {{steps: any[], weights: {step: number, values: Float32Array[]}[]}} packed */
export function unpackRun(trainer, saved, packed) {
  const sizes = trainer.model.parameters.map((p) => p.data.length);
  for (const { step, values } of packed.weights) {
    if (values.length !== sizes.length || values.some((v, i) => v.length !== sizes[i])) throw new Error("The saved run is damaged: the sizes of its weights do not match its settings.");
    saved.set(step, values);
  }
  trainer.steps = packed.steps;
}
