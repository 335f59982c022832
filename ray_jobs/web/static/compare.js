"use strict";

const SEEDS = 2 ** 32;
const SMALL = 256; // pixels; an image up to this size is shown with its pixels visible
const $ = (id) => document.getElementById(id);

/** Ask the API; throws an Error with the server's own words. */
async function ask(path, body) {
  const headers = {};
  if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  } catch {
    throw new Error("The server cannot be reached. Is it still running?");
  }
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  if (response.status === 401) {
    $("key-field").hidden = false;
    $("key").focus();
  }
  throw new Error(answer.error?.message ?? `The server answered ${response.status}.`);
}

function showError(error) {
  $("error").textContent = error ? error.message : "";
  $("error").hidden = !error;
}

async function loadModels() {
  const { data } = await ask("/v1/models");
  const chosen = new Set(chosenModels());
  $("models").replaceChildren(...data.map(({ id }, index) => {
    const box = document.createElement("input");
    box.type = "checkbox";
    box.name = "model";
    box.value = id;
    box.checked = chosen.size ? chosen.has(id) : index < 4;
    const label = document.createElement("label");
    label.append(box, id);
    return label;
  }));
}

function chosenModels() {
  return [...document.querySelectorAll("input[name=model]:checked")].map((box) => box.value);
}

function figure({ model, b64_json, seed }, prompt) {
  const image = new Image();
  image.alt = `${prompt}, drawn by ${model} with seed ${seed}`;
  image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth <= SMALL));
  image.src = `data:image/png;base64,${b64_json}`;
  const details = document.createElement("small");
  details.textContent = `seed ${seed}`;
  const caption = document.createElement("figcaption");
  caption.append(model, details);
  const element = document.createElement("figure");
  element.append(image, caption);
  return element;
}

function setBusy(busy) {
  $("generate").disabled = $("another").disabled = busy;
  $("results").setAttribute("aria-busy", String(busy));
}

async function generate() {
  if (!$("form").reportValidity()) return;
  showError(null);
  setBusy(true);
  const started = performance.now();
  try {
    if (!$("models").childElementCount) await loadModels();
    const models = chosenModels();
    if (!models.length) throw new Error("Choose at least one model.");
    $("status").textContent = `Drawing ${models.length} image${models.length > 1 ? "s" : ""}…`;
    const answer = await ask("/v1/compare", {
      prompt: $("prompt").value,
      models,
      seed: Number($("seed").value),
      num_inference_steps: Number($("steps").value),
      guidance_scale: Number($("guidance").value),
      size: $("size").value,
    });
    $("results").replaceChildren(...answer.data.map((item) => figure(item, answer.prompt)));
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    $("status").textContent = `“${answer.prompt}”, seed ${answer.seed}, ${seconds} s`;
  } catch (error) {
    $("status").textContent = "";
    showError(error);
  } finally {
    setBusy(false);
  }
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
$("another").addEventListener("click", () => {
  $("seed").value = Math.floor(Math.random() * SEEDS);
  generate();
});
$("key").addEventListener("change", () => loadModels().then(() => showError(null), showError));
for (const button of document.querySelectorAll("[data-example]")) {
  button.addEventListener("click", () => {
    $("prompt").value = button.textContent;
    $("prompt").focus();
  });
}
loadModels().catch(showError);
