// A button on the search nodes: end the running search and keep the best so far.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const NODES = new Set(["TTRLSDELatentSearch", "TTRLSampler"]);

app.registerExtension({
  name: "flow_ttrl.finish",
  nodeCreated(node) {
    if (!NODES.has(node.comfyClass)) return;
    const ask = () => api.fetchApi("/flow-ttrl/finish", { method: "POST" });
    const button = node.addWidget("button", "finish now, keep the best", null, ask, { serialize: false });
    button.serialize = false; // widgets are stored by position
    button.tooltip = "Ends the running search before its budget is spent.";
  },
});
