"use strict";
// Shows the values of a chart under the pointer or by the arrow keys, and sorts a table on a click on a column title.

const SVG = "http://www.w3.org/2000/svg";

function shown(value) {
  if (value === null || value === undefined) return "–";
  return Math.abs(value) >= 1e4 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(5)));
}

function nearest(places, x) {
  let best = 0;
  places.forEach((place, i) => { if (Math.abs(place - x) < Math.abs(places[best] - x)) best = i; });
  return best;
}

// Per kind of chart: `find` returns the index at a point {x, y} of the drawing; `show` returns the words and marks of index i.
const kinds = {
  lines: (v) => {
    const height = (value) => v.y[2] + (value - v.y[0]) / (v.y[1] - v.y[0]) * (v.y[3] - v.y[2]);
    const few = v.series.length <= 8;
    return {
      count: v.x.length,
      find: (x) => nearest(v.at, x),
      show: (i, y) => {
        let there = v.series.filter(([, , values]) => values[i] !== null && values[i] !== undefined);
        if (!few && there.length) {
          const close = nearest(there.map(([, , values]) => height(values[i])), y ?? 0);
          there = [there[close]];
        }
        return {
          words: [`epoch ${v.x[i]}`, ...there.map(([name, , values]) => `${name}: ${shown(values[i])}`)].join("\n"),
          x: v.at[i],
          guide: true,
          dots: there.map(([, style, values]) => [v.at[i], height(values[i]), style]),
        };
      },
    };
  },
  cells: (v) => {
    const [left, top, right, bottom] = v.box, wide = (right - left) / v.columns.length, high = (bottom - top) / v.rows.length;
    const inside = (place, count) => Math.min(Math.max(Math.floor(place), 0), count - 1);
    return {
      count: v.columns.length,
      find: (x) => inside((x - left) / wide, v.columns.length),
      show: (i, y) => {
        const row = inside(((y ?? top) - top) / high, v.rows.length), value = v.cells[row][i], of = v.of[row];
        const part = of ? ` (${Number((100 * value / of).toPrecision(3))}% of ${of.toLocaleString("en")})` : "";
        return {
          words: `${v.rows[row]}, ${v.column} ${v.columns[i]}\n${shown(value)} ${v.unit}${part}`.trim(),
          x: left + (i + 0.5) * wide,
          box: [left + i * wide, top + row * high, wide, high],
        };
      },
    };
  },
  points: (v) => ({
    count: v.points.length,
    find: (x, y) => nearest(v.points.map(([px, py]) => Math.hypot(px - x, py - y)), 0),
    show: (i) => ({ words: v.points[i][2], x: v.points[i][0], dots: [[v.points[i][0], v.points[i][1], v.points[i][3]]] }),
  }),
};

function drawn(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function watch(figure) {
  const values = JSON.parse(figure.querySelector("script").textContent), chart = kinds[values.kind](values);
  const svg = figure.querySelector(".drawing svg"), box = svg.viewBox.baseVal;
  const marks = svg.appendChild(drawn("g", { "aria-hidden": "true" }));
  const tip = figure.querySelector(".drawing").appendChild(Object.assign(document.createElement("div"), { className: "tip", hidden: true }));
  tip.setAttribute("aria-live", "polite");
  let at = -1, height;

  function show(i, y) {
    [at, height] = [i, y];
    const what = chart.show(i, y), scale = svg.clientWidth / box.width;
    marks.replaceChildren();
    if (what.guide) marks.append(drawn("path", { class: "guide", d: `M${what.x} 8V${box.height - 34}` }));
    if (what.box) {
      const [x, top, width, high] = what.box;
      marks.append(drawn("rect", { class: "guide", x: x - 0.5, y: top - 0.5, width: width + 1, height: high + 1 }));
    }
    for (const [x, top, style] of what.dots ?? []) marks.append(drawn("circle", { class: `dot ${style}`, cx: x, cy: top, r: 4 }));
    tip.textContent = what.words;
    tip.hidden = false;
    const left = what.x * scale + (what.x > box.width / 2 ? -tip.offsetWidth - 10 : 10);
    tip.style.left = `${Math.max(0, Math.min(left, svg.clientWidth - tip.offsetWidth))}px`;
    tip.style.top = `${Math.max(0, (what.dots?.[0]?.[1] ?? what.box?.[1] ?? 0) * scale - tip.offsetHeight)}px`;
  }

  function hide() {
    at = -1;
    marks.replaceChildren();
    tip.hidden = true;
  }

  svg.tabIndex = 0;
  for (const kind of ["pointermove", "pointerdown"]) svg.addEventListener(kind, (event) => {
    const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    show(chart.find(place.x, place.y), place.y);
  });
  for (const kind of ["pointerleave", "blur"]) svg.addEventListener(kind, hide);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") hide();
    if (!step) return;
    event.preventDefault();
    show(Math.min(Math.max(at < 0 ? chart.count - 1 : at + step, 0), chart.count - 1), height);
  });
}

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const number = (text) => { const found = text.replaceAll(",", "").match(/-?[\d.]+(e[-+]?\d+)?/); return found ? Number(found[0]) : null; };
  heads.forEach((head, column) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: head.textContent });
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.ariaSort !== "ascending", rows = [...body.rows];
      const text = new Map(rows.map((row) => [row, row.cells[column].textContent.trim()]));
      const numeric = head.classList.contains("number") || [...text.values()].every((value) => value !== "" && !Number.isNaN(Number(value)));
      rows.sort((a, b) => {
        if (!numeric) return (up ? 1 : -1) * text.get(a).localeCompare(text.get(b), "en", { numeric: true });
        const [x, y] = [number(text.get(a)), number(text.get(b))];
        return x === null || y === null ? (x === null) - (y === null) : (up ? 1 : -1) * (x - y);  // cells without a number come last
      });
      heads.forEach((other) => { other.ariaSort = null; });
      head.ariaSort = up ? "ascending" : "descending";
      body.append(...rows);
    });
  });
}

document.querySelectorAll("figure.chart").forEach(watch);
document.querySelectorAll("table.sortable").forEach(sortable);
