// Talking to the service. Errors are thrown with the one line that the service answers.

let key = sessionStorage.getItem("detrove-key");

export const getModel = () => ask("/v1/model", {});

/** Ask about one picture: `fields` go with it; objects among them are sent as JSON. */
export function post(path, file, fields) {
  const form = new FormData();
  form.append("files", file, file.name || "picture");
  for (const [name, value] of Object.entries(fields)) {
    form.append(name, typeof value === "object" ? JSON.stringify(value) : String(value));
  }
  return ask(path, { method: "POST", body: form });
}

async function ask(path, options) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The service does not answer; is it still running?");
  }
  if (response.status === 401) {
    await askForKey();
    return ask(path, options);
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error || `The service answered ${response.status}`);
  return answer;
}

function askForKey() {
  const dialog = document.getElementById("key-dialog");
  const field = document.getElementById("key");
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      key = field.value;
      sessionStorage.setItem("detrove-key", key);
      resolve();
    }, { once: true });
  });
}

/** The bytes of base64 text. */
export const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
