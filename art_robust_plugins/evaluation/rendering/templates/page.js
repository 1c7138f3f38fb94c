"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const announce = text => { document.getElementById("announced").textContent = text; };

  // Sorting: a column's button sorts by it, a second press turns the order; cells without a number come last.
  const sortBy = button => {
    const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
    const turned = { ascending: "descending", descending: "ascending" };
    const order = turned[head.getAttribute("aria-sort")] || button.dataset.first;
    const sign = order === "ascending" ? 1 : -1, column = head.cellIndex;
    const number = row => "value" in row.cells[column].dataset ? Number(row.cells[column].dataset.value) : null;
    const compare = (one, other) => {
      const [a, b] = [number(one), number(other)];
      if (a !== null && b !== null) return sign * (a - b);
      if (a !== null || b !== null) return a === null ? 1 : -1;
      const texts = [one, other].map(row => row.cells[column].dataset.text);
      return sign * texts[0].localeCompare(texts[1], "en", { numeric: true });
    };
    for (const row of [...body.rows].sort(compare)) body.append(row);
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    announce(`Sorted by ${button.textContent}, ${order}.`);
  };
  for (const button of all("button.sort")) button.addEventListener("click", () => sortBy(button));

  // Legends: a button hides and shows a series, or a kind of lines, in the figures beside it.
  for (const button of all(".legend button")) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
      const figures = button.closest(".figures"), off = all('.legend button[aria-pressed="false"]', figures);
      for (const series of all(".series", figures)) {
        series.classList.toggle("off", off.some(each =>
          each.dataset.series === series.dataset.series || each.dataset.kind === series.dataset.kind));
      }
    });
  }

  // Marks: Tab reaches a figure once, the arrow keys go from mark to mark.
  for (const chart of all("svg.chart")) {
    const marks = all("g[role=img]", chart);
    const choose = mark => { for (const each of marks) each.setAttribute("tabindex", each === mark ? "0" : "-1"); };
    const visible = () => marks.filter(mark => !mark.closest(".off"));
    choose(marks[0]);
    chart.addEventListener("keydown", event => {
      const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
      const shown = visible(), at = shown.indexOf(document.activeElement);
      if (!(event.key in steps) || at < 0) return;
      const next = shown[(at + steps[event.key] + shown.length) % shown.length];
      choose(next);
      next.focus();
      event.preventDefault();
    });
    const figures = chart.closest(".figures");
    if (figures) figures.addEventListener("click", () => choose(visible()[0]));
  }

  // Copying a table, as it is sorted.
  const controls = /[\u0000-\u001f\u007f]+/g;
  const textOf = cell => ("text" in cell.dataset ? cell.dataset.text : cell.textContent).replace(controls, " ").trim();
  const latex = text => {
    const special = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}",
      "<": "\\textless{}", ">": "\\textgreater{}", "|": "\\textbar{}", "\"": "\\char34{}" };
    return text.replace(/[\\~^<>|"{}$&#_%]/g, sign => special[sign] || `\\${sign}`).replace(/^[[*]/, "{$&}");
  };
  const markdown = text => text.replace(/[\\`*_|[\]~$<>&#]/g, "\\$&").replace(/:\/\//g, ":\\//");
  const formula = /^ *[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/;
  const csv = text => `"${(formula.test(text) ? `'${text}` : text).replace(/"/g, "\"\"")}"`;
  const formats = {
    LaTeX: rows => [
      `\\begin{tabular}{l${"r".repeat(rows[0].length - 1)}}`, "\\hline",
      ...rows.map((row, at) => row.map(latex).join(" & ") + " \\\\" + (at === 0 ? " \\hline" : "")),
      "\\hline", "\\end{tabular}"],
    Markdown: rows => rows.flatMap((row, at) => [
      `| ${row.map(markdown).join(" | ")} |`,
      ...(at === 0 ? [`| --- |${" ---: |".repeat(row.length - 1)}`] : [])]),
    CSV: rows => rows.map(row => row.map(csv).join(",")),
  };
  const show = (box, text) => {
    const area = box.querySelector("textarea") || document.createElement("textarea");
    area.className = "copied";
    area.readOnly = true;
    area.setAttribute("aria-label", "The table as text");
    area.value = text;
    box.querySelector(".tools").after(area);
    area.select();
    announce("The table stands below as text.");
  };
  for (const tools of all(".tools")) {
    tools.hidden = false;
    const box = tools.closest(".table");
    for (const button of all("button", tools)) {
      button.addEventListener("click", async () => {
        const rows = [...box.querySelector("table").rows].map(row => [...row.cells].map(textOf));
        const text = formats[button.dataset.copy](rows).join("\n") + "\n";
        try {
          await navigator.clipboard.writeText(text);
        } catch {
          show(box, text);
          return;
        }
        announce("Copied.");
        button.textContent = "copied";
        setTimeout(() => { button.textContent = button.dataset.copy; }, 1500);
      });
    }
  }

  // On paper, what was folded is shown.
  addEventListener("beforeprint", () => { for (const details of all("details.fold")) details.open = true; });
})();
