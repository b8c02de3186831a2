// Pictures: rated, chosen, compared, shown large. The lists themselves are the server's.
import { $, $$, ask, complain, count, make, order, stale, sure, toast } from "./ask.js";
import { around, away, bring, look, more, shape } from "./gallery.js";

const cards = () => $$(".card:has([data-full])");
function cardOf(id) {
  bring(id);
  return document.getElementById("c-" + id);
}

// -- rated: drawn at once, sent in order. What is not answered yet outlives a reload of the tab and
// a service that is down.

const UNSENT = "unsent ratings";
const unsent = JSON.parse(sessionStorage.getItem(UNSENT) ?? "[]"); // [id, rating]
const fresh = new Map(); // id -> rating: newer than what a page says that is under way
const past = []; // for undo: what was before, [[id, rating], ...] of each time
let sending = false;

async function send() {
  if (sending) return;
  sending = true;
  while (unsent.length) {
    const [id, rating] = unsent[0];
    try {
      await ask(`PATCH /jobs/${id}`, JSON.stringify({ rating }));
    } catch (error) {
      if (!error.status || error.status >= 500) {
        toast("The service does not answer. Your ratings are kept and sent when it does.", { bad: true, only: "unsent" });
        setTimeout(send, 1000);
        break;
      }
      complain(error);
    }
    unsent.shift();
    keep();
    setTimeout(() => fresh.get(id) === rating && fresh.delete(id), 5000);
  }
  sending = false;
}
const keep = () => sessionStorage.setItem(UNSENT, JSON.stringify(unsent));

const words = (rating) => (rating < 0 ? "rejected" : rating ? `rated ${rating} of 5` : "not rated");
function draw(id, rating) {
  const far = away.get(id);
  if (far) far.rating = rating;
  for (const row of $$(`[data-id="${id}"][data-rating]`)) row.dataset.rating = rating;
  for (const place of $$(`[data-stars="${id}"]`)) {
    const seen = make("span", rating < 0 ? "✕" : "★".repeat(rating));
    seen.ariaHidden = "true";
    place.replaceChildren(...(rating ? [make("span", words(rating), "hidden"), seen] : []));
  }
  for (const button of $$(`[data-rate="${id}"] button`)) button.ariaPressed = `${+button.value === rating}`;
}
const ratingOf = (id) => +(away.get(id)?.rating ?? $(`[data-id="${id}"][data-rating]`)?.dataset.rating ?? 0);

function rate(ids, rating) {
  if (!ids.length) return;
  past.push(ids.map((id) => [id, ratingOf(id)]));
  give(ids.map((id) => [id, rating]));
  toast(`${count(ids.length, "picture")} ${words(rating)}.`, { undo: unrate, only: "rated" });
}
function unrate() {
  const before = past.pop();
  if (!before) return;
  give(before);
  toast("Taken back.", { only: "rated" });
}
function give(ratings) {
  for (const [id, rating] of ratings) {
    fresh.set(id, rating);
    draw(id, rating);
  }
  unsent.push(...ratings);
  keep();
  send();
}

// -- chosen

const boxes = () => $$(".card .pick input");
const idOf = (box) => box.closest(".card").dataset.id;
const picked = new Set(boxes().filter((box) => box.checked).map(idOf)); // a browser may remember some
const chosen = () => [...picked];
let taken = {}; // up to where a choice was downloaded that is too many for one zip

// What is drawn here over what the server said; after each newer page.
export function redraw() {
  shape();
  for (const [id, rating] of [...unsent, ...fresh]) draw(id, rating);
  for (const box of boxes()) box.checked = picked.has(idOf(box));
  for (const id of picked) if (!away.has(id) && !document.getElementById("c-" + id)) picked.delete(id);
  if (box.open && shown.dataset.state === "generating" && !shown.isConnected) show(cardOf(shown.dataset.id)); // it is done
  const bar = $("#chosen");
  if (!bar) return;
  const ids = chosen();
  bar.hidden = !ids.length;
  $("#main").classList.toggle("choosing", ids.length > 0);
  $("#chosen-count").textContent = `${ids.length} chosen`;
  const zip = $("#chosen-zip"), most = +zip.dataset.most, all = ids.join("&id=");
  if (all !== taken.of) taken = { of: all, until: 0 };
  const part = ids.slice(taken.until, taken.until + most), last = taken.until + part.length;
  zip.textContent = ids.length > most ? `Download ${taken.until + 1} to ${last} of ${ids.length}` : "Download";
  zip.href = "/jobs/images.zip?id=" + part.join("&id=");
  zip.onclick = () => setTimeout(() => {
    taken.until = last < ids.length ? last : 0;
    redraw();
  });
  $("#chosen-compare").disabled = ids.length !== 2;
}
document.addEventListener("filled", ({ detail }) => {
  for (const [id, rating] of detail) if (rating !== ratingOf(id)) draw(id, rating);
  redraw();
});
document.onchange = ({ target }) => {
  if (!target.closest(".pick")) return;
  picked[target.checked ? "add" : "delete"](idOf(target));
  redraw();
};

// What is asked of the whole choice: one batch of new jobs.
const MAKES = {
  again: [{ seeds: "new" }, "each with a new seed"],
  larger: [{ fields: { upscale: 2 } }, "each twice as large"],
  four: [{ fields: { count: 4 } }, "four variations of each"],
};

export async function many(what) {
  const ids = chosen();
  if (what === "all" || what === "none") {
    picked.clear();
    if (what === "all") for (const id of [...boxes().map(idOf), ...away.keys()]) picked.add(id);
    return redraw();
  }
  if (what === "compare") return compare(ids);
  if (what === "other") return $("#other").showModal();
  if (what === "delete") return remove(ids);
  makeOfChosen(...MAKES[what]);
}
async function makeOfChosen(what, how) {
  if (await makeNew(chosen(), what, how)) many("none");
}
// Were they queued?
async function makeNew(ids, what, how) {
  let said;
  try {
    said = await order("POST /jobs/again", JSON.stringify({ ids, ...what }));
    toast(`Queued ${count(said.jobs, "picture")}, ${how}.`, { link: said.location });
  } catch (error) {
    complain(error);
  }
  stale();
  return said !== undefined;
}
async function remove(ids) {
  if (!(await sure(`Delete ${count(ids.length, "picture")}? The files are removed for good.`, "Delete"))) return;
  try {
    for (const id of ids) {
      await ask(`DELETE /jobs/${id}/image`);
      cardOf(id)?.remove();
    }
    toast(`Deleted ${count(ids.length, "picture")}.`);
  } catch (error) {
    complain(error);
  }
  redraw();
  stale();
}
$("#other form").onsubmit = (e) => {
  if (e.submitter.value !== "yes") return;
  const given = Object.fromEntries([...new FormData(e.target)].filter(([, value]) => value));
  if (Object.keys(given).length) makeOfChosen({ fields: given }, "on the same seeds");
};

// -- zoom: wheel, pinch, drag and double click on one of `frames` move the picture in all of them

function zooming(frames, swiped = () => {}) {
  let scale = 1, x = 0, y = 0; // x, y: parts of the frame
  const held = new Map();
  const images = frames.map((frame) => $("img", frame));
  function draw() {
    frames.forEach(({ clientWidth, clientHeight }, n) => {
      images[n].style.transform = `translate(${x * clientWidth}px, ${y * clientHeight}px) scale(${scale})`;
    });
  }
  function move(to, dx = 0, dy = 0) {
    scale = Math.min(16, Math.max(1, to));
    const most = (scale - 1) / 2;
    x = Math.min(most, Math.max(-most, dx));
    y = Math.min(most, Math.max(-most, dy));
    draw();
  }
  // To another scale, with the point under `e` staying where it is.
  function about(to, e, frame) {
    const { left, top, width, height } = frame.getBoundingClientRect();
    const px = (e.clientX - left) / width - 0.5, py = (e.clientY - top) / height - 0.5;
    const by = Math.min(16, Math.max(1, to)) / scale;
    move(to, px - (px - x) * by, py - (py - y) * by);
  }
  // The scale at which a pixel of the picture is one of the screen.
  const whole = ({ naturalWidth: w, naturalHeight: h, clientWidth, clientHeight }) => 1 / Math.min(clientWidth / w, clientHeight / h);
  const toggle = (e, n) => (scale > 1 ? move(1) : about(Math.max(2, whole(images[n])), e, frames[n]));
  frames.forEach((frame, n) => {
    frame.onwheel = (e) => {
      e.preventDefault();
      about(scale * (e.deltaY < 0 ? 1.25 : 0.8), e, frame);
    };
    frame.ondblclick = (e) => toggle(e, n);
    let begun = null;
    frame.onpointerdown = (e) => {
      begun = held.size ? null : e;
      held.set(e.pointerId, e);
      frame.setPointerCapture(e.pointerId);
    };
    frame.onpointermove = (e) => {
      const before = held.get(e.pointerId);
      if (!before) return;
      const other = [...held.values()].find((each) => each.pointerId !== e.pointerId);
      held.set(e.pointerId, e);
      if (other) {
        const far = (a) => Math.hypot(a.clientX - other.clientX, a.clientY - other.clientY) || 1;
        about((scale * far(e)) / far(before), e, frame);
      } else {
        move(scale, x + (e.clientX - before.clientX) / frame.clientWidth, y + (e.clientY - before.clientY) / frame.clientHeight);
      }
    };
    frame.onpointercancel = (e) => held.delete(e.pointerId);
    frame.onpointerup = (e) => {
      held.delete(e.pointerId);
      const dx = begun ? e.clientX - begun.clientX : 0, dy = begun ? e.clientY - begun.clientY : 0;
      if (scale === 1 && Math.abs(dx) > 60 && Math.abs(dx) > 2 * Math.abs(dy)) swiped(dx < 0 ? 1 : -1);
    };
  });
  const middle = () => {
    const { left, top, width, height } = frames[0].getBoundingClientRect();
    return { clientX: left + width / 2, clientY: top + height / 2 };
  };
  return { reset: () => move(1), toggle: () => toggle(middle(), 0), zoomed: () => scale > 1 };
}

// -- two side by side

const pair = $("#pair");
const both = zooming($$(".frame", pair));
function compare(ids) {
  if (ids.length !== 2) return;
  $$("figure", pair).forEach((figure, n) => fill(figure, cardOf(ids[n])));
  both.reset();
  pair.showModal();
}

// -- one picture, large

const box = $("#box");
const large = zooming([$(".frame", box)], (by) => step(by));
let shown = null;
function fill(figure, card) {
  const link = $("[data-full]", card), { id } = card.dataset;
  const image = Object.assign($("img", figure), { src: link.dataset.full, alt: $("img", link).alt });
  image.dataset.preview = card.dataset.state === "generating" ? id : ""; // it grows while it is looked at
  $(".words", figure).textContent = $(".prompt", card).textContent;
  $(".made", figure).textContent = link.dataset.facts ?? "";
  $(".rate", figure).dataset.rate = id;
  $(".rate", figure).hidden = !("rating" in card.dataset);
  draw(id, ratingOf(id));
}
export function show(card) {
  if (!card || !$("[data-full]", card)) return;
  shown = card;
  fill($("figure", box), card);
  large.reset();
  const { id } = card.dataset, { href, dataset } = $("[data-full]", card);
  $("#box-open").href = href;
  $("#box-save").href = `${dataset.full}?download=true`;
  $("#box-start").href = `/?start=${id}`;
  $("#box-edit").href = `/?from=${id}`;
  for (const part of [$("#box-save"), $(".menu", box)]) part.hidden = !("rating" in card.dataset);
  card.scrollIntoView({ block: "nearest" });
  look();
  for (const by of [1, -1]) {
    const beside = cards()[cards().indexOf(card) + by];
    if (beside) new Image().src = $("[data-full]", beside).dataset.full; // it is here when it is wanted
  }
  if (!box.open) box.showModal();
}
async function step(by) {
  const next = () => cards()[cards().findIndex((card) => card.id === shown.id) + by];
  show(next() ?? ((await more()) ? next() : null));
}
$("#box-prev").onclick = () => step(-1);
$("#box-next").onclick = () => step(1);
box.onclose = () => {
  $("img", box).removeAttribute("src");
  $("a.open", document.getElementById(shown.id) ?? shown)?.focus();
};

// -- clicks and keys

document.addEventListener("click", (e) => {
  const one = e.target.closest("[data-one]");
  if (one) return void makeNew([shown.dataset.id], ...MAKES[one.dataset.one]);
  const button = e.target.closest("[data-rate] button, #chosen-rate button");
  if (!button) return;
  const ids = button.closest("#chosen") ? chosen() : [button.closest("[data-rate]").dataset.rate];
  const rating = +button.value;
  rate(ids, button.ariaPressed === "true" ? 0 : rating);
});

// The pictures that a key is meant for: the large one, those that are chosen, the one in focus.
function meant() {
  if (box.open) return "rating" in shown.dataset ? [shown.dataset.id] : [];
  const row = document.activeElement?.closest("[data-rating]") ?? $("#job[data-rating]");
  return row ? ($(".pick :checked", row) ? chosen() : [row.dataset.id]) : chosen();
}
const rates = (rating) => [rating < 0 ? "-" : `${rating}`, () => rate(meant(), rating)];
export const KEYS = {
  ...Object.fromEntries([-1, 0, 1, 2, 3, 4, 5].map(rates)),
  u: unrate,
  c: () => compare(chosen()),
};
// The card above or below the one in focus; false where there are no rows.
export async function along(by) {
  const from = document.activeElement?.closest(".rows .card");
  if (!from) return false;
  around(from);
  const { left, width, top } = from.getBoundingClientRect(), x = left + width / 2;
  const beyond = (card) => (by > 0 ? card.getBoundingClientRect().top > top + 4 : card.getBoundingClientRect().top < top - 4);
  const next = () => {
    const all = $$(".rows .card"), at = all.indexOf(from);
    const rest = (by > 0 ? all.slice(at + 1) : all.slice(0, at).reverse()).slice(0, 200).filter(beyond);
    const row = rest.filter((card) => Math.abs(card.offsetTop - rest[0].offsetTop) < 4 && card.parentNode === rest[0].parentNode);
    const off = (card) => Math.abs(card.getBoundingClientRect().left + card.offsetWidth / 2 - x);
    return row.sort((a, b) => off(a) - off(b))[0];
  };
  const card = next() ?? (by > 0 && (await more()) ? next() : null);
  $("a.open", card ?? from).focus();
  (card ?? from).scrollIntoView({ block: "nearest" });
  return true;
}
const LARGE = {
  ...KEYS,
  ArrowRight: () => step(1),
  ArrowLeft: () => step(-1),
  j: () => step(1),
  k: () => step(-1),
  z: () => large.toggle(),
};
// Keys while a picture is large, or two are: true when they are nobody else's.
export function pressed(key) {
  if (box.open) LARGE[key]?.();
  else if (pair.open && key === "z") both.toggle();
  return box.open || pair.open;
}
redraw();
send();
