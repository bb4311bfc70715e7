/** The compiled functions of kernels.cpp and arrays in their memory. */

/**
 * @typedef {{at: number, length: number}} Block  `length` floats at address `at`
 * @typedef {Record<string, (...numbers: number[]) => number> & {memory: WebAssembly.Memory}} Exports
 */

export class Kernels {
  /** @param {Exports} exports */
  constructor(exports) {
    this.call = exports;
    this.alloc = this.alloc.bind(this);
  }

  /** @param {Uint8Array} bytes of kernels.wasm. Throws if the browser has no WebAssembly with SIMD. */
  static async load(bytes) {
    if (typeof WebAssembly !== "object" || !WebAssembly.validate(/** @type {BufferSource} */ (bytes))) {
      throw new Error("This browser has no WebAssembly with SIMD, which training needs. Firefox 89, Chrome 91 and Safari 16.4 have it.");
    }
    const { instance } = await WebAssembly.instantiate(/** @type {BufferSource} */ (bytes));
    return new Kernels(/** @type {any} */ (instance.exports));
  }

  /** New zeros. @param {number} length @returns {Block} */
  alloc(length) {
    const at = this.call.alloc(length);
    if (!at) throw new Error("The browser gives no more memory. A smaller width, fewer layers or a shorter row need less.");
    const block = { at, length };
    this.floats(block).fill(0);
    return block;
  }

  /** The floats of a block. The array is valid until the next `alloc`. @param {Block} block */
  floats(block) {
    return new Float32Array(this.call.memory.buffer, block.at, block.length);
  }

  /** The same memory as whole numbers. @param {Block} block */
  words(block) {
    return new Uint32Array(this.call.memory.buffer, block.at, block.length);
  }
}
