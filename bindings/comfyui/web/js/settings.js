import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

app.registerExtension({
  name: "lmsd",
  settings: [
    {
      id: "lmsd.KSampler",
      name: "Offer distilled schedules in the KSampler list (restart ComfyUI)",
      tooltip: "Adds the sampler 'lmsd', which takes the file that fits best from models/lmsd_schedules.",
      type: "boolean",
      defaultValue: false,
    },
  ],
  setup() {
    // of hosts without texts on nodes
    api.addEventListener("lmsd.notice", ({ detail }) => {
      app.extensionManager?.toast?.add({ severity: "warn", summary: "lmsd", detail: detail.text, life: 15000 });
    });
  },
});
