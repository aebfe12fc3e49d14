import { app } from "../../../scripts/app.js";

app.registerExtension({
  name: "lmsd",
  settings: [
    {
      id: "lmsd.KSampler",
      name: "Offer distilled schedules in the KSampler list (restart ComfyUI)",
      tooltip: "Adds the sampler 'lmsd', which takes the newest fitting file from models/lmsd_schedules.",
      type: "boolean",
      defaultValue: false,
    },
  ],
});
