// The official client of npm against a server: node openai_client.mjs BASE_URL MODEL. Prints what it got as one line of JSON.

import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const prompt = "def add(a, b):";
const messages = [{ role: "user", content: prompt }];
const greedy = { model, temperature: 0, max_tokens: 12 };
const schema = {
  type: "object",
  properties: { city: { enum: ["Paris", "Rome"] } },
  required: ["city"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "weather", parameters: schema, strict: true } }];

async function refused(promise) {
  try {
    await promise;
  } catch (error) {
    return { status: error.status, kind: error.constructor.name, param: error.param, code: error.code };
  }
  return null;
}

async function left(stream) {
  for await (const _ of stream) {
    stream.controller.abort();
    return true;
  }
  return false;
}

const got = {};
got.models = (await client.models.list()).data.map((one) => one.id);
got.text = (await client.completions.create({ ...greedy, prompt, n: 2 })).choices.map((one) => one.text);
got.chat = (await client.chat.completions.create({ ...greedy, messages })).choices[0].message.content;
got.streamed = "";
for await (const chunk of await client.chat.completions.create({
  ...greedy,
  messages,
  stream: true,
  stream_options: { include_usage: true },
})) {
  got.streamed += chunk.choices[0]?.delta.content ?? "";
  got.usage = chunk.usage ?? got.usage;
}
got.logprobs = (
  await client.chat.completions.create({ ...greedy, messages, logprobs: true, top_logprobs: 2 })
).choices[0].logprobs.content.length;
got.format = JSON.parse(
  (
    await client.chat.completions.create({
      ...greedy,
      max_tokens: 100,
      messages,
      response_format: { type: "json_schema", json_schema: { name: "trip", schema, strict: true } },
    })
  ).choices[0].message.content,
);
got.call = (
  await client.chat.completions.create({ ...greedy, max_tokens: 100, messages, tools, tool_choice: "required" })
).choices[0].message.tool_calls[0].function;
got.response = (await client.responses.create({ model, input: prompt, temperature: 0, max_output_tokens: 12 })).output_text;
got.events = "";
for await (const event of await client.responses.create({
  model,
  input: prompt,
  temperature: 0,
  max_output_tokens: 12,
  stream: true,
})) {
  if (event.type === "response.output_text.delta") got.events += event.delta;
  got.last = event.type;
}
got.left = await left(await client.chat.completions.create({ ...greedy, max_tokens: 1500, messages, stream: true }));
got.unknown = await refused(client.chat.completions.create({ ...greedy, model: "gpt-4", messages }));
got.absurd = await refused(client.chat.completions.create({ ...greedy, n: 1e9, messages }));
console.log(JSON.stringify(got));
