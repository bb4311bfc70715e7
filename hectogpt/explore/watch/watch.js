// Asks the server for the runs every second and shows them; while it does not answer, the last numbers stay.

import { Chart, format, look, make } from "/charts.js";
import { Model } from "/model.js";

const $ = (id) => document.getElementById(id);
const hidden = new Set(JSON.parse(sessionStorage.getItem("hidden") || "[]")); // names of runs
let runs = [];
let version = null;
let x = "step";

const move = (at) => charts.forEach((chart) => chart.setCursor(at));
const charts = [
  new Chart($("charts"), "loss", { title: "Training loss, nats per token", log: false }, move),
  new Chart($("charts"), "norm", { title: "Gradient norm before clipping", log: true }, move),
  new Chart($("charts"), "lr", { title: "Learning rate", zero: true }, move),
  new Chart($("charts"), "speed", { title: "Training tokens per second", zero: true }, move),
];
const model = new Model();

function drawCharts() {
  const shown = runs.filter((run) => !hidden.has(run.name));
  for (const chart of charts) {
    if (chart.key === "loss") chart.options.log = $("log").checked;
    const curves = shown.map((run) => ({
      name: run.name,
      place: run.id,
      x: run.rows[x],
      y: run.rows[chart.key],
      diamonds: chart.key === "loss" ? run.scores.map(([step, loss]) => [xOf(run, step), loss]).filter((d) => d[0] !== null) : [],
      levels: chart.key === "loss" ? run.ngrams : {},
    }));
    chart.set(curves, x);
  }
}

function xOf(run, step) {
  const i = run.rows.step.findLastIndex((s) => s !== null && s <= step);
  return i < 0 ? null : run.rows[x][i];
}

function drawRuns() {
  const rows = runs.map((run) => {
    const row = document.createElement("tr");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: !hidden.has(run.name), id: `run-${run.id}` });
    box.addEventListener("change", () => {
      hidden[box.checked ? "delete" : "add"](run.name);
      sessionStorage.setItem("hidden", JSON.stringify([...hidden]));
      drawCharts();
    });
    const { class: colour, dash } = look(run.id);
    const line = make("line", { x1: 2, x2: 38, y1: 6, y2: 6, stroke: "currentColor", "stroke-width": 3, "stroke-dasharray": dash });
    const name = document.createElement("label");
    name.append(box, make("svg", { class: colour, viewBox: "0 0 40 12", "aria-hidden": "true" }, line), run.name);
    const last = (column) => run.rows[column].at(-1);
    const cells = [run.told, `${run.step ?? 0} of ${run.planned ?? "?"}`, format(last("loss")),
      run.scores.length ? format(run.scores.at(-1)[1]) : "", format(last("speed")), run.left === null ? "" : duration(run.left)];
    row.append(...[name, ...cells].map((content) => {
      const cell = document.createElement("td");
      cell.append(content);
      return cell;
    }));
    return row;
  });
  const focused = document.activeElement?.id;
  $("runs").tBodies[0].replaceChildren(...rows);
  if (focused?.startsWith("run-")) $(focused)?.focus();
  $("runs").hidden = !runs.length;
  $("none").hidden = runs.length > 0;
}

function duration(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  return whole < 3600 ? `${Math.floor(whole / 60)} min ${whole % 60} s` : `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

function tellStatus(kind, text) {
  if ($("status").textContent !== text) $("status").textContent = text;
  $("status").className = kind;
}

async function ask() {
  try {
    const looking = model.run === null || document.hidden ? "" : `?model=${model.run}`;
    const answer = await fetch(`/data${looking}`);
    if (!answer.ok) throw new Error(await answer.text());
    const told = await answer.json();
    runs = told.runs;
    const running = runs.filter((run) => run.state === "running").length;
    tellStatus(running ? "live" : "", running ? `live: ${running} training` : "no run is training now");
    if (told.version !== version) {
      version = told.version;
      drawRuns();
      drawCharts();
      $("notes").textContent = told.notes.join(" ");
    }
    model.update(runs);
  } catch (error) {
    const why = error instanceof TypeError ? "hectogpt watch has ended or cannot be reached" : error.message.trim();
    tellStatus("lost", `${why}; the last numbers stay`);
  }
  setTimeout(ask, document.hidden ? 5000 : 1000);
}

for (const input of document.querySelectorAll("input[name=x]"))
  input.addEventListener("change", () => {
    x = input.value;
    move(null);
    drawCharts();
  });
$("log").addEventListener("change", drawCharts);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCharts);
ask();
