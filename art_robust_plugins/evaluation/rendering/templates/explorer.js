"use strict";
(() => {
  const source = document.getElementById("explorer-data");
  const room = document.getElementById("explorer-room");
  if (!source || !room) return;
  const data = JSON.parse(source.textContent);

  const ROWS = 12;
  const MISCLASSIFIED = 0, BROKEN = 1, LEFT = 2, NONE = -1, UNKNOWN = -2;
  const VERDICTS = ["misclassified without an attack", "broken", "left standing"];
  const READERS = {
    u1: ["getUint8", 1], u2: ["getUint16", 2], u4: ["getUint32", 4],
    i1: ["getInt8", 1], i2: ["getInt16", 2], i4: ["getInt32", 4], f4: ["getFloat32", 4],
  };

  // Data: the numbers of all points, from base64.
  const unpack = (packed) => {
    if (!packed) return null;
    const text = atob(packed.data), [read, size] = READERS[packed.type];
    const view = new DataView(Uint8Array.from(text, (letter) => letter.charCodeAt(0)).buffer);
    return Array.from({ length: text.length / size }, (_, at) => view[read](at * size, true));
  };
  const labels = unpack(data.labels);
  const COLUMNS = ["marks", "clean", "attacked", "breakers", "distances", "radii"];
  const runs = data.runs.map((run) => ({
    ...run,
    ...Object.fromEntries(COLUMNS.map((name) => [name, unpack(run[name])])),
    chances: run.probabilities && {
      count: run.probabilities.count,
      ...Object.fromEntries(["classes", "before", "after"].map((name) => [name, unpack(run.probabilities[name])])),
    },
  }));
  // A mark: the verdict in two bits, whether the point is certified, then a bit for each flag.
  for (const run of runs) {
    run.verdicts = run.marks.map((mark) => mark & 3);
    run.proven = run.certifies ? run.marks.map((mark) => (mark >> 2) & 1) : null;
    run.flags = run.marks.map((mark) => mark >> 3);
  }
  const flagNames = Object.keys(data.flags);
  const places = new Map(data.shown.points.map((point, place) => [point, place]));
  const brokenIn = labels.map((_, point) => runs.filter((run) => run.verdicts[point] === BROKEN).length);

  // Elements: text is only ever set as text.
  const make = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children.map((child) => (child instanceof Node ? child : String(child))));
    return made;
  };
  const number = (value) => Number(value).toLocaleString("en");
  const digits = (value) => Number(value.toPrecision(4)).toString();
  const say = (label) => (label === NONE ? "no decision" : label === UNKNOWN ? "–" : String(label));
  const attackOf = (run, point) => {
    const breaker = run.breakers[point];
    return breaker === NONE ? "none" : breaker === UNKNOWN ? "not recorded" : run.attacks[breaker];
  };
  const verdictOf = (run, point) =>
    run.verdicts[point] === BROKEN && run.breakers[point] >= 0
      ? `broken by ${attackOf(run, point)}`
      : VERDICTS[run.verdicts[point]];
  const flagsOf = (run, point) => flagNames.filter((_, bit) => (run.flags[point] >> bit) & 1);

  let run = runs[0];
  let found = [], current = 0, opened = null;

  // Filters.
  const filters = [];
  const controls = make("div", { class: "explorer-filters", role: "group", "aria-label": "Filters of the points" });
  const addFilter = (name, choices, keeps) => {
    const select = make("select", {}, ...choices.map(([value, text]) => make("option", { value }, text)));
    select.addEventListener("change", () => refresh());
    controls.append(make("label", {}, name, select));
    filters.push({ select, keeps });
    return select;
  };
  const classesIn = (name) => {
    const all = new Set(runs.flatMap((each) => [...new Set(name ? each[name] : labels)]));
    return [["", "any"], ...[...all].sort((one, other) => one - other).map((label) => [label, say(label)])];
  };
  let network = null;
  if (runs.length > 1) {
    network = make("select", {}, ...runs.map((each, place) => make("option", { value: place }, each.name)));
    network.addEventListener("change", () => { run = runs[network.value]; refresh(); });
    controls.append(make("label", {}, "network", network));
    addFilter("broken in", [["", "any or none"], ["one", "one network only"], ["this", "this network only"],
      ["all", "every network"]], (point, value) =>
      value === "all" ? brokenIn[point] === runs.length
        : brokenIn[point] === 1 && (value === "one" || run.verdicts[point] === BROKEN));
  }
  addFilter("label", classesIn(null), (point, value) => labels[point] === Number(value));
  addFilter("prediction", classesIn("clean"), (point, value) => run.clean[point] === Number(value));
  addFilter("when attacked", classesIn("attacked"), (point, value) => run.attacked[point] === Number(value));
  addFilter("verdict", [["", "any"], [BROKEN, VERDICTS[BROKEN]], [LEFT, VERDICTS[LEFT]],
    [MISCLASSIFIED, "misclassified"]], (point, value) => run.verdicts[point] === Number(value));
  const attackNames = [...new Set(runs.flatMap((each) => each.attacks))];
  addFilter("broken by", [["", "any or none"], ...attackNames.map((name, place) => [place, name])],
    (point, value) => run.breakers[point] >= 0 && attackOf(run, point) === attackNames[value]);
  if (runs.some((each) => each.proven)) {
    addFilter("certified", [["", "any"], ["1", "certified"], ["0", "not certified"]],
      (point, value) => Boolean(run.proven && run.proven[point]) === (value === "1"));
  }
  const flagged = flagNames.filter((_, bit) => runs.some((each) => each.flags.some((bits) => (bits >> bit) & 1)));
  if (flagged.length) {
    addFilter("flag", [["", "any or none"], ...flagged.map((name) => [name, name])],
      (point, value) => flagsOf(run, point).includes(value));
  }
  const wanted = make("input", { type: "number", min: 0, max: data.count - 1, inputmode: "numeric" });
  controls.append(make("label", {}, "go to point", wanted));
  wanted.addEventListener("change", () => {
    const point = Number(wanted.value);
    if (wanted.value === "" || !Number.isInteger(point) || point < 0 || point >= data.count) return;
    goTo(point);
  });
  const reset = make("button", { type: "button" }, "Clear filters");
  reset.addEventListener("click", () => { clear(); refresh(); });
  controls.append(reset);
  const clear = () => filters.forEach(({ select }) => { select.value = ""; });

  // The list, a page of it at a time.
  const status = make("p", { class: "quiet", role: "status" });
  const body = make("tbody");
  const table = make("table", { class: "explorer-list" },
    make("caption", {}, "Points; Enter opens one, arrow keys go on"),
    make("thead", {}, make("tr", {}, ...["point", "label", "clean", "attacked", "verdict"].map((name) =>
      make("th", { scope: "col" }, name)))),
    body);
  const back = make("button", { type: "button" }, "Previous");
  const forth = make("button", { type: "button" }, "Next");
  const where = make("span", { class: "quiet" });
  const pages = make("div", { class: "explorer-pages" }, back, where, forth);
  back.addEventListener("click", () => move(Math.floor(current / ROWS) * ROWS - ROWS, false));
  forth.addEventListener("click", () => move(Math.floor(current / ROWS) * ROWS + ROWS, false));
  const detail = make("div", { class: "explorer-detail", role: "region", "aria-label": "The opened point",
    "aria-live": "polite" });

  const refresh = () => {
    const active = filters.filter(({ select }) => select.value !== "");
    found = [];
    for (let point = 0; point < data.count; point += 1) {
      if (active.every(({ select, keeps }) => keeps(point, select.value))) found.push(point);
    }
    current = Math.max(0, found.indexOf(opened));
    list();
    if (opened !== null) open(opened);
  };
  const list = () => {
    const first = Math.floor(current / ROWS) * ROWS, last = Math.min(first + ROWS, found.length);
    body.replaceChildren(...found.slice(first, last).map((point, place) => {
      const button = make("button", { type: "button", "data-point": point, "aria-pressed": point === opened,
        "aria-label": `Point ${point}`, tabindex: first + place === current ? 0 : -1 }, point);
      const row = make("tr", { class: point === opened ? "opened" : "" }, make("th", { scope: "row" }, button),
        ...[labels[point], say(run.clean[point]), say(run.attacked[point])].map((text) => make("td", {}, text)),
        make("td", { class: `verdict v${run.verdicts[point]}` }, verdictOf(run, point),
          ...(run.proven && run.proven[point] ? [make("span", { class: "mark" }, "certified")] : []),
          ...flagsOf(run, point).map((name) => make("span", { class: "alarm" }, name))));
      row.addEventListener("click", () => { current = first + place; open(point); focusRow(); });
      return row;
    }));
    status.textContent = `${number(found.length)} of ${number(data.count)} points`;
    where.textContent = found.length ? `${number(first + 1)} to ${number(last)}` : "none";
    back.disabled = first === 0;
    forth.disabled = last >= found.length;
  };
  const focusRow = () => {
    const button = body.querySelector('button[tabindex="0"]');
    if (button) button.focus();
  };
  const move = (to, focus = true) => {
    if (!found.length) return;
    current = Math.min(Math.max(to, 0), found.length - 1);
    list();
    if (focus) focusRow();
  };
  const goTo = (point) => {
    if (!found.includes(point)) clear();
    opened = point;
    refresh();
  };
  body.addEventListener("keydown", (event) => {
    const to = { ArrowDown: current + 1, ArrowUp: current - 1, PageDown: current + ROWS, PageUp: current - ROWS,
      Home: 0, End: found.length - 1 }[event.key];
    if (to === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    move(to);
  });

  // One point.
  const picture = (png, caption, description) => make("figure", {},
    make("img", { alt: description, src: `data:image/png;base64,${png}` }), make("figcaption", {}, caption));
  const simpleTable = (caption, head, rows, kind = "n") => make("table", {}, make("caption", {}, caption),
    make("thead", {}, make("tr", {}, ...head.map((name, place) =>
      make("th", { scope: "col", class: place ? kind : "" }, name)))),
    make("tbody", {}, ...rows.map(([first, ...rest]) => make("tr", {}, make("th", { scope: "row" }, first),
      ...rest.map((cell) => make("td", { class: kind }, cell))))));
  const chance = (level) => (level < 0 ? "–" : `${(100 * level / data.levels).toFixed(2)} %`);
  const showProbabilities = (point) => {
    if (!run.chances) return [];
    const { count, classes, before, after } = run.chances;
    const rows = Array.from({ length: count }, (_, place) => point * count + place).map((at) => [
      classes[at] === labels[point] ? `${classes[at]} (label)` : classes[at], chance(before[at]), chance(after[at])]);
    return [simpleTable("Probabilities", ["class", "clean", "attacked"], rows)];
  };
  const showPictures = (point) => {
    const place = places.get(point);
    if (place === undefined) {
      return [make("p", { class: "quiet" }, `Point ${point} is listed without ${data.images ? "images" : "its changes"}.`)];
    }
    const clean = data.shown.clean[place], entry = data.shown.entries[place][runs.indexOf(run)];
    if (!data.images) return entry ? [showChanges(entry)] : [];
    const pictures = clean ? [picture(clean, "clean", `Point ${point}, clean, label ${labels[point]}`)] : [];
    if (entry && entry.change) {
      pictures.push(picture(entry.change, `change × ${entry.amplified}`,
        `The change of point ${point}, amplified ${entry.amplified} times; grey is no change`));
    }
    if (entry) {
      pictures.push(picture(entry.attacked, "attacked",
        `Point ${point}, attacked, classified as ${say(run.attacked[point])}`));
    }
    return [make("div", { class: "explorer-pictures" }, ...pictures)];
  };
  const showChanges = (entry) => simpleTable(`The largest of ${number(entry.changed)} changes`,
    ["feature", "clean", "attacked", "change"], entry.changes.map(([at, ...values]) => {
      const index = [];
      for (let axis = data.shape.length - 1, rest = at; axis >= 0; axis -= 1) {
        index.unshift(rest % data.shape[axis]);
        rest = Math.floor(rest / data.shape[axis]);
      }
      return [index.join(", "), ...values.map((value) => digits(value))];
    }));
  const open = (point) => {
    opened = point;
    const facts = [
      ["label", labels[point]],
      ["prediction, clean", say(run.clean[point])],
      ["prediction, attacked", say(run.attacked[point])],
      ["verdict", VERDICTS[run.verdicts[point]]],
      ["broken by", attackOf(run, point)],
      [`distance, ${run.norm}`, !run.distances || run.verdicts[point] !== BROKEN ? "–"
        : `${digits(run.distances[point])} of eps ${digits(run.eps)}`],
      ["certified radius", !run.radii ? "–" : run.radii[point] < 0 ? "none, the certified class is not the label"
        : `${digits(run.radii[point])} (${run.radii[point] >= run.eps ? "certified" : "not certified"} at eps)`],
    ];
    if (!run.radii && run.proven) facts[6][1] = run.proven[point] ? "at least eps" : "below eps";
    const raised = flagsOf(run, point).map((name) => make("p", { class: "flag warning" }, make("b", {}, name), " ",
      data.flags[name]));
    const everywhere = runs.length < 2 ? [] : [simpleTable("In every network", ["network", "clean", "attacked", "verdict"],
      runs.map((each) => [each.name, say(each.clean[point]), say(each.attacked[point]), verdictOf(each, point)]), "text")];
    detail.replaceChildren(
      make("h3", {}, `Point ${point}`),
      ...(runs.length > 1 ? [make("p", { class: "quiet" }, `${run.name}, ${run.threat}`)] : []),
      ...showPictures(point),
      ...raised,
      make("dl", {}, ...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)])),
      ...showProbabilities(point),
      ...everywhere.map((each) => make("div", { class: "scroll", tabindex: 0, role: "region",
        "aria-label": "The point in every network" }, each)));
    for (const button of body.querySelectorAll("button")) {
      const here = Number(button.dataset.point) === point;
      button.setAttribute("aria-pressed", here);
      button.closest("tr").className = here ? "opened" : "";
      if (here) {
        for (const other of body.querySelectorAll('button[tabindex="0"]')) other.tabIndex = -1;
        button.tabIndex = 0;
      }
    }
  };

  room.append(controls, status, make("div", { class: "explorer-panes" },
    make("div", {}, make("div", { class: "scroll" }, table), pages), detail));
  const fromAddress = () => {
    const match = /^#point-(\d+)$/.exec(location.hash);
    if (match && Number(match[1]) < data.count) {
      goTo(Number(match[1]));
      room.scrollIntoView();
    }
  };
  addEventListener("hashchange", fromAddress);
  refresh();
  goTo(data.shown.points.find((point) => run.verdicts[point] === BROKEN) ?? data.shown.points[0] ?? 0);
  fromAddress();
})();
