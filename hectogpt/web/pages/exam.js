/** The sheets of an exam, without names and answers. A student opens one by its code and answers with letters. */

import { byId, make, pageData, say } from "../kit/kit.js";

/** @type {{sheets: Record<string, {lines: string[], count: number}[]>}} */
const { sheets } = pageData();
const LETTERS = "ABCDEF";
/** Answers by sheet: showing a sheet again keeps them. @type {Record<string, string[]>} */
const kept = {};
addEventListener("beforeunload", (event) => Object.values(kept).some((answers) => answers.some((letter) => letter !== ".")) && event.preventDefault());

/** The same as `checksum` in hectogpt/exam/sheets.py. @param {string} text */
function checksum(text) {
  const sum = [...text].reduce((total, letter, n) => total + (n + 1) * letter.charCodeAt(0), 0);
  return String(sum % 997).padStart(3, "0");
}

/** @param {string} sheet @param {string[]} answers */
function show(sheet, answers) {
  const text = `${sheet}-${answers.join("")}`;
  byId("code").textContent = `${text}-${checksum(text)}`;
  const left = answers.filter((letter) => letter === ".").length;
  say("said", left ? `Sheet ${sheet}: ${left} of ${answers.length} questions without an answer` : `Sheet ${sheet}: all questions have an answer`);
}

byId("choose").addEventListener("submit", (/** @type {Event} */ event) => {
  event.preventDefault();
  const sheet = byId("sheet").value.trim().toUpperCase();
  const questions = Object.hasOwn(sheets, sheet) ? sheets[sheet] : null;
  byId("end").hidden = !questions;
  if (!questions) {
    byId("questions").replaceChildren();
    return say("said", `There is no sheet ${sheet} in this exam. Check the code on your paper.`, true);
  }
  const answers = (kept[sheet] ??= questions.map(() => "."));
  const panels = questions.map(({ lines, count }, n) => {
    const letters = [...LETTERS.slice(0, count)].map((letter) => {
      const choose = () => {
        answers[n] = letter;
        show(sheet, answers);
      };
      return make("label", { class: "flat" }, make("input", { type: "radio", name: `q${n}`, checked: answers[n] === letter, onchange: choose }), letter.toLowerCase());
    });
    const row = make("fieldset", { class: "row" }, make("legend", {}, `Answer to question ${n + 1}`), ...letters);
    return make("section", { class: "panel" }, make("h2", {}, `Question ${n + 1}`), make("pre", { class: "scroll", style: "white-space: pre", tabindex: 0 }, lines.join("\n")), row);
  });
  byId("questions").replaceChildren(...panels);
  show(sheet, answers);
});
