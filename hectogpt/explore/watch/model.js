// What a run's checkpoints say: a continuation, all attention maps, and one of them in full.

const $ = (id) => document.getElementById(id);
// viridis at nine places: lightness rises evenly, so it is read without colours too
const SHADES = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129], [92, 200, 99],
  [170, 220, 50], [253, 231, 37]];

function shade(weight) {
  const place = Math.sqrt(Math.min(Math.max(weight, 0), 1)) * (SHADES.length - 1);
  const low = Math.min(Math.floor(place), SHADES.length - 2);
  return SHADES[low].map((v, i) => Math.round(v + (SHADES[low + 1][i] - v) * (place - low)));
}

const at = (map, t, s) => map[(t * (t + 1)) / 2 + s] / 1000;

function paint(canvas, map, size) {
  canvas.width = canvas.height = size;
  const pen = canvas.getContext("2d");
  const image = pen.createImageData(size, size);
  for (let t = 0; t < size; t++)
    for (let s = 0; s <= t; s++) image.data.set([...shade(at(map, t, s)), 255], 4 * (t * size + s));
  pen.putImageData(image, 0, 0);
}

export class Model {
  constructor() {
    this.run = null; // the run that is shown
    this.cache = new Map();
    this.chosen = [0, 0];
    this.cell = null;
    this.follow = true; // show the newest checkpoint
    $("of").addEventListener("change", () => this.choose(Number($("of").value)));
    $("at").addEventListener("input", () => {
      this.follow = $("at").value === $("at").max;
      this.show();
    });
    $("map").addEventListener("pointermove", (e) => this.point(e));
    $("map").addEventListener("pointerdown", (e) => this.point(e));
    $("map").addEventListener("keydown", (e) => this.press(e));
    new ResizeObserver(() => this.drawLarge()).observe($("large"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.drawLarge());
    const strip = $("scale").querySelector("canvas").getContext("2d");
    for (let x = 0; x < 120; x++) {
      strip.fillStyle = `rgb(${shade(x / 119)})`;
      strip.fillRect(x, 0, 1, 10);
    }
  }

  choose(id) {
    this.run = id;
    this.shown = null;
    this.follow = true;
    this.steps = [];
    $("model").hidden = true;
  }

  // what the server has told of all runs
  update(runs) {
    const known = [...$("of").options].map((o) => o.value).join();
    if (known !== runs.map((r) => r.id).join())
      $("of").replaceChildren(...runs.map((r) => new Option(r.name, r.id, false, r.id === this.run)));
    if (this.run === null && runs.length) this.choose((runs.find((r) => r.state === "running") || runs[runs.length - 1]).id);
    $("of").value = this.run;
    const run = runs.find((r) => r.id === this.run);
    if (!run) return;
    this.steps = run.snapshots;
    $("model-note").textContent = run.problem || (this.steps.length ? "" : run.waiting);
    $("model").hidden = !this.steps.length;
    const kept = Object.entries(this.steps.length ? {} : run.samples);
    $("summary-samples").replaceChildren(...kept.map(([how, text]) => quote(`${how}, from summary.json`, "", text)));
    if (!this.steps.length) return;
    $("at").max = this.steps.length - 1;
    if (this.follow) $("at").value = $("at").max;
    this.show();
  }

  async show() {
    const step = this.steps[Number($("at").value)];
    $("at-step").textContent = step;
    $("at").setAttribute("aria-valuetext", `step ${step}`);
    const key = `${this.run}/${step}`;
    if (!this.cache.has(key)) {
      const answer = await fetch(`/snapshot/${key}`);
      if (!answer.ok) return;
      this.cache.set(key, await answer.json());
    }
    const now = `${this.run}/${this.steps[Number($("at").value)]}`;
    if (now !== key || this.shown === key) return;
    this.shown = key;
    this.draw(this.cache.get(key));
  }

  draw(found) {
    this.found = found;
    $("sample").replaceWith(Object.assign(quote("greedy", found.prompt, found.text.slice(found.prompt.length)), { id: "sample" }));
    const [layers, heads] = [found.maps.length, found.maps[0]?.length || 0];
    this.chosen = [Math.min(this.chosen[0], layers - 1), Math.min(this.chosen[1], heads - 1)];
    const size = found.tokens.length;
    const old = $("maps").querySelectorAll("button");
    if (old.length !== layers * heads || $("maps").dataset.heads !== String(heads)) {
      $("maps").dataset.heads = heads;
      $("maps").style.gridTemplateColumns = `repeat(${heads}, minmax(28px, 84px))`;
      const buttons = found.maps.flatMap((row, layer) => row.map((_, head) => {
        const button = document.createElement("button");
        button.type = "button";
        button.append(document.createElement("canvas"));
        button.addEventListener("click", () => { this.chosen = [layer, head]; this.mark(); this.drawLarge(); });
        return button;
      }));
      $("maps").replaceChildren(...buttons);
    }
    const buttons = $("maps").querySelectorAll("button");
    found.maps.flat().forEach((map, i) => {
      paint(buttons[i].querySelector("canvas"), map, size);
      buttons[i].setAttribute("aria-label", `layer ${Math.floor(i / heads) + 1}, head ${(i % heads) + 1}`);
    });
    this.mark();
    this.drawLarge();
  }

  mark() {
    const heads = this.found.maps[0]?.length || 0;
    $("maps").querySelectorAll("button").forEach((button, i) =>
      button.setAttribute("aria-pressed", i === this.chosen[0] * heads + this.chosen[1]));
  }

  get map() {
    return this.found?.maps[this.chosen[0]]?.[this.chosen[1]];
  }

  drawLarge() {
    const map = this.map;
    if (!map || !$("large").clientWidth) return;
    const [layer, head] = this.chosen;
    const names = this.found.tokens;
    const canvas = $("map");
    const ratio = devicePixelRatio || 1;
    const width = $("large").clientWidth;
    const longest = Math.max(...names.map((n) => Math.min(n.length, 12)));
    const edge = Math.min(14 + longest * 7.2, width * 0.28);
    const cell = (width - edge) / names.length;
    this.geometry = { edge, cell };
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round((edge + cell * names.length) * ratio);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const style = getComputedStyle(document.documentElement);
    pen.font = `${Math.min(12, cell * 0.95)}px system-ui, sans-serif`;
    pen.textBaseline = "middle";
    names.forEach((name, t) => {
      const short = name.length > 12 ? `${name.slice(0, 11)}…` : name;
      pen.fillStyle = style.getPropertyValue("--text");
      pen.textAlign = "right";
      pen.fillText(short, edge - 5, edge + (t + 0.5) * cell, edge - 6);
      pen.save();
      pen.translate(edge + (t + 0.5) * cell, edge - 5);
      pen.rotate(-Math.PI / 2);
      pen.textAlign = "left";
      pen.fillText(short, 0, 0, edge - 6);
      pen.restore();
      for (let s = 0; s <= t; s++) {
        pen.fillStyle = `rgb(${shade(at(map, t, s))})`;
        pen.fillRect(edge + s * cell, edge + t * cell, cell + 0.4, cell + 0.4);
      }
    });
    pen.strokeStyle = style.getPropertyValue("--line");
    pen.beginPath();
    pen.save();
    for (let t = 0; t < names.length - 1; t++) pen.rect(edge + (t + 1) * cell, edge + t * cell, width, cell);
    pen.clip();
    pen.beginPath();
    for (let d = 0; d < 2 * width; d += 7) pen.moveTo(edge + d, edge), pen.lineTo(edge + d - width, edge + width);
    pen.stroke();
    pen.restore();
    $("large-title").textContent = `Layer ${layer + 1}, head ${head + 1}, after step ${this.found.step}`;
    this.tell();
  }

  point(event) {
    if (!this.geometry) return;
    const box = $("map").getBoundingClientRect();
    const [t, s] = [event.clientY - box.top, event.clientX - box.left].map((p) => Math.floor((p - this.geometry.edge) / this.geometry.cell));
    this.go(t, s);
  }

  press(event) {
    const by = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!by || !this.found) return;
    const [t, s] = this.cell || [this.found.tokens.length - 1, by[1] ? 1 : 0];
    this.go(t + by[0], Math.min(s + by[1], t + by[0]));
    event.preventDefault();
  }

  go(t, s) {
    if (t < 0 || s < 0 || s > t || t >= this.found.tokens.length) return;
    this.cell = [t, s];
    this.drawLarge();
  }

  tell() {
    const map = this.map;
    const names = this.found.tokens;
    if (this.cell && this.cell[0] >= names.length) this.cell = null;
    const [t, s] = this.cell || [names.length - 1, 0];
    const best = [...Array(t + 1).keys()].reduce((a, b) => (at(map, t, b) > at(map, t, a) ? b : a), 0);
    const even = (1 / (t + 1)).toFixed(3);
    const text = `${t + 1} ${names[t]} → ${s + 1} ${names[s]}: ${at(map, t, s).toFixed(3)} (evenly it would be ${even}); most to ${best + 1} ${names[best]}: ${at(map, t, best).toFixed(3)}`;
    $("weight").textContent = text;
    $("map").setAttribute("aria-label", `${$("large-title").textContent}. Arrow keys move. ${text}`);
    if (!this.cell) return;
    const { edge, cell } = this.geometry;
    const pen = $("map").getContext("2d");
    pen.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--text");
    pen.lineWidth = 2;
    pen.strokeRect(edge + s * cell, edge + t * cell, cell, cell);
  }
}

function quote(how, prompt, rest) {
  const block = document.createElement("blockquote");
  const cite = document.createElement("cite");
  cite.textContent = how;
  const bold = document.createElement("b");
  bold.textContent = prompt;
  block.append(cite, bold, rest);
  return block;
}
