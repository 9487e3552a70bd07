// The pictures and the switches of the report; `devices` holds their figures, see report.py.
"use strict";

const node = (maker, attributes, children) => {
  for (const [name, value] of Object.entries(attributes)) if (value !== null) maker.setAttribute(name, value);
  maker.append(...children);
  return maker;
};
const html = (tag, attributes = {}, ...children) => node(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) => node(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const short = number => String(parseFloat(number.toPrecision(3)));
const written = value => [value].flat().map(one => typeof one === "string" ? one : JSON.stringify(one)).join(", ");
const breakable = name => name.split(/(?<=[._])/).flatMap(word => [word, html("wbr")]);

// ---- axes: {low, high, log, title, names: of categories, told: of a tick}

function ticks(axis) {
  if (axis.names) return axis.names.map((_, index) => index);
  const within = tick => tick >= axis.low && tick <= axis.high;
  if (axis.log) {
    const decades = [-3, -2, -1, 0, 1, 2, 3, 4].map(power => 10 ** power);
    const all = steps => decades.flatMap(decade => steps.map(step => step * decade)).filter(within);
    return [[1], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 7]].map(all).find(found => found.length > 3) || all([1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9]);
  }
  const raw = (axis.high - axis.low) / 5, decade = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find(times => times * decade >= raw) * decade, first = Math.ceil(axis.low / step);
  return Array.from({length: Math.floor(axis.high / step) - first + 1}, (_, index) => (first + index) * step);
}

function placed(axis, from, to) {
  const of = axis.log ? Math.log : value => value, low = of(axis.low), high = of(axis.high);
  return value => from + (of(value) - low) / (high - low || 1) * (to - from);
}

/** An empty picture with its axes: the places of values on it, and what to draw in. */
function picture(host, height, x, y, label) {
  const width = Math.max(200, host.clientWidth || 700), left = 48, right = 24, top = x.above ? 42 : 12, bottom = x.title ? 46 : 30;
  const X = placed(x, left, width - right), Y = placed(y, height - bottom, top);
  const root = svg("svg", {viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": label});
  const text = (at, say, more = {}) => svg("text", {x: at[0], y: at[1], "text-anchor": "middle", ...more}, say);
  const told = axis => axis.told || (tick => axis.names ? axis.names[tick] : short(tick));
  const axes = svg("g", {"aria-hidden": "true"});
  const room = (width - left - right) / Math.max(1, ticks(x).length) / 6.5;
  for (const tick of ticks(x)) {
    const say = told(x)(tick), cut = x.names && say.length > room ? say.slice(0, Math.max(3, room - 1)) + "…" : say;
    axes.append(svg("line", {class: "grid", x1: X(tick), x2: X(tick), y1: top, y2: height - bottom}), text([X(tick), height - bottom + 16], cut));
    if (x.above) axes.append(text([X(tick), top - 6], x.above(tick), {class: "title"}));
  }
  for (const tick of ticks(y))
    axes.append(svg("line", {class: "grid", x1: left, x2: width - right, y1: Y(tick), y2: Y(tick)}), text([left - 6, Y(tick) + 4], told(y)(tick), {"text-anchor": "end"}));
  const middle = (top + height - bottom) / 2;
  axes.append(text([(left + width - right) / 2, height - 8], x.title || "", {class: "title"}), text([12, middle], y.title || "", {class: "title", transform: `rotate(-90 12 ${middle})`}));
  if (x.above) axes.append(text([(left + width - right) / 2, 14], x.aboveTitle, {class: "title"}));
  const name = `clip-${host.id}`, inside = svg("g", {"clip-path": `url(#${name})`});
  root.append(svg("clipPath", {id: name}, svg("rect", {x: left, y: top, width: width - left - right, height: height - top - bottom})), axes, inside);
  host.replaceChildren(root);
  const valueAt = event => {
    const share = ((event.clientX - root.getBoundingClientRect().left) * width / root.clientWidth - left) / (width - left - right);
    return x.low * (x.high / x.low) ** Math.min(1, Math.max(0, share));
  };
  return {root, inside, X, Y, top, low: height - bottom, valueAt};
}

/** Draws now, and again where the width changes. */
function drawn(host, draw) {
  let width = -1;
  draw();
  new ResizeObserver(() => { if (host.clientWidth && host.clientWidth !== width) { width = host.clientWidth; draw(); } }).observe(host);
}

const dot = (at, radius, kind, title, more = {}) => svg("circle", {cx: at[0], cy: at[1], r: radius, class: kind, ...more}, svg("title", {}, title));
const shares = values => {
  const logs = values.map(value => Math.log(Math.max(value, 1e-9))), low = Math.min(...logs), high = Math.max(...logs);
  return logs.map(log => `--share: ${Math.round(100 * (log - low) / (high - low || 1))}%`);
};
const scaleOf = (low, high) => [html("span", {class: "key shaded", style: "--share: 0%"}), low, html("span", {class: "key shaded", style: "--share: 100%"}), high];

// ---- one device

function start(device, index) {
  const models = device.models, tilde = device.estimated ? "~" : "", part = name => document.getElementById(`${name}-${index}`);
  const section = part("device"), field = part("budget"), slider = part("slider"), card = part("choice");
  const rows = new Map([...section.querySelectorAll("table.front tbody tr")].map(row => [row.cells[0].textContent, row]));
  const bySize = device.axes.findIndex(axis => axis.name === "size");
  let view = 0, budget = device.axes[0].budget, chosen = null, line = null, plot = null;

  const third = () => bySize < 0 ? -1 : view === bySize ? device.axes.findIndex(axis => axis.name !== "size") : bySize;
  const sentence = model => `${model.id}: ${model.at[view].text}, ${model.quality}; ${model.words}`;
  const known = axis => models.map(model => model.at[axis]).filter(place => place);

  function front() {
    const axis = device.axes[view], places = known(view);
    const x = {log: true, title: `${axis.gain}, times`, told: tick => `${tilde}${short(tick)}x`, above: tick => tilde + short(axis.base / tick), aboveTitle: `${axis.name}, ${axis.unit}`};
    x.low = Math.min(1, ...places.map(place => place.low)) * 0.85;
    x.high = Math.max(1.2, ...places.map(place => place.high)) * 1.15;
    const host = part("front");
    plot = picture(host, host.clientWidth > 1100 ? 520 : 420, x, {low: device.range[0], high: device.range[1], title: device.title}, `The front: ${device.title}, over ${axis.gain}`);
    const {X, Y, inside} = plot;
    for (const trial of device.trials) {
      const place = trial.at[view];
      if (place && !trial.onFront) inside.append(dot([X(place.gain), Y(trial.change)], 4, "trial", `${trial.id}: ${place.text}, ${trial.change.toFixed(2)} ${device.unit}; ${trial.words}`));
    }
    const colours = third() < 0 ? [] : shares(models.map(model => model.at[third()]?.value ?? 1));
    part("colours").replaceChildren(...(third() < 0 ? [] : scaleOf(`least ${device.axes[third()].unit}`, "most")));
    const uncut = svg("rect", {x: X(1) - 6, y: Y(0) - 6, width: 12, height: 12, transform: `rotate(45 ${X(1)} ${Y(0)})`, class: "diamond"}, svg("title", {}, sentence(device.baseline)));
    inside.append(uncut);
    models.forEach((model, number) => {
      const place = model.at[view];
      if (!place || model.id === device.baseline.id) return;
      const [cx, cy] = [X(place.gain), Y(model.change)], error = (x1, x2, y1, y2) => inside.append(svg("line", {class: "error", x1, x2, y1, y2}));
      error(X(place.low), X(place.high), cy, cy);
      error(cx, cx, Y(model.change - model.stderr), Y(model.change + model.stderr));
      const point = dot([cx, cy], model.id === chosen ? 9 : 6.5, `member${model.id === chosen ? " chosen" : ""}${colours.length ? " shaded" : ""}`, sentence(model), {tabindex: 0, role: "button", "aria-label": sentence(model), "data-id": model.id, style: colours[number] ?? null});
      point.addEventListener("click", () => take(model));
      point.addEventListener("keydown", event => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); take(model); part("front").querySelector(`[data-id="${model.id}"]`)?.focus(); } });
      inside.append(point);
    });
    line = null;
    if (budget === null) return;
    const stroke = kind => svg("line", {class: kind, y1: plot.top, y2: plot.low});
    line = svg("g", {class: "budget-line"}, stroke("grip"), stroke("stroke"));
    line.addEventListener("pointerdown", event => {
      event.preventDefault();
      const ended = new AbortController(), until = {signal: ended.signal};
      window.addEventListener("pointermove", moved => spend(axis.base / plot.valueAt(moved)), until);
      for (const end of ["pointerup", "pointercancel"]) window.addEventListener(end, () => ended.abort(), until);
    });
    line.place = () => line.setAttribute("transform", `translate(${X(Math.min(x.high, Math.max(x.low, axis.base / budget)))} 0)`);
    line.place();
    inside.prepend(line);
  }

  const bounds = () => {
    const values = known(view).map(place => place.value);
    return [0.9 * Math.min(...values), 1.1 * Math.max(...values)];
  };

  /** Shows a model as the chosen one; `lead` says why it is. */
  function show(model, lead) {
    const changed = chosen !== (model?.id ?? null);
    chosen = model?.id ?? null;
    rows.forEach((row, id) => row.classList.toggle("chosen", id === chosen));
    if (changed) front();
    card.replaceChildren();
    if (!model) return card.append(lead);
    const size = device.axes[view].name !== "size" && bySize >= 0 ? `${model.size}, ` : "";
    card.append(html("span", {class: "choice"}, html("strong", {}, model.id), ` ${lead}: ${model.at[view]?.text ?? "not timed"}, ${size}${model.quality}. ${model.words}.`));
    const settings = Object.entries(model.settings).map(([name, value]) => html("span", {}, `${name} ${written(value)}`));
    const command = `${device.command} --trial ${model.id} --out my-model`, copy = html("button", {type: "button"}, "Copy");
    copy.addEventListener("click", () => copied(command, copy));
    card.append(html("div", {class: "settings"}, ...settings), html("code", {}, command), " ", copy);
  }

  const take = model => show(model, "is the model that you chose");

  /** What fits a budget, as `autocompress pick` chooses. */
  function spend(value) {
    budget = value;
    const {unit, choices} = device.axes[view], [low, high] = bounds(), within = `${budget.toFixed(2)} ${unit}`;
    const choice = choices.filter(choice => choice.from <= budget).pop() || choices[0], best = models.find(model => model.id === choice.id);
    if (best) show(best, `is the best model within ${within}`);
    else show(null, `Within ${within}: ${choice.why}.`);
    line?.place();
    field.value = budget.toFixed(2);
    slider.value = 1000 * Math.log(budget / low) / Math.log(high / low);
    slider.setAttribute("aria-valuetext", `${within}: ${best ? best.id : "no model"}`);
  }

  function look(number) {
    view = number;
    const axis = device.axes[view];
    part("axes")?.querySelectorAll("button").forEach((button, other) => button.setAttribute("aria-pressed", other === view));
    part("budgets").hidden = axis.budget === null;
    part("label").textContent = axis.name === "size" ? "Size budget" : "Latency budget";
    part("unit").textContent = axis.unit;
    budget = axis.budget;
    front();
    if (budget !== null) spend(budget);
    else if (chosen) take(models.find(model => model.id === chosen));
  }

  slider.addEventListener("input", () => { const [low, high] = bounds(); spend(low * (high / low) ** (slider.value / 1000)); });
  field.addEventListener("change", () => { const value = parseFloat(field.value); if (value > 0) spend(value); });
  part("axes")?.addEventListener("click", event => { if (event.target.dataset.axis) look(Number(event.target.dataset.axis)); });
  look(0);
  drawn(part("front"), front);
  compared(device, rows, part("compare"));
  settings(device, part);
  drawn(part("progress"), () => progress(device, part("progress"), part("areas")));
  sortable(section.querySelector("table.trials"));
  section.querySelectorAll("table.front, table.trials").forEach(labelled);
}

function copied(text, button) {
  const done = () => { button.textContent = "Copied"; setTimeout(() => { button.textContent = "Copy"; }, 1500); };
  const selected = () => { getSelection().selectAllChildren(button.previousElementSibling); if (document.execCommand("copy")) done(); };
  if (navigator.clipboard) navigator.clipboard.writeText(text).then(done, selected); else selected();
}

// ---- models side by side

function compared(device, rows, host) {
  const all = new Map([...device.models, device.baseline].map(model => [model.id, model])), widest = device.baseline.layers;
  const boxes = [...rows].filter(([id]) => all.has(id)).map(([id, row]) => {
    const box = html("input", {type: "checkbox", value: id, "aria-label": `compare ${id}`});
    row.cells[0].replaceChildren(html("label", {}, box, ` ${id}`));
    box.addEventListener("change", draw);
    return box;
  });
  for (const model of [device.models[0], device.models[device.models.length - 1], device.baseline])
    boxes.filter(box => box.value === model.id).forEach(box => { box.checked = true; });

  const bar = (count, of, word) => html("span", {class: "bar", style: `--share: ${Math.round(100 * count / of)}%`}, `${count} ${word}`);
  function layer(model, [source, heads, ffn]) {
    const kept = model.layers.find(([from]) => from === source);
    return kept ? html("td", {}, bar(kept[1], heads, "heads"), bar(kept[2], ffn, "FFN")) : html("td", {}, "cut");
  }
  function draw() {
    const models = boxes.filter(box => box.checked).map(box => all.get(box.value));
    boxes.forEach(box => { box.disabled = models.length === 3 && !box.checked; });
    const row = (name, cells, differs = false) => html("tr", {class: differs ? "differs" : null}, html("th", {scope: "row"}, ...breakable(name)), ...cells);
    const line = (name, of) => row(name, models.map(model => html("td", {}, of(model))));
    const interval = (place, axis) => axis.name === "size" || device.estimated ? "" : ` (${place.low.toFixed(2)}-${place.high.toFixed(2)}x)`;
    const names = [...new Set(models.flatMap(model => Object.keys(model.settings)))];
    const settings = names.map(name => {
      const values = models.map(model => name in model.settings ? written(model.settings[name]) : "default");
      return row(name, values.map(value => html("td", {}, value)), new Set(values).size > 1);
    });
    const timed = device.axes.map((axis, number) => axis.name === "size" ? null : line(axis.name, ({at}) => at[number] ? at[number].text + interval(at[number], axis) : "-"));
    const head = html("thead", {}, html("tr", {}, html("th", {}, "model"), ...models.map(model => html("th", {scope: "col"}, model.id))));
    const body = [...timed.filter(row => row), line(device.metric, model => model.score), line("change ± s.e.", model => model.changed), line("size", model => model.size), line("format", model => model.format)];
    const layers = widest.map(whole => row(`layer ${whole[0]}`, models.map(model => layer(model, whole))));
    host.replaceChildren(html("table", {class: "compare"}, html("caption", {}, "Models side by side"), head, html("tbody", {}, ...body, ...settings, ...layers)));
  }
  draw();
}

// ---- settings, progress, tables

function settings(device, part) {
  const host = part("settings"), gain = device.axes[0].gain, percent = share => `${Math.round(100 * share)}`;
  const gains = device.trials.map(trial => trial.at[0]?.gain ?? 1), changes = device.trials.map(trial => trial.change);
  if (!device.settings.length) return host.replaceWith(html("p", {class: "soft"}, "All scored candidates have the same settings."));
  const inRange = changes.map(change => Math.min(device.range[1], Math.max(device.range[0], change)));
  const lowest = Math.min(...inRange), shaded = {change: shares(gains), gain: shares(inRange.map(change => Math.exp((change - lowest) / 2)))};
  part("settings-colours").append("colour: the other of the two, ", ...scaleOf("low", "high"));
  for (const [number, setting] of device.settings.entries()) {
    const told = Object.entries(setting.influence).map(([of, share]) => `${of} ${share ? `${percent(share[0])} ± ${percent(share[1])} %` : "too few to tell"}`);
    const pair = html("div", {class: "pair"}), values = setting.values, distinct = [...new Set(values.filter(value => value !== null))];
    const numbers = distinct.every(value => typeof value === "number");
    if (numbers) distinct.sort((a, b) => a - b);
    const names = !numbers || distinct.length <= 6 ? distinct.map(value => numbers ? short(value) : value) : null;
    const x = names ? {names, low: -0.5, high: names.length - 0.5} : {low: distinct[0], high: distinct[distinct.length - 1]};
    const pad = (x.high - x.low) * 0.04, at = value => names ? distinct.indexOf(value) : value;
    if (!names) Object.assign(x, {low: x.low - pad, high: x.high + pad});
    host.append(html("figure", {}, html("figcaption", {}, html("strong", {}, setting.name), html("span", {class: "soft"}, ` explains of ${told.join(", of ")}`)), pair));
    for (const kind of ["change", "gain"]) {
      const drawing = html("div", {class: "plot", id: `${host.id}-${number}-${kind}`});
      pair.append(drawing);
      const ys = kind === "change" ? inRange : gains;
      const y = kind === "change" ? {low: device.range[0], high: device.range[1], title: `${device.metric}, ${device.unit}`} : {log: true, low: Math.min(...ys) * 0.9, high: Math.max(...ys) * 1.1, title: gain, told: tick => short(tick) + "x"};
      drawn(drawing, () => {
        const {X, Y, inside} = picture(drawing, 170, x, y, `${y.title} by ${setting.name}`);
        device.trials.forEach((trial, i) => {
          if (values[i] !== null) inside.append(dot([X(at(values[i])), Y(ys[i])], 4.5, "shaded", `${trial.id}: ${setting.name} ${values[i]}, ${trial.change.toFixed(2)} ${device.unit}, ${trial.at[0]?.text ?? ""}`, {style: shaded[kind][i], "fill-opacity": 0.8}));
        });
      });
    }
  }
}

function progress(device, host, legend) {
  const {minutes, areas, ids} = device.progress;
  const {X, Y, inside} = picture(host, 260, {low: 0, high: Math.max(...minutes) || 1, title: "minutes of trials"}, {low: 0, high: 1, title: "hypervolume"}, "Hypervolume over the minutes of trials");
  if (Object.keys(areas).length > 1) legend.replaceChildren(...Object.keys(areas).flatMap(name => [html("span", {class: `key ${name}`}), `by ${name} `]));
  for (const [name, values] of Object.entries(areas)) {
    const path = values.map((value, i) => i ? `H${X(minutes[i])}V${Y(value)}` : `M${X(minutes[0])} ${Y(value)}`).join("");
    inside.append(svg("path", {d: path, class: `step ${name}`}, svg("title", {}, `${device.metric} and ${name}`)));
    values.forEach((value, i) => inside.append(dot([X(minutes[i]), Y(value)], 3, "trial", `${ids[i]}: ${value.toFixed(3)} by ${name} after ${minutes[i].toFixed(1)} min`)));
  }
}

function sortable(table) {
  const number = cell => parseFloat(cell.textContent.replace("~", "")), body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = html("button", {type: "button"}, head.textContent);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      head.parentElement.querySelectorAll("[aria-sort]").forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const compare = (a, b) => {
        const [m, n] = [number(a), number(b)];
        if (isNaN(m) && isNaN(n)) return sign * a.textContent.localeCompare(b.textContent);
        return isNaN(m) || isNaN(n) ? isNaN(m) - isNaN(n) : sign * (m - n);
      };
      body.append(...[...body.rows].sort((a, b) => compare(a.cells[column], b.cells[column])));
    });
  });
}

function labelled(table) {
  const names = [...table.tHead.rows[0].cells].map(head => head.textContent);
  for (const row of table.tBodies[0].rows) [...row.cells].forEach((cell, i) => { cell.dataset.label = names[i]; });
}

devices.forEach(start);
document.getElementById("switch")?.addEventListener("change", event => {
  devices.forEach((_, index) => { document.getElementById(`device-${index}`).hidden = String(index) !== event.target.value; });
});
