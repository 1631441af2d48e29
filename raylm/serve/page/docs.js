"use strict";
// Shows the OpenAPI document without anything from elsewhere.

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

let schemas = {};
const resolved = (schema) => (schema?.$ref ? schemas[schema.$ref.split("/").pop()] : schema) ?? {};

/** A type in a few words. */
function kind(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  const many = schema.anyOf ?? schema.oneOf;
  if (many) return many.map(kind).join(" | ");
  if (schema.type === "array") return `${kind(schema.items ?? {})}[]`;
  if (schema.type === "object" && schema.additionalProperties) return `{name: ${kind(resolved(schema.additionalProperties))}}`;
  return schema.type ?? "any";
}

function fields(schema) {
  const { properties = {}, required = [] } = resolved(schema);
  const rows = Object.entries(properties).map(([name, field]) => element("tr", {},
    element("td", {}, element("code", {}, name), required.includes(name) ? " *" : ""),
    element("td", {}, element("code", {}, kind(field))),
    element("td", {}, field.description ?? "", field.default !== undefined && field.default !== null ? ` (default ${JSON.stringify(field.default)})` : "")));
  return element("table", {}, ...rows);
}

/** A body with all that is required. */
function example(schema) {
  const { properties = {}, required = [] } = resolved(schema);
  return Object.fromEntries(required.map((name) => [name, sample(properties[name])]));
}

function sample(schema) {
  const one = resolved((schema.anyOf ?? [schema])[0]);
  if (one.enum) return one.enum[0];
  if (one.type === "array") return [sample(one.items)];
  if (one.properties) return example(one);
  return one.type === "integer" ? 1 : "…";
}

function route(path, method, said) {
  const body = said.requestBody?.content?.["application/json"]?.schema;
  const answer = said.responses?.["200"]?.content?.["application/json"]?.schema;
  const parts = [element("h2", {}, element("code", {}, `${method.toUpperCase()} ${path}`), ` ${said.summary ?? ""}`)];
  const shown = body ? `curl -s ${location.origin}${path} -H 'Content-Type: application/json' -H "Authorization: Bearer $TOKEN" -d '${JSON.stringify(example(body))}'` : null;
  if (shown) parts.push(element("pre", {}, shown), element("h3", {}, "Body"), fields(body));
  if (answer) parts.push(element("h3", {}, "Answer"), fields(answer));
  const errors = Object.entries(said.responses ?? {}).filter(([status]) => status !== "200" && said.security);
  if (errors.length) parts.push(element("details", {}, element("summary", {}, "Other statuses"),
    element("ul", {}, ...errors.map(([status, { description }]) => element("li", {}, `${status}: ${description}`)))));
  return element("section", {}, ...parts);
}

fetch("openapi.json").then((answer) => answer.json()).then((document_) => {
  schemas = document_.components.schemas;
  document.getElementById("about").textContent = `${document_.info.description} Version ${document_.info.version}.`;
  const routes = Object.entries(document_.paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, said]) => route(path, method, said)));
  document.getElementById("routes").append(...routes);
});
