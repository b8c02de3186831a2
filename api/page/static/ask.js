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

export async function ask(line, body, type = JSON_TYPE) {
  const [method, address] = line.split(" ");
  const headers = body === undefined ? {} : { "Content-Type": type };
  const answer = await fetch(address, { method, body, headers }).catch(() => null);
  if (!answer) throw Object.assign(new Error("The service does not answer."), { said: {}, status: 0 });
  const said = await answer.json().catch(() => ({}));
  if (answer.ok) return said;
  const words = [said.detail || `Error ${answer.status}`, said.remedy].filter(Boolean).join(" ");
  throw Object.assign(new Error(words), { said, status: answer.status });
}

// `undo`: a line to ask, or a function; `only`: takes the place of the one before it of this name.
export function toast(words, { bad = false, undo, link, only } = {}) {
  const box = make("div", words, bad ? "toast bad" : "toast");
  if (only) {
    $(`#toasts [data-only=${only}]`)?.remove();
    box.dataset.only = only;
  }
  if (undo) {
    const button = make("button", "Undo");
    button.onclick = () => {
      box.remove();
      if (typeof undo === "string") undoing(undo);
      else undo();
    };
    box.append(button);
  }
  if (link) box.append(Object.assign(make("a", "Open", "button"), { href: link }));
  $("#toasts").append(box);
  setTimeout(() => box.remove(), bad ? 12000 : 8000);
}

// A running job is cancelled only after its step: until then it cannot be queued again.
async function undoing(line, tries = 20) {
  try {
    await ask(line);
    stale();
  } catch (error) {
    if (error.said.code === "wrong_state" && error.said.state === "generating" && tries)
      setTimeout(undoing, 300, line, tries - 1);
    else toast(error.message, { bad: true });
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
