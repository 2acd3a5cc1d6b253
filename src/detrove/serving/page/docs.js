// The OpenAPI description as a page, made here: the usual ones would ask the network.

const make = (tag, text = "", ...children) => {
  const element = Object.assign(document.createElement(tag), { textContent: text });
  element.append(...children);
  return element;
};

const kind = (schema) => {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(kind).filter((name) => name !== "null").join(" or ");
  if (schema.type === "array") return `list of ${kind(schema.items)}`;
  return schema.format === "binary" ? "file" : schema.type;
};

function table(heads, rows) {
  const head = make("tr", "", ...heads.map((text) => make("th", text)));
  const body = rows.map((cells) => make("tr", "", ...cells.map((text) => make("td", text))));
  return Object.assign(make("div", "", make("table", "", make("thead", "", head), make("tbody", "", ...body))), { className: "scroll" });
}

function fields(schema) {
  return Object.entries(schema.properties).map(([name, one]) => [
    name, kind(one), schema.required?.includes(name) ? "yes" : "", one.description ?? "",
  ]);
}

function operation(path, method, { summary, description, requestBody, responses }, schemas) {
  const section = make("section", "", make("h2", `${method.toUpperCase()} ${path}`), make("p", description ?? summary ?? ""));
  const form = requestBody?.content["multipart/form-data"]?.schema;
  if (form) {
    section.append(make("pre", `curl ${location.origin}${path} -F files=@photo.jpg`));
    section.append(table(["field", "is", "needed", ""], fields(form)));
    section.append(make("p", "Or as application/json, with the pictures in base64: {\"images\": [{\"name\": …, \"data\": …}], …}."));
  }
  const answer = responses["200"]?.content?.["application/json"]?.schema?.$ref;
  if (answer) {
    section.append(make("p", "Answers:"));
    section.append(table(["field", "is", "always", ""], fields(schemas[kind({ $ref: answer })])));
  }
  const problems = Object.entries(responses).filter(([status]) => Number(status) >= 400);
  if (problems.length) section.append(table(["status", "when"], problems.map(([status, one]) => [status, one.description])));
  return section;
}

const description = await (await fetch("/openapi.json")).json();
document.getElementById("about").textContent = description.info.description;
for (const [path, methods] of Object.entries(description.paths)) {
  for (const [method, one] of Object.entries(methods)) {
    document.getElementById("paths").append(operation(path, method, one, description.components.schemas));
  }
}
