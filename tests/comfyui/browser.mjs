// Opens a ComfyUI page in a headless Chromium, loads a workflow, says what the frontend makes of it.
//
//   node browser.mjs '{"url": ..., "playwright": folder with node_modules, "chromium": path,
//                      "profile": empty folder, "workflow": path of a workflow or of an API prompt, or null,
//                      "queue": false, "screenshot": path of a PNG, "save": path for the workflow as loaded
//                      (which is then loaded again), "scale": pixels of the PNG for one of the page (1),
//                      "templates": title of a pack}'
//
// Prints one line of JSON: nodes (id, type, title, missing, error, red inputs, widgets, values outside a
// combo's list), graph (where it is in the page: x, y, width, height), dialogs and messages as text, console
// and page errors (those of the start apart), failed requests, requests elsewhere (which are refused), with
// "queue" how the run ended, and with "templates" the pack's cards in the template browser, which the
// screenshot then shows.
import { createRequire } from "node:module";
import { readFileSync, writeFileSync } from "node:fs";

const options = JSON.parse(process.argv[2]);
const { chromium } = createRequire(options.playwright + "/")("playwright-core");
const seconds = 1000;

const context = await chromium.launchPersistentContext(options.profile, {
  executablePath: options.chromium,
  headless: true,
  viewport: { width: 1600, height: 950 },
  deviceScaleFactor: options.scale ?? 1,
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-proxy-server",
  ],
});
const report = { console: [], page_errors: [], failed: [], elsewhere: [] };
try {
  const page = context.pages()[0] ?? (await context.newPage());
  await page.route("**/*", (route) => {
    const url = route.request().url();
    if (url.startsWith(options.url) || /^(data|blob):/.test(url)) return route.continue();
    report.elsewhere.push(url);
    return route.abort();
  });
  page.on("console", (message) => {
    if (message.type() === "error") report.console.push(message.text());
  });
  page.on("pageerror", (error) => report.page_errors.push(String(error.stack ?? error)));
  page.on("response", (answer) => {
    const { status, method } = { status: answer.status(), method: answer.request().method() };
    if (status >= 400) report.failed.push(`${status} ${method} ${answer.url()}`);
  });

  await page.goto(options.url, { waitUntil: "load", timeout: 600 * seconds });
  await page.waitForFunction(
    () => window.app?.graph && window.app.canvas && window.LiteGraph?.registered_node_types?.KSampler,
    null, { timeout: 600 * seconds },
  );
  await page.waitForTimeout(2 * seconds); // what opens by itself at the first start is open by now
  report.opened = await dialogs(page);
  report.start_errors = report.page_errors.splice(0); // a pack's, or the frontend's own
  await page.keyboard.press("Escape");

  if (options.workflow) {
    const text = readFileSync(options.workflow, "utf8");
    await page.evaluate(async ([text, name]) => {
      const data = JSON.parse(text);
      if (data.nodes) await window.app.loadGraphData(data, true, true, name);
      else await window.app.loadApiJson(data, name);
      window.app.graph.setDirtyCanvas?.(true, true);
    }, [text, "test"]);
    await page.waitForTimeout(1 * seconds);
    await fit(page);
    report.dialogs = await dialogs(page);
    report.nodes = await nodes(page);
    if (options.save) {
      const workflow = await page.evaluate(() => window.app.graph.serialize());
      writeFileSync(options.save, JSON.stringify(workflow, null, 2) + "\n");
    }
    report.prompt = await prompt(page);
    if (options.save) { // and loaded again
      const saved = JSON.parse(readFileSync(options.save, "utf8"));
      await page.evaluate((data) => window.app.loadGraphData(data, true, true, "saved"), saved);
      await page.waitForTimeout(1 * seconds);
      report.saved_prompt = await prompt(page);
      await fit(page);
    }
    if (options.queue) report.run = await run(page);
    report.after = await nodes(page);
    report.dialogs_after = await dialogs(page);
  }
  if (options.templates) report.templates = await templates(page, options.templates);
  if (options.screenshot) await page.screenshot({ path: options.screenshot });
} catch (error) {
  report.failure = String(error?.stack ?? error);
} finally {
  await context.close();
}
console.log(JSON.stringify(report));

// The whole graph in view; where it then is in the page.
async function fit(page) {
  report.graph = await page.evaluate(() => {
    const canvas = window.app.canvas, nodes = window.app.graph._nodes;
    const view = canvas.canvas.getBoundingClientRect(); // beside the page's bars, or beneath them
    const x = Math.max(100, view.left + 20), y = Math.max(110, view.top + 20);
    if (!nodes.length) return null;
    const boxes = nodes.map((n) => [n.pos[0], n.pos[1] - 40, n.size[0], n.size[1] + 40]);
    boxes.push(...(window.app.graph._groups ?? []).map((group) => [...group.pos, ...group.size]));
    const left = Math.min(...boxes.map((box) => box[0])), top = Math.min(...boxes.map((box) => box[1]));
    const width = Math.max(...boxes.map((box) => box[0] + box[2])) - left;
    const height = Math.max(...boxes.map((box) => box[1] + box[3])) - top;
    const scale = Math.min((window.innerWidth - 100 - x) / width, (window.innerHeight - 80 - y) / height, 1);
    canvas.ds.scale = scale;
    canvas.ds.offset = [-left + (x - view.left) / scale, -top + (y - view.top) / scale];
    canvas.setDirty(true, true);
    return [x, y, width * scale, height * scale];
  });
  await page.waitForTimeout(1000);
}

// What the page would send to the server.
function prompt(page) {
  return page.evaluate(async () => (await window.app.graphToPrompt()).output);
}

// Opens the template browser at a pack; its cards.
async function templates(page, pack) {
  await page.evaluate(() => window.app.extensionManager.command.execute("Comfy.BrowseTemplates"));
  const dialog = page.locator("[role=dialog]");
  await dialog.getByText(pack, { exact: true }).last().click({ timeout: 600 * seconds });
  await page.waitForTimeout(3 * seconds); // the pictures load
  return dialog.locator("img").evaluateAll((images) =>
    images.map((image) => ({ title: image.alt, width: image.naturalWidth, height: image.naturalHeight })));
}

// Texts of what lies above the graph: dialogs and messages.
function dialogs(page) {
  return page.evaluate(() =>
    [...document.querySelectorAll(
      "[role=dialog], [role=alertdialog], [role=alert], .p-dialog, .p-toast-message, .comfy-modal",
    )]
      .filter((e) => e.getClientRects().length && getComputedStyle(e).display !== "none")
      .map((e) => e.innerText.trim())
      .filter((text, i, all) => text && all.indexOf(text) === i));
}

// What the frontend says of each node.
function nodes(page) {
  return page.evaluate(() => {
    const known = window.LiteGraph.registered_node_types;
    return window.app.graph._nodes.map((node) => {
      const widgets = {}, outside = {};
      for (const widget of node.widgets ?? []) {
        widgets[widget.name] = widget.value;
        let values = widget.options?.values;
        if (typeof values === "function") values = values(widget, node);
        if (values && !Array.isArray(values)) values = Object.keys(values);
        if (widget.type !== "combo" || !values) continue;
        if (!values.includes(widget.value)) outside[widget.name] = widget.value;
      }
      const inputs = node.inputs ?? [];
      const red = inputs.filter((input) => input.hasErrors || input.has_errors).map((input) => input.name);
      const loose = inputs
        .filter((input) => input.link == null && !input.widget && !(input.shape === 7)) // 7: optional
        .map((input) => input.name);
      return {
        id: String(node.id), type: node.type, title: node.title, missing: !(node.type in known),
        error: Boolean(node.has_errors), red, unconnected: loose, outside, widgets,
        told: window.app.lastNodeErrors?.[node.id]?.errors ?? [],
        size: [...node.size], pos: [...node.pos],
        pictures: (node.imgs ?? []).map((image) => [image.naturalWidth, image.naturalHeight]),
      };
    });
  });
}

// Queues the graph as the button does, and waits for the end.
async function run(page) {
  return page.evaluate(
    () =>
      new Promise((resolve) => {
        const api = window.app.api ?? window.comfyAPI.api.api;
        const seen = { progress: 0, previews: 0, executed: [] };
        const end = (status) => (event) =>
          setTimeout(() => resolve({ ...seen, status, detail: event?.detail }), 1500); // pictures load
        api.addEventListener("progress", () => seen.progress++);
        api.addEventListener("b_preview", () => seen.previews++);
        api.addEventListener("executed", (event) => seen.executed.push(String(event.detail.node)));
        api.addEventListener("execution_success", end("success"));
        api.addEventListener("execution_error", end("error"));
        api.addEventListener("execution_interrupted", end("interrupted"));
        setTimeout(() => resolve({ ...seen, status: "timeout" }), 900000);
        let started = false;
        api.addEventListener("execution_start", () => (started = true));
        window.app.queuePrompt(0, 1).then(() => // what it resolves to differs between versions
          setTimeout(() => {
            if (!started) resolve({ ...seen, status: "rejected", detail: window.app.lastNodeErrors });
          }, 5000));
      }),
  );
}
