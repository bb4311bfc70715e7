/** The compiled functions of kernels.cpp, for float32 or float64, and arrays in their memory. */

/**
 * @typedef {{at: number, length: number}} Block  `length` numbers at address `at`
 * @typedef {Record<string, (...numbers: number[]) => number> & {memory: WebAssembly.Memory}} Exports
 */

export class Kernels {
  /** @param {Exports} exports @param {4 | 8} size bytes of a number */
  constructor(exports, size) {
    this.call = exports;
    this.size = size;
    this.alloc = this.alloc.bind(this);
    this.start = exports.mark();
  }

  /** @param {Uint8Array} bytes of kernels.wasm, or of kernels64.wasm @param {4 | 8} size of a number. Throws if the browser has no WebAssembly with SIMD. */
  static async load(bytes, size) {
    if (typeof WebAssembly !== "object" || !WebAssembly.validate(/** @type {BufferSource} */ (bytes))) {
      throw new Error("This browser has no WebAssembly with SIMD, which training needs. Firefox 89, Chrome 91 and Safari 16.4 have it.");
    }
    const { instance } = await WebAssembly.instantiate(/** @type {BufferSource} */ (bytes));
    return new Kernels(/** @type {any} */ (instance.exports), size);
  }

  /** New zeros. @param {number} length @returns {Block} */
  alloc(length) {
    const at = this.call.alloc(length);
    if (!at) throw new Error("The browser has no more memory. A smaller width, fewer layers or shorter rows need less.");
    const block = { at, length };
    this.floats(block).fill(0);
    return block;
  }

  /** The numbers of a block. The array is valid until the next `alloc`. @param {Block} block @returns {Float32Array} or a Float64Array */
  floats(block) {
    return new /** @type {any} */ (this.size === 8 ? Float64Array : Float32Array)(this.call.memory.buffer, block.at, block.length);
  }

  /** Free all arrays. */
  clear() {
    this.call.release(this.start);
  }

  /** The same memory as integers. @param {Block} block */
  words(block) {
    return new Uint32Array(this.call.memory.buffer, block.at, block.length);
  }
}
