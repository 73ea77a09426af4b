// The judging page: one item at a time, one key per choice. Nothing is called saved before the server said so.

import { Outbox, newKey } from "./outbox.js";
import { makeOrder } from "./order.js";

const place = document.getElementById("item");
const status = document.getElementById("status");
const judged = document.getElementById("judged");
const csrf = document.querySelector('meta[name="csrf-token"]').content;
const outbox = new Outbox({ owner: place.dataset.owner, csrf, tell });

let item = null; // {id, question, order}: what is on the screen; null while an answer is on its way
let lookAgain = null;
let lastOrder = null;

// --- time on task: only while the page can be seen ------------------------------------------------------------------

let seen = 0;
let since = null;

function startClock() {
  seen = 0;
  since = document.visibilityState === "visible" ? performance.now() : null;
}

function secondsSeen() {
  return (seen + (since === null ? 0 : performance.now() - since)) / 1000;
}

document.addEventListener("visibilitychange", () => {
  if (since !== null) seen += performance.now() - since;
  since = document.visibilityState === "visible" ? performance.now() : null;
});

// --- showing --------------------------------------------------------------------------------------------------------

function tell(state, sentence) {
  status.dataset.state = state;
  status.textContent = sentence;
}

function adopt() {
  const article = place.querySelector("article");
  clearTimeout(lookAgain);
  item = article && { id: article.dataset.assignment, question: article.dataset.question };
  const list = place.querySelector("[data-order]");
  if (list) item.order = makeOrder(list);
  if (place.querySelector('[data-idle]')) lookAgain = setTimeout(showNext, 10_000);
  markRow();
  startClock();
  place.dataset.ready = "yes"; // keys are heard from here on
}

async function showNext() {
  let found;
  try {
    const response = await fetch("/api/next");
    if (response.status === 401) return tell("refused", "Your session has ended. Ask for a new invitation.");
    if (!response.ok) throw new Error(response.statusText);
    found = await response.json();
  } catch {
    const before = status.dataset.state === "saved" ? "Saved. " : "";
    tell("waiting", `${before}No connection: the next item comes as soon as there is one.`);
    lookAgain = setTimeout(showNext, 3000);
    return;
  }
  const hadIdle = Boolean(place.querySelector("[data-idle]"));
  if (hadIdle && found.state === "idle" && place.querySelector("[data-idle]").dataset.idle === found.reason) {
    lookAgain = setTimeout(showNext, 10_000);
    return;
  }
  place.innerHTML = found.html; // made by our own templates, where every text was cleaned
  adopt();
  scrollTo(0, 0);
  place.querySelector("h1, .prompt")?.focus({ preventScroll: true });
}

// --- sending --------------------------------------------------------------------------------------------------------

function send(path, body) {
  if (!item) return;
  const sent = { ...body, assignment: item.id, seconds: secondsSeen(), key: newKey() };
  item = null;
  lock(true);
  tell("sending", "Saving …");
  outbox.add(path, sent);
}

outbox.onSaved = (said) => {
  if (said.path === "/api/answer") judged.textContent = String(Number(judged.textContent) + 1);
  if (said.path === "/api/undo") judged.textContent = String(said.num_judged);
};

outbox.onDone = async (said) => {
  if (said.ok) {
    tell("saved", said.path === "/api/undo" ? "Taken back: judge it again." : "Saved.");
  } else {
    tell("refused", `${said.path === "/api/undo" ? "Not taken back" : "Not saved"}: ${said.detail ?? "the server refused it"}`);
    if (said.status === 422) return unlock(); // the answer was wrong: it can be mended
  }
  await showNext();
};

function lock(isLocked) {
  for (const button of place.querySelectorAll("button, textarea, input")) button.disabled = isLocked;
}

function unlock() {
  lock(false);
  const article = place.querySelector("article");
  if (article) item = { id: article.dataset.assignment, question: article.dataset.question, order: lastOrder };
}

function answer(payload) {
  const comment = place.querySelector("[data-comment]")?.value.trim();
  lastOrder = item?.order ?? null;
  send("/api/answer", { payload: comment ? { ...payload, comment } : payload });
}

function undo() {
  if (outbox.kept().length) return; // first that must be saved; the line at the bottom says so
  item = null;
  lock(true);
  tell("sending", "Taking back …");
  outbox.add("/api/undo", { key: newKey() });
}

function choose(button) {
  if (!item) return;
  button.setAttribute("aria-pressed", "true");
  const value = Number(button.dataset.choice);
  answer(item.question === "thumbs" ? { is_desirable: value === 1 } : { level: value });
}

function saveForm() {
  if (!item) return;
  const payload = { ranking: readOrder, rating: readRatings, critique: readCritique, edit: readEdit }[item.question]?.();
  if (payload) answer(payload);
}

function readOrder() {
  if (!item.order.isTouched()) {
    item.order.touch();
    return tell("refused", "This is the order they were shown in, by chance. Save once more if it is yours.");
  }
  return { order: item.order.tiers() };
}

function readRatings() {
  const ratings = {};
  for (const row of place.querySelectorAll("[data-attribute]")) {
    const input = row.querySelector("input:checked, input[type=number]");
    if (!input || input.value === "") return tell("refused", `Not saved: ${row.dataset.attribute} has no rating yet.`);
    ratings[row.dataset.attribute] = Number(input.value);
  }
  return { ratings };
}

function readCritique() {
  const text = place.querySelector("[data-text]").value.trim();
  if (!text) return tell("refused", "Not saved: write what is good or bad about the response, or skip it.");
  const edited = editedText();
  return edited === null ? { text } : { text, edited };
}

function readEdit() {
  const edited = editedText();
  if (edited === null) return tell("refused", "Not saved: nothing was changed. Change the response, or skip it.");
  return { edited, text: place.querySelector("[data-text]").value.trim() };
}

function editedText() {
  const area = place.querySelector("[data-edited]");
  return area.value === area.defaultValue || !area.value.trim() ? null : area.value;
}

// --- hands ----------------------------------------------------------------------------------------------------------

place.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.matches("[data-choice]")) choose(button);
  else if (button.matches("[data-undo]")) undo();
  else if (button.matches("[data-reason]")) pass(button, button.dataset.reason);
  else if (button.matches("[data-own-reason]")) pass(button, button.closest("details").querySelector("input").value.trim());
});

place.addEventListener("submit", (event) => {
  event.preventDefault();
  saveForm();
});

place.addEventListener("change", markRow);

function pass(button, reason) {
  if (!reason) return tell("refused", "Say why, in a few words.");
  send(`/api/${button.closest("details").dataset.pass}`, { reason });
}

document.addEventListener("keydown", (event) => {
  const isWriting = event.target.matches("textarea, input[type=text], input[type=number]");
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) return saveForm();
  if (event.key === "Escape" && isWriting) return event.target.blur();
  if (isWriting || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === "Enter" && event.target.matches("button, summary, a")) return; // that control's own
  if (press(key)) event.preventDefault();
});

function press(key) {
  if (key === "u") return undo(), true;
  if (!item) return false;
  const button = [...place.querySelectorAll("[data-keys]")].find((one) => one.dataset.keys.split(" ").includes(key));
  if (button) return choose(button), true;
  if (key === "x" || key === "v" || key === "c") return unfold(key);
  if (key === "Enter" && !place.querySelector("[data-choice]")) return saveForm(), true;
  if (item.order && (key === "Backspace" || /^[1-9]$/.test(key))) {
    return item.order.pick(key === "Backspace" ? null : Number(key) - 1), true;
  }
  return item.question === "rating" && /^[0-9]$/.test(key) ? rate(key) : false;
}

function unfold(key) {
  const summary = place.querySelector(`summary[aria-keyshortcuts="${key}"]`);
  if (!summary) return false;
  summary.parentElement.open = true;
  summary.parentElement.querySelector("button, textarea, input").focus();
  return true;
}

// --- ratings: digits fill the first row without one -----------------------------------------------------------------

function emptyRow() {
  return [...place.querySelectorAll("[data-attribute]")].find((row) => !row.querySelector("input:checked"));
}

function rate(key) {
  const input = emptyRow()?.querySelector(`input[type=radio][value="${key}"]`);
  if (!input) return false;
  input.checked = true;
  markRow();
  return true;
}

function markRow() {
  const empty = emptyRow();
  for (const row of place.querySelectorAll("[data-attribute]")) row.classList.toggle("current", row === empty);
}

adopt();
if (outbox.kept().length) {
  item = null; // what an earlier visit left behind comes first: it may be this very item
  lock(true);
  tell("sending", "Sending what was kept on this device …");
  outbox.send();
}
