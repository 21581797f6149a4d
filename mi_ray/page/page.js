// The parts of the page: what is chosen, and what each part shows of it. The data stand in the element #data.

const DATA = JSON.parse(byId("data").textContent);
const FIRST_COUNT = 35; // the character of no right draw (mi_ray/page/counts.py)
const chosen = { study: 0, variant: 0, classifier: "", attack: "", epsilon: "", setting: -1, hidden: new Set() };
const NAMES = ["classifier", "defense", "label", "parameters", "yaml", "executions", "draws", "attacks", "asked"];
const settingOf = (study, at) => Object.fromEntries(NAMES.map((name, place) => [name, study.settings[at][place]]));
const threatOf = (study, at) => {
  const [label, epsilon, text, knowledge] = study.threats[at];
  return { at, label, epsilon, text, knowledge, name: knowledge ? `${label} (${knowledge})` : label };
};
const study = () => DATA.studies[chosen.study];
const done = (cell) => cell && cell.state === "done";
const GIVEN_UP = 0.3; // settings that give up more clean accuracy than this are shown when they are asked for
const full = (setting) => (setting.parameters ? `${setting.label} (${setting.parameters})` : setting.label);
const inWords = (setting) => `${full(setting)}, N = ${setting.executions}, ${setting.draws} ${setting.draws === 1 ? "draw" : "draws"}`;
const counted = (value) => (value === null ? "–" : value.toLocaleString("en"));

/** The cells of a study by setting and attack (-1: clean), of one variant of its options. */
function indexed(of, variant) {
  const found = new Map();
  of.cells.forEach((cell, at) => {
    if (!isOf(cell, variant)) return;
    if (!found.has(cell.setting)) found.set(cell.setting, new Map());
    if (!found.get(cell.setting).has(cell.threat)) found.get(cell.setting).set(cell.threat, at);
  });
  return found;
}

function options(select, values, current) {
  fill(select, values.map(([value, text]) => h("option", { value, selected: String(value) === String(current) }, text)));
}

/** The attacks that cells of a classifier are under, in the order of the study, the worst case first. */
function attacksOf(of, classifier, variant) {
  const seen = new Set();
  for (const [setting, cells] of indexed(of, variant)) {
    if (of.settings[setting][0] === classifier) for (const [threat, at] of cells) if (threat >= 0 && done(of.cells[at])) seen.add(threat);
  }
  const threats = [...seen].sort((a, b) => a - b).map((at) => threatOf(of, at));
  return [...threats.filter((t) => t.label === "Worst case"), ...threats.filter((t) => t.label !== "Worst case")];
}

/** What is chosen, brought to what there is: an attack and ε that the classifier has, a setting that is its own. */
function settle() {
  const of = study();
  if (!of.variants[chosen.variant] && chosen.variant) chosen.variant = 0;
  const classifiers = [...new Set(of.settings.map((setting) => setting[0]))];
  if (!classifiers.includes(chosen.classifier)) chosen.classifier = classifiers[0] || "";
  const threats = attacksOf(of, chosen.classifier, chosen.variant);
  const names = [...new Set(threats.map((threat) => threat.name))];
  if (!names.includes(chosen.attack)) chosen.attack = names[0] || "";
  const radii = threats.filter((threat) => threat.name === chosen.attack);
  if (!radii.some((threat) => threat.text === chosen.epsilon)) chosen.epsilon = radii.length ? radii[0].text : "";
  options(byId("choose-study"), DATA.studies.map((each, at) => [at, each.name]), chosen.study);
  options(byId("choose-classifier"), classifiers.map((name) => [name, name]), chosen.classifier);
  options(byId("choose-attack"), names.map((name) => [name, name]), chosen.attack);
  options(byId("choose-epsilon"), radii.map((threat) => [threat.text, threat.text]), chosen.epsilon);
  options(byId("choose-variant"), of.variants.map((name, at) => [at, name || "the study's own"]), chosen.variant);
  byId("label-variant").hidden = of.variants.length < 2;
  byId("label-beside").hidden = chosen.attack === "Worst case" || !threats.some((t) => t.label === "Worst case" && t.text === chosen.epsilon);
}

function threatNow(of = study()) {
  const all = of.threats.map((_, at) => threatOf(of, at));
  return all.find((threat) => threat.name === chosen.attack && threat.text === chosen.epsilon);
}

/** The checks that a cell failed, by name. */
const failedOf = (of, cell) => cell.checks.map((at) => of.findings[at]).filter(([, state]) => state === "failed").map(([name]) => name);

/** Whether a cell is of a variant of its study's options: those of a store from before there were variants are of all. */
const isOf = (cell, variant) => !cell.variants.length || cell.variants.includes(variant);

/** The clean accuracy of a classifier without a defense; 0 where it was not measured, so that nothing is left out. */
function bareAccuracy(of, classifier, variant) {
  const isBare = ([owner, defense]) => owner === classifier && defense === "none";
  const found = of.cells.find((cell) => cell.threat < 0 && done(cell) && isOf(cell, variant) && isBare(of.settings[cell.setting]));
  return found ? found.accuracy : 0;
}

/** The attack and the cell of a setting that stand for a chosen attack: an only attack may be its worst case (`alone` in facts.py). */
function placeUnder(of, cells, threat, alone) {
  if (cells.has(threat.at) || threat.label !== "Worst case") return [threat, cells.get(threat.at)];
  const found = [...cells].find(([at, cell]) => alone.has(cell) && threatOf(of, at).text === threat.text);
  return found ? [threatOf(of, found[0]), found[1]] : [threat, undefined];
}

/** The settings of a classifier under an attack, as the frontier draws them. */
function frontierRows(of, classifier, threat, beside, { hidden = new Set(), near = byId("choose-near").checked ? GIVEN_UP : 1, variant = chosen.variant } = {}) {
  if (!threat) return [];
  const best = of.best[variant];
  const bare = bareAccuracy(of, classifier, variant);
  const undominated = new Set(best.undominated);
  const curve = new Set(best.curve);
  const alone = new Set(best.alone);
  const worst = of.threats.map((_, at) => threatOf(of, at)).find((t) => t.label === "Worst case" && t.text === threat.text);
  const rows = [];
  for (const [at, cells] of indexed(of, variant)) {
    const setting = settingOf(of, at);
    const [under, place] = placeUnder(of, cells, threat, alone);
    const [clean, attacked] = [of.cells[cells.get(-1)], of.cells[place]];
    if (setting.classifier !== classifier || !done(clean) || !done(attacked) || hidden.has(setting.defense)) continue;
    if (clean.accuracy < bare - near) continue;
    const other = beside && worst && worst.at !== threat.at ? of.cells[cells.get(worst.at)] : null;
    const row = {
      setting: at, cell: place, defense: setting.defense, bare: setting.defense === "none",
      line: curve.has(place), line_of: `${setting.defense} ${setting.executions}`, undominated: undominated.has(place),
      clean: 100 * clean.accuracy, clean_low: 100 * clean.accuracy_low, clean_high: 100 * clean.accuracy_high,
      left: 100 * attacked.accuracy, low: 100 * attacked.accuracy_low, high: 100 * attacked.accuracy_high,
      failed: attacked.verdict === "failed", worst: done(other) ? 100 * other.accuracy : null,
    };
    const failed = failedOf(of, attacked);
    const verdict = attacked.mark ? `checks ${attacked.mark} ${attacked.verdict}${failed.length ? `: ${failed.join(", ")}` : ""}` : "";
    row.lines = [
      inWords(setting),
      `clean ${interval(clean.accuracy, clean.accuracy_low, clean.accuracy_high)} %`,
      `${under.name}, ε = ${under.text}: ${interval(attacked.accuracy, attacked.accuracy_low, attacked.accuracy_high)} %`,
      ...(done(other) ? [`worst case: ${interval(other.accuracy, other.accuracy_low, other.accuracy_high)} %`] : []),
      verdict + (row.undominated ? "; undominated" : ""),
    ];
    row.said = row.lines.join("; ");
    rows.push(row);
  }
  return rows;
}

const looksOf = (of, rows) => Object.fromEntries(Object.entries(of.looks).filter(([name]) => rows.some((row) => row.defense === name)));

const frontierColumns = (of) => [
  ["Defense", (row) => full(settingOf(of, row.setting))],
  ["N", (row) => settingOf(of, row.setting).executions, true],
  ["Clean %", (row) => `${fixed(row.clean, 1)} [${fixed(row.clean_low, 1)}, ${fixed(row.clean_high, 1)}]`, true],
  ["Adversarial %", (row) => `${fixed(row.left, 1)} [${fixed(row.low, 1)}, ${fixed(row.high, 1)}]`, true],
  ["Worst case %", (row) => (row.worst === null ? "–" : fixed(row.worst, 1)), true],
  ["Undominated", (row) => (row.undominated ? "yes" : "")],
  ["Checks", (row) => of.cells[row.cell].mark],
];

/** Show a setting's numbers beside the pointer or the mark that has the focus. */
function showTip(row, box) {
  const tip = byId("tip");
  tip.textContent = row.lines.join("\n");
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = box.right + 14 + width > innerWidth ? box.left - 14 - width : box.right + 14;
  tip.style.left = `${Math.max(4, Math.min(left, innerWidth - width - 4))}px`;
  tip.style.top = `${Math.max(4, Math.min(box.top + 10, innerHeight - height - 4))}px`;
  byId("under-cursor").textContent = row.said;
}

const hideTip = () => (byId("tip").hidden = true);

function renderAnswer() {
  const threat = threatNow();
  const is = (a) => a.variant === chosen.variant && a.classifier === chosen.classifier && a.threat === threat.label && a.epsilon === threat.text;
  const found = threat && study().answers.find(is);
  fill(byId("answer-text"), found ? found.sentences.map((text) => h("p", {}, text)) : h("p", {}, "No finished cell says anything of this choice."));
  if (!study().settings[chosen.setting] || study().settings[chosen.setting][0] !== chosen.classifier) {
    const first = study().settings.findIndex((setting) => setting[0] === chosen.classifier);
    chosen.setting = found ? study().cells[found.cell].setting : first;
  }
}

function renderLegend(rows) {
  const of = study();
  const box = ([name, look]) =>
    h("label", { class: "check" },
      h("input", { type: "checkbox", checked: !chosen.hidden.has(name), change: (event) => {
        if (event.target.checked) chosen.hidden.delete(name);
        else chosen.hidden.add(name);
        renderFrontier();
      } }), symbolOf(look), look.label);
  fill(byId("legend"), h("legend", {}, "Defenses shown"), Object.entries(looksOf(of, rows)).map(box));
}

/** A defense's marker in its colour. */
function symbolOf(look) {
  const holder = h("span", { "aria-hidden": "true", style: "display: inline-flex" });
  holder.innerHTML = `<svg viewBox="-1.5 -1.5 3 3"><path stroke="var(--ink)" stroke-width=".12"></path></svg>`;
  const path = holder.querySelector("path");
  path.setAttribute("d", shape(look.marker));
  path.setAttribute("fill", ink(look.colour));
  return holder;
}

let frontierView = null;

async function renderFrontier() {
  const of = study();
  const threat = threatNow();
  const beside = byId("choose-beside").checked;
  const all = frontierRows(of, chosen.classifier, threat, false, { near: 1 });
  renderLegend(all);
  const rows = frontierRows(of, chosen.classifier, threat, beside, { hidden: chosen.hidden });
  const host = byId("frontier-chart");
  const found = of.cells.find((cell) => done(cell));
  byId("frontier-note").textContent =
    `Each mark is a setting; bars are 95 % intervals over ${found ? found.points : "no"} points of settings that no other beats on the points that choose, ` +
    `lines go through those of each defense${rows.some((row) => row.bare) ? ", the dashed line is no defense" : ""}, and ✗ is a failed check.` +
    (rows.some((row) => row.worst !== null) ? " Hollow marks are the worst case of all attacks, point by point." : "") +
    " Click a mark, or reach it with Tab and the arrow keys and press Enter.";
  const left = all.length - rows.length - all.filter((row) => chosen.hidden.has(row.defense)).length;
  if (left > 0) byId("frontier-note").textContent += ` Not shown: ${left} settings that give up more clean accuracy than the box allows.`;
  fill(byId("frontier-table"), rows.length ? behind("Clean against adversarial accuracy", frontierColumns(of), rows) : null);
  if (!rows.length) return void fill(host, h("p", {}, "No setting is finished both on clean images and under this attack."));
  const label = `Clean against adversarial accuracy of ${rows.length} settings of ${chosen.classifier}`;
  frontierView = await draw(host, frontierSpec(rows, looksOf(of, rows), innerWidth < 500 ? 300 : 430), label);
  if (!host.isConnected || !host.querySelector("svg")) return;
  frontierView.signal("chosen", chosen.setting).run();
  reachable(host, frontierView, { show: showTip, hide: hideTip, choose: (row, byKey) => choose(row.setting, byKey) });
}

/** Show a setting. follow: whether the focus goes to where it is shown. */
function choose(setting, follow = false) {
  chosen.setting = setting;
  if (frontierView) frontierView.signal("chosen", setting).run();
  renderSetting();
  renderPoints();
  if (follow) {
    hideTip();
    byId("setting-title").focus();
    byId("setting").scrollIntoView();
  }
}

/** The cells of the setting that is chosen: [attack or null for clean, position], clean first. */
function cellsNow() {
  const of = study();
  const cells = indexed(of, chosen.variant).get(chosen.setting) || new Map();
  return [...cells].sort((a, b) => a[0] - b[0]).map(([threat, at]) => [threat < 0 ? null : threatOf(of, threat), at]);
}

function copied(text) {
  const button = h("button", { type: "button", click: async () => {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } }, "Copy");
  return h("div", {}, h("pre", { tabindex: "0" }, text), navigator.clipboard ? button : null);
}

/** The checks of a cell in words: what each asks, what was found, and what to do where it failed. */
function checksList(of, cell) {
  const order = { failed: 0, passed: 1, "not run": 2 };
  const said = cell.checks.map((at) => of.findings[at]).sort((a, b) => order[a[1]] - order[b[1]]);
  const shown = said.filter(([, state]) => state !== "not run");
  const item = ([name, state, why]) => {
    const [criterion, remedy] = DATA.checks[name] || ["", ""];
    const sign = { passed: "✓", failed: "✗" }[state] || "–";
    return h("li", {},
      h("b", { class: state === "not run" ? "note" : state }, `${sign} ${name}`), ` ${criterion} `, h("span", { class: "note" }, `Found: ${why}.`),
      state === "failed" && remedy ? h("span", {}, h("b", {}, " What to do: "), remedy) : null);
  };
  const silent = said.filter(([, state]) => state === "not run");
  return h("div", {}, h("ul", { class: "checks" }, shown.map(item)),
    silent.length ? h("details", {}, h("summary", {}, `${silent.length} checks that say nothing here`), h("ul", { class: "checks" }, silent.map(item))) : null);
}

function renderSetting() {
  const of = study();
  const body = byId("setting-body");
  const places = of.settings.map((_, at) => at).filter((at) => of.settings[at][0] === chosen.classifier);
  options(byId("choose-setting"), places.map((at) => {
    const setting = settingOf(of, at);
    return [at, inWords(setting)];
  }), chosen.setting);
  const cells = cellsNow();
  if (!cells.length) return void fill(body, h("p", {}, "No cell of this setting belongs to these options."));
  const setting = settingOf(of, chosen.setting);
  byId("setting-title").textContent = `Setting: ${full(setting)} on ${setting.classifier}`;
  const now = threatNow();
  const [, place] = cells.find(([threat]) => threat && now && threat.at === now.at) || cells[cells.length - 1];
  const cell = of.cells[place];
  const abstains = cells.some(([, at]) => of.cells[at].coverage !== null);
  const attacks = table("Accuracy under each attack", [
    ["Attack", ([threat]) => (threat ? threat.name : "Clean")],
    ["ε", ([threat]) => (threat ? threat.text : "0"), true],
    ["Accuracy %", ([, at]) => interval(of.cells[at].accuracy, of.cells[at].accuracy_low, of.cells[at].accuracy_high), true],
    ...(abstains ? [["Answered %", ([, at]) => percent(of.cells[at].coverage), true],
      ["Right of these %", ([, at]) => percent(of.cells[at].accuracy_answered), true]] : []),
    ["Checks", ([, at]) => of.cells[at].mark || ""],
    ["Failed", ([, at]) => failedOf(of, of.cells[at]).join(", ") || of.cells[at].cause],
    ["Detector's AUC", ([, at]) => (of.cells[at].auc === null ? "–" : fixed(of.cells[at].auc, 3)), true],
    ["Forward passes", ([, at]) => counted(of.cells[at].forward_passes), true],
    ["Backward passes", ([, at]) => counted(of.cells[at].backward_passes), true],
    ["Seconds", ([, at]) => (of.cells[at].seconds === null ? "–" : of.cells[at].seconds.toFixed(1)), true],
  ], cells);
  const keys = cells.map(([, at]) => of.cells[at].key);
  const yaml = `${of.yaml[chosen.variant][setting.classifier] || ""}${of.attacks[setting.attacks]}${setting.yaml}executions: ${setting.asked}\ndraws: ${setting.draws}\n`;
  const code = `import mi_ray\nrows = mi_ray.read_records(${JSON.stringify(DATA.store)}, study="${of.name}", filters=[("cell", "in", ${JSON.stringify(keys)})])\n` +
    `rows[~rows.selection].groupby(["attack", "goal", "norm", "epsilon", "cell"]).apply(lambda r: r.correct_draws.sum() / r.draws.sum())`;
  const charts = h("div", { class: "beside" });
  const checkTitle = cell.threat < 0 ? "clean images" : `${threatOf(of, cell.threat).name}, ε = ${threatOf(of, cell.threat).text}`;
  fill(body, attacks, h("p", { class: "note" }, "Passes and seconds are of the stored work that a cell stands on, which cells share."), charts,
    h("h3", {}, `Checks under ${checkTitle}`), checksList(of, cell),
    h("div", { class: "beside" },
      h("div", {}, h("h3", {}, "This setting as a sweep"), copied(yaml)), h("div", {}, h("h3", {}, "Its rows in pandas"), copied(code))));
  settingCharts(of, cells, charts);
}

/** Survival of several attempts, and losses by step, where there are some. */
function settingCharts(of, cells, charts) {
  const part = (title, ...inside) => h("div", {}, h("h3", {}, title), ...inside);
  const survival = cells.flatMap(([threat, at]) =>
    of.cells[at].survival.map((share, k) => ({ x: k + 1, y: 100 * share, series: threat ? `${threat.name}, ε = ${threat.text}` : "Clean" })));
  if (survival.some((row) => row.x > 1)) {
    const host = h("div", { class: "chart" });
    charts.append(part("Survival of k attempts", host, behind("Share of points that are right in all of k draws, in %", [
      ["Attack", (row) => row.series], ["k", (row) => row.x, true], ["Survival %", (row) => fixed(row.y, 1), true]], survival)));
    draw(host, linesSpec(survival, "attempts k", "right in all of k draws (%)"), "Survival of k attempts");
  } else charts.append(part("Survival of k attempts", h("p", { class: "note" }, "One draw of each point: only one attempt is known.")));
  const losses = [];
  for (const [threat, at] of cells) {
    const key = (of.examples.images_of[at] || "").split(" ")[0];
    const series = threat ? threat.label.replace(/-\d+/, "") + `, ε = ${threat.text}` : "";
    if (of.examples.losses[key] && !losses.some((row) => row.key === key)) {
      for (const [x, y] of of.examples.losses[key]) losses.push({ x, y, series, key });
    }
  }
  if (losses.length) {
    const host = h("div", { class: "chart" });
    charts.append(part("Loss against steps", host, behind("Mean of what the attack climbs, over reported points", [
      ["Attack", (row) => row.series], ["Steps", (row) => row.x, true], ["Loss", (row) => fixed(row.y, 4), true]], losses)));
    draw(host, linesSpec(losses, "steps", "mean loss"), "Loss against steps");
  } else charts.append(part("Loss against steps", h("p", { class: "note" }, "There is no curve: no attack on this setting is stored with its loss at several steps. PGD on F has a loss stored only where it has several restarts.")));
}

/** A table that sorts, pages, and may search, be downloaded and have rows to choose. */
function grid(host, { name, caption, columns, rows, search = false, pick = null, page = 50 }) {
  let sorted = null, down = false, shown = page, words = "";
  const holder = h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": caption });
  const status = h("span", { class: "note", role: "status" });
  const more = h("button", { type: "button", click: () => { shown += 200; render(); } }, "Show more rows");
  const field = h("input", { type: "search", "aria-label": `Search ${caption}`, placeholder: "words that a row must have", input: (event) => {
    words = event.target.value.toLowerCase();
    shown = page;
    render();
  } });
  const file = h("button", { type: "button", click: () => download(`${name}.csv`, asCsv(columns, found())) }, "Download CSV");
  const text = (row, column) => String(column.text ? column.text(row) : row[column.key] ?? "–");
  function found() {
    const parts = words.split(/\s+/).filter(Boolean);
    const kept = rows.filter((row) => {
      const whole = parts.length ? columns.map((column) => text(row, column)).join(" ").toLowerCase() : "";
      return parts.every((part) => whole.includes(part));
    });
    if (!sorted) return kept;
    const order = (a, b) => {
      const [x, y] = [a[sorted], b[sorted]];
      if (x === y) return 0;
      if (x === null || x === undefined || y === null || y === undefined) return x === null || x === undefined ? 1 : -1;
      return (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y))) * (down ? -1 : 1);
    };
    return [...kept].sort(order);
  }
  function render() {
    const all = found();
    const head = columns.map((column) => {
      const order = sorted !== column.key ? "none" : down ? "descending" : "ascending";
      const sort = () => {
        [sorted, down] = [column.key, sorted === column.key ? !down : Boolean(column.num)];
        render();
        holder.querySelectorAll("th button")[columns.indexOf(column)].focus();
      };
      return h("th", { scope: "col", class: column.num ? "num" : null, "aria-sort": order }, h("button", { type: "button", click: sort }, column.title));
    });
    const body = all.slice(0, shown).map((row) => h("tr", { class: pick && pick.is(row) ? "chosen" : null }, columns.map((column, at) =>
      h("td", { class: column.num ? "num" : null },
        pick && at === 0 ? h("button", { type: "button", class: "plain", click: () => pick.go(row) }, text(row, column)) : text(row, column)))));
    fill(holder, h("table", {}, h("caption", {}, caption), h("thead", {}, h("tr", {}, head)), h("tbody", {}, body)));
    status.textContent = `${Math.min(shown, all.length)} of ${all.length} rows`;
    more.hidden = shown >= all.length;
  }
  fill(host, h("div", { class: "bar" }, search ? field : null, file, status), holder, more);
  render();
}

function asCsv(columns, rows) {
  const quoted = (value) => (/[",\n]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value ?? ""));
  const lines = [columns.map((column) => quoted(column.file || column.key)), ...rows.map((row) => columns.map((column) => quoted(row[column.key] ?? "")))];
  return lines.map((line) => line.join(",")).join("\n") + "\n";
}

function download(name, text) {
  const link = h("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const rightDraws = (of, cell, point) => {
  const code = of.right[cell].charCodeAt(point) - FIRST_COUNT;
  return code < 0 ? null : code;
};

function renderPoints() {
  const of = study();
  const cells = cellsNow().filter(([, at]) => done(of.cells[at]));
  const draws = of.settings[chosen.setting] ? settingOf(of, chosen.setting).draws : 1;
  const attacked = cells.filter(([threat]) => threat);
  const rows = [];
  of.points.index.forEach((point, at) => {
    if (!of.points.reported[at]) return;
    const row = { point, label: of.points.label[at], broken: 0, by: "" };
    for (const [threat, cell] of cells) row[threat ? `t${threat.at}` : "clean"] = rightDraws(of, cell, at);
    const broken = attacked.filter(([threat]) => row[`t${threat.at}`] !== null && row[`t${threat.at}`] < draws);
    row.broken = broken.filter(([threat]) => threat.label !== "Worst case").length;
    rows.push(row);
  });
  const share = (key) => (row) => (row[key] === null || row[key] === undefined ? "–" : `${row[key]}/${draws}${row[key] < draws ? " ✗" : ""}`);
  const columns = [
    { key: "point", title: "Point", num: true },
    { key: "label", title: "Label", num: true },
    ...cells.map(([threat]) => {
      const key = threat ? `t${threat.at}` : "clean";
      const title = threat ? `${threat.name}, ε = ${threat.text}` : "Clean";
      return { key, title, num: true, text: share(key), file: title };
    }),
    { key: "broken", title: "Broken by", num: true, text: (row) => `${row.broken} of ${attacked.filter(([t]) => t.label !== "Worst case").length}` },
  ];
  byId("points-note").textContent = `Right draws of ${draws} for each reported point, behind the setting above; ✗ where a draw is wrong, which is when an attack counts as having broken the point. Points are indices in the test split.`;
  grid(byId("points-table"), { name: `${of.name}-points`, caption: "Which points are broken by which attack", columns, rows, search: true, page: 12 });
  renderExamples();
}

/** The largest probabilities, a class a line, the true one marked. */
const said = (top, label) =>
  top && top.length ? top.map(([name, p]) => h("div", {}, `${name}: ${(100 * p).toFixed(0)} %${name === label ? " ✓" : ""}`)) : "–";

function renderExamples() {
  const of = study();
  const examples = of.examples;
  const cells = cellsNow();
  const now = threatNow();
  const [, clean] = cells.find(([threat]) => !threat) || [null, null];
  const [threat, at] = cells.find(([each]) => each && now && each.at === now.at) || cells.find(([each]) => each) || [null, null];
  const pictures = at === null ? null : examples.attacked[examples.images_of[at]];
  const note = byId("examples-note");
  if (!examples.points.length || at === null) {
    note.textContent = "The study keeps no example images, or this setting was not attacked.";
    return void fill(byId("examples"));
  }
  note.textContent = `The first reported points under ${threat.name}, ε = ${threat.text}: the largest probabilities of F and of the defense (draw 0), the true class marked ✓.` +
    (pictures ? "" : threat.label === "Worst case"
      ? " A worst case takes each point under whichever attack is worst, and has no images of its own; choose an attack to see some."
      : " The images of this attack are not kept here, to keep the page small.");
  const picture = (data, name, alt) => h("figure", {}, h("img", { src: `data:image/png;base64,${data}`, alt, width: "96", height: "96" }), h("figcaption", {}, name));
  fill(byId("examples"), h("div", { class: "pictures" }, examples.points.map((point, i) => {
    const label = examples.labels[i];
    const trio = examples.clean[i] ? [picture(examples.clean[i], "clean", `Point ${point}, label ${label}, clean`)] : [];
    if (pictures) {
      const [attacked, difference, gain] = pictures[i];
      trio.push(picture(attacked, "attacked", `Point ${point}, attacked`), picture(difference, `difference × ${gain}`, `Point ${point}, difference amplified ${gain} times`));
    }
    const answer = (cell, of_) => said((of_ ? examples.undefended[examples.undefended_of[cell]] || [] : examples.answers[cell] || [])[i], label);
    return h("article", {}, h("h4", {}, `Point ${point}, label ${label}`), h("div", { class: "trio" }, trio),
      h("table", {}, h("thead", {}, h("tr", {}, ["", "Clean", "Attacked"].map((title) => h("th", { scope: "col" }, title)))),
        h("tbody", {}, [["F", true], ["Defense", false]].map(([who, bare]) =>
          h("tr", {}, h("th", { scope: "row" }, who), [clean, at].map((cell) => h("td", {}, cell === null ? "–" : answer(cell, bare))))))));
  })));
}

function cellRow(of, cell, at) {
  const setting = settingOf(of, cell.setting);
  const threat = cell.threat < 0 ? { name: "Clean", text: "0", epsilon: 0, knowledge: "" } : threatOf(of, cell.threat);
  return {
    ...cell, at, setting_at: cell.setting, classifier: setting.classifier, defense: setting.label, parameters: setting.parameters,
    executions: setting.executions, draws: setting.draws, attack: threat.name, epsilon: threat.epsilon, epsilon_text: threat.text,
    failed: failedOf(of, cell).join(", "), options: cell.variants.map((v) => of.variants[v]).filter(Boolean).join(", "),
    all_draws: cell.survival.length ? cell.survival[cell.survival.length - 1] : null,
  };
}

function renderCells() {
  const of = study();
  const rows = of.cells.map((cell, at) => cellRow(of, cell, at));
  const share = (key) => (row) => percent(row[key]);
  const columns = [
    { key: "defense", title: "Defense" }, { key: "parameters", title: "Parameters" }, { key: "classifier", title: "Classifier" },
    { key: "executions", title: "N", num: true }, { key: "draws", title: "Draws", num: true },
    { key: "attack", title: "Attack" }, { key: "epsilon", title: "ε", num: true, text: (row) => row.epsilon_text },
    { key: "clean_accuracy", title: "Clean %", num: true, text: share("clean_accuracy") },
    { key: "accuracy", title: "Accuracy %", num: true, text: share("accuracy") },
    { key: "accuracy_low", title: "low", num: true, text: share("accuracy_low") },
    { key: "accuracy_high", title: "high", num: true, text: share("accuracy_high") },
    { key: "all_draws", title: "Right in all draws %", num: true, text: share("all_draws") },
    { key: "coverage", title: "Answered %", num: true, text: share("coverage") },
    { key: "accuracy_answered", title: "Right of these %", num: true, text: share("accuracy_answered") },
    { key: "verdict", title: "Checks" }, { key: "failed", title: "Failed checks" },
    { key: "forward_passes", title: "Forward", num: true, text: (row) => counted(row.forward_passes) },
    { key: "seconds", title: "Seconds", num: true, text: (row) => (row.seconds === null ? "–" : row.seconds.toFixed(1)) },
    { key: "state", title: "State" }, { key: "cause", title: "Cause" },
    ...(of.variants.length > 1 ? [{ key: "options", title: "Options" }] : []), { key: "key", title: "Key" },
  ].filter(({ key }) => !["cause", "failed"].includes(key) || rows.some((row) => row[key]))
    .filter(({ key }) => !["coverage", "accuracy_answered"].includes(key) || rows.some((row) => row[key] !== null));
  const pick = { is: (row) => row.setting_at === chosen.setting, go: (row) => {
    chosen.classifier = row.classifier;
    chosen.setting = row.setting_at;
    if (row.threat >= 0) [chosen.attack, chosen.epsilon] = [row.attack, row.epsilon_text];
    render();
    byId("setting-title").focus();
    byId("setting").scrollIntoView();
  } };
  grid(byId("cells-table"), { name: `${of.name}-cells`, caption: "Cells; the first column shows the setting above", columns, rows, search: true, pick, page: 25 });
}

function renderTraining() {
  const of = study();
  const body = byId("training-body");
  if (!of.training.length) return void fill(body, h("p", { class: "note" }, "No classifier of this study was trained here."));
  const columns = [
    ["Epoch", (row) => row.x, true], ["Loss", (row) => row.loss, true], ["Train %", (row) => percent(row.train), true], ["Test %", (row) => percent(row.test), true]];
  fill(body, h("div", { class: "beside" }, of.training.map((curve) => {
    const rows = curve.epoch.map((x, at) => ({ x, loss: curve.loss[at], train: curve.train_accuracy[at], test: curve.test_accuracy[at] }));
    const [loss, accuracy] = [h("div", { class: "chart" }), h("div", { class: "chart" })];
    const both = rows.flatMap((row) => [["train", row.train], ["test", row.test]].filter(([, y]) => y !== null).map(([series, y]) => ({ x: row.x, y: 100 * y, series })));
    const part = h("div", {}, h("h3", {}, curve.classifier), accuracy, loss, behind(`Training of ${curve.classifier}, an epoch a row`, columns, rows));
    setTimeout(() => {
      draw(accuracy, linesSpec(both, "epoch", "clean accuracy (%)", 170), `Accuracy of ${curve.classifier} by epoch`);
      draw(loss, linesSpec(rows.map((row) => ({ x: row.x, y: row.loss, series: "loss" })), "epoch", "training loss", 140, true), `Loss of ${curve.classifier} by epoch`);
    });
    return part;
  })));
}

function renderGuarantees() {
  const of = study();
  byId("guarantees").hidden = !of.certified.length;
  if (!of.certified.length) return;
  const rows = of.certified.filter((row) => row.state === "done");
  const series = (row) => `${row.classifier}, σ ${row.sigma}, n ${row.n}`;
  const chart = h("div", { class: "chart" });
  fill(byId("guarantees-chart"), chart);
  if (rows.length) setTimeout(() => draw(chart, linesSpec(rows.map((row) => ({ x: row.radius, y: 100 * row.accuracy, series: series(row) })), "L2 radius", "certified accuracy (%)", 260, true, false), "Certified accuracy by radius"));
  const share = (key, title) => ({ key, title, num: true, text: (row) => percent(row[key]) });
  const columns = [
    { key: "classifier", title: "Classifier" }, { key: "sigma", title: "σ", num: true }, { key: "n0", title: "n0", num: true },
    { key: "n", title: "n", num: true }, { key: "alpha", title: "α", num: true }, { key: "radius", title: "Radius", num: true },
    share("accuracy", "Certified %"), share("accuracy_low", "low"), share("accuracy_high", "high"), share("coverage", "Answered %"),
    share("accuracy_answered", "Right of these %"),
    { key: "state", title: "State", text: (row) => (row.state === "done" ? "done" : `${row.state}: ${row.cause}`) }];
  grid(byId("guarantees-table"), { name: `${of.name}-certified`, caption: "Certified accuracy, a radius a row", columns, rows: of.certified, page: 25 });
}

function renderSides() {
  if (DATA.studies.length < 2) return;
  const sides = DATA.studies.map((of) => {
    const own = of.settings.some((setting) => setting[0] === chosen.classifier) ? chosen.classifier : of.settings[0] && of.settings[0][0];
    const threats = attacksOf(of, own, 0);
    const threat = threats.find((t) => t.name === chosen.attack && t.text === chosen.epsilon) || threats[0];
    return { of, own, threat, rows: frontierRows(of, own, threat, false, { variant: 0 }) };
  });
  const every = sides.flatMap(({ rows }) => rows);
  fill(byId("side-charts"), sides.map(({ of, own, threat, rows }) => {
    const host = h("div", { class: "chart" });
    setTimeout(async () => {
      if (!rows.length) return;
      const view = await draw(host, frontierSpec(rows, looksOf(of, rows), 300, every), `Frontier of ${of.name}`);
      if (host.querySelector("svg")) reachable(host, view, { show: showTip, hide: hideTip, choose: (row, byKey) => {
        [chosen.study, chosen.classifier] = [DATA.studies.indexOf(of), own];
        chosen.setting = row.setting;
        render();
        if (byKey) byId("setting-title").focus();
      } });
    });
    return h("div", {}, h("h3", {}, of.name), h("p", { class: "note" }, threat ? `${own}, ${threat.name}, ε = ${threat.text}` : "no finished attack"), host,
      rows.length ? behind(`Frontier of ${of.name}`, frontierColumns(of), rows) : null);
  }));
  const rows = DATA.comparisons.map((pair) => {
    const [left, right] = pair.studies.map((at, side) => cellRow(DATA.studies[at], DATA.studies[at].cells[pair.cells[side]], pair.cells[side]));
    return {
      ...pair, first: DATA.studies[pair.studies[0]].name, second: DATA.studies[pair.studies[1]].name, classifier: left.classifier,
      setting: left.parameters ? `${left.defense} (${left.parameters})` : left.defense, executions: left.executions, epsilon: left.epsilon, epsilon_text: left.epsilon_text,
      attacks: left.attack === right.attack ? left.attack : `${left.attack} against ${right.attack}`, left: left.accuracy, right: right.accuracy,
    };
  });
  const alike = rows.filter((row) => row.same).length;
  const apart = rows.filter((row) => row.apart).length;
  byId("side-note").textContent = rows.length
    ? "Cells of the same setting in both studies, on the points of both; a difference is first less second, with its 95 % interval over points. " +
      `p: exact McNemar or sign flip; p (Holm) is corrected over all tested pairs.${alike ? ` ${alike} pairs are one stored result and have no test.` : ""}` +
      (apart ? ` ${apart} pairs of worst cases have none either: they are of other attacks, or one of them by the draw that chose it.` : "") +
      (DATA.pairs > rows.length ? ` Shown are the first ${counted(rows.length)} of ${counted(DATA.pairs)} pairs; mi-ray compare has all that are of one attack.` : "")
    : "The studies have no setting in common (classifier by name, defense, N, goal, ε), so nothing is paired.";
  const signed = (value) => (value === null || value === undefined ? "–" : (value > 0 ? "+" : "") + fixed(100 * value, 1));
  const columns = [
    { key: "setting", title: "Setting" }, { key: "attacks", title: "Attack" }, { key: "epsilon", title: "ε", num: true, text: (row) => row.epsilon_text },
    { key: "difference", title: "Difference", num: true, text: (row) => (row.same ? "same result" : row.apart || `${signed(row.difference)} [${signed(row.low)}, ${signed(row.high)}]`) },
    { key: "p_holm", title: "p (Holm)", num: true }, { key: "p", title: "p", num: true },
    { key: "first", title: "First" }, { key: "left", title: "Its %", num: true, text: (row) => percent(row.left) },
    { key: "second", title: "Second" }, { key: "right", title: "Its %", num: true, text: (row) => percent(row.right) },
    { key: "classifier", title: "Classifier" }, { key: "executions", title: "N", num: true },
    { key: "points", title: "Points", num: true }, { key: "method", title: "Test", text: (row) => (row.method || "–").replace("_", " ") },
  ];
  if (rows.length) grid(byId("side-table"), { name: "comparison", caption: "Paired tests of two studies", columns, rows, search: true });
}

function render() {
  settle();
  renderAnswer();
  renderFrontier();
  renderSetting();
  renderPoints();
}

function renderStudy() {
  render();
  renderCells();
  renderTraining();
  renderGuarantees();
}

function listen(id, take) {
  byId(id).addEventListener("change", (event) => take(event.target.value));
}

listen("choose-study", (value) => {
  Object.assign(chosen, { study: Number(value), variant: 0, setting: -1 });
  renderStudy();
});
listen("choose-classifier", (value) => ((chosen.classifier = value), (chosen.setting = -1), render(), renderSides()));
listen("choose-attack", (value) => ((chosen.attack = value), render(), renderSides()));
listen("choose-epsilon", (value) => ((chosen.epsilon = value), render(), renderSides()));
listen("choose-variant", (value) => {
  chosen.variant = Number(value);
  if (!indexed(study(), chosen.variant).has(chosen.setting)) chosen.setting = -1;
  render();
});
listen("choose-beside", () => renderFrontier());
listen("choose-near", () => (renderFrontier(), renderSides()));
listen("choose-setting", (value) => choose(Number(value)));
renderStudy();
renderSides();
