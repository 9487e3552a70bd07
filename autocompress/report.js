// The pictures and the switches of the report; `devices` holds their figures, see report.py.
"use strict";

const filled = (made, attributes, children) => {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
};
const html = (tag, attributes = {}, ...children) =>
  filled(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const short = number => String(parseFloat(number.toPrecision(3)));
const written = value =>
  [value].flat().map(one => typeof one === "string" ? one : JSON.stringify(one)).join(", ");
const breakable = name => name.split(/(?<=[._])/).flatMap(word => [word, html("wbr")]);

// ---- axes: {low, high, log, title, names: of categories, told: a tick in words,
//             above: likewise, at the upper edge, with aboveTitle}

const LOG_STEPS = [[1], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 7], [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9]];

function ticks(axis) {
  if (axis.names) return axis.names.map((_, index) => index);
  if (axis.log) {
    const decades = [-3, -2, -1, 0, 1, 2, 3, 4].map(power => 10 ** power);
    const found = LOG_STEPS.map(steps => decades
      .flatMap(decade => steps.map(step => step * decade))
      .filter(tick => tick >= axis.low && tick <= axis.high));
    return found.find(some => some.length > 3) || found.at(-1);
  }
  const least = (axis.high - axis.low) / 5, decade = 10 ** Math.floor(Math.log10(least));
  const step = [1, 2, 5, 10].find(times => times * decade >= least) * decade;
  const first = Math.ceil(axis.low / step), count = Math.floor(axis.high / step) - first + 1;
  return Array.from({length: count}, (_, index) => (first + index) * step);
}

function placed(axis, from, to) {
  const of = axis.log ? Math.log : value => value, low = of(axis.low), high = of(axis.high);
  return value => from + (of(value) - low) / (high - low || 1) * (to - from);
}

/** An empty picture with its axes: the places of values on it, and what to draw in. */
function picture(host, height, x, y, label) {
  const width = Math.max(200, host.clientWidth || 700);
  const left = 54, right = width - 24, top = x.above ? 42 : 12, low = height - (x.title ? 46 : 30);
  const X = placed(x, left, right), Y = placed(y, low, top), axes = svg("g", {"aria-hidden": "true"});
  const line = (x1, x2, y1, y2) => axes.append(svg("line", {class: "grid", x1, x2, y1, y2}));
  const text = (x, y, said, more = {}) =>
    axes.append(svg("text", {x, y, "text-anchor": "middle", ...more}, said));
  const told = axis => axis.names ? tick => axis.names[tick] : axis.told || short;

  const letters = (right - left) / Math.max(1, ticks(x).length) / 6.5;
  for (const tick of ticks(x)) {
    const said = told(x)(tick), tooLong = x.names && said.length > letters;
    line(X(tick), X(tick), top, low);
    text(X(tick), low + 16, tooLong ? said.slice(0, Math.max(3, letters - 1)) + "…" : said);
    if (x.above) text(X(tick), top - 6, x.above(tick), {class: "title"});
  }
  for (const tick of ticks(y)) {
    line(left, right, Y(tick), Y(tick));
    text(left - 6, Y(tick) + 4, told(y)(tick), {"text-anchor": "end"});
  }
  const [center, middle] = [(left + right) / 2, (top + low) / 2];
  text(center, height - 8, x.title || "", {class: "title"});
  text(12, middle, y.title || "", {class: "title", transform: `rotate(-90 12 ${middle})`});
  if (x.above) text(center, 14, x.aboveTitle, {class: "title"});

  const name = `clip-${host.id}`, inside = svg("g", {"clip-path": `url(#${name})`});
  const frame = svg("rect", {x: left, y: top, width: right - left, height: low - top});
  const clip = svg("clipPath", {id: name}, frame), viewBox = `0 0 ${width} ${height}`;
  const root = svg("svg", {viewBox, role: "group", "aria-label": label}, clip, axes, inside);
  host.replaceChildren(root);
  const valueAt = pointer => {
    const box = root.getBoundingClientRect();
    const share = ((pointer.clientX - box.left) * width / box.width - left) / (right - left);
    return x.low * (x.high / x.low) ** Math.min(1, Math.max(0, share));
  };
  return {inside, X, Y, top, low, valueAt};
}

/** Draws now, and again where the width changes. */
function drawn(host, draw) {
  let width = -1;
  draw();
  new ResizeObserver(() => {
    if (!host.clientWidth || host.clientWidth === width) return;
    width = host.clientWidth;
    draw();
  }).observe(host);
}

const dot = (cx, cy, r, kind, title, more = {}) =>
  svg("circle", {cx, cy, r, class: kind, ...more}, svg("title", {}, title));
/** Styles that colour each value by its place among them. */
const colours = values => {
  const low = Math.min(...values), width = Math.max(...values) - low || 1;
  return values.map(value => `--share: ${Math.round(100 * (value - low) / width)}%`);
};
const key = (kind, share) => html("span", {class: `key ${kind}`, style: share ? `--share: ${share}` : null});
const scaleOf = (low, high) => [key("shaded", "0%"), low, key("shaded", "100%"), high];

// ---- one device

function start(device, index) {
  const {models, axes} = device, tilde = device.estimated ? "~" : "";
  const part = name => document.getElementById(`${name}-${index}`);
  const section = part("device"), field = part("budget"), slider = part("slider"), card = part("choice");
  const members = [...section.querySelectorAll("table.front tbody tr")];
  const rows = new Map(members.map(row => [row.cells[0].textContent, row]));
  const bySize = axes.findIndex(axis => axis.name === "size");
  let view = 0, budget = axes[0].budget, chosen = null, line = null, plot = null;

  const known = () => models.map(model => model.at[view]).filter(place => place);
  const sentence = model => `${model.id}: ${model.at[view].text}, ${model.quality}; ${model.words}`;
  const take = model => show(model, "is the model that you chose");
  /** The axis that colours tell of: of latency and size the one that the picture does not show. */
  const third = () => bySize < 0 || view !== bySize ? bySize : axes.findIndex(axis => axis.name !== "size");

  function front() {
    const axis = axes[view], host = part("front"), [low, high] = device.range;
    const x = {
      log: true,
      low: 0.85 * Math.min(1, ...known().map(place => place.low)),
      high: 1.15 * Math.max(1.2, ...known().map(place => place.high)),
      title: `${axis.gain}, times`,
      told: tick => `${tilde}${short(tick)}x`,
      above: tick => tilde + short(axis.base / tick),
      aboveTitle: `${axis.name}, ${axis.unit}`,
    };
    const label = `The front: ${device.title}, over ${axis.gain}`;
    plot = picture(host, host.clientWidth > 1100 ? 520 : 420, x, {low, high, title: device.title}, label);
    const {X, Y, inside} = plot;
    for (const trial of device.trials) {
      const place = trial.at[view];
      if (!place || trial.onFront) continue;
      const change = `${trial.change.toFixed(2)} ${device.unit}`;
      const title = `${trial.id}: ${place.text}, ${change}; ${trial.words}`;
      inside.append(dot(X(place.gain), Y(trial.change), 4, "trial", title));
    }
    const [x0, y0] = [X(1), Y(0)], uncut = svg("title", {}, sentence(device.baseline));
    const square = {x: x0 - 6, y: y0 - 6, width: 12, height: 12, transform: `rotate(45 ${x0} ${y0})`};
    inside.append(svg("rect", {...square, class: "diamond"}, uncut));

    const shaded = third() < 0 ? null : colours(models.map(model => Math.log(model.at[third()].value)));
    part("colours").replaceChildren(...(shaded ? scaleOf(`least ${axes[third()].unit}`, "most") : []));
    models.forEach((model, number) => {
      const place = model.at[view];
      if (!place || model.id === device.baseline.id) return;
      const [cx, cy, off] = [X(place.gain), Y(model.change), model.stderr];
      const bar = (x1, x2, y1, y2) => inside.append(svg("line", {class: "error", x1, x2, y1, y2}));
      bar(X(place.low), X(place.high), cy, cy);
      bar(cx, cx, Y(model.change - off), Y(model.change + off));
      const isChosen = model.id === chosen, title = sentence(model);
      const kind = `member${isChosen ? " chosen" : ""}${shaded ? " shaded" : ""}`;
      const more = {tabindex: 0, role: "button", "aria-label": title, "data-id": model.id};
      const point = dot(cx, cy, isChosen ? 9 : 6.5, kind, title, {...more, style: shaded && shaded[number]});
      point.addEventListener("click", () => take(model));
      point.addEventListener("keydown", event => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        take(model);
        host.querySelector(`[data-id="${model.id}"]`).focus();
      });
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
      for (const end of ["pointerup", "pointercancel"]) {
        window.addEventListener(end, () => ended.abort(), until);
      }
    });
    line.place = () => {
      const gain = Math.min(x.high, Math.max(x.low, axis.base / budget));
      line.setAttribute("transform", `translate(${X(gain)} 0)`);
    };
    line.place();
    inside.prepend(line);
  }

  /** Shows a model as the chosen one; `lead` says why it is, or why there is none. */
  function show(model, lead) {
    const before = chosen;
    chosen = model ? model.id : null;
    rows.forEach((row, id) => row.classList.toggle("chosen", id === chosen));
    if (chosen !== before) front();
    if (!model) return card.replaceChildren(lead);
    const size = bySize >= 0 && view !== bySize ? `${model.size}, ` : "";
    const figures = `${model.at[view]?.text ?? "not timed"}, ${size}${model.quality}. ${model.words}.`;
    const settings = Object.entries(model.settings)
      .map(([name, value]) => html("span", {}, `${name} ${written(value)}`));
    const command = `${device.command} --trial ${model.id} --out my-model`;
    const copy = html("button", {type: "button"}, "Copy");
    copy.addEventListener("click", () => copied(command, copy));
    card.replaceChildren(
      html("span", {class: "choice"}, html("strong", {}, model.id), ` ${lead}: ${figures}`),
      html("div", {class: "settings"}, ...settings),
      html("code", {}, command), " ", copy,
    );
  }

  function bounds() {
    const values = known().map(place => place.value);
    return [0.9 * Math.min(...values), 1.1 * Math.max(...values)];
  }

  /** What fits a budget, as `autocompress pick` chooses. */
  function spend(value) {
    budget = value;
    const {unit, choices} = axes[view], [low, high] = bounds(), within = `${budget.toFixed(2)} ${unit}`;
    const choice = choices.filter(choice => choice.from <= budget).pop() || choices[0];
    const best = models.find(model => model.id === choice.id);
    if (best) show(best, `is the best model within ${within}`);
    else show(null, `Within ${within}: ${choice.why}.`);
    line.place();
    field.value = budget.toFixed(2);
    slider.value = 1000 * Math.log(budget / low) / Math.log(high / low);
    slider.setAttribute("aria-valuetext", `${within}: ${best ? best.id : "no model"}`);
  }

  /** Shows the front against another axis. */
  function look(number) {
    view = number;
    budget = axes[view].budget;
    part("axes")?.querySelectorAll("button")
      .forEach((button, other) => button.setAttribute("aria-pressed", other === view));
    part("budgets").hidden = budget === null;
    part("label").textContent = view === bySize ? "Size budget" : "Latency budget";
    part("unit").textContent = axes[view].unit;
    front();
    if (budget !== null) spend(budget);
    else if (chosen) take(models.find(model => model.id === chosen));
  }

  slider.addEventListener("input", () => {
    const [low, high] = bounds();
    spend(low * (high / low) ** (slider.value / 1000));
  });
  field.addEventListener("change", () => { if (parseFloat(field.value) > 0) spend(parseFloat(field.value)); });
  part("axes")?.addEventListener("click", event => {
    if (event.target.dataset.axis) look(Number(event.target.dataset.axis));
  });
  look(0);
  drawn(part("front"), front);
  compared(device, rows, part("compare"));
  settings(device, part("settings"), part("settings-colours"));
  drawn(part("progress"), () => progress(device, part("progress"), part("areas")));
  sortable(section.querySelector("table.trials"));
  section.querySelectorAll("table.front, table.trials").forEach(labelled);
}

function copied(text, button) {
  const done = () => {
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  };
  const selected = () => {
    getSelection().selectAllChildren(button.previousElementSibling);
    if (document.execCommand("copy")) done();
  };
  if (navigator.clipboard) navigator.clipboard.writeText(text).then(done, selected);
  else selected();
}

// ---- models side by side

function compared(device, rows, host) {
  const {models, baseline, axes} = device;
  const all = new Map([...models, baseline].map(model => [model.id, model]));
  const atFirst = [models[0], models.at(-1), baseline].map(model => model.id);
  const boxes = [...rows].filter(([id]) => all.has(id)).map(([id, row]) => {
    const box = html("input", {type: "checkbox", value: id, "aria-label": `compare ${id}`});
    row.cells[0].replaceChildren(html("label", {}, box, ` ${id}`));
    box.checked = atFirst.includes(id);
    box.addEventListener("change", draw);
    return box;
  });

  const bar = (count, of, word) => {
    const style = `--share: ${Math.round(100 * count / of)}%`;
    return html("span", {class: "bar", style}, `${count} ${word}`);
  };
  const layer = (model, [source, heads, ffn]) => {
    const kept = model.layers.find(([from]) => from === source);
    return kept ? [bar(kept[1], heads, "heads"), bar(kept[2], ffn, "FFN")] : ["cut"];
  };
  const latency = (model, number) => {
    const place = model.at[number];
    if (!place) return "-";
    return place.text + (device.estimated ? "" : ` (${place.low.toFixed(2)}-${place.high.toFixed(2)}x)`);
  };

  function draw() {
    const shown = boxes.filter(box => box.checked).map(box => all.get(box.value));
    boxes.forEach(box => { box.disabled = shown.length === 3 && !box.checked; });
    const row = (name, of, kind = null) => {
      const cells = shown.map(model => html("td", {}, ...[of(model)].flat()));
      return html("tr", {class: kind}, html("th", {scope: "row"}, ...breakable(name)), ...cells);
    };
    const setting = name => {
      const of = model => name in model.settings ? written(model.settings[name]) : "default";
      return row(name, of, new Set(shown.map(of)).size > 1 ? "differs" : null);
    };
    const latencies = [...axes.entries()].filter(([, axis]) => axis.name !== "size");
    const names = [...new Set(shown.flatMap(model => Object.keys(model.settings)))];
    const body = html("tbody", {},
      ...latencies.map(([number, axis]) => row(axis.name, model => latency(model, number))),
      row(device.metric, model => model.score),
      row("change ± s.e.", model => model.changed),
      row("size", model => model.size),
      row("format", model => model.format),
      ...names.map(setting),
      ...baseline.layers.map(whole => row(`layer ${whole[0]}`, model => layer(model, whole))),
    );
    const heads = shown.map(model => html("th", {scope: "col"}, model.id));
    const head = html("thead", {}, html("tr", {}, html("th", {}, "model"), ...heads));
    const caption = html("caption", {}, "Models side by side");
    host.replaceChildren(html("table", {class: "compare"}, caption, head, body));
  }
  draw();
}

// ---- settings, progress, tables

function settings(device, host, legend) {
  const {trials, range: [low, high]} = device, gain = device.axes[0].gain;
  if (!device.settings.length) {
    return host.replaceWith(html("p", {class: "soft"}, "All scored candidates have the same settings."));
  }
  legend.append("colour: the other of the two, ", ...scaleOf("low", "high"));
  const gains = trials.map(trial => trial.at[0]?.gain ?? 1);
  const changes = trials.map(trial => Math.min(high, Math.max(low, trial.change)));
  const kinds = [
    {of: changes, y: {low, high, title: `${device.metric}, ${device.unit}`}, style: colours(gains.map(Math.log))},
    {
      of: gains,
      y: {
        log: true, low: 0.9 * Math.min(...gains), high: 1.1 * Math.max(...gains),
        title: gain, told: tick => `${short(tick)}x`,
      },
      style: colours(changes),
    },
  ];
  const percent = share => Math.round(100 * share);
  for (const [number, {name, values, influence}] of device.settings.entries()) {
    const told = Object.entries(influence).filter(([, share]) => share)
      .map(([of, [share, stderr]]) => ` of ${of} ${percent(share)} ± ${percent(stderr)} %`);
    const said = html("span", {class: "soft"}, told.length ? ` explains${told}` : "");
    const pair = html("div", {class: "pair"}), caption = html("figcaption", {}, html("strong", {}, name), said);
    host.append(html("figure", {}, caption, pair));
    const [x, at] = settingAxis([...new Set(values.filter(value => value !== null))]);
    kinds.forEach(({of, y, style}, kind) => {
      const drawing = html("div", {class: "plot", id: `${host.id}-${number}-${kind}`});
      pair.append(drawing);
      drawn(drawing, () => {
        const {X, Y, inside} = picture(drawing, 170, x, y, `${y.title} by ${name}`);
        trials.forEach((trial, i) => {
          if (values[i] === null) return;
          const figures = `${trial.change.toFixed(2)} ${device.unit}, ${trial.at[0]?.text ?? ""}`;
          const title = `${trial.id}: ${name} ${values[i]}, ${figures}`;
          inside.append(dot(X(at(values[i])), Y(of[i]), 4.5, "shaded", title, {style: style[i]}));
        });
      });
    });
  }
}

/** Of the values of a setting, and where each stands: numbers by their size where they are many. */
function settingAxis(values) {
  const numbers = values.every(value => typeof value === "number");
  if (numbers) values.sort((a, b) => a - b);
  if (!numbers || values.length <= 6) {
    const names = values.map(value => numbers ? short(value) : value);
    return [{names, low: -0.5, high: names.length - 0.5}, value => values.indexOf(value)];
  }
  const [low, high] = [values[0], values.at(-1)], room = 0.04 * (high - low);
  return [{low: low - room, high: high + room}, value => value];
}

function progress(device, host, legend) {
  const {minutes, areas, ids} = device.progress, names = Object.keys(areas);
  const x = {low: 0, high: Math.max(...minutes) || 1, title: "minutes of trials"};
  const y = {low: 0, high: 1, title: "hypervolume"};
  const {X, Y, inside} = picture(host, 260, x, y, "Hypervolume over the minutes of trials");
  if (names.length > 1) legend.replaceChildren(...names.flatMap(name => [key(name), `by ${name} `]));
  for (const name of names) {
    const places = areas[name].map((area, i) => [X(minutes[i]), Y(area)]);
    const path = places.map(([x, y], i) => i ? `H${x}V${y}` : `M${x} ${y}`).join("");
    inside.append(svg("path", {d: path, class: `step ${name}`}));
    places.forEach(([x, y], i) => {
      const title = `${ids[i]}: ${areas[name][i].toFixed(3)} by ${name} after ${minutes[i].toFixed(1)} min`;
      inside.append(dot(x, y, 3, "trial", title));
    });
  }
}

function sortable(table) {
  const number = cell => parseFloat(cell.textContent.replace("~", "")), [body] = table.tBodies;
  const ordered = (a, b, sign) => {
    const [m, n] = [number(a), number(b)];
    if (isNaN(m) && isNaN(n)) return sign * a.textContent.localeCompare(b.textContent);
    return isNaN(m) || isNaN(n) ? isNaN(m) - isNaN(n) : sign * (m - n);
  };
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = html("button", {type: "button"}, head.textContent);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      body.append(...[...body.rows].sort((a, b) => ordered(a.cells[column], b.cells[column], sign)));
    });
  });
}

/** Names each cell by its column, for screens where a row is a block of lines. */
function labelled(table) {
  const names = [...table.tHead.rows[0].cells].map(head => head.textContent);
  for (const row of table.tBodies[0].rows) {
    [...row.cells].forEach((cell, i) => { cell.dataset.label = names[i]; });
  }
}

devices.forEach(start);
document.getElementById("switch")?.addEventListener("change", event => {
  devices.forEach((_, index) => {
    document.getElementById(`device-${index}`).hidden = String(index) !== event.target.value;
  });
});
