// What the page shows, and what the hands on it do.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const TURN_PER_PIXEL = 0.008, TURN_PER_KEY = 0.1; // radians
const ZOOM_PER_WHEEL = 0.001, MOST_WHEEL = 300, ZOOM_PER_KEY = 1.12;

const MODES = {
  prediction: ["predicted"], truth: ["true"], difference: ["shared", "extra", "missed"],
};
const LEGEND = {
  predicted: "prediction", true: "truth", shared: "in both", extra: "too much", missed: "missing",
};

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function say(text) {
  const message = byId("message");
  message.textContent += (message.textContent ? "\n" : "") + text;
  message.hidden = false;
}

async function unpack(text) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// --- The shapes ----------------------------------------------------------------------------------

class Viewer {
  constructor(gallery) {
    this.gallery = gallery;
    this.camera = new Camera();
    this.hidden = new Set(); // kinds of the difference that are switched off
    this.grids = new Map();
    this.canvas = byId("canvas");
    this.painter = this.choosePainter();
    this.box = this.painter.load(boxFaces(4), 4);
    byId("viewer").hidden = false;
    this.setUpControls();
    this.setUpLegend();
    this.setUpHands();
    new ResizeObserver(() => this.redraw()).observe(byId("stage"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
    this.select(0);
  }

  choosePainter() {
    const lost = () => say("The 3D view was lost: reload the page.");
    this.canvas.addEventListener("webglcontextlost", lost);
    try {
      return new WebGLPainter(this.canvas);
    } catch {
      // A canvas that was once asked for WebGL gives nothing else.
      const fresh = this.canvas.cloneNode();
      this.canvas.replaceWith(fresh);
      this.canvas = fresh;
      return new CanvasPainter(fresh);
    }
  }

  setUpControls() {
    const { gallery } = this, { objects, rates, views } = gallery;
    for (const [index, { name, category }] of objects.entries())
      byId("object").append(new Option(category ? `${name} (${category})` : name, index));
    byId("chooser").hidden = objects.length < 2 && !objects[0].name;
    byId("object").onchange = () => this.select(Number(byId("object").value));
    byId("previous").onclick = () => this.select(this.index - 1);
    byId("next").onclick = () => this.select(this.index + 1);
    byId("modes").hidden = !objects[0].truth;
    for (const input of byId("modes").querySelectorAll("input")) input.onchange = () => this.show();
    this.setUpSlider("rate", rates.length - 1, rates.length - 1, rates.length > 1);
    this.setUpSlider("views", views.length - 1, views.length - 1, views.length > 1);
    this.setUpSlider("threshold", 100, gallery.threshold, gallery.probabilities);
    byId("rate-row").hidden &&= !rates[0];
    byId("rate").hidden = rates.length < 2;
  }

  setUpSlider(id, max, value, wanted) {
    Object.assign(byId(id), { max, value, oninput: () => this.show() });
    byId(`${id}-row`).hidden = !wanted;
  }

  // A line for every kind of cell; those of the difference can be switched off.
  setUpLegend() {
    this.legend = new Map();
    for (const [name, text] of Object.entries(LEGEND)) {
      const swatch = make("i"), words = make("span");
      const label = make("label", { hidden: true }, swatch, words);
      swatch.style.background = `var(--${name})`;
      if (MODES.difference.includes(name)) label.prepend(this.kindSwitch(KIND[name]));
      this.legend.set(KIND[name], { label, text: words, name: text });
      byId("legend").append(label);
    }
  }

  kindSwitch(kind) {
    const box = make("input", { type: "checkbox", checked: true });
    box.onchange = () => {
      if (box.checked) this.hidden.delete(kind);
      else this.hidden.add(kind);
      this.show();
    };
    return box;
  }

  setUpHands() {
    this.setUpPointers();
    this.setUpKeys();
    this.canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const amount = Math.max(-MOST_WHEEL, Math.min(MOST_WHEEL, event.deltaY));
      this.camera.zoom(Math.exp(amount * ZOOM_PER_WHEEL));
      this.redraw();
    }, { passive: false });
    this.canvas.addEventListener("dblclick", () => {
      this.camera.reset();
      this.redraw();
    });
  }

  // The mouse or a finger turns, two fingers zoom.
  setUpPointers() {
    const { canvas, camera } = this, held = new Map();
    const place = (event) => held.set(event.pointerId, { x: event.clientX, y: event.clientY });
    const spread = () => {
      const [one, other] = held.values();
      return Math.max(1, Math.hypot(one.x - other.x, one.y - other.y));
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      place(event);
    });
    canvas.addEventListener("pointermove", (event) => {
      const last = held.get(event.pointerId);
      if (!last) return;
      const before = held.size === 2 ? spread() : 0;
      place(event);
      const right = event.clientX - last.x, down = event.clientY - last.y;
      if (held.size === 1) camera.turn(right * TURN_PER_PIXEL, down * TURN_PER_PIXEL);
      if (before) camera.zoom(before / spread());
      this.redraw();
    });
    for (const name of ["pointerup", "pointercancel"])
      canvas.addEventListener(name, (event) => held.delete(event.pointerId));
  }

  setUpKeys() {
    const { canvas, camera } = this;
    const keys = {
      ArrowLeft: () => camera.turn(-TURN_PER_KEY, 0),
      ArrowRight: () => camera.turn(TURN_PER_KEY, 0),
      ArrowUp: () => camera.turn(0, -TURN_PER_KEY),
      ArrowDown: () => camera.turn(0, TURN_PER_KEY),
      "+": () => camera.zoom(1 / ZOOM_PER_KEY),
      "=": () => camera.zoom(1 / ZOOM_PER_KEY), // the same key without shift
      "-": () => camera.zoom(ZOOM_PER_KEY),
      0: () => camera.reset(),
    };
    canvas.addEventListener("keydown", (event) => {
      const act = keys[event.key];
      if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      act();
      this.redraw();
    });
  }

  async select(index) {
    const { gallery } = this, object = gallery.objects[index];
    this.index = index;
    byId("object").value = index;
    byId("previous").disabled = index === 0;
    byId("next").disabled = index === gallery.objects.length - 1;
    if (!this.grids.has(index)) {
      const [percent, truth] = await Promise.all([
        unpack(object.percent), object.truth && unpack(object.truth),
      ]);
      this.grids.set(index, { percent, truth });
      if (this.index !== index) return; // another one was chosen meanwhile
    }
    this.show();
    results?.mark(object.name);
  }

  show() {
    const { gallery } = this, { side, rates, views } = gallery;
    const grids = this.grids.get(this.index);
    if (!grids) return; // still being unpacked
    const rate = Number(byId("rate").value), step = Number(byId("views").value);
    const threshold = Number(byId("threshold").value), cells = side ** 3;
    const start = (rate * views.length + step) * cells;
    const percent = grids.percent.subarray(start, start + cells);
    const mode = grids.truth ? byId("modes").querySelector(":checked").value : "prediction";
    const shown = classify(mode, percent, grids.truth, threshold);
    const visible = shown.cells.map((kind) => (this.hidden.has(kind) ? 0 : kind));
    if (this.mesh) this.painter.unload(this.mesh);
    this.mesh = this.painter.load(findFaces(visible, side), side);
    byId("rate-text").textContent = rates[rate];
    byId("views-text").textContent = views[step] ? `${views[step]} of ${views.at(-1)}` : "";
    byId("threshold-text").textContent = (threshold / 100).toFixed(2);
    this.showLegend(mode, shown.counts);
    this.showScore(compare(percent, grids.truth ?? percent.map(() => 0), threshold), grids.truth);
    this.showPictures(rate, views[step]);
    this.redraw();
  }

  showLegend(mode, counts) {
    for (const [kind, { label, text, name }] of this.legend) {
      text.textContent = `${name}: ${counts[kind]}`;
      label.hidden = !MODES[mode].includes(KINDS[kind]);
    }
    const shown = [...this.legend.values()].filter(({ label }) => !label.hidden);
    this.canvas.setAttribute("aria-label", shown.map(({ text }) => text.textContent).join(", "));
  }

  showScore({ found, real, both, iou }, truth) {
    byId("iou").textContent = truth ? `IoU ${iou.toFixed(3)}` : `${found} voxels`;
    byId("counts").textContent = truth ? `${found} predicted, ${real} true, ${both} in both` : "";
  }

  showPictures(rate, used) {
    const { images, decoded } = this.gallery.objects[this.index];
    const rows = [images, decoded?.[rate]].filter(Boolean);
    const key = [this.index, decoded ? rate : 0, used].join();
    if (!rows.length || key === this.pictures) return;
    this.pictures = key;
    const names = [images && "input views", decoded && "decoded views"].filter(Boolean);
    const figures = rows[0].map((_, view) => {
      const pictures = rows.map((row, line) => make("img", {
        src: `data:image/png;base64,${row[view]}`, alt: `${names[line]}, ${view + 1}`,
      }));
      const unused = used && view >= used;
      const caption = make("figcaption", {}, unused ? `${view + 1}, unused` : `${view + 1}`);
      return make("figure", { className: unused ? "unused" : "" }, ...pictures, caption);
    });
    const text = names.join(" above ");
    const title = make("h2", {}, text[0].toUpperCase() + text.slice(1));
    byId("pictures").replaceChildren(title, make("div", {}, ...figures));
  }

  redraw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      const { canvas } = this, ratio = Math.min(devicePixelRatio || 1, 2);
      const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
      const height = Math.max(1, Math.round(canvas.clientHeight * ratio));
      if (canvas.width !== width || canvas.height !== height)
        Object.assign(canvas, { width, height });
      const meshes = this.mesh ? [this.box, this.mesh] : [this.box];
      this.painter.draw(meshes, this.camera, this.colours());
    });
  }

  colours() {
    const style = getComputedStyle(document.documentElement);
    return KINDS.map((name) => {
      const text = name ? style.getPropertyValue(`--${name}`).trim() : "#000000";
      return [1, 3, 5].map((start) => parseInt(text.slice(start, start + 2), 16));
    });
  }
}

// --- The table of results ------------------------------------------------------------------------

class Results {
  constructor(table, shown) {
    this.table = table;
    this.shown = new Map(shown.map(({ name }, index) => [name, index]));
    this.column = 0;
    this.falling = false;
    byId("results").hidden = false;
    byId("results-title").textContent = table.title;
    this.draw();
  }

  draw() {
    const { columns, means } = this.table;
    const head = make("tr", {}, ...["object", "category", ...columns].map((name, column) =>
      this.heading(name, column)));
    const body = make("tbody", {}, ...this.sorted().map((row) => this.row(row)));
    const numbers = means.map((mean) => this.number(mean));
    const foot = make("tr", {}, this.cell("mean"), this.cell(""), ...numbers);
    byId("table").replaceChildren(make("thead", {}, head), body, make("tfoot", {}, foot));
    this.mark(this.marked);
  }

  heading(name, column) {
    const button = make("button", { type: "button", textContent: name });
    button.onclick = () => {
      // Names begin with the first letter, numbers with the best.
      this.falling = column === this.column ? !this.falling : column > 1;
      this.column = column;
      this.draw();
      byId("table").querySelectorAll("th button")[column].focus();
    };
    const cell = make("th", { scope: "col", className: column < 2 ? "text" : "" }, button);
    if (column === this.column) cell.ariaSort = this.falling ? "descending" : "ascending";
    return cell;
  }

  sorted() {
    const { column } = this, sign = this.falling ? -1 : 1;
    const value = ({ name, category, values }) => [name, category, ...values][column];
    const order = (a, b) => (column < 2 ? a.localeCompare(b) : a - b);
    return [...this.table.rows].sort((a, b) => {
      const [one, other] = [value(a), value(b)];
      if (one === null || other === null) return (one === null) - (other === null);
      return sign * order(one, other);
    });
  }

  row({ name, category, values }) {
    let title = name;
    if (this.shown.has(name)) {
      title = make("button", { type: "button", textContent: name });
      title.onclick = () => {
        viewer.select(this.shown.get(name));
        scrollTo({ top: 0, behavior: "smooth" });
      };
    }
    const numbers = values.map((value) => this.number(value));
    const row = make("tr", {}, this.cell(title), this.cell(category), ...numbers);
    row.dataset.name = name;
    return row;
  }

  cell(content) { return make("td", { className: "text" }, content); }

  number(value) {
    const cell = make("td", {}, value === null ? "" : value.toFixed(this.table.digits));
    if (this.table.most && value !== null) {
      const part = Math.round((60 * value) / this.table.most);
      cell.style.background = `color-mix(in srgb, var(--predicted) ${part}%, transparent)`;
    }
    return cell;
  }

  mark(name) {
    this.marked = name;
    for (const row of byId("table").tBodies[0].rows)
      row.classList.toggle("chosen", name !== undefined && row.dataset.name === name);
  }
}

// --- All of it -----------------------------------------------------------------------------------

document.title = data.title ? `${data.title} - tfjoint` : "tfjoint";
byId("title").textContent = data.title || "tfjoint";
data.notes.forEach(say);
let viewer, results;
addEventListener("unhandledrejection", (event) => say(`This page does not work: ${event.reason}`));
if (data.table) results = new Results(data.table, data.gallery?.objects ?? []);
if (data.gallery) {
  if (typeof DecompressionStream === "function") viewer = new Viewer(data.gallery);
  else say("The shapes need a browser of 2023 or later.");
}
