/** GPT-2's byte-level BPE, with the same ids as hectogpt's Tokenizer. */

// Unicode's White_Space, which tiktoken's \s matches. JavaScript's \s lacks one of its characters and has an additional one.
const SPACE = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const PATTERN = `'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^${SPACE}\\p{L}\\p{N}]+|[${SPACE}]+(?![^${SPACE}])|[${SPACE}]`;

/** Byte <-> the character that stands for it in vocab.bpe. */
function printableBytes() {
  const visible = (/** @type {number} */ b) => (b > 32 && b < 127) || (b > 160 && b < 256 && b !== 173);
  const bytes = Array.from({ length: 256 }, (_, b) => b);
  const ordered = [...bytes.filter(visible), ...bytes.filter((b) => !visible(b))];
  let hidden = 256;
  return ordered.map((b) => ({ byte: b, shown: String.fromCharCode(visible(b) ? b : hidden++) }));
}

export class Tokenizer {
  /** @param {string} merges the content of vocab.bpe */
  constructor(merges) {
    const spelling = printableBytes();
    /** @type {Map<string, number>} token in the printable spelling -> id, which is also its rank */
    this.ids = new Map(spelling.map(({ shown }, id) => [shown, id]));
    for (const line of merges.split("\n")) {
      if (line && !line.startsWith("#version")) this.ids.set(line.replace(" ", ""), this.ids.size);
    }
    this.endOfText = this.ids.size;
    this.size = this.endOfText + 1;
    this.shownOfByte = new Array(256);
    /** @type {Map<string, number>} */
    this.byteOfShown = new Map();
    for (const { byte, shown } of spelling) {
      this.shownOfByte[byte] = shown;
      this.byteOfShown.set(shown, byte);
    }
    this.tokens = [...this.ids.keys()];
    /** @type {Map<string, number[]>} */
    this.words = new Map();
  }

  /** @param {string} text @returns {number[]} */
  encode(text) {
    const found = [];
    const bytes = new TextEncoder();
    for (const [word] of text.matchAll(new RegExp(PATTERN, "gu"))) {
      let ids = this.words.get(word);
      if (!ids) {
        ids = this.merge(Array.from(bytes.encode(word), (b) => this.shownOfByte[b]));
        if (this.words.size < 100000) this.words.set(word, ids);
      }
      for (const id of ids) found.push(id);
    }
    return found;
  }

  /** Join the pair of the lowest rank until no pair is a token. @param {string[]} parts @returns {number[]} */
  merge(parts) {
    while (parts.length > 1) {
      let best = -1;
      let rank = Infinity;
      for (let i = 0; i + 1 < parts.length; i++) {
        const r = this.ids.get(parts[i] + parts[i + 1]);
        if (r !== undefined && r < rank) [best, rank] = [i, r];
      }
      if (best < 0) break;
      parts.splice(best, 2, parts[best] + parts[best + 1]);
    }
    return parts.map((part) => /** @type {number} */ (this.ids.get(part)));
  }

  /** The bytes of one token; none for the end of a text. @param {number} id @returns {number[]} */
  bytes(id) {
    if (id >= this.endOfText) return [];
    return Array.from(this.tokens[id], (shown) => /** @type {number} */ (this.byteOfShown.get(shown)));
  }

  /** Decode ids to text; incomplete characters become U+FFFD. @param {Iterable<number>} ids */
  decode(ids) {
    const bytes = [];
    for (const id of ids) bytes.push(...(id === this.endOfText ? new TextEncoder().encode("<|endoftext|>") : this.bytes(id)));
    return new TextDecoder().decode(new Uint8Array(bytes));
  }
}
