"use strict";
// The page's state lives in the address behind #, so that a view can be kept or sent: #q=lion&seed=42&picture=7
const { pictures, sweep } = JSON.parse(document.getElementById("values").textContent);
const LABELS = {
  prompt: "Prompt", steps: "Steps", guidance_scale: "Guidance scale", sampler: "Sampler", schedule: "Spacing",
  eta: "Eta", strength: "Strength", size: "Size", negative_prompt: "Negative prompt", init: "Init image", seed: "Seed",
  take: "Picture no.", clip: "CLIP score", seconds: "Seconds", flagged: "Flagged", note: "Note", attempts: "Tries",
  file: "File", sha256: "SHA-256", device: "Device", worker: "Worker",
};
const CONTROLS = ["q", "seed", "show", "sort", "view", "rows", "columns", "size"];
const DEFAULTS = { tab: "pictures", size: "168", rows: sweep?.rows, columns: sweep?.columns };

const at = (id) => document.getElementById(id);
const gallery = at("gallery");
const byIndex = new Map(pictures.map((picture) => [picture.index, picture]));
const drawnTiles = [...document.querySelectorAll("#gallery .tile")];
const tiles = new Map(drawnTiles.map((tile) => [Number(tile.dataset.index), tile]));
let state = {};
let shown = [];
let drawn = "";
let order = "";

function element(name, properties = {}, children = []) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function readAddress() {
  state = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  draw();
}

function change(changes) {
  state = { ...state, ...changes };
  for (const [key, value] of Object.entries(state)) {
    if (value === "" || value === undefined || value === null || value === DEFAULTS[key]) delete state[key];
  }
  history.replaceState(null, "", `#${new URLSearchParams(state)}`);
  draw();
}

const value = (key) => state[key] ?? DEFAULTS[key] ?? "";

function seedsWanted(text) {
  const ranges = text.split(/[\s,;]+/).filter(Boolean).map((word) => /^(\d+)(?:-(\d+))?$/.exec(word));
  return (seed) => ranges.some((range) => range && seed >= Number(range[1]) && seed <= Number(range[2] ?? range[1]));
}

function chosen() {
  const words = value("q").toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = value("seed").trim() ? seedsWanted(value("seed")) : () => true;
  const show = value("show");
  const kept = pictures.filter((picture) => {
    const text = picture.prompt.toLowerCase();
    return words.every((word) => text.includes(word)) && wanted(picture.seed)
      && (!show || (show === "noted" ? Boolean(picture.note) : Boolean(picture[show])));
  });
  return sorted(kept);
}

const ORDERS = {
  slow: (a, b) => (b.seconds ?? -1) - (a.seconds ?? -1),
  worst: (a, b) => (a.clip ?? 101) - (b.clip ?? 101),
  best: (a, b) => (b.clip ?? -1) - (a.clip ?? -1),
};
const sorted = (some) => (ORDERS[value("sort")] ? [...some].sort(ORDERS[value("sort")]) : some);

function draw() {
  const tab = at(value("tab"))?.matches("main > section") ? value("tab") : "pictures";
  for (const section of document.querySelectorAll("main > section")) {
    section.classList.toggle("current", section.id === tab);
  }
  for (const link of document.querySelectorAll("[data-tab]")) {
    if (link.dataset.tab === tab) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (gallery) drawPictures();
  drawDetails();
}

function drawPictures() {
  for (const id of CONTROLS) {
    const control = at(id);
    if (control && document.activeElement !== control) control.value = value(id);
  }
  document.documentElement.style.setProperty("--size", `${Number(value("size")) || 168}px`);
  gallery.classList.toggle("compact", Number(value("size")) < 128);
  const key = JSON.stringify(["q", "seed", "show", "sort", "view", "rows", "columns"].map(value));
  if (key === drawn) return;
  drawn = key;
  shown = chosen();
  const asSweep = Boolean(sweep) && value("view") === "sweep";
  const part = shown.length === pictures.length ? "" : `${shown.length.toLocaleString("en")} of `;
  at("count").value = part + counted(pictures.length);
  at("nothing").hidden = shown.length > 0;
  gallery.hidden = asSweep;
  at("sweep").hidden = !asSweep || !shown.length;
  for (const label of document.querySelectorAll(".of-sweep")) label.hidden = !asSweep;
  if (asSweep) drawSweep();
  else drawGallery();
}

const counted = (number) => `${number.toLocaleString("en")} ${number === 1 ? "picture" : "pictures"}`;

function drawGallery() {
  const kept = new Set(shown.map((picture) => picture.index));
  for (const [index, tile] of tiles) {
    if (tile.parentElement.hidden === kept.has(index)) tile.parentElement.hidden = !kept.has(index);
    if (tile.tabIndex !== -1) tile.tabIndex = -1;
  }
  // Moving thousands of tiles takes a second, so they stay where they are until another order is asked for.
  if (value("sort") !== order) {
    gallery.append(...sorted(pictures).map((picture) => tiles.get(picture.index).parentElement));
  }
  order = value("sort");
  if (shown.length) tiles.get(shown[0].index).tabIndex = 0;
}

// Numbers by size, all else in the order of the plan.
function valuesOf(field) {
  const found = [...new Set(shown.map((picture) => picture[field]))];
  return found.every((each) => typeof each === "number") ? found.sort((a, b) => a - b) : found;
}

function drawSweep() {
  const [rows, columns] = [value("rows"), value("columns")];
  const cells = new Map();
  for (const picture of shown) {
    const key = JSON.stringify([picture[rows], picture[columns]]);
    cells.set(key, [...(cells.get(key) ?? []), picture]);
  }
  const across = valuesOf(columns);
  const named = (field, each) => (each === "" ? "(none)" : field === "prompt" ? each : `${each}`);
  const axes = `${LABELS[rows]} \u2193  ${LABELS[columns]} \u2192`;
  const corner = element("th", { scope: "col" }, [element("span", { className: "axis", textContent: axes })]);
  const titles = across.map((each) => element("th", { scope: "col", textContent: named(columns, each), dir: "auto" }));
  const head = element("thead", {}, [element("tr", {}, [corner, ...titles])]);
  const body = element("tbody", {}, valuesOf(rows).map((down) => element("tr", {}, [
    element("th", { scope: "row", title: named(rows, down) }, [
      element("span", { className: "clamp", textContent: named(rows, down), dir: "auto" }),
    ]),
    ...across.map((each) => {
      const inside = cells.get(JSON.stringify([down, each])) ?? [];
      if (!inside.length) return element("td", { textContent: "\u00b7" });
      return element("td", {}, [element("div", { className: "cell" }, inside.map(copyOfTile))]);
    }),
  ])));
  at("sweep").replaceChildren(element("table", {}, [head, body]));
  const first = at("sweep").querySelector(".tile");
  if (first) first.tabIndex = 0;
}

function copyOfTile(picture) {
  const copy = tiles.get(picture.index).cloneNode(true);
  copy.tabIndex = -1;
  copy.setAttribute("aria-label", `picture ${picture.index}: ${picture.prompt}`);
  return copy;
}

function drawDetails() {
  const dialog = at("details");
  const picture = byIndex.get(Number(state.picture));
  if (!("picture" in state) || !picture) {
    if (dialog.open) dialog.close();
    return;
  }
  const image = tiles.get(picture.index)?.querySelector("img")?.cloneNode();
  if (image) Object.assign(image, { alt: picture.prompt, loading: "eager" });
  at("details-picture").replaceChildren(image ?? element("p", { className: "muted", textContent: "no picture" }));
  at("details-title").textContent = `Picture ${picture.index}`;
  at("details-prompt").textContent = picture.prompt;
  at("details-trouble").hidden = !picture.trouble;
  at("details-trouble").textContent = picture.trouble ?? "";
  at("details-infotext").textContent = picture.infotext;
  at("details-fields").replaceChildren(...Object.keys(LABELS).filter((key) => isTold(picture, key)).flatMap((key) => [
    element("dt", { textContent: LABELS[key] }),
    element("dd", { textContent: key === "flagged" ? "by the safety checker" : picture[key] }),
  ]));
  at("details-file").hidden = !picture.file || Boolean(picture.trouble);
  at("details-file").setAttribute("href", encodeURI(picture.file ?? ""));
  at("copied").textContent = "";
  const place = shown.indexOf(picture);
  at("previous").disabled = place <= 0;
  at("next").disabled = place < 0 || place === shown.length - 1;
  if (!dialog.open) dialog.showModal();
}

const isTold = (picture, key) => key !== "prompt" && key !== "take" && ![undefined, "", false].includes(picture[key])
  && !(key === "eta" && picture.eta === 0) && !(key === "schedule" && picture.schedule === "uniform");

function step(by) {
  const place = shown.indexOf(byIndex.get(Number(state.picture)));
  const next = shown[place + by];
  if (place >= 0 && next) change({ picture: String(next.index) });
}

async function copy(text, source) {
  try {
    await navigator.clipboard.writeText(text);
    at("copied").textContent = "copied";
  } catch {
    getSelection().selectAllChildren(source);
    at("copied").textContent = document.execCommand("copy") ? "copied" : "selected: press Ctrl+C";
  }
}

function visibleTiles() {
  const place = at("sweep").hidden ? gallery : at("sweep");
  return [...place.querySelectorAll(".tile")].filter((tile) => !tile.closest("[hidden]"));
}

// The tile that the arrow leads to from this one: the next in its row, or the nearest in the row above or below.
function neighbour(tile, key) {
  const all = visibleTiles();
  const place = all.indexOf(tile);
  if (key === "Home") return all[0];
  if (key === "End") return all[all.length - 1];
  if (key === "ArrowLeft") return all[place - 1];
  if (key === "ArrowRight") return all[place + 1];
  const from = tile.getBoundingClientRect();
  const ahead = key === "ArrowDown" ? all.slice(place + 1) : all.slice(0, place).reverse();
  const beyond = ahead.filter((other) => Math.abs(other.getBoundingClientRect().top - from.top) > 4);
  if (!beyond.length) return undefined;
  const top = beyond[0].getBoundingClientRect().top;
  const row = beyond.filter((other) => Math.abs(other.getBoundingClientRect().top - top) <= 4);
  const away = (other) => Math.abs(other.getBoundingClientRect().left - from.left);
  return row.reduce((best, other) => (away(other) < away(best) ? other : best));
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (at("details").open) {
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") step(event.key === "ArrowLeft" ? -1 : 1);
    return;
  }
  const typing = event.target.matches?.("input, select, textarea");
  if (event.key === "/" && !typing && gallery) {
    event.preventDefault();
    change({ tab: "pictures" });
    at("q").focus();
    at("q").select();
  }
  const tile = event.target.closest?.(".tile");
  if (tile && ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"].includes(event.key)) {
    event.preventDefault();
    const next = neighbour(tile, event.key);
    if (!next) return;
    tile.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
    next.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
}

function start() {
  document.documentElement.classList.add("script");
  addEventListener("hashchange", readAddress);
  addEventListener("keydown", onKey);
  at("details").addEventListener("close", () => {
    const tile = visibleTiles().find((each) => each.dataset.index === state.picture);
    if ("picture" in state) change({ picture: "" });
    tile?.focus({ preventScroll: false });
  });
  at("details").addEventListener("click", (event) => { if (event.target === at("details")) at("details").close(); });
  at("close").addEventListener("click", () => at("details").close());
  at("previous").addEventListener("click", () => step(-1));
  at("next").addEventListener("click", () => step(1));
  at("copy").addEventListener("click", () => copy(at("details-infotext").textContent, at("details-infotext")));
  at("copy-prompt").addEventListener("click", () => copy(at("details-prompt").textContent, at("details-prompt")));
  for (const link of document.querySelectorAll("[data-tab]")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      change({ tab: link.dataset.tab });
      scrollTo(0, 0);
    });
  }
  if (gallery) {
    for (const axis of ["rows", "columns"]) {
      const named = (field) => element("option", { value: field, textContent: LABELS[field].toLowerCase() });
      at(axis)?.append(...sweep.fields.map(named));
    }
    for (const id of CONTROLS) at(id)?.addEventListener("input", (event) => change({ [id]: event.target.value }));
    document.querySelector(".tools").addEventListener("submit", (event) => event.preventDefault());
    at("reset").addEventListener("click", () => change({ q: "", seed: "", show: "" }));
    for (const place of [gallery, at("sweep")]) {
      place.addEventListener("click", (event) => {
        const tile = event.target.closest(".tile");
        if (tile) change({ picture: tile.dataset.index });
      });
    }
  }
  readAddress();
}

start();
