// The form for a new picture: what it asks for, and its fields that go together.
import { $, $$, count, order, stale, toast } from "./ask.js";

export const form = $("#new");
const OF_PICTURE = /^(image|mask.*|strength|resize)$/; // source.js says these
// What the form asks for, as a job says it; `exact`, as text, what a Number may not hold to the last digit.
// `rest`: what the job that is edited said, which holds where the form has no field.
export function asked() {
  const given = Object.fromEntries(new FormData(form));
  const { size, width, height, seed, prompt, negative_prompt, model, lora, after, metadata, rest = "{}", ...numbers } = given;
  const sides = size ? size.split("x") : [width, height];
  const unasked = ([name]) => !form.elements[name] && !(form.beginning && OF_PICTURE.test(name));
  const job = { ...Object.fromEntries(Object.entries(JSON.parse(rest)).filter(unasked)), prompt };
  if (size !== "picture") Object.assign(job, { width: +sides[0], height: +sides[1] });
  for (const [name, value] of Object.entries(numbers)) if (value) job[name] = +value;
  if (negative_prompt) job.negative_prompt = negative_prompt;
  if (model) job.model = model;
  if (lora) job.lora = lora;
  const exact = {};
  if (seed) exact.seed = BigInt(seed);
  if (metadata) exact.metadata = metadata;
  return [job, exact];
}
// A job as JSON.
export function written(job, exact) {
  const fields = Object.entries(exact).map(([name, text]) => `,"${name}":${text}`);
  return `${JSON.stringify(job).slice(0, -1)}${fields.join("")}}`;
}
form?.addEventListener("submit", async (e) => {
  e.preventDefault();
  const button = $("button.main", form);
  if (button.disabled) return;
  button.disabled = true;
  const [job, exact] = asked();
  try {
    Object.assign(job, await form.beginning?.()); // source.js
    const said = await order("POST /jobs", written(job, exact));
    toast(`Queued ${count(said.jobs, "picture")}.`, { link: said.location });
    form.prompt.select();
  } catch (error) {
    toast(error.message.replace(/^Line 1: /, ""), { bad: true }); // it has one
  }
  button.disabled = false;
  stale();
});
form?.model?.addEventListener("change", () => {
  const usual = form.model.selectedOptions[0].dataset;
  form.size.value = `${usual.width}x${usual.height}`;
  if (form.size.selectedIndex < 0) form.size.value = ""; // another size
  form.width.value = usual.width;
  form.height.value = usual.height;
  form.num_inference_steps.value = usual.steps;
  fit();
});
// Only what the chosen model takes is asked for, and only LoRAs that fit it are offered.
function fit() {
  const { takes, loras } = form.model.selectedOptions[0].dataset;
  for (const part of $$("[data-for]", form)) {
    part.hidden = !takes.split(" ").includes(part.dataset.for);
    for (const field of $$("[name]", part)) field.disabled = part.hidden;
  }
  for (const chip of $$("[data-lora]", form)) chip.hidden = !JSON.parse(loras).includes(chip.dataset.lora);
}
if (form?.model) fit();
// The LoRAs that are named in the field are pressed, and the other way round.
const named = () => form.lora.value.split(",").map((each) => each.trim()).filter(Boolean);
const pressLoras = () => {
  for (const chip of $$("[data-lora]", form)) chip.ariaPressed = `${named().some((each) => each.split(":")[0] === chip.dataset.lora)}`;
};
export function pick({ lora }) {
  const others = named().filter((each) => each.split(":")[0] !== lora);
  form.lora.value = (others.length < named().length ? others : [...others, lora]).join(", ");
  pressLoras();
}
form?.lora?.addEventListener("input", pressLoras);
if (form?.lora) pressLoras();
form?.prompt.addEventListener("keydown", (e) => {
  if (e.key === "Enter" && !e.shiftKey && !e.isComposing) {
    e.preventDefault();
    form.requestSubmit();
  }
});
