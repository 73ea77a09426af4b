// What was judged and is not yet acknowledged: kept on this device until the server says it has it.

const LONGEST_WAIT = 30_000;

export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16)); // randomUUID is missing on plain http
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class Outbox {
  // `owner` keeps people apart who share a browser; `tell(state, sentence)` shows what is happening.
  constructor({ owner, csrf, tell }) {
    this.place = `accord.outbox.${owner}`;
    this.csrf = csrf;
    this.tell = tell;
    this.wait = 1000;
    this.timer = null;
    this.isSending = false;
    this.unstored = [];
    addEventListener("online", () => this.send());
  }

  kept() {
    try {
      return JSON.parse(localStorage.getItem(this.place)) ?? this.unstored;
    } catch {
      return this.unstored;
    }
  }

  keep(entries) {
    this.unstored = entries; // where a browser stores nothing, this page must not be closed
    try {
      if (entries.length) localStorage.setItem(this.place, JSON.stringify(entries));
      else localStorage.removeItem(this.place);
    } catch {
      addEventListener("beforeunload", (event) => this.unstored.length && event.preventDefault());
    }
  }

  // Keep first, then send: a tab that dies in between loses nothing.
  async add(path, body) {
    this.keep([...this.kept(), { path, body }]);
    return this.send();
  }

  // Send all that is kept, oldest first. Returns the last answer of the server, or null while something waits.
  async send() {
    if (this.isSending) return null;
    clearTimeout(this.timer);
    this.isSending = true;
    let last = null;
    try {
      for (let entries = this.kept(); entries.length; entries = this.kept()) {
        last = await this.sendOne(entries[0]);
        if (last === null) return null;
        if (last.ok) this.onSaved?.(last);
        const key = entries[0].body.key;
        this.keep(this.kept().filter((entry) => entry.body.key !== key));
        this.wait = 1000;
      }
    } finally {
      this.isSending = false;
    }
    if (last) this.onDone?.(last);
    return last;
  }

  async sendOne({ path, body }) {
    let response;
    try {
      response = await fetch(path, {
        method: "POST",
        headers: { "content-type": "application/json", "x-csrf-token": this.csrf },
        body: JSON.stringify(body),
      });
    } catch {
      return this.later("Not saved yet: no connection. Your answer is kept on this device and is sent again by itself.");
    }
    if (response.status === 401) {
      this.tell("waiting", "Not saved yet: your session has ended. Open your page again; your answer is kept on this device.");
      return null;
    }
    if (response.status === 429 || response.status >= 500) {
      return this.later("Not saved yet: the server is busy. Your answer is kept on this device and is sent again by itself.");
    }
    const said = await response.json().catch(() => ({}));
    return { ...said, ok: response.ok, status: response.status, path };
  }

  later(sentence) {
    this.tell("waiting", sentence);
    this.timer = setTimeout(() => this.send(), this.wait);
    this.wait = Math.min(this.wait * 2, LONGEST_WAIT);
    return null;
  }
}
