// What only a browser can do: colours of the pack's own wires, and a button that ends a search.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

const COLOURS = {
  TTRL_REWARD: "#e0a84b",
  TTRL_SETTINGS: "#5fb3a1",
  TTRL_REPORT: "#a58bd6",
  TTRL_RUN: "#d67c9c",
};
const SEARCHES = new Set(["TTRLSDELatentSearch", "TTRLSampler"]);

function addFinish(node) {
  const ask = () => api.fetchApi("/flow-ttrl/finish", { method: "POST" });
  const options = { serialize: false };
  const button = node.addWidget("button", "finish now, keep the best so far", null, ask, options);
  button.serialize = false; // values are stored by position
  button.tooltip = "End the running search before its budget is spent.";
}

const extension = {
  name: "flow_ttrl",
  setup() {
    Object.assign(app.canvas.default_connection_color_byType ?? {}, COLOURS);
    Object.assign(window.LGraphCanvas?.link_type_colors ?? {}, COLOURS);
  },
  nodeCreated(node) {
    if (SEARCHES.has(node.comfyClass)) addFinish(node);
  },
};

// The host serves this file under the folder's name and the project's, which may be two.
if (!app.extensions?.some(({ name }) => name === extension.name)) app.registerExtension(extension);
