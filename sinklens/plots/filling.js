(() => {
  const host = document.currentScript.parentElement;
  const data = JSON.parse(host.querySelector('script[type="application/json"]').textContent);
  const root = host.attachShadow({ mode: "open" });
  root.append(host.querySelector("template").content.cloneNode(true));
  const make = (tag, name, text, into) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text) element.textContent = text;
    if (into) into.append(element);
    return element;
  };
  const box = make("div", "tl", "", root);
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", data.title);
  make("h3", "", data.title, box);

  // One scale for every record, layer and head: log2 of (received / uniform), cut at 1/4 and 4.
  const ENDS = 2;
  const logged = (ratio) => (ratio === null ? null : Math.max(-ENDS, Math.min(ENDS, Math.log2(ratio))));
  const hex = (name) => {
    const value = getComputedStyle(box).getPropertyValue(name).trim();
    return [1, 3, 5].map((at) => parseInt(value.slice(at, at + 2), 16));
  };
  let colours = {};
  const colour = (level) => {
    const stops = [colours.zero, ...(level < 0 ? [colours.down1, colours.down2] : [colours.up1, colours.up2])];
    const place = (Math.abs(level) / ENDS) * 2;
    const low = Math.min(1, Math.floor(place));
    const mixed = stops[low].map((from, at) => Math.round(from + (stops[low + 1][at] - from) * (place - low)));
    return `rgb(${mixed.join(",")})`;
  };
  const short = (value) => (value >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3))));

  const bar = make("div", "bar", "", box);
  const button = make("button", "", "Play", bar);
  button.type = "button";
  const slider = make("input", "", "", bar);
  slider.type = "range";
  slider.min = 0;
  slider.max = Math.max(...data.records.map((each) => each.steps.length)) - 1;
  slider.value = data.start;
  slider.setAttribute("aria-label", "denoising step");
  const output = make("output", "", "", bar);
  const longest = data.records.reduce((one, other) => (other.steps.length > one.steps.length ? other : one));
  const alike = data.records.every((each) => String(each.steps) === String(longest.steps));
  const many = data.records.length;
  const columns = make("div", `panels${many > 1 ? " several" : ""}${many === 3 ? " three" : ""}`, "", box);
  const panels = data.records.map(panel);

  function panel(record) {
    const section = make("div", "panel", "", columns);
    const head = make("div", "head", "", section);
    make("b", "", record.name, head);
    const count = make("span", "count", "", head);
    const select = make("select", "", "", head);
    select.setAttribute("aria-label", `layers and heads of ${record.name}`);
    record.views.forEach((view) => make("option", "", view.label, select));
    select.hidden = record.views.length < 2;
    const text = make("div", "text", "", section);
    text.setAttribute("role", "img");
    const canvas = make("canvas", "", "", section);
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    const axis = make("div", "axis", "", section);
    make("span", "", "position, left to right", axis);
    make("span", "", `denoising step ${record.steps[0]} to ${record.steps.at(-1)}, top to bottom`, axis);
    const read = make("div", "read", "", section);
    read.setAttribute("aria-live", "polite");
    const keys = record.keys.length, rows = record.steps.length;
    const other = new Map(record.other.map(([step, key, token]) => [`${step},${key}`, token]));
    const word = (step, key) => other.get(`${step},${key}`) ?? record.tokens[key];
    const widths = record.tokens.map((token) => [...token].length);
    record.other.forEach(([, key, token]) => { widths[key] = Math.max(widths[key], [...token].length); });
    const chips = record.tokens.map((_, key) => {
      const chip = make("span", "t", "", text);
      const parts = { chip, word: make("span", "w", "", chip), bar: make("i", "", "", make("span", "b", "", chip)) };
      parts.sink = make("span", "s", "", chip);
      parts.word.style.minWidth = `calc(${widths[key]}ch + 15px)`;
      chip.addEventListener("pointerenter", () => { cursor = [now(), key]; tell(); });
      chip.addEventListener("pointerleave", () => { cursor = null; tell(); });
      return parts;
    });
    let view, sinks, cursor = null;
    const now = () => Math.min(Number(slider.value), rows - 1);
    const ratio = (step, key) => {
      const value = view.received[step][key], even = record.uniform[view.uniform][step][key];
      return value === null || !even ? null : value / even;
    };
    const choose = () => {
      view = record.views[select.selectedIndex < 0 ? 0 : select.selectedIndex];
      sinks = new Map(view.sinks.map(([step, key, number]) => [`${step},${key}`, number]));
    };
    const sinkAt = (step, key) => sinks.get(`${step},${key}`) ?? 0;

    function tell() {
      chips.forEach(({ chip }, key) => chip.classList.toggle("at", Boolean(cursor) && cursor[1] === key));
      paint();
      if (!cursor) { read.textContent = record === data.records[0] ? data.hint : ""; return; }
      const [step, key] = cursor, state = record.state[step][key], value = view.received[step][key];
      const even = record.uniform[view.uniform][step][key], share = ratio(step, key);
      const token = "ao".includes(state) ? "not there yet" : "mn".includes(state) ? "a mask" : `\u2068${word(step, key)}\u2069`;
      const written = "na".includes(state) ? `, \u2068${word(step, key)}\u2069 is written` : state === "x" ? ", taken back" : "";
      const measured = value === null ? "no attention measured"
        : `received ${short(value)}, uniform ${short(even)}` + (share === null ? "" : ` (${short(share)} times)`)
          + `, sink in ${sinkAt(step, key)} of ${view.pairs}`;
      read.textContent = `Step ${record.steps[step]}, position ${record.keys[key]}: ${token}${written}; ${measured}`;
    }

    function paint() {
      const pixels = window.devicePixelRatio || 1, wide = canvas.clientWidth || 600;
      const tall = Math.max(70, Math.min(data.records.length > 1 ? 180 : 280, rows * 12));
      canvas.style.height = `${tall}px`;
      canvas.width = wide * pixels;
      canvas.height = tall * pixels;
      const pen = canvas.getContext("2d");
      pen.scale(pixels, pixels);
      const w = wide / keys, h = tall / rows, line = now();
      for (let step = 0; step < rows; step++) {
        pen.globalAlpha = step > line ? 0.3 : 1;
        for (let key = 0; key < keys; key++) {
          const level = logged(ratio(step, key));
          if (level === null) continue;
          pen.fillStyle = colour(level);
          pen.fillRect(key * w, step * h, w + 0.3, h + 0.3);
        }
      }
      const size = Math.max(1.2, Math.min(3.2, w / 3, h / 2.4));
      pen.lineWidth = 1;
      for (const [step, key] of view.sinks) {
        pen.globalAlpha = step > line ? 0.3 : 1;
        pen.beginPath();
        pen.arc((key + 0.5) * w, (step + 0.5) * h, size, 0, 7);
        pen.fillStyle = colours.paper;
        pen.fill();
        pen.strokeStyle = colours.ink;
        pen.stroke();
      }
      pen.globalAlpha = 1;
      pen.strokeStyle = colours.ink;
      pen.lineWidth = 2;
      pen.strokeRect(1, Math.max(1, line * h), wide - 2, Math.min(h, tall - line * h - 1));
      if (cursor) {
        pen.lineWidth = 1.5;
        pen.strokeRect(cursor[1] * w, cursor[0] * h, w, h);
      }
    }

    function draw() {
      const step = now(), states = record.state[step];
      chips.forEach((parts, key) => {
        const state = states[key], level = logged(ratio(step, key)), marked = sinkAt(step, key);
        parts.chip.className = `t ${state}`;
        parts.word.textContent = "mo".includes(state) ? "" : word(step, key);
        const size = level === null ? 0 : (Math.abs(level) / ENDS) * 12;
        parts.bar.style.cssText = `height:${size}px;${level < 0 ? "top:13px" : "bottom:13px"};background:${colour(level ?? 0)}`;
        parts.sink.hidden = !marked;
        parts.sink.style.display = marked ? "" : "none";
        parts.sink.textContent = view.count > 1 ? marked : "";
      });
      const number = (kind) => [...states].filter((each) => kind.includes(each)).length;
      const still = number("m"), wrote = number("n") + number("a"), back = number("x");
      const over = Number(slider.value) > step ? " (the last one)" : "";
      count.textContent = (alike ? "" : `step ${record.steps[step]}${over} of ${record.steps.at(-1)}: `)
        + (record.masks ? `${still} still masked, ` : "") + `${wrote} written now` + (back ? `, ${back} taken back` : "");
      const words = [...states].map((each, key) => ("cpnax".includes(each) ? word(step, key) : each === "m" ? "\u2581" : ""));
      text.setAttribute("aria-label", `Text of ${record.name} at step ${record.steps[step]}: ${words.filter(Boolean).join(" ")}`);
      canvas.setAttribute("aria-label", `${record.name}: received attention relative to uniform attention, ${rows} steps by `
        + `${keys} positions, ${view.label}. Arrow keys move a cursor that is read out.`);
      tell();
    }

    const spot = (event) => {
      const area = canvas.getBoundingClientRect();
      return [[event.clientY - area.top, area.height, rows], [event.clientX - area.left, area.width, keys]]
        .map(([at, size, number]) => Math.max(0, Math.min(number - 1, Math.floor((at / size) * number))));
    };
    canvas.addEventListener("pointermove", (event) => { cursor = spot(event); tell(); });
    canvas.addEventListener("pointerleave", () => { cursor = null; tell(); });
    canvas.addEventListener("click", (event) => go(spot(event)[0]));
    canvas.addEventListener("blur", () => { cursor = null; tell(); });
    canvas.addEventListener("keydown", (event) => {
      const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!move) return;
      event.preventDefault();
      const [step, key] = cursor ?? [now(), 0];
      cursor = [Math.max(0, Math.min(rows - 1, step + move[0])), Math.max(0, Math.min(keys - 1, key + move[1]))];
      tell();
    });
    select.addEventListener("change", () => { choose(); draw(); });
    choose();
    return { draw };
  }

  function legend() {
    const key = make("div", "key", "", box);
    for (const [state, shown, said] of data.legend) {
      const entry = make("span", "", "", key);
      if (state === "s") make("span", "s", shown, entry);
      else make("span", "w", shown, make("span", `t ${state}`, "", entry));
      entry.append(said);
    }
    const entry = make("span", "", "", key);
    const scale = make("span", "scale", "", entry);
    const levels = [-2, -1, 0, 1, 2];
    const swatches = levels.map((level) => [make("i", "", "", scale), level]);
    ["\u2264 \u00bc", "\u00bd", "1", "2", "\u2265 4"].forEach((name) => make("b", "", name, scale));
    entry.append("received attention (bars, cells), in multiples of what uniform attention gives");
    data.captions.forEach((caption) => make("p", "caption", caption, box));
    const details = make("details", "", "", box);
    make("summary", "", "What the numbers are", details);
    data.notes.forEach((note) => make("p", "", note, details));
    details.addEventListener("toggle", fit);
    return () => swatches.forEach(([swatch, level]) => { swatch.style.background = colour(level); });
  }
  const shade = legend();

  // A page's own theme (data-theme of furo, JupyterLab's, VS Code's) goes before the system's.
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
  const around = () => { try { return window.parent.document.body; } catch { return document.body; } };
  const isDark = () => {
    const bodies = [document.body, around()];
    for (const { dataset, classList } of bodies) {
      if (dataset.theme === "dark" || dataset.jpThemeLight === "false" || classList.contains("vscode-dark")) return true;
      if (dataset.theme === "light" || dataset.jpThemeLight === "true" || classList.contains("vscode-light")) return false;
    }
    return dark.matches;
  };
  function fit() {
    let frame = null;
    try { frame = window.frameElement; } catch { return; } // a page of another origin keeps the height it gave
    if (frame && frame.dataset.sinklens) frame.style.height = `${Math.ceil(host.getBoundingClientRect().height) + 2}px`;
  }
  function show() {
    output.textContent = `step ${longest.steps[slider.value]} of ${longest.steps.at(-1)}`;
    slider.setAttribute("aria-valuetext", output.textContent);
    panels.forEach((each) => each.draw());
    host.dataset.step = slider.value;
  }
  function restyle() {
    box.classList.toggle("dark", isDark());
    colours = Object.fromEntries(["zero", "up1", "up2", "down1", "down2"].map((name) => [name, hex(`--${name}`)]));
    for (const name of ["paper", "ink"]) colours[name] = getComputedStyle(box).getPropertyValue(`--${name}`).trim();
    shade();
    show();
    fit();
  }
  let timer = null;
  const stop = () => { clearInterval(timer); timer = null; button.textContent = "Play"; };
  function go(step) { stop(); slider.value = step; show(); }
  button.addEventListener("click", () => {
    if (timer) { stop(); return; }
    if (slider.value === slider.max) slider.value = 0;
    show();
    button.textContent = "Pause";
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      show();
      if (slider.value === slider.max) stop();
    }, calm.matches ? 1000 : Math.max(120, Math.min(600, 12000 / (Number(slider.max) + 1))));
  });
  slider.addEventListener("input", () => go(slider.value));
  dark.addEventListener("change", restyle);
  for (const body of new Set([document.body, around()])) {
    new MutationObserver(restyle).observe(body, { attributes: true, attributeFilter: ["data-theme", "class", "data-jp-theme-light"] });
  }
  new ResizeObserver(() => { show(); fit(); }).observe(host);
  restyle();
})();
