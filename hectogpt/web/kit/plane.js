/** A plane with points and arrows, some of which the reader can move. */

import { byId, make, ticks } from "./kit.js";

/**
 * @typedef {{name: string, x: number, y: number, colour: string, arrow?: boolean, fixed?: boolean}} Point
 * @typedef {{label: string, lo: number, hi: number, points: Point[], dots?: [number, number][], ring?: [number, number], moved?: (point: Point) => void}} Plane
 */

/** A name of two letters with the second as a subscript, as in v_a; other names stay. @param {string} name */
const subscripted = (name) => (name.length === 2 ? [name[0], make("tspan", { dy: 4, style: "font-size:11px" }, name[1])] : [name]);

/** @param {Plane} plane */
function drawPlane({ label, lo, hi, points, dots = [], ring, moved }) {
  const size = 360;
  const X = (/** @type {number} */ x) => ((x - lo) / (hi - lo)) * size;
  const Y = (/** @type {number} */ y) => size - X(y);
  const svg = make("svg", { viewBox: `0 0 ${size} ${size}`, role: "group", "aria-label": label, style: "max-width:440px;touch-action:none" });
  for (const tick of ticks(lo, hi, 5)) {
    svg.append(make("line", { class: "axis", x1: X(tick), x2: X(tick), y1: 0, y2: size }), make("line", { class: "axis", x1: 0, x2: size, y1: Y(tick), y2: Y(tick) }));
    svg.append(make("text", { x: X(tick) + 3, y: Y(0) + 13 }, String(tick)));
  }
  for (const [x, y] of dots) svg.append(make("circle", { cx: X(x), cy: Y(y), r: 2.5, style: "fill:var(--c0)", opacity: 0.35 }));
  if (ring) svg.append(make("circle", { cx: X(ring[0]), cy: Y(ring[1]), r: 9, style: "fill:none;stroke:var(--c1);stroke-width:2" }));
  for (const point of points) {
    if (point.arrow) svg.append(make("line", { x1: X(0), y1: Y(0), x2: X(point.x), y2: Y(point.y), style: `stroke:${point.colour};stroke-width:2.5` }));
    const spoken = `${point.name} at ${point.x.toFixed(2)}, ${point.y.toFixed(2)}`;
    const free = moved !== undefined && !point.fixed;
    const handle = make("circle", { cx: X(point.x), cy: Y(point.y), r: free ? 9 : 6, style: `fill:${point.colour}${free ? ";cursor:grab" : ""}`, tabindex: free ? 0 : false, role: free ? "button" : "img", "aria-label": free ? `${spoken}; arrow keys move it` : spoken, "data-name": point.name });
    svg.append(handle, make("text", { x: X(point.x) + 11, y: Y(point.y) - 8, style: `fill:${point.colour};font-weight:600;font-size:15px` }, ...subscripted(point.name)));
    if (!free) continue;
    const put = (/** @type {number} */ x, /** @type {number} */ y) => {
      point.x = Math.min(Math.max(x, lo), hi);
      point.y = Math.min(Math.max(y, lo), hi);
      moved(point);
    };
    handle.addEventListener("pointerdown", (/** @type {PointerEvent} */ down) => {
      down.preventDefault();
      const box = svg.getBoundingClientRect();
      const follow = (/** @type {PointerEvent} */ event) => put(lo + ((event.clientX - box.left) / box.width) * (hi - lo), hi - ((event.clientY - box.top) / box.height) * (hi - lo));
      const stop = () => {
        removeEventListener("pointermove", follow);
        removeEventListener("pointerup", stop);
        removeEventListener("pointercancel", stop);
      };
      addEventListener("pointermove", follow);
      addEventListener("pointerup", stop);
      addEventListener("pointercancel", stop);
    });
    handle.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      const step = event.shiftKey ? 0.25 : 0.05;
      const way = /** @type {Record<string, [number, number]>} */ ({ ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] })[event.key];
      if (!way) return;
      event.preventDefault();
      put(point.x + way[0] * step, point.y + way[1] * step);
    });
  }
  return svg;
}

/** Draw a plane again in its place; the point that had the focus keeps it. @param {string} place @param {Plane} plane */
export function showPlane(place, plane) {
  const held = document.activeElement?.closest(`#${place}`) ? document.activeElement.getAttribute("data-name") : null;
  const svg = drawPlane(plane);
  byId(place).replaceChildren(svg);
  if (held) svg.querySelector(`[data-name="${held}"]`)?.focus();
}
