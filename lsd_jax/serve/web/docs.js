// Shows /openapi.json: paths first, then the messages of the WebSocket.

const add = (parent, name, text) => {
  const element = parent.appendChild(document.createElement(name));
  if (text) element.textContent = text;
  return element;
};

const api = await (await fetch("/openapi.json")).json();
const page = document.getElementById("docs");
const paths = add(page, "section");
add(paths, "p", api.info.description);
for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    add(paths, "h2", `${method.toUpperCase()} ${path}`);
    add(paths, "p", operation.summary);
    const codes = Object.entries(operation.responses);
    add(paths, "p", codes.map(([code, one]) => `${code} ${one.description}`).join(", "));
  }
}
const schemas = add(page, "section");
for (const [name, schema] of Object.entries(api.components.schemas)) {
  add(schemas, "h2", name);
  if (schema.description) add(schemas, "p", schema.description);
  add(schemas, "pre", JSON.stringify(schema.properties ?? schema, null, 1));
}
