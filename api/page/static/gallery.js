// The gallery: rows that keep shapes, their height, and older pictures as they are come to. A part is
// what one answer brought. Far from the screen it is left as a height and its HTML, so that ten
// thousand pictures weigh in a tab as much as the few hundred around the screen.
import { $, $$ } from "./ask.js";

const NEAR = 1500, FAR = 2500; // px between the screen and a part that is shown, or is not
const wall = $("#gallery"), sizer = $("#row-size");
const parts = () => [...(wall?.children ?? [])];
const kept = new Map(); // part that is not shown -> { html, height, layout }
export const away = new Map(); // id of a picture in one of these -> { part, rating }

// -- rows

export function shape(where = wall) {
  for (const card of $$(".rows .card:not([style])", where ?? document.body)) {
    const image = $(".shot img", card);
    card.style.setProperty("--r", image ? image.getAttribute("width") / image.getAttribute("height") : 1);
  }
}
// What the wrapping of rows hangs on.
const layout = () => ({ width: wall.clientWidth, size: sizer.value });

// The last row of a part goes to the next one where the day goes on: so all its rows are full.
const ragged = new Set(); // parts of which that is still to be done, once both are shown
function settle(part) {
  const next = part.nextElementSibling;
  if (!ragged.has(part) || kept.has(part) || !next || kept.has(next)) return;
  ragged.delete(part);
  const cards = $$(".day.on:last-child > .cards > .card", part), top = cards.at(-1)?.offsetTop;
  const focused = document.activeElement;
  for (const card of cards) card.dataset.page ??= part.dataset.here;
  if (cards.length) $(".cards", next).prepend(...cards.filter((card) => card.offsetTop === top));
  if (focused !== document.activeElement) focused.focus({ preventScroll: true });
}
function again() {
  const now = layout();
  for (const part of parts()) {
    const was = kept.get(part);
    ragged.add(part);
    if (was) part.style.height = `${(was.height * was.layout.width * now.size ** 2) / now.width / was.layout.size ** 2}px`;
  }
  for (const part of parts()) settle(part);
  look();
}

// -- parts

function fill(part) {
  if (!kept.has(part)) return;
  const { html } = kept.get(part);
  kept.delete(part);
  part.innerHTML = html;
  part.style.height = "";
  shape(part);
  const rated = $$(".card", part).map(({ dataset }) => [dataset.id, away.get(dataset.id)?.rating]);
  for (const [id] of rated) away.delete(id);
  document.dispatchEvent(new CustomEvent("filled", { detail: rated.filter(([, rating]) => rating !== undefined) }));
  for (const each of [part, part.previousElementSibling]) if (each) settle(each);
}
function empty(part) {
  if (kept.has(part) || part.contains(document.activeElement)) return;
  const { height } = part.getBoundingClientRect();
  for (const card of $$(".card", part)) {
    card.removeAttribute("style"); // the page's policy takes none that stands in HTML
    const { id, rating } = card.dataset;
    if (rating !== undefined) away.set(id, { part, rating: +rating });
  }
  kept.set(part, { html: part.innerHTML, height, layout: layout() });
  part.style.height = `${height}px`;
  part.replaceChildren();
}
// The picture `id` is in the page, at least until the next look.
export function bring(id) {
  const far = away.get(id);
  if (far) fill(far.part);
}

let coming = null;
// Adds the next older page below; false when there is none. Two at once share the answer.
export const more = () => (coming ??= older().then(came));
function came(some) {
  coming = null;
  if (some) look();
  return some;
}
async function older() {
  const before = wall?.lastElementChild, address = before?.dataset.older;
  if (!address) return false;
  const answer = await fetch(address, { headers: { Accept: "text/html" } }).catch(() => null);
  if (!answer?.ok) return false;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const part = $("#gallery > .part", page);
  if (!part) return false; // another page: the service wants a login
  fill(before);
  for (const day of $$(".day", part)) {
    day.dataset.day = day.id;
    day.removeAttribute("id");
  }
  const last = $(".day:last-child", before), first = $(".day", part);
  if ((last?.dataset.day ?? last?.id) === first?.dataset.day) {
    last.classList.add("on");
    first.classList.add("goes");
  }
  shape(part);
  delete before.dataset.older;
  wall.append(part);
  ragged.add(before);
  settle(before);
  wall.dataset.keep = $("#pages").dataset.keep = ""; // newer pages no longer say all that is here
  $("[rel=next]", $("#pages"))?.remove();
  document.dispatchEvent(new CustomEvent("filled", { detail: [] }));
  return true;
}

// Shows the parts around the screen, and those alone.
export function look() {
  const places = parts().map((part) => [part, part.getBoundingClientRect()]);
  for (const [part, { top, bottom }] of places) {
    const off = Math.max(top - innerHeight, -bottom);
    if (off < NEAR) fill(part);
    else if (off > FAR) empty(part);
  }
  if (places.length && places.at(-1)[1].bottom < innerHeight + NEAR) more();
}

// The parts on both sides of the one that `card` is in are shown.
export function around(card) {
  const part = card?.closest(".part");
  for (const beside of [part?.previousElementSibling, part?.nextElementSibling]) if (beside) fill(beside);
}

if (wall) {
  const set = () => document.documentElement.style.setProperty("--row", `${sizer.value}rem`);
  sizer.value = localStorage.getItem("row size") ?? (innerWidth < 700 ? 7 : 12);
  set();
  shape();
  let changed = 0, moved = 0, stands = 0;
  const later = () => {
    clearTimeout(changed);
    changed = setTimeout(again, 150);
  };
  sizer.oninput = () => {
    set();
    localStorage.setItem("row size", sizer.value);
    later();
  };
  addEventListener("resize", later);
  addEventListener("scroll", () => {
    moved ||= requestAnimationFrame(() => {
      moved = 0;
      look();
    });
    // The address says where one is, so that a reload and "back" come back there.
    clearTimeout(stands);
    stands = setTimeout(() => {
      const card = document.elementFromPoint(innerWidth / 3, innerHeight / 2)?.closest(".rows .card");
      const here = card?.dataset.page ?? card?.closest(".part").dataset.here;
      if (here) history.replaceState({ card: card.id, top: card.getBoundingClientRect().top }, "", here);
    }, 200);
  }, { passive: true });
  history.scrollRestoration = "manual"; // a browser knows of what was on the page then, not of what is
  const { card, top } = history.state ?? {}, was = document.getElementById(card);
  if (was) scrollBy(0, was.getBoundingClientRect().top - top);
  look();
}
