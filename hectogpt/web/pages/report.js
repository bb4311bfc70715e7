/**
 * A page of text, tables and charts, which its data lists in order. A block has one of: heading, text (with `kind`: soft,
 * good, bad or other), list, table ({head, rows}), chart (as `showChart` takes it), code. A cell of a table is a text or
 * {text, href, kind, bar}; an address is another page of the same folder and nothing else.
 */

import { byId, make, pageData, showChart } from "../kit/kit.js";

const data = pageData();

/** Numbers stand at the right and words at the left; a sentence is broken into lines. @param {any} cell */
function classOf(cell) {
  const text = String(cell?.text ?? cell ?? "");
  return [cell?.kind ?? "", text.length > 32 ? "words" : /^[−+-]?[\d.]/.test(text) || !text ? "" : "left"].join(" ").trim();
}

/** @param {any} cell */
function makeCell(cell) {
  if (typeof cell?.bar === "number") return make("td", { class: "left" }, make("span", { class: "bar", style: `width:${(8 * cell.bar).toFixed(2)}rem` }));
  const local = typeof cell?.href === "string" && /^[\w-]+\.html$/.test(cell.href);
  const text = String(cell?.text ?? cell ?? "");
  return make("td", { class: classOf(cell) || false }, local ? make("a", { href: cell.href }, text) : text);
}

/** @param {any} block @returns {any} */
function makeBlock(block) {
  if (block.heading) return make("h2", {}, block.heading);
  if (block.list) return make("ul", {}, ...block.list.map((/** @type {string} */ item) => make("li", {}, item)));
  if (block.code) return make("pre", { class: "sample panel" }, block.code);
  if (block.chart) return make("figure", { class: "panel chart" }, make("figcaption", {}, block.chart.label), make("div"));
  if (block.table) {
    const head = block.table.head.map((/** @type {string} */ name, /** @type {number} */ i) => {
      const words = block.table.rows.some((/** @type {any[]} */ row) => /left|words/.test(classOf(row[i])));
      return name ? make("th", { scope: "col", class: words && "left" }, name) : make("td", {});
    });
    const rows = block.table.rows.map((/** @type {any[]} */ row) => make("tr", {}, ...row.map(makeCell)));
    return make("div", { class: "scroll", tabindex: 0 }, make("table", { class: "wide" }, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows)));
  }
  return make("p", { class: block.kind ?? false }, block.word ? make("b", {}, `${block.word}: `) : "", block.text);
}

document.title = data.title;
const blocks = data.blocks.map(makeBlock);
byId("main").append(make("h1", {}, data.title), ...blocks);
data.blocks.forEach((/** @type {any} */ block, /** @type {number} */ i) => block.chart && showChart(blocks[i].lastElementChild, block.chart)); // as wide as they stand
