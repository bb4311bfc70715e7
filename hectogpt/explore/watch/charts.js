// Line charts in SVG: several runs over each other, one cursor for all charts, by mouse and by keyboard.

const SVG = "http://www.w3.org/2000/svg";
const DASHES = ["", "9 4", "2 4", "11 4 2 4", "5 3", "1 6", "14 3"]; // so that runs differ without colours
const COLOURS = 7;
const MARGIN = { left: 50, right: 14, top: 12, bottom: 26 };

export function make(name, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

export const look = (place) => ({
  class: `c${place % COLOURS}`,
  dash: DASHES[(place + Math.floor(place / COLOURS)) % DASHES.length],
});

export function format(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 1e5) return value.toLocaleString("en-US", { maximumFractionDigits: 0, notation: "compact", maximumSignificantDigits: 3 });
  if (size >= 1000) return value.toLocaleString("en-US", { maximumFractionDigits: 0 });
  if (size >= 1) return value.toFixed(size >= 100 ? 1 : 3);
  return size === 0 ? "0" : size >= 0.01 ? value.toFixed(4) : value.toExponential(2);
}

function ticks(low, high, count) {
  const rough = (high - low) / count;
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((f) => f * size).find((s) => s >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let p = Math.floor(Math.log10(low)); p <= Math.log10(high); p++)
    for (const f of [1, 2, 5]) if (f * 10 ** p >= low && f * 10 ** p <= high) found.push(Number((f * 10 ** p).toPrecision(3)));
  return found.length < 3 ? ticks(low, high, 4) : found;
}

const shortTick = (value) => {
  const size = Math.abs(value);
  if (size >= 1e4) return value.toLocaleString("en-US", { notation: "compact", maximumSignificantDigits: 4 });
  return size !== 0 && size < 1e-3 ? value.toExponential().replace("e-", "e−") : String(value);
};

// Places on a curve, at most 8 pixels from one to the next.
function alongCurve(curve, X, Y, good) {
  const places = [];
  curve.y.forEach((y, i) => {
    if (!good(y) || curve.x[i] === null) return;
    const [x1, y1] = [X(curve.x[i]), Y(y)];
    const [x0, y0] = places.length ? places[places.length - 1] : [x1, y1];
    const parts = Math.max(1, Math.ceil(Math.hypot(x1 - x0, y1 - y0) / 8));
    for (let part = 1; part <= parts; part++) places.push([x0 + ((x1 - x0) * part) / parts, y0 + ((y1 - y0) * part) / parts]);
  });
  return places;
}

export class Chart {
  // options: title, unit, log; moved(x): the reader has put the cursor at this x, null for none
  constructor(parent, key, options, moved) {
    this.key = key;
    this.options = options;
    this.moved = moved;
    this.cursor = null;
    this.curves = [];
    this.figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    caption.textContent = options.title;
    this.svg = make("svg", { tabindex: 0, role: "img" });
    this.readout = document.createElement("output");
    this.figure.append(caption, this.svg, this.readout);
    parent.append(this.figure);
    this.svg.addEventListener("pointermove", (e) => this.point(e));
    this.svg.addEventListener("pointerdown", (e) => this.point(e));
    this.svg.addEventListener("pointerleave", (e) => e.pointerType === "mouse" && moved(null));
    this.svg.addEventListener("keydown", (e) => this.press(e));
    this.svg.addEventListener("focus", () => this.readout.setAttribute("aria-live", "polite"));
    this.svg.addEventListener("blur", () => this.readout.removeAttribute("aria-live"));
    new ResizeObserver(() => this.draw()).observe(this.svg);
  }

  // curves: [{name, place, x, y, diamonds: [[x, y]], levels: {name: y}}]
  set(curves, xName) {
    this.curves = curves;
    this.xName = xName;
    this.draw();
  }

  setCursor(x) {
    this.cursor = x;
    this.draw();
  }

  point(event) {
    if (!this.scale) return;
    const left = this.svg.getBoundingClientRect().left;
    this.moved(this.nearest(this.scale.xBack(event.clientX - left)));
  }

  allX() {
    return [...new Set(this.curves.flatMap((c) => c.x))].filter((v) => v !== null).sort((a, b) => a - b);
  }

  nearest(x) {
    return this.allX().reduce((best, v) => (best === null || Math.abs(v - x) < Math.abs(best - x) ? v : best), null);
  }

  press(event) {
    const xs = this.allX();
    if (!xs.length) return;
    const by = { ArrowRight: 1, ArrowLeft: -1, PageUp: 10, PageDown: -10, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") this.moved(null);
    else if (by === undefined) return;
    else {
      const now = this.cursor === null ? xs.length - 1 : xs.indexOf(this.nearest(this.cursor));
      const start = this.cursor === null && Math.abs(by) === 1 ? now : Math.min(Math.max(now + by, 0), xs.length - 1);
      this.moved(xs[start]);
    }
    event.preventDefault();
  }

  draw() {
    const width = this.svg.clientWidth;
    const height = this.svg.clientHeight;
    if (!width || !height) return;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const log = this.options.log;
    const good = (v) => v !== null && v !== undefined && (!log || v > 0);
    const values = this.curves.flatMap((c) => [...c.y, ...c.diamonds.map((d) => d[1])]).filter(good);
    const xs = this.curves.flatMap((c) => [...c.x, ...c.diamonds.map((d) => d[0])]).filter((v) => v !== null);
    this.svg.replaceChildren();
    this.scale = null;
    if (!values.length) {
      this.svg.setAttribute("aria-label", `${this.options.title}: no numbers yet`);
      this.svg.append(make("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "no numbers yet"));
      this.readout.replaceChildren();
      return;
    }
    const bounds = (list, pad, useLog) => {
      let [low, high] = list.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
      if (low === high) return useLog ? [low / 1.5, high * 1.5] : [low - (Math.abs(low) || 1) * 0.5, high + (Math.abs(high) || 1) * 0.5];
      if (useLog) return [low * (low / high) ** pad, high * (high / low) ** pad];
      return [low - (high - low) * pad, high + (high - low) * pad];
    };
    const [x0, x1] = bounds(xs, 0, false);
    let [y0, y1] = bounds(values, 0.05, log);
    if (this.options.zero) [y0, y1] = [0, y1];
    const f = log ? Math.log : (v) => v;
    const inner = { w: width - MARGIN.left - MARGIN.right, h: height - MARGIN.top - MARGIN.bottom };
    const X = (v) => MARGIN.left + ((v - x0) / (x1 - x0)) * inner.w;
    const Y = (v) => MARGIN.top + (1 - (f(v) - f(y0)) / (f(y1) - f(y0))) * inner.h;
    this.scale = { xBack: (p) => x0 + ((p - MARGIN.left) / inner.w) * (x1 - x0) };
    this.axes({ x0, x1, y0, y1, X, Y, width, height, inner, log });
    for (const curve of this.curves) this.curve(curve, X, Y, good);
    this.levels(y0, y1, X, Y, width, good);
    this.cursorLine(X, Y, height, good);
  }

  axes({ x0, x1, y0, y1, X, Y, width, height, inner, log }) {
    let last = Infinity;
    for (const tick of log ? logTicks(y0, y1) : ticks(y0, y1, Math.max(2, inner.h / 45))) {
      const y = Y(tick);
      if (last - y < 18) continue;
      last = y;
      this.svg.append(make("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }));
      this.svg.append(make("text", { x: MARGIN.left - 6, y: y + 4, "text-anchor": "end" }, shortTick(tick)));
    }
    const bottom = height - MARGIN.bottom;
    this.svg.append(make("line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: bottom, y2: bottom }));
    for (const tick of ticks(x0, x1, Math.max(2, inner.w / 90)).filter((t) => X(t) > MARGIN.left + 8))
      this.svg.append(make("text", { x: X(tick), y: bottom + 15, "text-anchor": "middle" }, shortTick(tick)));
    this.svg.append(make("text", { x: MARGIN.left - 6, y: bottom + 15, "text-anchor": "end" }, this.xName));
  }

  levels(y0, y1, X, Y, width, good) {
    const shown = new Map();
    for (const curve of this.curves) for (const [name, y] of Object.entries(curve.levels)) shown.set(`${name} ${y.toFixed(2)}`, y);
    const inside = [...shown].filter(([, y]) => y >= y0 && y <= y1).map(([name, y]) => [name, Y(y)]);
    for (const [, y] of inside)
      this.svg.append(make("line", { class: "level", x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }));
    const dots = this.curves.flatMap((curve) => alongCurve(curve, X, Y, good));
    const taken = [];
    const covers = (box, x, y) => x > box.left && x < box.right && y > box.top && y < box.bottom;
    // A name stands above or below its line, at the left or at the right, where it covers least of other lines and
    // curves. One that would cover another name, or more of a curve than a crossing, is left out.
    for (const [name, y] of inside) {
      const text = make("text", { class: "halo" }, name);
      this.svg.append(text);
      const long = text.getComputedTextLength();
      const crossed = (box) => inside.filter(([, other]) => other !== y && other > box.top && other < box.bottom).length;
      const covered = (box) => dots.filter(([px, py]) => covers(box, px, py)).length;
      const places = [];
      for (const left of [MARGIN.left + 6, width - MARGIN.right - 6 - long])
        for (const base of [y - 4, y + 13]) {
          const box = { left, right: left + long, top: base - 12, bottom: base + 4, base };
          const free = !taken.some((t) => t.left < box.right && box.left < t.right && t.top < box.bottom && box.top < t.bottom);
          const hidden = covered(box);
          if (free && hidden <= 6 && box.top > 0 && box.bottom < Y(y0)) places.push([10 * crossed(box) + hidden, box]);
        }
      if (!places.length) {
        text.remove();
        continue;
      }
      const [, box] = places.reduce((best, place) => (place[0] < best[0] ? place : best));
      taken.push(box);
      text.setAttribute("x", box.left);
      text.setAttribute("y", box.base);
    }
  }

  curve(curve, X, Y, good) {
    const { class: colour, dash } = look(curve.place);
    let path = "";
    let pen = false;
    curve.y.forEach((y, i) => {
      if (!good(y) || curve.x[i] === null) pen = false;
      else {
        path += `${pen ? "L" : "M"}${X(curve.x[i]).toFixed(1)} ${Y(y).toFixed(1)}`;
        pen = true;
      }
    });
    const group = make("g", { class: colour, stroke: "currentColor", fill: "currentColor" });
    group.append(make("path", { class: "curve", d: path, "stroke-dasharray": dash }, make("title", {}, curve.name)));
    const end = curve.y.findLastIndex(good);
    if (end >= 0) group.append(make("circle", { cx: X(curve.x[end]), cy: Y(curve.y[end]), r: 3.5, stroke: "none" }));
    for (const [x, y] of curve.diamonds)
      if (good(y)) group.append(make("path", { d: `M${X(x)} ${Y(y) - 7}l6 7l-6 7l-6 -7z`, stroke: "none" }));
    this.svg.append(group);
  }

  cursorLine(X, Y, height, good) {
    const at = this.cursor === null ? null : this.nearest(this.cursor);
    if (at !== null)
      this.svg.append(make("line", { class: "cursor", x1: X(at), x2: X(at), y1: MARGIN.top, y2: height - MARGIN.bottom }));
    const told = [];
    for (const curve of this.curves) {
      let i = curve.y.findLastIndex(good);
      if (at !== null) i = curve.x.reduce((best, v, j) => (v !== null && good(curve.y[j]) && v <= at ? j : best), -1);
      if (i < 0) continue;
      const item = document.createElement("span");
      item.className = look(curve.place).class;
      item.textContent = `${this.curves.length > 1 ? curve.name + " " : ""}${format(curve.y[i])}`;
      told.push(item);
      if (at !== null)
        this.svg.append(make("circle", { class: look(curve.place).class, cx: X(curve.x[i]), cy: Y(curve.y[i]), r: 4, fill: "currentColor" }));
    }
    const where = document.createElement("span");
    where.textContent = at === null ? "now" : `${this.xName} ${format(at).replace(/\.000$/, "")}`;
    this.readout.replaceChildren(where, ...told);
    const spoken = told.map((item) => item.textContent).join(", ");
    this.svg.setAttribute("aria-label", `${this.options.title}. ${where.textContent}: ${spoken}`);
  }
}
