// What every part of the page's script uses: elements, words, asking the API, telling a person.
export const $ = (what, where = document) => where.querySelector(what);
export const $$ = (what, where = document) => [...where.querySelectorAll(what)];
export const make = (name, words = "", kind = "") =>
  Object.assign(document.createElement(name), { textContent: words, className: kind });
// Words with what stands between backticks as code.
export const ticks = (where, words) => {
  words.split("`").forEach((part, n) => where.append(n % 2 ? make("code", part) : part));
  return where;
};
export const count = (n, one) => `${n.toLocaleString("en")} ${one}${n === 1 ? "" : "s"}`;
const JSON_TYPE = "application/json";

// -- asking

// Something was changed: what is shown is no longer true.
export const stale = () => document.dispatchEvent(new Event("stale"));

// A seed of more digits than a Number holds stays as it is written, where the browser tells that.
const whole = (name, value, { source } = {}) => (name === "seed" && value > Number.MAX_SAFE_INTEGER ? source ?? value : value);

export async function ask(line, body, type = JSON_TYPE, key = "") {
  const [method, address] = line.split(" ");
  const headers = body === undefined ? {} : { "Content-Type": type };
  if (key) headers["Idempotency-Key"] = key;
  const answer = await fetch(address, { method, body, headers }).catch(() => null);
  if (!answer) throw Object.assign(new Error("The service does not answer."), { said: {}, status: 0 });
  const said = await answer.text().then((text) => JSON.parse(text, whole)).catch(() => ({}));
  if (answer.ok) return said;
  const words = [said.detail || `Error ${answer.status}`, said.remedy].filter(Boolean).join(" ");
  throw Object.assign(new Error(words), { said, status: answer.status });
}

// Asks for new jobs. Until that is answered the same again has the same key: pressed twice, or again
// after its answer was lost, it is made once.
const unanswered = new Map(); // what was asked -> its key
export async function order(line, body, type) {
  const what = body instanceof Blob ? body : `${line} ${body}`;
  const key = unanswered.get(what) ?? crypto.getRandomValues(new Uint32Array(4)).join("-");
  unanswered.set(what, key);
  const said = await ask(line, body, type, key);
  unanswered.delete(what);
  return said;
}

// -- telling

// `undo`: a line to ask, or a function; `only`: takes the place of the one before it of this name.
export function toast(words, { bad = false, undo, link, only } = {}) {
  const box = make("div", "", bad ? "toast bad" : "toast");
  box.append(ticks(make("span"), words));
  if (only) {
    $(`#toasts [data-only=${only}]`)?.remove();
    box.dataset.only = only;
  }
  const away = (words, kind, then) => {
    const button = box.appendChild(make("button", words, kind));
    button.onclick = () => (box.remove(), then?.());
    return button;
  };
  if (undo) away("Undo", "", typeof undo === "string" ? () => undoing(undo) : undo);
  if (link) box.append(Object.assign(make("a", "Open", "button"), { href: link }));
  away("", "close").ariaLabel = "Hide this message";
  // What lies behind an open dialog can neither be pressed nor heard.
  ($("dialog[open]") ?? document.body).append($("#toasts"));
  $("#toasts").append(box);
  const leave = () => (box.matches(":hover, :focus-within") ? setTimeout(leave, 1000) : box.remove());
  setTimeout(leave, undo ? 20000 : bad ? 12000 : 8000);
}
export const complain = (error) => toast(error.message, { bad: true });
document.addEventListener("close", () => document.body.append($("#toasts")), true);

// A running job is cancelled only after its step: until then it cannot be queued again.
async function undoing(line) {
  try {
    await ask(line);
    stale();
  } catch (error) {
    if (error.said.code === "wrong_state" && error.said.state === "generating")
      setTimeout(undoing, 500, line);
    else complain(error);
  }
}

export function sure(words, yes) {
  $("#sure-words").textContent = words;
  $("#sure-yes").textContent = yes;
  const box = $("#sure");
  box.returnValue = "";
  box.showModal();
  return new Promise((done) => (box.onclose = () => done(box.returnValue === "yes")));
}
