/** Show runs while they train; the server's data is fetched every second. */

import { describeRow, showHeads } from "../kit/heads.js";
import { byId, fromBase64, make, makeTable, say, showChart, shown } from "../kit/kit.js";

/** @typedef {{name: string, state: string, planned: number | null, left: number | null, rows: {step: number[], loss: (number | null)[], norm: (number | null)[], seconds: (number | null)[]}, heldOut: [number, number][], levels: Record<string, number>, devLoss: number | null, usual: string, problem: string}} Run */

let [shownStep, shownRun, drawn] = [-1, "", ""];
/** @type {[number, number]} layer and head */
let head = [0, 0];

/** @param {(number | null)[]} ys @param {number[]} xs @returns {[number, number][]} */
const points = (xs, ys) => xs.flatMap((x, i) => (ys[i] === null ? [] : [/** @type {[number, number]} */ ([x, ys[i]])]));

/** @param {Run[]} runs */
function drawRuns(runs) {
  const rows = runs.map((run) => {
    const last = run.rows.step.length - 1;
    const left = run.left === null ? "" : run.left < 90 ? `${Math.ceil(run.left)} s` : `${Math.round(run.left / 60)} min`;
    const loss = run.rows.loss[last];
    return [run.name, run.problem || run.state, `${run.rows.step[last] ?? 0} of ${run.planned ?? "?"}`, loss === null || loss === undefined ? "–" : shown(loss), run.devLoss === null ? "" : shown(run.devLoss, 4), left];
  });
  byId("runs").replaceChildren(makeTable("", ["run", "state", "step", "loss", "held out", "left"], rows));
  const xMax = Math.max(1, ...runs.map((run) => run.planned ?? 0));
  const curves = runs.flatMap((run, colour) => {
    const found = [{ name: run.name, points: points(run.rows.step, run.rows.loss), colour }];
    const other = runs.length === 1 ? 1 : colour;
    return run.heldOut.length ? [...found, { name: `${run.name}, held out`, points: run.heldOut, dashed: true, colour: other }] : found;
  });
  const levels = Object.entries(runs[0]?.levels ?? {}).map(([name, y]) => ({ name, y }));
  const sentence = runs.map(describe).join(" ");
  showChart(byId("loss"), { label: sentence, xLabel: "step", yLabel: "nats per token", curves, levels, xMax, height: 280 });
  byId("loss-text").textContent = sentence;
  for (const [id, key, label] of [["norm", "norm", "gradient norm"], ["seconds", "seconds", "seconds per step"]]) {
    const lines = runs.map((run) => ({ name: run.name, points: points(run.rows.step, /** @type {any} */ (run.rows)[key]) }));
    showChart(byId(id), { label, xLabel: "step", yLabel: label, curves: lines, xMax, zero: true });
  }
  const which = byId("which");
  const names = runs.map((run) => run.name);
  if ([...which.options].map((option) => option.value).join("\n") !== names.join("\n")) which.replaceChildren(...names.map((name) => make("option", { value: name, selected: name === which.value }, name)));
}

/** @param {Run} run */
function describe(run) {
  const last = [...run.rows.loss].reverse().find((loss) => loss !== null);
  if (last === undefined || last === null) return `${run.name} has no step yet.`;
  if (run.devLoss !== null) return `${run.name}: held-out loss ${shown(run.devLoss, 4)}${run.usual && ", "}${run.usual}.`;
  return `${run.name}: loss ${shown(last)} at step ${run.rows.step[run.rows.step.length - 1]}.`;
}

/** @typedef {{step: number, text: string, tokens: string[], maps: string, shape: [number, number, number]}} Look */

/** @param {Look | null} look */
function drawLook(look) {
  byId("seen").hidden = !look;
  if (!look) return say("look-text", "No checkpoint yet; by default one is saved every 10 s.");
  const which = byId("which").value;
  if (look.step === shownStep && which === shownRun) return;
  [shownStep, shownRun] = [look.step, which];
  say("look-text", `The weights after step ${look.step} write:`);
  byId("sample").textContent = look.text;
  drawHeads(look, [Math.min(head[0], look.shape[0] - 1), Math.min(head[1], look.shape[1] - 1), look.tokens.length - 1]);
}

/** @param {Look} look @param {[number, number, number]} chosen */
function drawHeads(look, chosen) {
  const [layers, heads, T] = look.shape;
  const all = new Uint16Array(fromBase64(look.maps).buffer);
  const map = (/** @type {number} */ l, /** @type {number} */ h) => Float32Array.from(all.subarray((l * heads + h) * T * T, (l * heads + h + 1) * T * T), (w) => w / 65535);
  const of = { layers, heads, tokens: look.tokens, losses: [], map, chosen, choose: (/** @type {[number, number, number]} */ ...other) => drawHeads(look, other) };
  if (!layers) return;
  head = [chosen[0], chosen[1]];
  showHeads(of);
  say("row-text", describeRow(of));
}

/** @param {string} look the run whose samples to request; none the first time, because samples take seconds */
async function ask(look) {
  try {
    const answer = await fetch(`data?look=${encodeURIComponent(look)}`);
    const found = await answer.json();
    document.querySelector("main")?.removeAttribute("hidden");
    const text = JSON.stringify(found.runs);
    if (text !== drawn) drawRuns(found.runs);
    drawn = text;
    if (look === NONE) say("look-text", "Reading the newest weights ...");
    else drawLook(found.look);
    const sentence = found.runs.length ? found.notes.join(" ") : "There is no run in this folder yet; the page waits for one.";
    if (byId("status").textContent !== sentence) byId("status").textContent = sentence; // a screen reader says it again
  } catch {
    byId("status").textContent = "hectogpt watch has ended; the page keeps its last state.";
  }
  setTimeout(() => ask(byId("which").value), look === NONE ? 0 : document.hidden ? 5000 : 1000);
}
const NONE = "/";
ask(NONE);
